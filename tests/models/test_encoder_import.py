"""Encoders out of models and checkpoints compute what they computed there."""

import pytest
import torch
from safetensors.torch import load_file, save_file

transformers = pytest.importorskip("transformers")

import lm_checkpoints  # noqa: E402
import whisper_checkpoints  # noqa: E402

from moe_asr.bin.import_speech_llm import ImportConfig, import_speech_llm  # noqa: E402
from moe_asr.errors import UserError  # noqa: E402
from moe_asr.models.encoder_import import read_encoder  # noqa: E402
from moe_asr.models.encoders import build_encoder  # noqa: E402
from moe_asr.models.folder import FolderConfig, load_model, save_model  # noqa: E402
from moe_asr.quant import QuantConfig, quantise  # noqa: E402


def taken(source, layer=0):
    """What was read, and the encoder that it makes."""
    found = read_encoder(str(source), layer)
    encoder = build_encoder(found.config)
    encoder.load_state_dict(found.state)
    return found, encoder.eval()


@pytest.mark.parametrize("kind, left_out", [("conformer_ctc", 2), ("conformer_aed", 30)])
def test_of_a_model_folder(tmp_path, tiny, save_ours, kind, left_out):
    theirs = load_model(save_ours(tmp_path / "ours", kind))
    found, encoder = taken(tmp_path / "ours")
    assert found.config.conformer == tiny and found.features == theirs.config.features
    assert found.left_out == left_out == len(theirs.model.state_dict()) - len(encoder.state_dict())
    x_NTF, lengths = torch.randn(2, 30, tiny.mels), torch.tensor([30, 17])
    assert torch.equal(encoder(x_NTF, lengths)[0], theirs.model.encode(x_NTF, lengths)[0])


def test_nothing_but_the_encoder_is_read(tmp_path, save_ours):
    folder = save_ours(tmp_path / "ours", "conformer_aed")
    expected = taken(folder)[0].state
    state = load_file(folder / "model.safetensors")
    save_file({n: t for n, t in state.items() if n.startswith("encoder.")}, folder / "model.safetensors")
    found = taken(folder)[0]
    assert found.left_out == 0 and all(torch.equal(found.state[name], expected[name]) for name in expected)


def test_of_a_speech_llm(tmp_path, save_ours):
    ours = save_ours(tmp_path / "ours", "conformer_ctc")
    lm_checkpoints.save_lm(tmp_path / "lm")
    import_speech_llm(ImportConfig(str(ours), str(tmp_path / "lm"), "<speech>the", str(tmp_path / "first")))
    expected, found = taken(ours)[0].state, taken(tmp_path / "first")[0].state
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


@pytest.mark.parametrize("without_embedding", [False, True])
def test_of_a_whisper_checkpoint(tmp_path, without_embedding):
    theirs = whisper_checkpoints.save_checkpoint(tmp_path / "whisper")
    if without_embedding:
        state = load_file(tmp_path / "whisper/model.safetensors")
        del state["model.decoder.embed_tokens.weight"]
        save_file(state, tmp_path / "whisper/model.safetensors")
    found, encoder = taken(tmp_path / "whisper")
    assert (found.features.kind, found.features.num_mels) == ("whisper", 16)
    features = torch.randn(1, 200, 16)
    expected = theirs.model.encoder(features.transpose(1, 2)).last_hidden_state
    torch.testing.assert_close(encoder(features, torch.tensor([200]))[0], expected, rtol=1e-4, atol=1e-4)
    assert found.left_out == 52 - without_embedding


def test_of_a_hubert_checkpoint(tmp_path):
    config = transformers.HubertConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, conv_dim=(8, 8),
        conv_kernel=(10, 8), conv_stride=(5, 4), num_feat_extract_layers=2, num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
    )  # fmt: skip
    transformers.HubertModel(config).save_pretrained(tmp_path / "hubert")
    transformers.Wav2Vec2FeatureExtractor().save_pretrained(tmp_path / "hubert")
    found, encoder = taken(tmp_path / "hubert", layer=1)
    assert found.config.pretrained.layer == 1 and len(encoder.layers) == 1 and found.features.kind == "waveform"


def test_of_something_else(tmp_path, save_ours):
    (tmp_path / "empty").mkdir()
    lm_checkpoints.save_lm(tmp_path / "lm")
    ours = save_ours(tmp_path / "ours", "conformer_ctc")
    loaded = load_model(ours)
    quantise(loaded.model, quantisation := QuantConfig())
    config = FolderConfig(loaded.config.model, loaded.config.features, quantisation=quantisation)
    save_model(tmp_path / "nf4", loaded.model, config, loaded.tokens)
    for source, layer, says in (
        (tmp_path / "empty", 0, "empty holds no encoder: .* .no config.yaml. .* .no config.json."),
        (tmp_path / "lm", 0, "lm holds no speech encoder: its model_type is qwen2, known are whisper, "),
        (save_ours(tmp_path / "ar", "domain_classifier"), 0, "is a domain_classifier, and no recogniser"),
        (ours, 2, "layer is for wav2vec 2.0, .* is a model folder: leave layer out"),
        (tmp_path / "nf4", 0, "nf4 is quantised: give the model that it was made from"),
    ):
        with pytest.raises(UserError, match=says) as caught:
            read_encoder(str(source), layer)
        assert "\n" not in str(caught.value)
