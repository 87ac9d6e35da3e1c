"""Checkpoints of encoders that take samples. N utterances, S samples, T frames, D encoder width."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

transformers = pytest.importorskip("transformers")

from moe_asr.data.features import FeatureConfig  # noqa: E402
from moe_asr.errors import UserError  # noqa: E402
from moe_asr.models.pretrained_checkpoint import read_pretrained_encoder  # noqa: E402
from moe_asr.models.pretrained_encoder import PretrainedEncoder  # noqa: E402

TINY = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "conv_dim": (8, 8),
    "conv_kernel": (10, 3),
    "conv_stride": (5, 2),
    "num_conv_pos_embedding_groups": 4,
    "vocab_size": 5,
}
CLASSES = {
    "Wav2Vec2Model": {},
    "Wav2Vec2ForCTC": {"do_stable_layer_norm": True, "adapter_attn_dim": 4},
    "Wav2Vec2ForPreTraining": {"codevector_dim": 8, "proj_codevector_dim": 8},
    "HubertModel": {"feat_extract_norm": "layer", "do_stable_layer_norm": True},
    "HubertForCTC": {"feat_proj_layer_norm": False},
    "Data2VecAudioForCTC": {"num_conv_pos_embeddings": 2, "conv_pos_kernel_size": 5},
}


def save(folder, name="HubertModel", old_names=False):
    """Saves a checkpoint with random weights; `old_names` as they were before torch had parametrisations."""
    torch.manual_seed(0)
    kind = getattr(transformers, name)
    kind(kind.config_class(**{**TINY, **CLASSES[name]})).save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(folder)
    renaming = [("parametrizations.weight.original0", "weight_g"), ("parametrizations.weight.original1", "weight_v")]
    state = load_file(folder / "model.safetensors")
    for new, old in renaming:
        if not old_names:
            new, old = old, new
        state = {key.replace(new, old): tensor for key, tensor in state.items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return state


@pytest.mark.parametrize("old_names", [True, False])
@pytest.mark.parametrize("name", CLASSES)
def test_the_encoder_is_that_of_transformers(name, old_names, tmp_path):
    state = save(tmp_path, name, old_names)
    if not name.startswith("Data2Vec"):
        assert any(key.endswith("weight_g" if old_names else "original0") for key in state)
    theirs = transformers.AutoModel.from_pretrained(tmp_path).eval()
    config, weights, features = read_pretrained_encoder(str(tmp_path))
    with torch.device("meta"):
        ours = PretrainedEncoder(config).eval()
    ours.load_state_dict(weights, assign=True)
    audio_1S = torch.randn(1, 900, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected_1TD = theirs(audio_1S).last_hidden_state
        states_1TD, _ = ours(audio_1S[:, :, None], torch.tensor([900]))
    torch.testing.assert_close(states_1TD, expected_1TD, atol=1e-5, rtol=1e-5)
    assert features == FeatureConfig.waveform(16000, "mean_var")


def test_weights_are_float32_whatever_the_checkpoint_has(tmp_path):
    state = save(tmp_path)
    save_file({name: tensor.half() for name, tensor in state.items()}, tmp_path / "model.safetensors")
    _, weights, _ = read_pretrained_encoder(str(tmp_path))
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    assert all(tensor.is_contiguous() and not tensor.requires_grad for tensor in weights.values())


def test_the_layers_above_are_left_out(tmp_path):
    save(tmp_path)
    config, weights, _ = read_pretrained_encoder(str(tmp_path), layer=1)
    assert config.layer == 1 and weights.keys() == PretrainedEncoder(config).state_dict().keys()
    assert not [name for name in weights if name.startswith(("layers.1.", "layer_norm"))]


def test_its_features_are_those_of_the_checkpoint(tmp_path):
    save(tmp_path)
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps({"do_normalize": False, "sampling_rate": 8000}))
    assert read_pretrained_encoder(str(tmp_path))[2] == FeatureConfig.waveform(8000, "none")
    path.write_text(json.dumps({"do_normalize": False}))
    with pytest.raises(UserError, match="preprocessor_config.json lacks sampling_rate"):
        read_pretrained_encoder(str(tmp_path))
    path.unlink()
    with pytest.raises(UserError, match="has no preprocessor_config.json"):
        read_pretrained_encoder(str(tmp_path))


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize(
    "change, message",
    [
        (lambda state: state.pop("encoder.layers.1.attention.q_proj.weight"), "it lacks encoder.layers.1.attention.q_"),
        (lambda state: state.update({"encoder.layers.2.x": torch.ones(1)}), "has an unexpected encoder.layers.2.x"),
        (lambda state: state.update({"encoder.layer_norm.bias": torch.ones(3)}), r"layer_norm.bias is \(3,\)"),
    ],
)
def test_all_of_the_encoder_or_nothing(tmp_path, change, message, layer):
    state = save(tmp_path)
    change(state)
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=message):
        read_pretrained_encoder(str(tmp_path), layer)


def test_pickled_and_other_checkpoints_are_refused(tmp_path):
    save(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="pytorch_model.bin is not read"):
        read_pretrained_encoder(str(tmp_path))
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "bert"}))
    with pytest.raises(UserError, match="no pretrained encoder of type bert"):
        read_pretrained_encoder(str(tmp_path))
