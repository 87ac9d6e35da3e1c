import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_asr.data.manifests import Utterance
from moe_asr.data.splits import group_by, hold_out, read_parts, read_speakers, split, spread
from moe_asr.data.tables import Row
from moe_asr.errors import UserError

PARTS = (0.4, 0.2, 0.4)


def speech(count, speaker="anna"):
    return [Utterance(f"{speaker}-{n}", "a.wav", 16000, 16000, "a", speaker) for n in range(count)]


def test_contiguous_cuts_in_order():
    parts = split(speech(10), PARTS, "contiguous")
    assert [[u.id for u in part] for part in parts] == [
        ["anna-0", "anna-1", "anna-2", "anna-3"],
        ["anna-4", "anna-5"],
        ["anna-6", "anna-7", "anna-8", "anna-9"],
    ]


@given(st.integers(0, 60), st.sampled_from(["contiguous", "random"]), st.integers(0, 3))
def test_every_utterance_is_in_one_part_and_parts_are_near_their_fractions(count, order, seed):
    parts = split(speech(count), PARTS, order, seed)
    if parts is None:
        assert count < 3
        return
    assert sorted(u.id for part in parts for u in part) == sorted(u.id for u in speech(count))
    for part, fraction in zip(parts, PARTS):
        assert part and abs(len(part) - fraction * count) <= 1
        assert [int(u.id[5:]) for u in part] == sorted(int(u.id[5:]) for u in part)


def test_random_depends_on_seed_and_speaker_alone():
    first = split(speech(20), PARTS, "random", 0)
    assert first == split(speech(20), PARTS, "random", 0) != split(speech(20), PARTS, "contiguous")
    assert first != split(speech(20), PARTS, "random", 1)
    places = [[u.id[5:] for u in part] for part in first]
    assert places != [[u.id[4:] for u in part] for part in split(speech(20, "bob"), PARTS, "random", 0)]


@pytest.mark.parametrize("count", [0, 1, 2])
@pytest.mark.parametrize("order", ["contiguous", "random"])
def test_too_few_utterances(count, order):
    assert split(speech(count), PARTS, order) is None


def test_group_by_keeps_orders_and_names_who_is_unknown():
    mixed = [*speech(2, "b"), *speech(2, "a"), *speech(1, "b2")]
    assert [[u.id for u in own] for own in group_by(mixed, ["a", "b"], "x")] == [["a-0", "a-1"], ["b-0", "b-1"]]
    with pytest.raises(UserError, match="all.jsonl has no utterance of speakers c, d; it has 3 speakers, such as a"):
        group_by(mixed, ["a", "c", "d"], "all.jsonl")


def test_spread_takes_groups_in_proportion():
    names = [f"a{n}" for n in range(20)] + [f"b{n}" for n in range(10)]
    assert [name[0] for name in spread(names, 6)] == list("aaaabb") and len(set(spread(names, 30))) == 30
    with pytest.raises(UserError, match="31 speakers are wanted"):
        spread(names, 31)


def test_lists_of_speakers(tmp_path):
    path = tmp_path / "speakers.txt"
    path.write_text("# targets\n19\n\n 26  # a woman\n")
    assert read_speakers(path) == ["19", "26"]
    path.write_text("19\n26\n19\n")
    with pytest.raises(UserError, match="names speaker 19 twice"):
        read_speakers(path)
    path.write_text("# none\n")
    with pytest.raises(UserError, match="names no speaker"):
        read_speakers(path)
    path.write_bytes(b"19\nZo\xeb\n")
    with pytest.raises(UserError, match="speakers.txt:2: not UTF-8"):
        read_speakers(path)
    with pytest.raises(UserError, match="no list of speakers at"):
        read_speakers(tmp_path / "other.txt")


def test_parts():
    assert read_parts(["train=0.4", "dev=.2", "test=0.4"]) == {"train": 0.4, "dev": 0.2, "test": 0.4}
    for wrong in (["a"], ["a=x", "b=1"], ["a=0.5", "a=0.5"], ["a=1.5"], ["=1"], ["a=nan"]):
        with pytest.raises(UserError, match="name=fraction"):
            read_parts(wrong)
    for wrong in ([], ["a=0.5", "b=0.4"]):
        with pytest.raises(UserError, match="sum to"):
            read_parts(wrong)


def test_held_out_speakers_are_others_and_near_the_share():
    utterances = [
        Row(f"{name}{k}", "a", "t", name) for name, n in dict(a=50, b=8, c=30, d=12).items() for k in range(n)
    ]
    for seed in range(5):
        train, dev = hold_out(utterances, 0.2, seed)
        assert not {u.speaker for u in train} & {u.speaker for u in dev}
        assert sorted(train + dev, key=utterances.index) == utterances and 8 <= len(dev) <= 30
        assert hold_out(utterances, 0.2, seed) == (train, dev)
    assert {u.speaker for u in hold_out(utterances, 0.01)[1]} == {"b"}, "at least one speaker, the smallest"
    assert {u.speaker for u in hold_out(utterances, 0.99)[0]}, "one is left"
    with pytest.raises(UserError, match="utterances of 1 speakers cannot be divided by speakers"):
        hold_out(utterances[:3], 0.2)
