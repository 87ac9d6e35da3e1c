import itertools
from collections import defaultdict

import pytest

from moe_asr.data.lang import EPSILON, read_lang, spell, write_lang
from moe_asr.data.ngram import learn_bigram
from moe_asr.data.tokens import train_tokens
from moe_asr.errors import UserError

TEXTS = ["the cat sat on the mat", "a cat", "thin hats", "the hat a cat sat on", "in an attic"] * 3


@pytest.fixture(params=["char", "bpe"])
def tokens(request, tmp_path):
    return train_tokens(TEXTS, tmp_path / "tokens", request.param, 0 if request.param == "char" else 24)


def words_of(texts):
    return {word for text in texts for word in text.split()}


def symbols(path):
    pairs = [line.rsplit(" ", 1) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [int(number) for _, number in pairs] == list(range(len(pairs)))
    return [symbol for symbol, _ in pairs]


def read_fst(path):
    """Arcs by state, (to, in, out), and final states."""
    arcs, finals = defaultdict(list), set()
    for line in path.read_text(encoding="utf-8").splitlines():
        numbers = [int(n) for n in line.split()]
        if len(numbers) == 1:
            finals.add(numbers[0])
        else:
            arcs[numbers[0]].append(tuple(numbers[1:]))
    return arcs, finals


def outputs(fst, ids, mark):
    """All outputs of a transducer for an input; tokens from `mark` on need no input, and their loops give nothing."""
    arcs, finals = fst
    found, todo, seen = set(), [(0, 0, ())], set()
    while todo:
        state, place, out = todo.pop()
        if (state, place, out) in seen:
            continue
        seen.add((state, place, out))
        if place == len(ids) and state in finals:
            found.add(out)
        for target, label, word in arcs[state]:
            more = (word,) if word and not (label >= mark and target == state) else ()
            if label == 0 or label >= mark:
                todo.append((target, place, out + more))
            elif place < len(ids) and label == ids[place]:
                todo.append((target, place + 1, out + more))
    return found


def test_every_sequence_of_words_is_spelled_as_the_tokens_do(tmp_path, tokens):
    lexicon = spell(words_of(TEXTS), tokens)
    write_lang(tmp_path / "lang", lexicon, tokens)
    names = symbols(tmp_path / "lang/words.txt")
    fst = read_fst(tmp_path / "lang/L_disambig.fst.txt")
    for text in [*TEXTS[:5], "hat", "a", "attic a attic", ""]:
        (found,) = outputs(fst, tokens.encode(text), tokens.size)
        assert " ".join(names[i] for i in found) == text
    for wrong in [tokens.encode("xat"), [*tokens.encode("the cat")[:-1], 1], tokens.encode("the ca")]:
        assert not outputs(fst, wrong, tokens.size)


def test_files_name_words_and_tokens(tmp_path, tokens):
    lexicon = spell(words_of(TEXTS) | {"<s>", "#0"}, tokens)
    write_lang(tmp_path / "lang", lexicon, tokens, learn_bigram(TEXTS, [word for word, _ in lexicon]))
    names = symbols(tmp_path / "lang/words.txt")
    assert names == [EPSILON, *sorted(words_of(TEXTS)), "#0", "<s>", "</s>"]
    pieces = symbols(tmp_path / "lang/tokens.txt")
    assert pieces[: tokens.size] == [tokens.piece(i) for i in range(tokens.size)]
    assert pieces[tokens.size :] and all(p == f"#{i}" for i, p in enumerate(pieces[tokens.size :]))
    lines = (tmp_path / "lang/lexicon.txt").read_text(encoding="utf-8").splitlines()
    assert [line.split()[0] for line in lines] == sorted(words_of(TEXTS))
    for line in lines:
        word, *spelling = line.split()
        assert spelling == [tokens.piece(i) for i in tokens.encode(word)]
    lang = read_lang(tmp_path / "lang")
    assert lang.tokens == pieces[: tokens.size] and len(lang.digest) == 64


def test_prefixes_and_homographs_are_told_apart(tmp_path, tokens):
    spelled = {"a": [3], "ab": [3, 4], "also": [3], "c": [5], "abd": [3, 4, 5], "see": [5, 4], "sea": [5, 4]}
    lexicon = list(spelled.items())
    write_lang(tmp_path / "lang", lexicon, tokens)
    arcs, _ = read_fst(tmp_path / "lang/L_disambig.fst.txt")
    ends = {state for state in arcs if (state, tokens.size) in [(to, label) for to, label, _ in arcs[state]]}
    begin = next(state for state in arcs if any(label == 3 for _, label, _ in arcs[state]))
    paths = []
    for arc in arcs[begin]:
        if arc[1] < tokens.size:
            path = [arc]
            while path[-1][0] not in ends:
                path += arcs[path[-1][0]]
            paths.append(tuple(label for _, label, _ in path))
    m = tokens.size
    assert sorted(paths) == sorted(
        [(3, m + 1), (3, 4, m + 1), (3, m + 2), (5, m + 1), (3, 4, 5), (5, 4, m + 1), (5, 4, m + 2)]
    )
    assert not any(b[: len(a)] == a for a, b in itertools.permutations(paths, 2))
    assert symbols(tmp_path / "lang/tokens.txt")[m:] == ["#0", "#1", "#2"]


def test_words_that_cannot_be_written_are_left_out(tmp_path, tokens):
    assert [word for word, _ in spell(["cat", "zebra", "hat", "#0"], tokens)] == ["cat", "hat"]
    with pytest.raises(UserError, match="no word can be written"):
        write_lang(tmp_path / "lang", spell(["zebra"], tokens), tokens)


def test_digest_tells_languages_apart(tmp_path, tokens):
    digests = set()
    for number, words in enumerate([["cat"], ["cat", "hat"], ["cat"]]):
        write_lang(tmp_path / str(number), spell(words, tokens), tokens)
        digests.add(read_lang(tmp_path / str(number)).digest)
    assert len(digests) == 2


def test_missing_file_is_named(tmp_path, tokens):
    write_lang(tmp_path / "lang", spell(["cat"], tokens), tokens)
    (tmp_path / "lang/G.fst.txt").unlink()
    with pytest.raises(UserError, match=r"no lang folder at .*lang \(it has no G.fst.txt\)"):
        read_lang(tmp_path / "lang")
