"""Batches of pairs: what stands where, from any position, with little padding."""

import json
from itertools import islice

import pytest

from moe_asr.data.text_batches import IGNORED, Pair, TextDataConfig, TextLoader, read_pairs
from moe_asr.data.unit_noise import NoiseConfig
from moe_asr.data.unit_tokens import BLANK, build_tokenizer, is_unit
from moe_asr.errors import UserError

PROMPT = "?<speech>="
NOISE = NoiseConfig(substitute=0.1, drop=0.1, repeat=3, blank=0.2)


def pairs(number=60):
    letters = "abcdefg"
    words = [letters[n % 7] * (1 + n % 5) for n in range(number)]
    return [Pair(tuple(f"[{c}]" for c in word), word, f"t:{n}") for n, word in enumerate(words)]


def loader(found=None, max_positions=100, **settings):
    found = pairs() if found is None else found
    units = {unit for pair in pairs() for unit in pair.source}
    tokenizer = build_tokenizer([pair.target for pair in pairs()], units, PROMPT)
    settings = {"max_tokens": 80, "num_buckets": 5, **settings}
    return TextLoader(TextDataConfig(**settings), found, tokenizer, PROMPT, max_positions), tokenizer


def same(one, other):
    return one.ids == other.ids and one.tokens_NM.equal(other.tokens_NM) and one.next_NM.equal(other.next_NM)


def written(tokenizer, ids):
    return "".join(tokenizer.id_to_token(i) for i in ids.tolist())


def test_layout_and_what_counts():
    both = {}
    for loss_on in ("target", "all"):
        batches, tokenizer = loader([Pair(("[a]", "[b]"), "cd", "t:1")], loss_on=loss_on)
        [both[loss_on]] = batches
    assert written(tokenizer, both["all"].tokens_NM[0]) == "?[a][b]=cd"
    assert written(tokenizer, both["all"].next_NM[0]) == "[a][b]=cd<|end|>"
    assert both["target"].tokens_NM.equal(both["all"].tokens_NM)
    assert both["target"].next_NM[0, :3].tolist() == [IGNORED] * 3
    assert both["target"].next_NM[0, 3:].equal(both["all"].next_NM[0, 3:])


def test_padding_does_not_count():
    batches, _ = loader(pairs(2), max_tokens=80, loss_on="all", num_buckets=1)
    [batch] = batches
    lengths = sorted((batch.next_NM >= 0).sum(1).tolist())
    assert lengths == [4, 6] and batch.tokens_NM.shape == (2, 6)


def test_a_position_restores_exactly():
    whole, _ = loader(noise=NOISE, join=12)
    for epoch in (0, 1):
        whole.seek(epoch)
        expected = list(whole)
        for start in (0, 1, len(expected) - 1):
            again, _ = loader(noise=NOISE, join=12)
            again.seek(epoch, start)
            assert len(again) == len(expected) - start
            assert all(map(same, again, expected[start:]))


def test_epochs_differ_unless_not_shuffled():
    random, _ = loader(noise=NOISE)
    fixed, _ = loader(noise=NOISE, shuffle=False)
    for batches, equal in ((random, False), (fixed, True)):
        first = next(iter(batches))
        batches.seek(1)
        assert same(first, next(iter(batches))) == equal


def test_every_pair_comes_once_and_batches_are_full():
    batches, _ = loader(noise=NOISE, max_tokens=200, num_buckets=10)
    found = list(batches)
    assert sorted(name for batch in found for name in batch.ids) == sorted(pair.place for pair in pairs())
    # the end is in no input, so a batch has one position less than was planned
    assert all((batch.tokens_NM.shape[1] + 1) * len(batch) <= 200 for batch in found)


def test_sorting_by_length_saves_padding():
    waste = []
    for num_buckets in (1, 30):
        batches, _ = loader(pairs(2000), noise=NOISE, max_tokens=400, num_buckets=num_buckets, loss_on="all")
        real = positions = 0
        for batch in batches:
            real, positions = real + int((batch.next_NM >= 0).sum()), positions + batch.next_NM.numel()
        waste.append(1 - real / positions)
    assert waste[1] < waste[0] / 5


def test_where_to_look_for_what_is_written():
    """Each unit that is left looks back at the two before, each character at the one before and where it is written at
    its unit, also across joined pairs.
    """
    noise = NoiseConfig(drop=0.2, repeat=2, blank=0.5, blanks=2)
    found, tokenizer = loader(join=30, noise=noise, max_tokens=200, max_positions=200)
    name, looked, vanished = tokenizer.id_to_token, 0, 0
    for batch in found:
        for tokens_M, next_M, (back_M, further_M, look_M) in zip(batch.tokens_NM, batch.next_NM, batch.look_NLM):
            places = (next_M >= 0).nonzero().flatten().tolist()
            assert back_M[places[2:]].tolist() == places[1:-1] and back_M[places[:2]].max() < 0
            places.pop()  # the end
            back_M = back_M[: places[0] + 1]
            begins = sorted({*back_M[back_M >= 0].tolist(), *(back_M >= 0).nonzero().flatten().tolist()})
            assert back_M[begins[1:]].tolist() == begins[:-1] and all(is_unit(name(tokens_M[i])) for i in begins)
            assert further_M[begins[2:]].tolist() == begins[:-2] and (further_M >= 0).sum() == max(0, len(begins) - 2)
            assert not any(name(tokens_M[i]) == BLANK for i in begins)
            for m in places:
                if look_M[m] >= 0:
                    assert name(tokens_M[look_M[m]]) == f"[{name(next_M[m])}]"
            seen = look_M[places][look_M[places] >= 0].tolist()
            assert seen == begins or len(begins) < 2
            looked, vanished = looked + len(seen), vanished + len(places) - len(seen)
            assert look_M[(next_M < 0)].max() < 0
    assert looked > 100 and vanished > 10


def test_pairs_with_other_numbers_of_units_and_characters_are_not_looked_at():
    found, _ = loader([Pair(("[a]", "[b]"), "abc", ""), Pair(("[a]", "[b]", "[c]"), "abc", "")])
    (batch,) = found
    back_NM, further_NM, look_NM = batch.look_NLM.unbind(1)
    assert sorted((look_NM >= 0).sum(1).tolist()) == [0, 3] and sorted((further_NM >= 0).sum(1)) == [0, 1]
    assert sorted((back_NM >= 0).sum(1)) == [3, 4]  # two of them characters


def test_short_pairs_are_joined():
    batches, tokenizer = loader(join=12, max_tokens=30, loss_on="all")
    seen = []
    for batch in batches:
        for tokens, following in zip(batch.tokens_NM, batch.next_NM):
            source, target = written(tokenizer, tokens[: int((following >= 0).sum())]).removeprefix("?").split("=")
            assert source == "".join(f"[{c}]" for c in target) and 2 * len(target) <= 12
            seen.append(target)
    assert sorted("".join(seen)) == sorted("".join(pair.target for pair in pairs()))
    assert len(seen) < len(pairs())
    one, _ = loader(join=12, max_tokens=30)
    one.seek(1)
    assert not all(map(same, islice(one, 3), islice(batches, 3)))


def test_unknown_units_and_characters_are_unknown_tokens():
    batches, tokenizer = loader([Pair(("[x]",), "x", "t:1")], noise=NoiseConfig(substitute=1.0), loss_on="all")
    [batch] = batches
    assert written(tokenizer, batch.next_NM[0]) == "<unk>=<unk><|end|>"


def test_too_long_is_refused_before_training():
    with pytest.raises(UserError, match="t:4: a sequence may have 28 tokens with noise, more than max_positions .* 20"):
        loader(max_positions=20, noise=NOISE)
    with pytest.raises(UserError, match="more than max_tokens, 20"):
        loader(max_tokens=20, noise=NOISE)
    with pytest.raises(UserError, match="join 30: a sequence may have 123 tokens"):
        loader(join=30, noise=NOISE)


def test_reads_pairs(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"source": "[d] [a]", "target": "大"}) + "\n\n")
    assert read_pairs([str(path)]) == [Pair(("[d]", "[a]"), "大", f"{path}:1")]


@pytest.mark.parametrize(
    "line, says",
    [
        ("", "is empty: it must hold lines"),
        ("not json", ":1 is no line like"),
        ('["a"]', ":1 is no line like"),
        ('{"source": "[a]"}', ":1 is no line like"),
        ('{"source": 1, "target": "x"}', ":1 is no line like"),
        ('{"source": "[a]", "target": ""}', ":1 is no line like"),
        ('{"source": "", "target": "x"}', ":1 is no line like"),
        ('{"source": "[a] b", "target": "x"}', "'b' in the source is no unit"),
        ('{"source": "[-]", "target": "x"}', r"'\[-\]' in the source is no unit"),
    ],
)
def test_bad_lines_are_named(tmp_path, line, says):
    path = tmp_path / "a.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(UserError, match=says) as caught:
        read_pairs([str(path)])
    assert "\n" not in str(caught.value)


def test_no_files():
    with pytest.raises(UserError, match="no text files"):
        read_pairs([])
