"""The speech LLM against models of transformers that are given the same sequence, laid out by hand."""

import pytest
import torch
import torch.nn.functional as F

transformers = pytest.importorskip("transformers")

import lm_checkpoints  # noqa: E402

from moe_asr.data.features import FeatureConfig  # noqa: E402
from moe_asr.data.llm_tokens import LLMTokens  # noqa: E402
from moe_asr.errors import UserError  # noqa: E402
from moe_asr.models.build import ModelConfig  # noqa: E402
from moe_asr.models.encoders import EncoderConfig  # noqa: E402
from moe_asr.models.folder import FolderConfig, load_model, save_model  # noqa: E402
from moe_asr.models.projector import ProjectorConfig  # noqa: E402
from moe_asr.models.speech_llm import SpeechLLM, SpeechLLMConfig  # noqa: E402
from moe_asr.quant import QuantConfig, dequantise, quantise  # noqa: E402

KINDS = [(kind, tied) for kind in lm_checkpoints.MODELS for tied in (True, False)]
LENGTHS = [70, 37, 52]
TEXTS = [[5, 9, 30], [11], [8, 8, 14, 21, 12]]
BEFORE, AFTER, END = (3, 4), (6, 7, 20), 2


@pytest.fixture
def make(tiny):
    """A speech LLM, and the language model of transformers inside it."""

    def make(kind="qwen2", tied=True, dtype=torch.float32, positions=64, before=BEFORE, vocab=40):
        theirs = lm_checkpoints.make_lm(kind, tied, positions, vocab).to(dtype).requires_grad_(False)
        settings = theirs.config.to_diff_dict()
        config = SpeechLLMConfig(
            EncoderConfig(conformer=tiny), settings, ProjectorConfig(hidden=10, ffn=20, stride=2),
            before=before, after=AFTER, end=END, tokens_per_frame=2.0,
        )  # fmt: skip
        torch.manual_seed(4)
        model = SpeechLLM(config)
        model.lm.load_state_dict(theirs.model.state_dict(), assign=True)
        if not tied:
            model.lm_head.load_state_dict(theirs.lm_head.state_dict(), assign=True)
        for part in (model.lm, *filter(None, [model.lm_head])):
            part.requires_grad_(False)
        return model, theirs

    return make


def by_hand(model, theirs, utterance_TF, text):
    """Logits for every position of [before][speech][after][text] of one utterance."""
    speech_1LW = model.projector(*model.encoder(utterance_TF[None], torch.tensor([len(utterance_TF)])))[0]
    embed = theirs.get_input_embeddings()
    parts = [embed(torch.tensor(model.config.before, dtype=torch.int64)), speech_1LW[0].to(theirs.dtype)]
    parts += [embed(torch.tensor([*AFTER, *text]))]
    return theirs(inputs_embeds=torch.cat(parts)[None], use_cache=False).logits[0].float()


def loss_by_hand(model, theirs, utterance_TF, text):
    """Cross-entropy of text and end, the tokens that come last, one after another; and how many would be right."""
    logits_MV, total, right = by_hand(model, theirs, utterance_TF, text), 0.0, 0
    wanted = [*text, END]
    for place, token in zip(range(len(logits_MV) - len(wanted), len(logits_MV)), wanted):
        total = total - logits_MV[place].log_softmax(-1)[token]
        right += int(logits_MV[place].argmax()) == token
    return total, right


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind, tied", KINDS)
def test_logits_are_those_of_transformers(make, make_batch, kind, tied):
    model, theirs = make(kind, tied)
    features, lengths, utterances = make_batch(LENGTHS)
    width = max(map(len, TEXTS))
    tokens = torch.tensor([[*AFTER, *text, *[0] * (width - len(text))] for text in TEXTS])
    inputs, _ = model.prefix(*model.speech(features, lengths), tokens)
    logits = model.logits(model.lm(inputs_embeds=inputs).last_hidden_state)
    for ours, utterance, text in zip(logits, utterances, TEXTS):
        expected = by_hand(model, theirs, utterance, text)
        assert len(expected) > 8 and expected.std() > 0.1
        torch.testing.assert_close(ours[: len(expected)], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind, tied", KINDS)
@pytest.mark.parametrize("before", [BEFORE, ()])
def test_loss_and_its_gradient_are_those_of_text_and_end_one_by_one(make, make_batch, make_targets, kind, tied, before):
    model, theirs = make(kind, tied, before=before)
    features, lengths, utterances = make_batch(LENGTHS)
    loss = model(features, lengths, make_targets(TEXTS))
    alone = [loss_by_hand(model, theirs, utterance, text) for utterance, text in zip(utterances, TEXTS)]
    total, right = sum(total for total, _ in alone), sum(right for _, right in alone)
    torch.testing.assert_close(loss.total, total, rtol=1e-5, atol=0)
    assert int(loss.count) == sum(len(text) + 1 for text in TEXTS) and int(loss.parts["accuracy"]) == right
    ours, expected = gradients(model, loss.total), gradients(model, total)
    assert ours.keys() == expected.keys() == {f"projector.{name}" for name, _ in model.projector.named_parameters()}
    for name in ours:
        largest = float(expected[name].abs().max())
        assert largest > 0
        torch.testing.assert_close(ours[name], expected[name], rtol=1e-3, atol=1e-5 * largest)


def test_each_utterance_has_the_loss_that_it_has_alone(make, make_batch, make_targets):
    model, _ = make()
    features, lengths, utterances = make_batch(LENGTHS, longer=9)
    for n, (utterance, text) in enumerate(zip(utterances, TEXTS)):
        alone = model(utterance[None], torch.tensor([len(utterance)]), make_targets([text])).total
        others = [i for i in range(len(TEXTS)) if i != n]
        rest = model(features[others], lengths[others], make_targets([TEXTS[i] for i in others])).total
        together = model(features, lengths, make_targets(TEXTS)).total
        torch.testing.assert_close(together - rest, alone, rtol=1e-4, atol=1e-5)


def test_what_is_in_the_padding_changes_no_bit(make, make_batch, make_targets):
    model, _ = make()
    targets, results = make_targets(TEXTS), []
    for rubbish, token in ((1e3, 0), (-7.0, 33)):
        features, lengths, _ = make_batch(LENGTHS, longer=5, rubbish=rubbish)
        for row, text in zip(targets.tokens_NU, TEXTS):
            row[len(text) :] = token
        loss = model(features, lengths, targets)
        results.append((loss.total, gradients(model, loss.total)))
    assert torch.equal(results[0][0], results[1][0])
    assert all(torch.equal(results[0][1][name], results[1][1][name]) for name in results[0][1])


def test_what_lies_behind_the_speech_changes_no_bit(make, make_batch):
    model, _ = make()
    features, lengths, _ = make_batch(LENGTHS)
    speech, frames = model.speech(features, lengths)
    outputs = []
    for rubbish in (0.0, 1e3):
        for row, length in zip(speech, frames):
            row.data[length:] = rubbish
        inputs, positions = model.prefix(speech, frames, torch.tensor([AFTER] * 3))
        hidden = model.lm(inputs_embeds=inputs).last_hidden_state
        outputs.append([row[:length] for row, length in zip(hidden, positions)])
    assert positions.tolist() == [len(BEFORE) + int(length) + len(AFTER) for length in frames]
    assert all(torch.equal(a, b) for a, b in zip(*outputs))


def test_only_the_projector_is_trained(make, make_batch, make_targets):
    model, _ = make(tied=False)
    model.train()
    frozen = {n: t.clone() for n, t in model.state_dict().items() if n.startswith(model.frozen_parts)}
    trained = [p for p in model.parameters() if p.requires_grad]
    assert {id(p) for p in trained} == {id(p) for p in model.projector.parameters()}
    optimizer, losses = torch.optim.AdamW(trained, lr=1e-2), []
    features, lengths, _ = make_batch(LENGTHS)
    for _ in range(3):
        losses.append(float((loss := model(features, lengths, make_targets(TEXTS))).total.detach()))
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
    assert losses[2] < losses[0]
    assert all(p.grad is None for n, p in model.named_parameters() if n.startswith(model.frozen_parts))
    assert len(frozen) > 20 and all(torch.equal(model.state_dict()[name], tensor) for name, tensor in frozen.items())


def test_encoder_and_language_model_are_without_dropout(make, make_batch, make_targets):
    model, _ = make()
    features, lengths, _ = make_batch(LENGTHS)
    expected = model.eval()(features, lengths, make_targets(TEXTS)).total
    assert torch.equal(model.train()(features, lengths, make_targets(TEXTS)).total, expected)


@pytest.mark.parametrize("kind, tied", KINDS)
def test_a_saved_model_computes_the_same(tmp_path, make, make_batch, make_targets, kind, tied):
    model, _ = make(kind, tied, vocab=lm_checkpoints.VOCAB)
    lm_checkpoints.save_tokenizer(tmp_path)
    tokens = LLMTokens(tmp_path, lm_checkpoints.VOCAB)
    config = FolderConfig(ModelConfig(speech_llm=model.config), FeatureConfig(num_mels=7), untrained=True)
    save_model(tmp_path / "new", model, config, tokens)
    loaded = load_model(tmp_path / "new")
    assert loaded.config == config and loaded.tokens.digest == tokens.digest
    features, lengths, _ = make_batch(LENGTHS)
    losses = [m.eval()(features, lengths, make_targets(TEXTS)).total for m in (model, loaded.model)]
    assert torch.equal(*losses)
    assert {n for n, p in loaded.model.named_parameters() if p.requires_grad} == {
        n for n, p in model.named_parameters() if p.requires_grad
    }


@pytest.mark.parametrize("kind", lm_checkpoints.MODELS)
def test_recomputing_activations_gives_the_same_gradients(make, make_batch, make_targets, kind):
    model, _ = make(kind)
    model.train()
    features, lengths, _ = make_batch(LENGTHS)
    runs, calls = [], [0]
    model.lm.layers[1].mlp.register_forward_pre_hook(lambda *_: calls.__setitem__(0, calls[0] + 1))
    for enabled in (False, True, False):
        calls[0] = 0
        model.set_gradient_checkpointing(enabled)
        loss = model(features, lengths, make_targets(TEXTS)).total
        runs.append((loss.detach(), gradients(model, loss)))
        assert calls[0] == (2 if enabled else 1)
    for loss, grads in runs[1:]:
        assert torch.equal(loss, runs[0][0])
        assert all(torch.equal(grads[name], runs[0][1][name]) for name in runs[0][1])


class TestContext:
    """70 feature frames are 17 of the encoder and 9 of the projector; 5 tokens are the prompt's."""

    def test_is_filled_and_not_exceeded(self, make, make_batch, make_targets):
        model, theirs = make(positions=17)
        assert model.projector.output_lengths(model.output_lengths(torch.tensor(70))) == 9
        assert model.too_long(70, 3) is None
        assert model.too_long(70, 4) == "its speech, prompt and text take 18 positions, the language model has 17"
        features, lengths, utterances = make_batch([70])
        loss = model(features, lengths, make_targets([[5, 9, 30]]))
        torch.testing.assert_close(loss.total, loss_by_hand(model, theirs, utterances[0], [5, 9, 30])[0])

    def test_bounds_hypotheses(self, make):
        model, _ = make(positions=17)
        assert model.max_tokens(torch.tensor([1, 2, 9])).tolist() == [2, 4, 3]
        with pytest.raises(UserError, match="12 frames leaves no room for text in the 17 positions"):
            model.max_tokens(torch.tensor([1, 12]))


@pytest.mark.parametrize("tied", [True, False])
def test_a_language_model_in_16_bits(make, make_batch, make_targets, tied):
    model, theirs = make(tied=tied, dtype=torch.bfloat16)
    features, lengths, utterances = make_batch(LENGTHS)
    assert model.speech(features, lengths)[0].dtype == torch.bfloat16
    assert model.logits(torch.ones(1, 16, dtype=torch.bfloat16)).dtype == torch.float32
    loss = model(features, lengths, make_targets(TEXTS))
    alone = [loss_by_hand(model, theirs, utterance, text)[0] for utterance, text in zip(utterances, TEXTS)]
    torch.testing.assert_close(loss.total.float(), sum(alone), rtol=2e-2, atol=0)
    ours, expected = gradients(model, loss.total), gradients(model, sum(alone))
    for name, tensor in ours.items():
        assert tensor.dtype == torch.float32
        assert F.cosine_similarity(tensor.flatten(), expected[name].flatten(), 0) > 0.99


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_projector_learns_below_a_language_model_in_4_bits(make, make_batch, make_targets, dtype):
    model, _ = make(dtype=dtype)
    names = quantise(model, QuantConfig((r"lm\.layers\..*",), block=16))
    assert len(names) == 2 * 7
    features, lengths, _ = make_batch(LENGTHS)
    loss = model(features, lengths, make_targets(TEXTS)).total
    packed = gradients(model, loss)
    plain = model(features, lengths, make_targets(TEXTS)).total if dequantise(model) else None
    torch.testing.assert_close(loss, plain, rtol=1e-5, atol=0)
    for name, expected in gradients(model, plain).items():
        torch.testing.assert_close(packed[name], expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()))
    assert packed.keys() == {f"projector.{name}" for name, _ in model.projector.named_parameters()}


@pytest.mark.parametrize(
    "change, message",
    [
        ({"after": ()}, "put something after <speech> in the prompt"),
        ({"end": 40}, "end names token 40, but there are 0 to 39"),
        ({"before": (3, -1)}, "before names token -1"),
        ({"tokens_per_frame": 0.0}, "tokens_per_frame must be above 0"),
        ({"lm": {"model_type": "bert"}}, "no language model of type bert, only qwen2, qwen3, llama"),
        ({"lm": {"model_type": "qwen2"}}, "vocab_size of the language model must be a whole number, not None"),
        (
            {"lm": {"model_type": "qwen2", "vocab_size": 40, "max_position_embeddings": "64"}},
            "max_position_embeddings of the language model must be a whole number, not 64",
        ),
    ],
)
def test_bad_configurations_are_one_line(tiny, change, message):
    lm = {"model_type": "qwen2", "vocab_size": 40, "max_position_embeddings": 64}
    with pytest.raises(UserError, match=message) as caught:
        SpeechLLMConfig(EncoderConfig(conformer=tiny), **{"lm": lm, "after": AFTER, "end": END, **change})
    assert "\n" not in str(caught.value)
