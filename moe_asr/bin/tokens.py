"""Makes a token set from the texts of manifests."""

from dataclasses import dataclass
from typing import Literal

from moe_asr.config import run_command


@dataclass(frozen=True)
class TokensConfig:
    """Learns characters, words or pieces of words from the texts of manifests.

    Args:
        manifests: Files made by bin/prepare.
        out_dir: Folder for tokens.model and tokens.txt.
        kind: Characters, words (what spaces separate), or pieces by BPE or unigram.
        vocab_size: Number of tokens with the special ones; for characters and words an upper limit, and 0 takes all.
        languages: Codes of languages that get a token each, for a model that is told, or tells, which one it hears.
    """

    manifests: list[str]
    out_dir: str
    kind: Literal["char", "word", "bpe", "unigram"] = "char"
    vocab_size: int = 0
    languages: tuple[str, ...] = ()


def make_tokens(config: TokensConfig) -> None:
    from moe_asr.data.manifests import read_manifests
    from moe_asr.data.tokens import train_tokens

    texts = [utterance.text for utterance in read_manifests(config.manifests)]
    tokens = train_tokens(texts, config.out_dir, config.kind, config.vocab_size, config.languages)
    print(f"{config.out_dir}: {tokens.size} {config.kind} tokens from {len(texts)} texts")
    if config.languages:
        print(f"{config.out_dir}: of these, one for each of {len(config.languages)} languages")


if __name__ == "__main__":
    run_command(TokensConfig, make_tokens)
