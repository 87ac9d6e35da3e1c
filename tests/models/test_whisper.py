"""Whisper against transformers. N utterances, S samples, T frames, F mel bins, D model width, V vocabulary."""

from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("transformers")

import whisper_checkpoints  # noqa: E402

from moe_asr.data.features import log_mel  # noqa: E402
from moe_asr.decoding.search import Search  # noqa: E402
from moe_asr.decoding.search_config import SearchConfig  # noqa: E402
from moe_asr.errors import UserError  # noqa: E402
from moe_asr.models.folder import load_model  # noqa: E402
from moe_asr.models.whisper import Whisper, WhisperConfig  # noqa: E402
from moe_asr.models.whisper_import import Choices, import_whisper  # noqa: E402


def both(folder, choices=Choices(), **options):
    """A model of transformers, and what `import_whisper` makes of it."""
    theirs = whisper_checkpoints.save_checkpoint(folder / "theirs", **options)
    import_whisper(str(folder / "theirs"), folder / "ours", "english", choices)
    return theirs, load_model(folder / "ours")


def noise(*lengths):
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randn(n, generator=generator) * torch.linspace(0.3, 1e-3, n) for n in lengths]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), torch.tensor(lengths)


def targets(*texts):
    rows = [torch.tensor(text, dtype=torch.int64) for text in texts]
    lengths_N = torch.tensor([len(text) for text in texts])
    return SimpleNamespace(tokens_NU=torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), token_lengths_N=lengths_N)


def test_outputs_on_30_s_are_those_of_transformers(tmp_path):
    theirs, ours = both(tmp_path, Choices(pad_to_30s=True), positions=1500)
    features_NTF, lengths_N = log_mel(*noise(480000, 40001), ours.config.features)
    tokens_NU = torch.tensor([[276, 281, 5, 17, 200], [276, 281, 61, 0, 100]])
    with torch.inference_mode():
        expected = theirs(input_features=features_NTF.transpose(1, 2), decoder_input_ids=tokens_NU)
        states_NTD, frames_N = ours.model.encode(features_NTF, lengths_N)
        logits_NUV = ours.model.decoder.logits(ours.model.decoder(tokens_NU, states_NTD, frames_N))
    assert frames_N.tolist() == [1500, 1500]
    torch.testing.assert_close(states_NTD, expected.encoder_last_hidden_state, atol=1e-5, rtol=0)
    torch.testing.assert_close(logits_NUV, expected.logits, atol=2e-5, rtol=1e-5)


def test_the_loss_is_that_of_transformers(tmp_path):
    theirs, ours = both(tmp_path, Choices(pad_to_30s=True))
    features_NTF, lengths_N = log_mel(*noise(32000), ours.config.features)
    loss = ours.model(features_NTF, lengths_N, targets([30, 40, 50]))
    labels_NU = torch.tensor([[281, 30, 40, 50, 275]])
    with torch.inference_mode():
        logits = theirs(
            input_features=features_NTF.transpose(1, 2), decoder_input_ids=torch.tensor([[276, 281, 30, 40, 50]])
        ).logits
    expected = torch.nn.functional.cross_entropy(logits[0, 1:], labels_NU[0, 1:], reduction="sum")
    assert loss.count == 4 and loss.total.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("choices", [Choices(), Choices(tail_padding_seconds=0.3)])
def test_without_padding_an_utterance_is_the_same_alone_and_in_a_batch(tmp_path, choices):
    _, ours = both(tmp_path, choices)
    audio_NS, samples_N = noise(25000, 9001, 1600, 27003)
    batch = targets([30, 40], [50, 60, 70, 80], [90], [1, 2, 3])
    search = Search(ours.model, SearchConfig("beam", 3), ours.tokens)
    features_NTF, lengths_N = log_mel(audio_NS, samples_N, ours.config.features)
    padding_NT = torch.arange(features_NTF.shape[1]) >= lengths_N[:, None]
    features_NTF = features_NTF.masked_fill(padding_NT[:, :, None], 9.0)
    with torch.inference_mode():
        states_NTD, frames_N = ours.model.encode(features_NTF, lengths_N)
        texts = search(features_NTF, lengths_N, batch)
        total = ours.model(features_NTF, lengths_N, batch).total
        for i, length in enumerate(samples_N.tolist()):
            one = targets(batch.tokens_NU[i, : batch.token_lengths_N[i]].tolist())
            alone_1TF, length_1 = log_mel(audio_NS[i : i + 1, :length], samples_N[i : i + 1], ours.config.features)
            assert torch.equal(alone_1TF[0], features_NTF[i, : lengths_N[i]])
            alone_1TD, frames_1 = ours.model.encode(alone_1TF, length_1)
            assert frames_1[0] == frames_N[i] == alone_1TD.shape[1]
            torch.testing.assert_close(states_NTD[i, : frames_N[i]], alone_1TD[0], atol=1e-5, rtol=0)
            assert [text.tokens for text in search(alone_1TF, length_1, one)[0]] == [text.tokens for text in texts[i]]
            total = total - ours.model(alone_1TF, length_1, one).total
    assert abs(float(total)) < 1e-3


@pytest.mark.parametrize("beams", [1, 4])
@pytest.mark.parametrize("language, task", [(None, None), ("en", None), ("zh", "translate")])
def test_texts_are_those_of_generate_on_the_same_features(tmp_path, beams, language, task):
    options = {"language": language, "task": task or "transcribe"} if language else {}
    theirs, ours = both(
        tmp_path, Choices(language=language, task=task, pad_to_30s=True), multilingual=bool(language), kept_tokens=12
    )
    features_NTF, lengths_N = log_mel(*noise(32000, 3000, 16000, 8000, 12000, 5000), ours.config.features)
    search = Search(ours.model, SearchConfig("greedy" if beams == 1 else "beam", beams), ours.tokens)
    with torch.inference_mode():
        found = [texts[0].tokens for texts in search(features_NTF, lengths_N, targets(*[[]] * 6))]
        rows = theirs.generate(features_NTF.transpose(1, 2), num_beams=beams, max_new_tokens=50, **options).tolist()
    expected = [tuple(row[: row.index(275)] if 275 in row else row) for row in rows]
    assert found == expected
    assert len(set(expected)) > 2 and any(0 < len(text) < 50 for text in expected), "these texts test little"


def test_an_utterance_longer_than_the_positions_is_refused():
    model = Whisper(WhisperConfig(mels=4, width=8, heads=2, ffn=8, vocab_size=5, max_frames=10))
    model.encode(torch.zeros(1, 20, 4), torch.tensor([20]))
    with pytest.raises(UserError, match="an utterance of 0.22 s is longer than the 0.2 s"):
        model.encode(torch.zeros(1, 21, 4), torch.tensor([21]))


@pytest.mark.parametrize("name", ["dropout", "decoder_dropout"])
@pytest.mark.parametrize("value", [-0.1, 1.0, float("nan")])
def test_dropout_is_a_share(name, value):
    with pytest.raises(UserError, match=rf"whisper: {name} must be in \[0, 1\), not {value}"):
        WhisperConfig(**{name: value})


@pytest.mark.parametrize(
    "name, value", [("prompt", (2, 5)), ("end", 5), ("end", -1), ("suppress", (0, 5)), ("begin_suppress", (-1,))]
)
def test_tokens_beyond_the_vocabulary_are_refused(name, value):
    with pytest.raises(UserError, match=f"whisper: {name} names token (5|-1), but there are 0 to 4"):
        Whisper(WhisperConfig(mels=4, width=8, heads=2, ffn=8, vocab_size=5, **{name: value}))
