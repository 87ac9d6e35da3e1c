"""What ConformerAED and Whisper share, on both."""

import pytest
import torch
import torch.nn.functional as F

from moe_asr.errors import UserError
from moe_asr.models.build import ModelConfig, build_model
from moe_asr.models.conformer_aed import ConformerAEDConfig
from moe_asr.models.transformer_decoder import DecoderConfig
from moe_asr.models.whisper import WhisperConfig

V = 13


def make(kind, tiny, **changes):
    torch.manual_seed(0)
    if kind == "conformer_aed":
        decoder = DecoderConfig(layers=2, heads=2, ffn=20, dropout=0.0, max_tokens=30)
        return build_model(ModelConfig(conformer_aed=ConformerAEDConfig(tiny, decoder, V, **changes)))
    config = WhisperConfig(
        mels=7, width=12, encoder_layers=2, decoder_layers=2, heads=2, ffn=20, vocab_size=V, max_frames=60,
        max_tokens=30, **changes,
    )  # fmt: skip
    return build_model(ModelConfig(whisper=config))


KINDS = pytest.mark.parametrize("kind", ["conformer_aed", "whisper"])
TOKENS = [[3, 4, 4, 5], [6], [7, 3, 8]]


def naive_loss(model, utterance, tokens, smoothing):
    """Cross-entropy and CTC of one utterance, token by token; and how many tokens are right."""
    states, lengths = model.encode(utterance[None], torch.tensor([len(utterance)]))
    prompt, total, correct = list(model.prompt), 0.0, 0
    for u, target in enumerate([*tokens, model.end]):
        hidden = model.decoder(torch.tensor([prompt + tokens[:u]]), states, lengths)[0, -1]
        logits = model.decoder.logits(hidden)
        total = total + F.cross_entropy(logits, torch.tensor(target), label_smoothing=smoothing)
        correct += int(logits.argmax()) == target
    if model.ctc_head is not None:
        log_probs = model.ctc_log_probs(states).transpose(0, 1)
        ctc = F.ctc_loss(log_probs, torch.tensor([tokens]), lengths, torch.tensor([len(tokens)]), reduction="sum")
        total = (1 - model.ctc_weight) * total + model.ctc_weight * ctc
    return total, correct


@KINDS
@pytest.mark.parametrize("ctc", [0.0, 0.3])
def test_loss_is_the_naive_one_of_each_utterance(kind, ctc, tiny, make_batch, make_targets):
    model = make(kind, tiny, ctc_weight=ctc, label_smoothing=0.1).train()
    features, lengths, utterances = make_batch([40, 33, 57], longer=9)
    loss = model(features, lengths, make_targets(TOKENS))
    naive = [naive_loss(model, x, t, 0.1) for x, t in zip(utterances, TOKENS)]
    torch.testing.assert_close(loss.total, sum(total for total, _ in naive), rtol=1e-4, atol=1e-4)
    assert int(loss.count) == sum(len(t) + 1 for t in TOKENS)
    assert int(loss.parts["accuracy"]) == sum(correct for _, correct in naive)


@KINDS
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
def test_hypotheses_need_room(kind, tiny, value):
    with pytest.raises(UserError, match=f"{kind}: tokens_per_frame must be above 0, not {value}"):
        make(kind, tiny, tokens_per_frame=value)


@KINDS
def test_label_smoothing_is_for_training_alone(kind, tiny, make_batch, make_targets):
    model = make(kind, tiny, ctc_weight=0.0, label_smoothing=0.1).eval()
    features, lengths, utterances = make_batch([40, 33, 57])
    loss = model(features, lengths, make_targets(TOKENS))
    expected = sum(naive_loss(model, x, t, 0.0)[0] for x, t in zip(utterances, TOKENS))
    torch.testing.assert_close(loss.total, expected, rtol=1e-4, atol=1e-4)


@KINDS
def test_every_parameter_has_a_gradient(kind, tiny, make_batch, make_targets):
    """A head that is hidden by an attribute of the class would have none."""
    model = make(kind, tiny, ctc_weight=0.3)
    features, lengths, _ = make_batch([40, 33, 57])
    model(features, lengths, make_targets(TOKENS)).total.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


@KINDS
def test_padding_and_batch_mates_change_nothing(kind, tiny, make_batch):
    model = make(kind, tiny, ctc_weight=0.3).eval()
    features, lengths, utterances = make_batch([40, 33, 57], longer=9)
    states, frames = model.encode(features, lengths)
    assert frames.tolist() == model.output_lengths(lengths).tolist()
    for n, utterance in enumerate(utterances):
        alone, _ = model.encode(utterance[None], lengths[n : n + 1])
        torch.testing.assert_close(states[n, : frames[n]], alone[0], rtol=1e-4, atol=1e-5)
        assert not states[n, frames[n] :].any()


@KINDS
def test_score_of_given_texts(kind, tiny, make_batch, make_targets):
    """K texts for each utterance, of unequal lengths and one empty: the sum of log-probabilities up to the end."""
    model = make(kind, tiny).eval()
    features, lengths, _ = make_batch([40, 33])
    states, frames = model.encode(features, lengths)
    texts = [[[3, 4, 5], []], [[6], [7, 8, 9]]]
    tokens = torch.zeros(2, 2, 3, dtype=torch.int64)
    for n in range(2):
        for k in range(2):
            tokens[n, k, : len(texts[n][k])] = torch.tensor(texts[n][k], dtype=torch.int64)
    counts = torch.tensor([[len(t) for t in row] for row in texts])
    prompts = model.prompts(make_targets([[3], [3]]))
    scores = model.score(states, frames, prompts, tokens, counts)
    for n in range(2):
        for k in range(2):
            prefix, expected = list(model.prompt), 0.0
            for target in [*texts[n][k], model.end]:
                hidden = model.decoder(torch.tensor([prefix]), states[n : n + 1], frames[n : n + 1])[0, -1]
                expected += model.decoder.logits(hidden).log_softmax(-1)[target]
                prefix.append(target)
            torch.testing.assert_close(scores[n, k], expected, rtol=1e-4, atol=1e-4)


@KINDS
def test_a_text_too_long_for_ctc_still_trains_the_decoder(kind, tiny, make_batch, make_targets):
    model = make(kind, tiny, ctc_weight=0.5).eval()
    features, lengths, utterances = make_batch([8])
    tokens = [3, 3, 3, 3, 3]
    loss = model(features, lengths, make_targets([tokens]))
    assert int(loss.parts["ctc_too_long"]) == 5 and float(loss.parts["ctc"]) == 0.0
    model.ctc_head = None
    torch.testing.assert_close(loss.total, 0.5 * naive_loss(model, utterances[0], tokens, 0.0)[0])


@KINDS
def test_length_of_a_hypothesis_is_bounded_by_the_audio(kind, tiny):
    model = make(kind, tiny, tokens_per_frame=0.3)
    assert model.max_tokens(torch.tensor([1, 10, 10**6])).tolist() == [1, 3, 29]


@KINDS
def test_a_model_without_ctc_says_so(kind, tiny, make_batch):
    model = make(kind, tiny, ctc_weight=0.0)
    features, lengths, _ = make_batch([40])
    with pytest.raises(UserError, match="no CTC output: search by attention"):
        model.log_probs(features, lengths)


@KINDS
def test_checkpointing_changes_no_gradient(kind, tiny, make_batch, make_targets):
    features, lengths, _ = make_batch([40, 33, 57])
    grads = []
    for enabled in (False, True):
        model = make(kind, tiny, ctc_weight=0.3).train()
        model.set_gradient_checkpointing(enabled)
        model(features, lengths, make_targets(TOKENS)).total.backward()
        grads.append({n: p.grad for n, p in model.named_parameters()})
    torch.testing.assert_close(grads[0], grads[1])


def test_audio_longer_than_whisper_can_hear(tiny, make_batch):
    features, lengths, _ = make_batch([130])
    with pytest.raises(UserError, match="1.3 s is longer than the 1.2 s that this Whisper model can hear"):
        make("whisper", tiny).encode(features, lengths)


@KINDS
@pytest.mark.parametrize("wrong", [{"ctc_weight": 1.0}, {"label_smoothing": -0.1}])
def test_weights_out_of_range(kind, wrong, tiny):
    with pytest.raises(UserError, match="must be from 0 to below 1"):
        make(kind, tiny, **wrong)
