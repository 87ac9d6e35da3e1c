"""Makes a lang folder, for decoding with k2."""

from dataclasses import dataclass

from moe_asr.config import run_command


@dataclass(frozen=True)
class LangConfig:
    """Makes what decoding graphs are built from: words, how tokens spell them, and a language model.

    Args:
        manifests: Files made by bin/prepare; their texts name the words, and teach the bigram.
        tokens: Token set of the recogniser.
        out_dir: Lang folder to write.
        language_model: bigram, learned from the texts; none, any words in any order; or an ARPA file, whose words are
            added.
        normaliser: Text normaliser that makes the words of an ARPA file like those of the texts.
    """

    manifests: list[str]
    tokens: str
    out_dir: str
    language_model: str = "bigram"
    normaliser: str = "none"


def make_lang(config: LangConfig) -> None:
    from moe_asr.data.lang import RESERVED, spell, write_lang
    from moe_asr.data.manifests import read_manifests
    from moe_asr.data.ngram import learn_bigram, read_arpa
    from moe_asr.data.tokens import Tokens

    tokens = Tokens(config.tokens)
    texts = [utterance.text for utterance in read_manifests(config.manifests)]
    words = {word for text in texts for word in text.split()}
    ngrams = None
    if config.language_model not in ("bigram", "none"):
        ngrams = read_arpa(config.language_model, config.normaliser)
        words |= {word for key in ngrams for word in key}
    lexicon = spell(words, tokens)
    if config.language_model == "bigram":
        ngrams = learn_bigram(texts, [word for word, _ in lexicon])
    write_lang(config.out_dir, lexicon, tokens, ngrams)
    left = len(words - RESERVED) - len(lexicon)
    print(f"{config.out_dir}: {len(lexicon):,} words" + (f"; {left:,} that these tokens cannot write" if left else ""))


if __name__ == "__main__":
    run_command(LangConfig, make_lang)
