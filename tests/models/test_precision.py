import torch
from torch import nn

from moe_asr.models.precision import computing_in, lower_weights
from moe_asr.models.time_conv import TimeConv
from moe_asr.models.whisper import Whisper, WhisperConfig
from moe_asr.quant import QuantConfig, quantise


def model():
    parts = {"linear": nn.Linear(64, 64), "conv": TimeConv(4, 4, 3), "norm": nn.LayerNorm(64), "nf4": nn.Linear(64, 64)}
    found = nn.ModuleDict({**parts, "embedding": nn.Embedding(5, 64)})
    assert quantise(found, QuantConfig(targets=("nf4",))) == ["nf4"]
    return found


def test_only_large_weights_are_lowered():
    lowered = model()
    lower_weights(lowered, "bf16")
    for name, tensor in lowered.state_dict().items():
        expected = torch.bfloat16 if name.split(".")[0] in ("linear", "conv", "embedding") else torch.float32
        assert tensor.dtype in (expected, torch.uint8) and (tensor.dtype != torch.uint8 or name == "nf4.codes")


def test_full_precision_changes_nothing():
    same = model()
    before = {name: tensor.clone() for name, tensor in same.state_dict().items()}
    lower_weights(same, "fp32")
    assert all(torch.equal(before[name], tensor) for name, tensor in same.state_dict().items())


def test_products_are_computed_in_it():
    x, linear = torch.randn(2, 64), nn.Linear(64, 64)
    with computing_in("bf16", "cpu"):
        assert linear(x).dtype == torch.bfloat16
        assert linear(x).float().log_softmax(-1).dtype == torch.float32
    with computing_in("fp32", "cpu"):
        assert linear(x).dtype == torch.float32


def test_the_sums_of_a_decoder_stay_in_full_precision():
    """Products are in bf16; what layers add up is not, neither in one go nor step by step."""
    torch.manual_seed(0)
    whisper = Whisper(WhisperConfig(4, 16, 1, 2, 2, 16, vocab_size=9, max_frames=20, max_tokens=9)).eval()
    lower_weights(whisper, "bf16")
    assert whisper.decoder.embed_tokens.weight.dtype == torch.bfloat16
    seen = []
    for layer in whisper.decoder.layers:
        layer.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    for norm in (whisper.decoder.layers[0].final_layer_norm, whisper.decoder.layer_norm):  # a step has its own layers
        norm.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].dtype))
    lengths_N = torch.tensor([20, 14])
    with torch.no_grad(), computing_in("bf16", "cpu"):
        states_NTD, lengths_N = whisper.encode(torch.randn(2, 20, 4), lengths_N)
        whisper.decoder(torch.tensor([[2, 3], [2, 4]]), states_NTD, lengths_N)
        assert len(seen) == 4
        whisper.decoder.step(torch.full((2, 1, 1), 2), whisper.decoder.start(states_NTD, lengths_N, 5))
    assert seen == [torch.float32] * 6
