import json
import os
import random
import signal
import subprocess
import sys

import pytest

from moe_asr.decoding.stream import HypothesisStream
from moe_asr.errors import UserError
from moe_asr.scoring.hypotheses import read_hypotheses, read_system

IDS = [f"utt-{i}" for i in range(7)]
SETTINGS = {"model": "abc", "search": {"kind": "greedy", "beam": (8,)}}
BATCHES = [IDS[4:], IDS[2:4], IDS[:2]]


def hypothesis(name):
    return {"id": name, "ref": "so, dass", "hyp": f"für {name}", "duration": 1.5}


def decode(folder, stop_after=None, **options):
    """Decodes as a command does, or ends after `stop_after` batches; returns the batches which it decoded."""
    decoded = []
    with HypothesisStream(folder, SETTINGS, IDS, **options) as stream:
        for batch in BATCHES:
            if stop_after is not None and len(decoded) == stop_after:
                return decoded
            if stream.missing(batch):
                decoded.append(batch)
                stream.write([hypothesis(name) for name in batch])
        if not stream.complete:
            stream.finish({"model": "exp/final"})
    return decoded


@pytest.fixture
def expected(tmp_path):
    decode(tmp_path / "never-stopped")
    return (tmp_path / "never-stopped/hyps.jsonl").read_bytes()


def test_result_is_what_scoring_reads_in_the_order_of_the_manifest(tmp_path):
    assert decode(tmp_path / "new/out") == BATCHES
    found = read_hypotheses(tmp_path / "new/out")
    assert [h.id for h in found] == IDS and found[3].hyp == "für utt-3"
    assert read_system(tmp_path / "new/out") == {"model": "exp/final"}


def test_counts_over_interruptions(tmp_path):
    for names, marks in ((IDS[:3], {"truncated": True}), (IDS[3:5], {}), (IDS[5:], {"truncated": True})):
        with HypothesisStream(tmp_path, SETTINGS, IDS) as stream:
            stream.write([{**hypothesis(name), **marks} for name in names])
            found = stream.count("truncated"), stream.count("other")
    assert found == (5, 0)


@pytest.mark.parametrize("stop_after", [0, 1, 2, 3])
def test_goes_on_where_it_stopped_with_the_same_bytes(tmp_path, expected, stop_after):
    out = tmp_path / "out"
    assert decode(out, stop_after) == BATCHES[:stop_after]
    assert decode(out) == BATCHES[stop_after:]
    assert (out / "hyps.jsonl").read_bytes() == expected
    assert decode(out) == [] and (out / "hyps.jsonl").read_bytes() == expected


def test_cut_off_anywhere_it_goes_on_to_the_same_bytes(tmp_path, expected):
    """What is on the disk after a crash is some beginning of what was written."""
    decode(tmp_path / "stopped", 2)
    written = (tmp_path / "stopped/hyps.jsonl").read_bytes()
    for size in range(0, len(written), 7):
        out = tmp_path / f"out-{size}"
        decode(out, 0)
        (out / "hyps.jsonl").write_bytes(written[:size])
        decode(out, 1)  # stopped a second time
        decode(out)
        assert (out / "hyps.jsonl").read_bytes() == expected, size


def test_killed_while_writing(tmp_path, expected):
    code = (
        "import sys, test_stream; from moe_asr.decoding.stream import HypothesisStream\n"
        "with HypothesisStream(sys.argv[1], test_stream.SETTINGS, test_stream.IDS) as stream:\n"
        "    stream.write([test_stream.hypothesis(name) for name in test_stream.BATCHES[0]])\n"
        "    print('written', flush=True)\n"
        "    import time; time.sleep(60)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([os.path.dirname(__file__), *sys.path])}
    command = [sys.executable, "-c", code, str(tmp_path / "out")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)
    try:
        assert process.stdout.readline() == b"written\n"
        with pytest.raises(UserError, match="another process is decoding"):
            decode(tmp_path / "out")
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert decode(tmp_path / "out") == BATCHES[1:]
    assert (tmp_path / "out/hyps.jsonl").read_bytes() == expected


def test_order_of_decoding_does_not_show(tmp_path, expected):
    with HypothesisStream(tmp_path / "out", SETTINGS, IDS) as stream:
        for name in random.Random(0).sample(IDS, len(IDS)):
            stream.write([hypothesis(name)])
            stream.write([hypothesis(name) | {"hyp": "a second time"}])
        stream.finish({})
    assert (tmp_path / "out/hyps.jsonl").read_bytes() == expected


@pytest.mark.parametrize("stop_after", [1, None])
def test_other_settings_are_refused_unless_restarted(tmp_path, stop_after):
    out = tmp_path / "out"
    decode(out, stop_after)
    before = (out / "hyps.jsonl").read_bytes()
    for settings in (SETTINGS | {"model": "x", "more": 1}, {"search": SETTINGS["search"], "more": 2}):
        with pytest.raises(UserError, match="with another model, more: ") as error:
            HypothesisStream(out, settings, IDS)
        assert "\n" not in str(error.value)
    assert (out / "hyps.jsonl").read_bytes() == before
    with HypothesisStream(out, SETTINGS | {"model": "x"}, IDS, restart=True) as stream:
        assert stream.missing(IDS) == IDS and not stream.complete
    with pytest.raises(UserError, match="another model"):
        decode(out)


@pytest.mark.parametrize(
    "lines, says",
    [
        (b"{broken\n", "hyps.jsonl:1 is damaged"),
        (b'{"id": "utt-0"}\n{"id": "utt-0"}\n', "hyps.jsonl:2 is twice"),
        (b'{"id": "foreign"}\n', "of no utterance"),
        (b'["utt-0"]\n', "damaged"),
        (b"\xff\xfe\n", "damaged"),
    ],
)
def test_damage_that_is_not_a_cut_off_end_is_refused(tmp_path, lines, says):
    decode(tmp_path, 0)
    (tmp_path / "hyps.jsonl").write_bytes(lines)
    with pytest.raises(UserError, match=says):
        decode(tmp_path)
    assert decode(tmp_path, restart=True) == BATCHES


def test_foreign_folder_is_left_alone(tmp_path):
    (tmp_path / "hyps.jsonl").write_text(json.dumps(hypothesis("x")) + "\n")
    with pytest.raises(UserError, match="no decode.json"):
        decode(tmp_path)
    (tmp_path / "decode.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        decode(tmp_path)
    assert json.loads((tmp_path / "hyps.jsonl").read_text()) == hypothesis("x")


def test_unfinished_decode_cannot_be_finished(tmp_path):
    with HypothesisStream(tmp_path, SETTINGS, IDS) as stream, pytest.raises(AssertionError, match="7 utterances"):
        stream.finish({})
    assert not (tmp_path / "system.json").exists()
