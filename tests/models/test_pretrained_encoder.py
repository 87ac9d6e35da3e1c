"""Encoders of transformers that take samples. N utterances, S samples, T frames, D encoder width."""

import pytest
import torch

transformers = pytest.importorskip("transformers")

from moe_asr.config import load_config, save_config  # noqa: E402
from moe_asr.errors import UserError  # noqa: E402
from moe_asr.experts import ExpertSpec, attach  # noqa: E402
from moe_asr.models.encoders import EncoderConfig  # noqa: E402
from moe_asr.models.pretrained_encoder import (  # noqa: E402
    PretrainedEncoder,
    PretrainedEncoderConfig,
    transformers_model,
)
from moe_asr.quant import quantise  # noqa: E402

TINY = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "conv_dim": [8, 8, 12],
    "conv_kernel": [10, 3, 2],
    "conv_stride": [5, 2, 2],
    "num_conv_pos_embedding_groups": 4,
    "initializer_range": 0.2,
    "hidden_dropout": 0.3,
    "layerdrop": 0.5,
    "mask_time_prob": 0.5,
}
KINDS = {
    "group post-norm": {"model_type": "wav2vec2"},
    "group pre-norm": {"model_type": "wav2vec2", "do_stable_layer_norm": True},
    "layer post-norm": {"model_type": "hubert", "feat_extract_norm": "layer", "conv_bias": True},
    "layer pre-norm": {"model_type": "hubert", "feat_extract_norm": "layer", "do_stable_layer_norm": True},
    "no projection norm": {"model_type": "hubert", "feat_proj_layer_norm": False, "num_conv_pos_embeddings": 7},
    "adapters": {"model_type": "wav2vec2", "do_stable_layer_norm": True, "adapter_attn_dim": 4},
    "data2vec": {"model_type": "data2vec-audio", "num_conv_pos_embeddings": 3, "conv_pos_kernel_size": 5},
}
LENGTHS = [1200, 57, 611, 1203, 30]  # the first frame needs 30 samples, each further one 20


def settings(kind, layer=0):
    return PretrainedEncoderConfig({**TINY, **KINDS[kind]}, layer)


def both(kind, layer=0):
    """A model of transformers with random weights, biases and norms too, and the encoder that is made of it."""
    torch.manual_seed(0)
    theirs = transformers_model(settings(kind)).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    same = transformers_model(settings(kind))
    same.load_state_dict(theirs.state_dict())
    return theirs, PretrainedEncoder(settings(kind, layer), same).eval()


@pytest.mark.parametrize("kind", KINDS)
def test_states_of_one_utterance_are_those_of_transformers(kind, make_batch):
    theirs, ours = both(kind)
    for audio_S1 in make_batch(LENGTHS, mels=1)[2]:
        with torch.inference_mode():
            expected_1TD = theirs(audio_S1[None, :, 0]).last_hidden_state
            states_1TD, lengths_1 = ours(audio_S1[None], torch.tensor([len(audio_S1)]))
        assert lengths_1.tolist() == [expected_1TD.shape[1]]
        torch.testing.assert_close(states_1TD, expected_1TD, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["group post-norm", "group pre-norm"])
def test_layers_may_give_tuples(kind, make_batch):
    """Those of transformers 5.0 do."""
    ours = both(kind)[1]
    audio_NS1, lengths_N, _ = make_batch(LENGTHS, mels=1)
    expected = ours(audio_NS1, lengths_N)[0]
    for layer in ours.layers:
        layer.register_forward_hook(lambda module, inputs, output: (output,))
    assert torch.equal(ours(audio_NS1, lengths_N)[0], expected)


@pytest.mark.parametrize("kind", ["group post-norm", "group pre-norm", "data2vec"])
@pytest.mark.parametrize("layer", [1, 2, 3])
def test_a_layer_gives_that_hidden_state_of_transformers(kind, layer, make_batch):
    theirs, ours = both(kind, layer)
    _, lengths_N, (audio_S1,) = make_batch([700], mels=1)
    with torch.inference_mode():
        expected = theirs(audio_S1[None, :, 0], output_hidden_states=True).hidden_states
        states_1TD, _ = ours(audio_S1[None], lengths_N)
    assert len(ours.layers) == layer and len(expected) == 4
    torch.testing.assert_close(states_1TD, expected[layer], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_an_utterance_is_the_same_alone_and_in_a_batch(kind, make_batch):
    ours = both(kind)[1].train()  # nothing is random in training either
    audio_NS1, lengths_N, utterances = make_batch(LENGTHS, mels=1, longer=300, rubbish=float("nan"))
    with torch.inference_mode():
        states_NTD, frames_N = ours(audio_NS1, lengths_N)
        assert states_NTD.isfinite().all() and states_NTD.shape[1] == int(ours.output_lengths(torch.tensor(1503)))
        for states_TD, frames, audio_S1 in zip(states_NTD, frames_N.tolist(), utterances):
            alone_1TD, frames_1 = ours(audio_S1[None], torch.tensor([len(audio_S1)]))
            assert frames_1[0] == frames == alone_1TD.shape[1] > 0
            # products of other shapes are rounded otherwise, by up to some 1e-6 in states of about 1
            torch.testing.assert_close(states_TD[:frames], alone_1TD[0], atol=1e-5, rtol=0)
            assert (states_TD[frames:] == 0).all()


@pytest.mark.parametrize("kind", ["group post-norm", "layer pre-norm", "data2vec"])
def test_rubbish_in_the_padding_changes_nothing(kind, make_batch):
    ours = both(kind)[1]
    states = []
    for rubbish in (0.0, 1e3, float("inf")):
        audio_NS1, lengths_N, _ = make_batch(LENGTHS, mels=1, longer=50, rubbish=rubbish)
        states.append(ours(audio_NS1, lengths_N)[0])
    assert torch.equal(states[0], states[1]) and torch.equal(states[0], states[2])


@pytest.mark.parametrize("kind", ["group post-norm", "data2vec"])
def test_frames_are_counted_as_in_transformers(kind):
    theirs, ours = both(kind)
    lengths_N = torch.arange(0, 400)
    assert torch.equal(ours.output_lengths(lengths_N), theirs._get_feat_extract_output_lengths(lengths_N).clamp(min=0))
    large = PretrainedEncoder(PretrainedEncoderConfig({"model_type": "hubert", "num_hidden_layers": 1, **SMALL}))
    assert large.output_lengths(torch.tensor([399, 400, 719, 720, 16000])).tolist() == [0, 1, 1, 2, 49]


SMALL = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 8, "conv_dim": [4] * 7}


@pytest.mark.parametrize("kind", ["group post-norm", "layer pre-norm", "data2vec"])
def test_too_short_for_a_frame_has_none_and_disturbs_nobody(kind, make_batch):
    ours = both(kind)[1]
    audio_NS1, lengths_N, utterances = make_batch([29, 700, 3], mels=1)
    states_NTD, frames_N = ours(audio_NS1, lengths_N)
    alone_1TD, _ = ours(utterances[1][None], lengths_N[1:2])
    assert frames_N.tolist() == [0, alone_1TD.shape[1], 0]
    torch.testing.assert_close(states_NTD[1], alone_1TD[0], atol=1e-5, rtol=0)
    assert (states_NTD[0] == 0).all() and (states_NTD[2] == 0).all()
    states_NTD.square().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in ours.parameters())
    for samples in (0, 5):
        states_NTD, frames_N = ours(torch.zeros(2, samples, 1), torch.tensor([samples, 0]))
        assert states_NTD.shape == (2, 1, 16) and (states_NTD == 0).all() and frames_N.tolist() == [0, 0]


@pytest.mark.parametrize("kind", ["group post-norm", "layer pre-norm"])
def test_gradient_checkpointing_gives_the_same_gradients(kind, make_batch):
    ours = both(kind)[1].train()
    audio_NS1, lengths_N, _ = make_batch([700, 400], mels=1)
    entered = []

    def gradients():
        ours.zero_grad()
        ours(audio_NS1, lengths_N)[0].square().sum().backward()
        return [parameter.grad.clone() for parameter in ours.parameters()]

    class Watch:
        def __enter__(self):
            entered.append(1)

        def __exit__(self, *error):
            pass

    expected = gradients()
    ours.set_gradient_checkpointing(True, lambda: (Watch(), Watch()))
    for got, want in zip(gradients(), expected):
        assert torch.equal(got, want)
    assert len(entered) == 2 * 3


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_made_without_memory_and_filled(kind, make_batch):
    _, ours = both(kind)
    with torch.device("meta"):
        empty = PretrainedEncoder(settings(kind))
    empty.load_state_dict(ours.state_dict(), assign=True)
    assert not [name for name, tensor in (*empty.named_parameters(), *empty.named_buffers()) if tensor.is_meta]
    audio_NS1, lengths_N, _ = make_batch([700, 400], mels=1)
    assert torch.equal(empty.eval()(audio_NS1, lengths_N)[0], ours(audio_NS1, lengths_N)[0])


def test_the_seed_decides_the_weights():
    states = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        states.append(PretrainedEncoder(settings("group post-norm")).state_dict())
    name = "layers.0.attention.q_proj.weight"
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert not torch.equal(states[0][name], states[2][name])


@pytest.mark.parametrize("kind", ["group post-norm", "layer pre-norm", "data2vec"])
def test_experts_go_on_its_layers(kind, make_batch):
    ours = both(kind)[1]
    audio_NS1, lengths_N, utterances = make_batch([700, 400], mels=1)
    without_NTD, frames_N = ours(audio_NS1, lengths_N)
    targets = (r"layers\.\d+\.attention\.(q|v)_proj", r"layers\.\d+\.feed_forward\.intermediate_dense")
    adapter = attach(ours, ExpertSpec(targets=targets, num_experts=2, rank=2))
    domains_N = torch.tensor([0, 1])
    with adapter.route(domains_N, frames_N):
        assert torch.equal(ours(audio_NS1, lengths_N)[0], without_NTD), "fresh experts are the base"
    with torch.no_grad():
        for layer in adapter.layers.values():
            layer.B.normal_()
    ours.train().set_gradient_checkpointing(True, adapter.checkpoint_context_fn)
    with adapter.route(domains_N, frames_N):
        states_NTD, _ = ours(audio_NS1, lengths_N)
        states_NTD.square().sum().backward()
    assert len(adapter.layers) == 9 and all(layer.A.grad.abs().sum() > 0 for layer in adapter.layers.values())
    assert (states_NTD - without_NTD).abs().max() > 0.1
    for i, audio_S1 in enumerate(utterances):
        with adapter.route(domains_N[i : i + 1], frames_N[i : i + 1]):
            alone_1TD, _ = ours(audio_S1[None], lengths_N[i : i + 1])
        torch.testing.assert_close(states_NTD[i, : frames_N[i]], alone_1TD[0], atol=1e-4, rtol=1e-4)


def test_its_configuration_is_kept_as_it_is(tmp_path):
    kept = {**TINY, "model_type": "hubert", "id2label": {"0": "a"}, "bos_token_id": None}
    config = EncoderConfig(pretrained=PretrainedEncoderConfig(kept, 2))
    save_config(config, tmp_path / "config.yaml")
    assert load_config(EncoderConfig, tmp_path / "config.yaml") == config


@pytest.mark.parametrize(
    "change, message",
    [
        ({"model_type": "wavlm"}, "no pretrained encoder of type wavlm, only wav2vec2, hubert, data2vec-audio"),
        ({"model_type": "wav2vec2", "add_adapter": True}, "add_adapter .* is not supported"),
        ({"model_type": "hubert", "conv_pos_batch_norm": True}, "conv_pos_batch_norm .* is not supported"),
        ({"model_type": "hubert", "hidden_size": "wide"}, "transformers cannot make .*hidden_size"),
        ({"model_type": "hubert", "conv_kernel": [3]}, "transformers cannot make .*convolutional layers is incorrect"),
        ({"model_type": "hubert", "num_attention_heads": 3}, "transformers cannot make .*divisible"),
        ({"model_type": "hubert", "feat_extract_norm": "none"}, "transformers cannot make .*feat_extract_norm"),
        ({"model_type": "hubert", "hidden_act": "nothing"}, "transformers cannot make"),
    ],
)
def test_what_cannot_be_is_one_line(change, message):
    with pytest.raises(UserError, match=message) as caught:
        PretrainedEncoder(PretrainedEncoderConfig({**TINY, **change}))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("layer", [-1, 4])
def test_a_layer_that_is_not_there_is_refused(layer):
    with pytest.raises(UserError, match=f"layer {layer} is none of its layers 1 to 3"):
        PretrainedEncoder(settings("group post-norm", layer))


@pytest.mark.parametrize("kind", ["group post-norm", "data2vec"])
def test_its_weights_go_into_4_bits(kind, make_batch):
    ours = both(kind)[1]
    with torch.device("meta"):
        empty = PretrainedEncoder(settings(kind))
    assert quantise(ours) == quantise(empty) and "layers.0.attention.q_proj" in quantise(both(kind)[1])
    empty.load_state_dict(ours.state_dict(), assign=True)
    audio_NS1, lengths_N, _ = make_batch([700, 400], mels=1)
    assert torch.equal(empty.eval()(audio_NS1, lengths_N)[0], ours(audio_NS1, lengths_N)[0])
