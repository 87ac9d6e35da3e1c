import pytest
import torch

from moe_asr.errors import UserError
from moe_asr.models.transformer_decoder import DecoderConfig, TransformerDecoder

N, T, D, V = 3, 9, 12, 17
LENGTHS = torch.tensor([9, 4, 7])


@pytest.fixture(params=[True, False], ids=["learned", "sinusoids"])
def decoder(request):
    torch.manual_seed(0)
    config = DecoderConfig(layers=2, heads=2, ffn=20, dropout=0.3, max_tokens=12, learned_positions=request.param)
    return TransformerDecoder(config, D, V).eval()


@pytest.fixture
def states():
    """Encoder states with rubbish in the padding."""
    states_NTD = torch.randn(N, T, D, generator=torch.Generator().manual_seed(1))
    return states_NTD.masked_fill((torch.arange(T) >= LENGTHS[:, None])[..., None], 1e4)


@pytest.fixture
def tokens():
    return torch.randint(V, (N, 6), generator=torch.Generator().manual_seed(2))


def test_a_token_sees_none_that_come_later(decoder, states, tokens):
    hidden = decoder(tokens, states, LENGTHS)
    for u in range(1, tokens.shape[1]):
        changed = tokens.clone()
        changed[:, u:] = (changed[:, u:] + 1) % V
        torch.testing.assert_close(decoder(changed, states, LENGTHS)[:, :u], hidden[:, :u])
        assert not torch.allclose(decoder(changed, states, LENGTHS)[:, u], hidden[:, u])


def test_alone_as_in_a_batch(decoder, states, tokens):
    hidden = decoder(tokens, states, LENGTHS)
    for n in range(N):
        alone = decoder(tokens[n : n + 1], states[n : n + 1, : LENGTHS[n]], LENGTHS[n : n + 1])
        torch.testing.assert_close(alone[0], hidden[n], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("prompt", [1, 3])
def test_steps_equal_the_whole(decoder, states, tokens, prompt):
    expected = decoder.logits(decoder(tokens, states, LENGTHS))
    state = decoder.start(states, LENGTHS, 6)
    logits = decoder.step(tokens[:, None, :prompt], state)
    torch.testing.assert_close(logits[:, 0], expected[:, prompt - 1], rtol=1e-4, atol=1e-5)
    for u in range(prompt, 6):
        logits = decoder.step(tokens[:, None, u : u + 1], state)
        torch.testing.assert_close(logits[:, 0], expected[:, u], rtol=1e-4, atol=1e-5)
    assert state.position == 6


def test_hypotheses_branch_change_places_and_utterances_leave(decoder, states):
    """Three hypotheses of each utterance, reordered at every step, each equal to its own text decoded alone."""
    generator = torch.Generator().manual_seed(3)
    state, texts = decoder.start(states, LENGTHS, 6), torch.full((N, 1, 1), 2)
    rows = torch.arange(N)
    logits = decoder.step(texts, state)
    for number in range(5):
        index = torch.randint(texts.shape[1], (len(rows), 3), generator=generator)
        state.reorder(index)
        new = torch.randint(V, (len(rows), 3, 1), generator=generator)
        texts = torch.cat([texts[torch.arange(len(rows))[:, None], index], new], 2)
        if number == 2:
            keep = torch.tensor([2, 0])
            state.select(keep)
            rows, texts, new = rows[keep], texts[keep], new[keep]
        logits = decoder.step(new, state)
        for n, row in enumerate(rows):
            for k in range(3):
                alone = decoder(texts[n, k][None], states[row][None], LENGTHS[row][None])[0, -1]
                torch.testing.assert_close(logits[n, k], decoder.logits(alone), rtol=1e-4, atol=1e-5)


def test_more_tokens_than_positions_are_refused(decoder, states):
    with pytest.raises(UserError, match="13 tokens are more than the decoder's 12"):
        decoder(torch.zeros(N, 13, dtype=torch.int64), states, LENGTHS)


def test_checkpointing_changes_no_gradient(decoder, states, tokens):
    grads = []
    for enabled in (False, True):
        decoder.train().set_gradient_checkpointing(enabled)
        torch.manual_seed(0)
        decoder(tokens, states.clamp(max=3), LENGTHS).square().sum().backward()
        grads.append({n: p.grad for n, p in decoder.named_parameters()})
        decoder.zero_grad()
    torch.testing.assert_close(grads[0], grads[1])


def test_sinusoids_are_stored_but_not_trained():
    decoder = TransformerDecoder(DecoderConfig(layers=1, heads=2, ffn=8), D, V)
    assert "embed_positions.weight" in decoder.state_dict()
    assert "embed_positions.weight" not in dict(decoder.named_parameters())


@pytest.mark.parametrize("dropout", [-0.1, 1.0, float("nan")])
def test_dropout_is_a_share(dropout):
    with pytest.raises(UserError, match=r"decoder: dropout must be in \[0, 1\)"):
        DecoderConfig(dropout=dropout)
