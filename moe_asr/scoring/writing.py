"""Which unit errors are counted in, by how a language is written.

| written | languages | unit |
| --- | --- | --- |
| without spaces between words | zh cmn yue wuu nan hak gan hsn lzh ja th lo my shn km bo dz | characters: CER |
| with spaces | all others, Korean and Vietnamese among them | words: WER |

These are Chinese in its varieties, Japanese, Thai, Lao, Burmese, Shan, Khmer, Tibetan and Dzongkha. Where words are not
separated, what a word is would be the choice of a segmenter, and its errors would be counted too.
Languages that are written in two ways, as Min Nan in characters and in Latin letters, count in characters.
"""

from __future__ import annotations

import re
from typing import Literal, Union

from moe_asr.errors import UserError
from moe_asr.scoring.align import Metric

MetricChoice = Union[Metric, Literal["auto"]]
WITHOUT_SPACES = frozenset("zh cmn yue wuu nan hak gan hsn lzh ja th lo my shn km bo dz".split())
_MANDARIN = ("zh", "cmn")


def metric_of(metric: MetricChoice, language: str, utterance: str = "") -> Metric:
    """The metric itself, or for `auto` cer or wer by the language: zh-CN and cmn_hans_cn are read as zh and cmn.

    Args:
        utterance: named where its language is not known

    Raises:
        UserError: `auto` without a language
    """
    if metric != "auto":
        return metric
    if not language:
        raise UserError(
            f"metric auto goes by the language, and utterance '{utterance}' has none: give wer, cer or mer, or add the "
            "column 'language' to the table, prepare and decode again"
        )
    return "cer" if _short(language) in WITHOUT_SPACES else "wer"


def normaliser_of(normaliser: str, metric: MetricChoice, language: str) -> str:
    """The normaliser for a language: with metric `auto`, `multilingual` becomes `mandarin` for Mandarin."""
    mandarin = metric == "auto" and normaliser == "multilingual" and _short(language) in _MANDARIN
    return "mandarin" if mandarin else normaliser


def _short(language: str) -> str:
    return re.split("[-_]", language)[0].lower()
