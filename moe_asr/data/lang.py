"""A lang folder, from which decoding graphs are made: which words there are, how tokens spell them, what follows what.

| file | what |
| --- | --- |
| `words.txt`, `tokens.txt` | symbols and ids; tokens end with the disambiguation symbols `#0`, `#1`, ... |
| `lexicon.txt` | words and their tokens |
| `L_disambig.fst.txt` | tokens to words, a transducer |
| `G.fst.txt` | sequences of words and their probabilities, an acceptor |

Names, symbols and OpenFst's text format are those of Kaldi and icefall. Words are what spaces separate.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from moe_asr.data.ngram import BACKOFF, BEGIN, END, NGrams, acceptor
from moe_asr.data.tokens import UNKNOWN, Tokens
from moe_asr.errors import UserError
from moe_asr.files import atomic_folder

EPSILON = "<eps>"
WORDS, TOKENS, LEXICON, L, G = "words.txt", "tokens.txt", "lexicon.txt", "L_disambig.fst.txt", "G.fst.txt"
HLG = "HLG.safetensors"
RESERVED = {EPSILON, BACKOFF, BEGIN, END}
Entry = tuple[str, list[int]]


@dataclass(frozen=True)
class Lang:
    """A lang folder that was read.

    Args:
        tokens: written forms of the tokens, without disambiguation symbols
        digest: SHA-256 of what decoding graphs are made from
    """

    folder: Path
    tokens: list[str]
    digest: str


def spell(words: Iterable[str], tokens: Tokens) -> list[Entry]:
    """The tokens of each word, sorted; words for which there are no tokens, and reserved ones, are left out."""
    entries = ((word, tokens.encode(word)) for word in sorted(set(words) - RESERVED))
    return [(word, ids) for word, ids in entries if ids and UNKNOWN not in ids]


def write_lang(folder: str | Path, lexicon: Sequence[Entry], tokens: Tokens, ngrams: NGrams | None = None) -> None:
    """Writes a lang folder, atomically.

    Args:
        lexicon: from `spell`
        ngrams: language model; without one all words may follow each other, at no cost

    Raises:
        UserError: there is no word.
    """
    if not lexicon:
        raise UserError("no word can be written with these tokens: were they made from other texts?")
    symbols = [EPSILON, *(word for word, _ in lexicon), BACKOFF, BEGIN, END]
    words = {word: i for i, word in enumerate(symbols)}
    marked = _disambiguate(lexicon, tokens.size)
    last = max((ids[-1] for _, ids in marked), default=0)
    pieces = [tokens.piece(i) for i in range(tokens.size)]
    pieces += [f"#{i}" for i in range(max(last - tokens.size, 0) + 1)]
    with atomic_folder(folder) as new:
        _write_lines(new / WORDS, (f"{word} {i}" for word, i in words.items()))
        _write_lines(new / TOKENS, (f"{piece} {i}" for i, piece in enumerate(pieces)))
        _write_lines(new / LEXICON, (" ".join([word, *(pieces[i] for i in ids)]) for word, ids in lexicon))
        _write_lines(new / L, _transducer(marked, words, tokens.size, _separator(lexicon[0], tokens)))
        ngrams = ngrams if ngrams is not None else {(word,): (0.0, 0.0) for word in (*symbols[1:-3], END)}
        _write_lines(new / G, acceptor(ngrams, {word: words[word] for word in symbols[1:-2]}))


def read_lang(folder: str | Path) -> Lang:
    """Reads what identifies a lang folder.

    Raises:
        UserError: it is none.
    """
    folder = Path(folder)
    digest = hashlib.sha256()
    for name in (WORDS, TOKENS, L, G):
        if not (folder / name).is_file():
            raise UserError(f"no lang folder at {folder} (it has no {name}): make it with python -m moe_asr.bin.lang")
        digest.update((folder / name).read_bytes())
    lines = (folder / TOKENS).read_text(encoding="utf-8").removesuffix("\n").split("\n")
    pieces = [line.rpartition(" ")[0] for line in lines]
    num_tokens = max((i for i, piece in enumerate(pieces) if piece == BACKOFF), default=0)
    return Lang(folder, pieces[:num_tokens], digest.hexdigest())


def _disambiguate(lexicon: Sequence[Entry], first: int) -> list[Entry]:
    """Ends with #1, #2, ... (ids first + 1, ...) what is written like another word, or like the beginning of one."""
    same = Counter(tuple(ids) for _, ids in lexicon)
    prefixes = {tuple(ids[:n]) for _, ids in lexicon for n in range(1, len(ids))}
    used, marked = Counter(), []
    for word, ids in lexicon:
        key = tuple(ids)
        if same[key] > 1 or key in prefixes:
            used[key] += 1
            ids = [*ids, first + used[key]]
        marked.append((word, ids))
    return marked


def _separator(entry: Entry, tokens: Tokens) -> list[int]:
    """The tokens between two words, which characters have and pieces do not."""
    word, ids = entry
    both = tokens.encode(f"{word} {word}")
    return both[len(ids) : -len(ids)]


def _transducer(lexicon: Sequence[Entry], words: dict[str, int], mark: int, separator: list[int]) -> Iterator[str]:
    """Arcs of L: `begin` -tokens of a word-> `end`, and from there to `begin` by the separator, if there is one.

    The loops at both ends of a word let the back-off arcs of G through.
    """
    start, begin, end, free = (0, 1, 2, 3) if separator else (0, 0, 0, 1)
    if separator:
        assert len(separator) == 1, separator
        yield f"{start} {begin} 0 0"
        yield f"{end} {begin} {separator[0]} 0"
    for word, ids in lexicon:
        source = begin
        for position, token in enumerate(ids):
            last = position == len(ids) - 1
            target = end if last else free
            yield f"{source} {target} {token} {0 if position else words[word]}"
            source, free = target, free if last else free + 1
    for state in sorted({start, end}):
        yield f"{state} {state} {mark} {words[BACKOFF]}"
        yield f"{state}"


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in lines)
