import pytest

from moe_asr.bin.split_speakers import SplitConfig, split_speakers
from moe_asr.config import run_command
from moe_asr.data.manifests import Utterance, read_manifest, write_manifest


@pytest.fixture
def run(tmp_path):
    counts = {"anna": 10, "bob": 2, "carl": 5}
    rows = [Utterance(f"{name}-{n}", "a.wav", 16000, 16000, "a", name) for name in counts for n in range(counts[name])]
    write_manifest(tmp_path / "all.jsonl.gz", rows)

    def run(*speakers, **options):
        (tmp_path / "list.txt").write_text("".join(f"{name}\n" for name in speakers))
        arguments = ["--manifest", tmp_path / "all.jsonl.gz", "--speakers", tmp_path / "list.txt", "--out_dir",
                     tmp_path / "out", "--used", "used.txt"]  # fmt: skip
        for part in ("train=0.4", "dev=0.2", "test=0.4"):
            arguments += ["--parts+", part]
        for name, value in options.items():
            arguments += [f"--{name}", value]
        run_command(SplitConfig, split_speakers, list(map(str, arguments)))
        parts = ("train", "dev", "test")
        return {part: [u.id for u in read_manifest(tmp_path / f"out/{part}.jsonl.gz")] for part in parts}

    return run


def test_writes_manifests_of_all_speakers(run, tmp_path, capsys):
    parts = run("carl", "anna")
    assert parts["dev"] == ["carl-2", "anna-4", "anna-5"] and len(parts["train"]) == len(parts["test"]) == 6
    assert (tmp_path / "out/used.txt").read_text() == "carl\nanna\n"
    assert capsys.readouterr().out.splitlines()[0] == "train: 6 utterances, 0.00 h, 2 speakers"
    assert parts != run("carl", "anna", order="random") != run("carl", "anna", order="random", seed=3)


def test_a_speaker_with_two_utterances_is_left_out_in_one_line(run, tmp_path, capsys):
    assert not any(name.startswith("bob") for part in run("anna", "bob").values() for name in part)
    line = capsys.readouterr().err
    assert line == "warning: speaker bob is left out: 2 utterances, too few for train, dev, test\n"
    assert (tmp_path / "out/used.txt").read_text() == "anna\n"


@pytest.mark.parametrize(
    "speakers, says", [(["anna", "dora"], "no utterance of speaker dora"), (["bob"], "no speaker of")]
)
def test_mistakes_are_one_line(run, tmp_path, capsys, speakers, says):
    with pytest.raises(SystemExit):
        run(*speakers)
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: ") and says in last and not (tmp_path / "out").exists()
