"""Everyday sentences of a small grammar, as characters and as pinyin with the numbers of the tones."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

_WORDS = {
    "who": "我 wo3, 你 ni3, 他 ta1, 老人 lao3 ren2, 朋友 peng2 you5, 学生 xue2 sheng5",
    "day": "今天 jin1 tian1, 明天 ming2 tian1, 昨天 zuo2 tian1",
    "part": "早上 zao3 shang5, 中午 zhong1 wu3, 晚上 wan3 shang5",
    "number": "二 er4, 三 san1, 四 si4, 五 wu3, 六 liu4, 七 qi1, 八 ba1, 九 jiu3, 十 shi2",
    "place": "学校 xue2 xiao4, 城里 cheng2 li3, 山上 shan1 shang5, 河边 he2 bian1, 商店 shang1 dian4, 家里 jia1 li3",
    "act": "看书 kan4 shu1, 喝水 he1 shui3, 喝牛奶 he1 niu2 nai3, 吃热面 chi1 re4 mian4, 唱歌 chang4 ge1,"
    " 说话 shuo1 hua4, 等人 deng3 ren2, 买肉 mai3 rou4",
    "weather": "很冷 hen3 leng3, 很热 hen3 re4, 下雨 xia4 yu3, 有风 you3 feng1",
    "with": "和 he2",
    "go": "去 qu4",
    "at": "在 zai4",
    "hour": "点 dian3",
    "piece": "个 ge4",
    "will": "要 yao4",
    "dislike": "不想 bu4 xiang3",
}
_TEMPLATES = (
    "{day} {part} {place} {weather}",
    "{who} {day} {number} {hour} {go} {place}",
    "{who} {with} {who} {at} {place} {act}",
    "{number} {piece} {who} {part} {at} {place} {act}",
    "{who} {day} {part} {will} {act}",
    "{who} {dislike} {part} {go} {place} {act}",
)
_DIGITS = str.maketrans("二三四五六七八九", "23456789")
_TRADITIONAL = str.maketrans("学里边个热风说话点买书", "學裡邊個熱風說話點買書")


@dataclass(frozen=True)
class Sentence:
    """Words of characters, and their syllables."""

    words: tuple[str, ...]
    pinyin: tuple[str, ...]

    @property
    def text(self) -> str:
        return "".join(self.words)

    def with_digits(self) -> str:
        """Its numbers as people may write them: 7点, 10个."""
        return self.text.replace("十", "10").translate(_DIGITS)

    def traditional(self) -> str:
        """In traditional characters."""
        return self.text.translate(_TRADITIONAL)


def sentence(generator: random.Random) -> Sentence:
    """One random sentence, such as 我今天七点去学校."""
    slots = re.findall(r"\{(\w+)\}", generator.choice(_TEMPLATES))
    words, pinyin = [], []
    for slot in slots:
        word, *syllables = generator.choice(_WORDS[slot].split(", ")).split()
        words.append(word)
        pinyin += syllables
    return Sentence(tuple(words), tuple(pinyin))


def sentences(count: int, generator: random.Random, unlike: set[str] = frozenset()) -> list[Sentence]:
    """Random sentences, the texts of which are not among `unlike`."""
    found: list[Sentence] = []
    while len(found) < count:
        candidate = sentence(generator)
        if candidate.text not in unlike:
            found.append(candidate)
    return found
