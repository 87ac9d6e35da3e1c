import subprocess
import sys

import numpy as np
import pytest
import torch

from moe_asr.data.audio import load_audio
from moe_asr.data.batches import BatchLoader, DataConfig, make_batch
from moe_asr.data.manifests import Utterance, write_manifest
from moe_asr.data.plan import Share
from moe_asr.data.tokens import train_tokens
from moe_asr.errors import UserError

DOMAINS = ["french", "german", "scottish"]


@pytest.fixture
def corpus(tmp_path, make_audio):
    """30 utterances of 0.2 to 1.1 s in a manifest, and tokens."""
    utterances = []
    for i in range(30):
        path = make_audio(f"{i}.wav", seconds=0.2 + 0.03 * i, seed=i)
        samples = round((0.2 + 0.03 * i) * 16000)
        utterances.append(
            Utterance(f"u{i}", path, samples, 16000, f"text {i}", f"speaker{i % 4}", DOMAINS[i % 3], "en")
        )
    write_manifest(tmp_path / "m.jsonl", utterances)
    return utterances, train_tokens([u.text for u in utterances], tmp_path / "tokens", "char")


def config(tmp_path, **keywords):
    defaults = {"max_duration": 4.0, "num_buckets": 3, "speed_factors": (0.9, 1.0, 1.1)}
    return DataConfig(manifests=(str(tmp_path / "m.jsonl"),), **defaults | keywords)


def same(first, second):
    return all(
        torch.equal(a, b) if torch.is_tensor(a) else a == b for a, b in zip(vars(first).values(), vars(second).values())
    )


def test_a_batch_holds_its_utterances(corpus):
    utterances, tokens = corpus
    chosen = [utterances[i] for i in (4, 20, 9)]
    batch = make_batch(chosen, tokens, DOMAINS, speeds=[1.0, 0.9, 1.1])
    assert len(batch) == 3 and batch.ids == ["u4", "u20", "u9"] and batch.texts == ["text 4", "text 20", "text 9"]
    assert batch.speakers == ["speaker0", "speaker0", "speaker1"] and batch.languages == ["en"] * 3
    assert batch.accents == ["german", "scottish", "french"] and batch.domains_N.tolist() == [1, 2, 0]
    for i, (u, speed) in enumerate(zip(chosen, [1.0, 0.9, 1.1])):
        samples, length = load_audio(u, 16000, speed), int(batch.audio_lengths_N[i])
        assert np.array_equal(batch.audio_NS[i, :length].numpy(), samples)
        assert (batch.audio_NS[i, length:] == 0).all()
        assert batch.tokens_NU[i, : batch.token_lengths_N[i]].tolist() == tokens.encode(u.text)
    assert batch.audio_NS.dtype == torch.float32
    assert {t.dtype for t in (batch.audio_lengths_N, batch.tokens_NU, batch.token_lengths_N, batch.domains_N)} == {
        torch.int64
    }


def test_an_epoch_holds_each_utterance_once(tmp_path, corpus):
    loader = BatchLoader(config(tmp_path), corpus[1], DOMAINS)
    batches = list(loader)
    assert sorted(id for batch in batches for id in batch.ids) == sorted(u.id for u in corpus[0])
    assert len(batches) == len(loader) > 4
    assert all(batch.audio_NS.numel() <= 4.0 * 16000 + len(batch) for batch in batches)


def test_results_do_not_depend_on_workers(tmp_path, corpus):
    alone = list(BatchLoader(config(tmp_path), corpus[1], DOMAINS, epoch=2))
    helped = list(BatchLoader(config(tmp_path, num_workers=2), corpus[1], DOMAINS, epoch=2))
    assert len(alone) == len(helped) and all(same(a, b) for a, b in zip(alone, helped))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_goes_on_at_any_position(tmp_path, corpus, num_workers):
    loader = BatchLoader(config(tmp_path, num_workers=num_workers), corpus[1], DOMAINS)
    expected = []
    for epoch in range(2):
        loader.seek(epoch)
        expected += [(epoch, i, batch) for i, batch in enumerate(loader)]
    for epoch, start in ((0, 3), (1, 1)):
        rest = list(BatchLoader(config(tmp_path), corpus[1], DOMAINS, epoch, start))
        wanted = [batch for e, i, batch in expected if e == epoch and i >= start]
        assert len(rest) == len(wanted) and all(same(a, b) for a, b in zip(rest, wanted))
    loader.seek(1, len(loader))
    assert len(loader) == 0 and list(loader) == []


def test_to_a_device(corpus):
    batch = make_batch(corpus[0][:2], corpus[1], DOMAINS)
    moved = batch.to("meta")
    assert moved.audio_NS.device.type == moved.domains_N.device.type == "meta" and moved.ids == batch.ids


def test_without_tokens_and_domains(corpus):
    batch = make_batch(corpus[0][:2], None)
    assert batch.tokens_NU.shape == (2, 0) and batch.domains_N.tolist() == [-1, -1]


def test_unknown_domains(tmp_path, corpus):
    with pytest.raises(UserError, match="accent 'french', 'scottish' is not among the domains german"):
        BatchLoader(config(tmp_path), corpus[1], ["german"])
    loader = BatchLoader(config(tmp_path, unknown_domain="allow"), corpus[1], ["german"])
    assert {int(d) for batch in loader for d in batch.domains_N} == {-1, 0}
    by_speaker = BatchLoader(config(tmp_path, domain_key="speaker"), corpus[1], [f"speaker{i}" for i in range(4)])
    assert {int(d) for batch in by_speaker for d in batch.domains_N} == {0, 1, 2, 3}


def test_one_speaker(tmp_path, corpus):
    loader = BatchLoader(config(tmp_path, speaker="speaker2", max_utterances=3, max_duration=60.0), corpus[1])
    batches = list(loader)
    assert {id for batch in batches for id in batch.ids} == {f"u{i}" for i in range(2, 30, 4)}
    assert {name for batch in batches for name in batch.speakers} == {"speaker2"}
    assert max(len(batch) for batch in batches) == 3


def test_one_accent(tmp_path, corpus):
    loader = BatchLoader(config(tmp_path, accent=DOMAINS[1], max_utterances=3, max_duration=60.0), corpus[1])
    assert [u.id for u in loader.utterances] == [f"u{i}" for i in range(1, 30, 3)]
    assert {name for batch in loader for name in batch.accents} == {DOMAINS[1]}
    own = BatchLoader(config(tmp_path, accent=DOMAINS[1], speaker="speaker1"), corpus[1])
    assert [u.id for u in own.utterances] == [f"u{i}" for i in range(1, 30, 12)]
    with pytest.raises(UserError, match="m.jsonl has no utterance of accent cockney; it has 3 accents, such as"):
        BatchLoader(config(tmp_path, accent="cockney"), None)


def test_a_speaker_without_utterances(tmp_path, corpus):
    with pytest.raises(UserError, match="m.jsonl has no utterance of speaker anna; it has 4 speakers, such as"):
        BatchLoader(config(tmp_path, speaker="anna"), None)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_lost_audio_is_one_line(tmp_path, corpus, num_workers):
    (tmp_path / "7.wav").unlink()
    with pytest.raises(UserError, match="cannot read utterance u7 from .*7.wav: no such file") as caught:
        list(BatchLoader(config(tmp_path, num_workers=num_workers), corpus[1], DOMAINS))
    assert "\n" not in str(caught.value)


def test_missing_manifest(tmp_path):
    with pytest.raises(UserError, match="no manifest at"):
        BatchLoader(config(tmp_path), None)


def test_loading_does_not_import_lhotse():
    code = "import sys, moe_asr.data.batches, moe_asr.data.features\nassert 'lhotse' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_lost_audio_is_left_out_and_named(tmp_path, corpus, num_workers):
    calm = list(BatchLoader(config(tmp_path), corpus[1], DOMAINS))
    for number in (7, 23):
        (tmp_path / f"{number}.wav").unlink()
    loader = BatchLoader(config(tmp_path, num_workers=num_workers), corpus[1], DOMAINS, unreadable="leave_out")
    found = list(loader)
    assert [[i for i in batch.ids if i not in ("u7", "u23")] for batch in calm] == [batch.ids for batch in found]
    troubles = [trouble for batch in found for trouble in batch.troubles]
    assert {trouble.left_out for trouble in troubles} == {("u7",), ("u23",)}
    assert all("no such file" in trouble.reason for trouble in troubles)


def test_a_batch_of_which_nothing_is_left_is_empty(tmp_path, corpus):
    for path in tmp_path.glob("*.wav"):
        path.unlink()
    for batch in BatchLoader(config(tmp_path), corpus[1], DOMAINS, unreadable="leave_out"):
        assert batch.ids == [] and len(batch) == 0 and len(batch.troubles) > 0
        assert batch.audio_NS.shape == (0, 0) and batch.domains_N.shape == (0,)


def test_parts_of_a_batch(corpus):
    utterances, tokens = corpus
    whole = make_batch([utterances[i] for i in (4, 20, 9)], tokens, DOMAINS)
    for chosen, numbers in ((slice(0, 1), (4,)), (slice(1, 3), (20, 9))):
        assert same(whole.part(chosen), make_batch([utterances[i] for i in numbers], tokens, DOMAINS))


@pytest.mark.parametrize(("processes", "group", "start"), [(2, 2, 0), (2, 4, 4), (3, 4, 0)])
def test_processes_share_the_batches(tmp_path, corpus, processes, group, start):
    alone = list(BatchLoader(config(tmp_path), corpus[1], DOMAINS, 0, start))
    shares = [Share(process, processes, group) for process in range(processes)]
    parts = [list(BatchLoader(config(tmp_path), corpus[1], DOMAINS, 0, start, share=share)) for share in shares]
    for number, batches in enumerate(zip(*parts, strict=True)):
        [owner] = [process for process, batch in enumerate(batches) if batch is not None]
        assert owner == number % group % processes and same(batches[owner], alone[number])
