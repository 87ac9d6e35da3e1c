import pytest
import torch
from toy_speech_llm import END, KINDS, LENGTHS, SUPPRESS, VOCAB, batch, features, run, speech_llm

from moe_asr.decoding.llm_steps import LMSteps
from moe_asr.decoding.search_config import SearchConfig
from moe_asr.errors import UserError
from moe_asr.experts import ExpertSpec, RouterSpec, attach
from moe_asr.models.precision import computing_in, lower_weights

SEARCHES = [SearchConfig("greedy"), SearchConfig("beam", 4)]
GLOBAL = RouterSpec(threshold="learned")
EXPERTS = {
    "projector": [ExpertSpec((r"projector\.linear[12]",), 3, 2, stream="projector")],
    "lm": [ExpertSpec((r"lm\..*\.(q|down)_proj",), 3, 2, router=GLOBAL, stream="lm")],
    "both": [
        ExpertSpec((r"projector\.linear[12]",), 3, 2, stream="projector"),
        ExpertSpec((r"lm\..*\.(q|k|v|o|gate|up|down)_proj",), 3, 2, router=GLOBAL, stream="lm"),
    ],
}
ACCENTS = torch.arange(len(LENGTHS)) % 3


def with_experts(where):
    model = speech_llm()
    adapter = attach(model, EXPERTS[where])
    for parameter in adapter.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model, adapter


def assert_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert [(a.tokens, a.truncated) for a in one] == [(b.tokens, b.truncated) for b in other]
        if one[0].score is not None:
            assert [a.score for a in one] == pytest.approx([b.score for b in other], abs=1e-4)


def whole(model, speech_LW, prompt_P, tokens):
    """Logits after these tokens, from a run over all that comes before, of one utterance without padding."""
    text_1U = torch.cat([prompt_P, torch.tensor(tokens, dtype=torch.int64)])[None]
    inputs_1MW, _ = model.prefix(speech_LW[None], torch.tensor([len(speech_LW)]), text_1U)
    return model.logits(model.lm(inputs_embeds=inputs_1MW, use_cache=False).last_hidden_state[0, -1])


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_steps_equal_runs_over_the_whole_text(kind):
    model, (x_NTF, lengths_N) = speech_llm(kind), features(LENGTHS[:5])
    speech_NLW, frames_N = model.speech(x_NTF, lengths_N)
    prompt_NP = model.prompts(batch(5))
    generator = torch.Generator().manual_seed(0)
    steps, rows, texts = LMSteps(model, speech_NLW, frames_N), list(range(5)), [[()] for _ in range(5)]
    new_NKP = prompt_NP[:, None]
    for number, beams in enumerate([1, 3, 4, 4, 2, 5, 1, 2]):
        logits_NKV = steps.step(new_NKP)
        assert logits_NKV.shape == (len(rows), len(texts[0]), VOCAB) and logits_NKV.dtype == torch.float32
        for logits_KV, row, beam in zip(logits_NKV, rows, texts):
            speech_LW = speech_NLW[row, : frames_N[row]]
            expected_KV = torch.stack([whole(model, speech_LW, prompt_NP[row], tokens) for tokens in beam])
            torch.testing.assert_close(logits_KV, expected_KV, rtol=1e-4, atol=1e-4)
        if number in (2, 5):
            stay = [3, 0, 1] if number == 2 else [2]
            steps.select(torch.tensor(stay))
            rows, texts = [rows[n] for n in stay], [texts[n] for n in stay]
        source_NK = torch.randint(len(texts[0]), (len(rows), beams), generator=generator)
        token_NK = torch.randint(VOCAB, (len(rows), beams), generator=generator)
        steps.reorder(source_NK)
        pairs = zip(texts, source_NK.tolist(), token_NK.tolist())
        texts = [[(*beam[source], token) for source, token in zip(*new)] for beam, *new in pairs]
        new_NKP = token_NK[:, :, None]
    assert rows == [1] and len(texts[0][0]) == 8


@torch.inference_mode()
def test_the_prefix_is_stored_once_whatever_the_number_of_hypotheses():
    model, (x_NTF, lengths_N) = speech_llm(), features(LENGTHS[:3])
    speech_NLW, frames_N = model.speech(x_NTF, lengths_N)
    steps = LMSteps(model, speech_NLW, frames_N)
    steps.step(model.prompts(batch(3))[:, None])
    for _ in range(2):
        steps.reorder(torch.zeros(3, 4, dtype=torch.int64))
        steps.step(torch.ones(3, 4, 1, dtype=torch.int64))
    prefix = int(frames_N.max()) + len(model.config.before) + len(model.config.after)
    assert {layer.keys.shape[::2] for layer in steps._cache.layers} == {(3, prefix + 2 * 4)}


@torch.inference_mode()
def test_in_bf16_batch_mates_change_nothing_and_the_batch_no_more_than_bf16_itself():
    model, (x_NTF, lengths_N) = speech_llm(), features()

    def logits(x_NTF, lengths_N):
        steps = LMSteps(model, *model.speech(x_NTF, lengths_N))
        first_N1V = steps.step(model.prompts(batch(len(lengths_N)))[:, None])
        return torch.stack([first_N1V, steps.step(torch.full((len(lengths_N), 1, 1), 3))])

    exact = logits(x_NTF, lengths_N)
    model.lm.to(torch.bfloat16)
    rounded = logits(x_NTF, lengths_N)
    others_NTF = torch.cat([x_NTF[:1], x_NTF[1:].flip(2)])
    assert torch.equal(logits(others_NTF, lengths_N)[:, 0], rounded[:, 0])
    alone = torch.cat([logits(x_NTF[n : n + 1, :size], lengths_N[n : n + 1]) for n, size in enumerate(LENGTHS)], 1)
    assert (alone - rounded).abs().max() < (exact - rounded).abs().max() < 0.1 * exact.std()


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_with_lowered_weights_sums_stay_in_full_precision(kind):
    """Behind the prefix as in it."""
    model, (x_NTF, lengths_N) = speech_llm(kind), features(LENGTHS[:3])
    lower_weights(model, "bf16")
    seen = []
    for module in (*model.lm.layers, model.lm.norm):
        module.register_forward_pre_hook(lambda module, args: seen.append(args[0].dtype))
    with computing_in("bf16", "cpu"):
        steps = LMSteps(model, *model.speech(x_NTF, lengths_N))
        steps.step(model.prompts(batch(3))[:, None])
        steps.step(torch.ones(3, 1, 1, dtype=torch.int64))
    assert model.lm.embed_tokens.weight.dtype == torch.bfloat16
    assert seen == [torch.float32] * 6


@pytest.mark.parametrize("config", SEARCHES)
@pytest.mark.parametrize("kind", KINDS)
def test_alone_equals_in_a_batch_of_16_whatever_the_padding_holds(kind, config):
    model, (x_NTF, lengths_N) = speech_llm(kind), features()
    together = run(model, config, x_NTF, lengths_N)
    assert len({texts[0].tokens for texts in together}) > 8
    assert any(texts[0].truncated for texts in together)
    assert any(len(texts[0].tokens) > 2 and not texts[0].truncated for texts in together)
    for row, n in zip(x_NTF, lengths_N):
        row[n:] = 1e3
    assert_same(run(model, config, x_NTF, lengths_N), together)
    for number, n in enumerate(LENGTHS):
        one = slice(number, number + 1)
        assert_same(run(model, config, x_NTF[one, :n], lengths_N[one]), together[one])


@pytest.mark.parametrize("config", SEARCHES)
@pytest.mark.parametrize("where", EXPERTS)
def test_mixed_accents_with_experts_equal_one_by_one(where, config):
    (model, adapter), (x_NTF, lengths_N) = with_experts(where), features()
    together = routed(model, adapter, config, x_NTF, lengths_N, ACCENTS)
    alone = []
    for number, n in enumerate(LENGTHS):
        one = slice(number, number + 1)
        alone += routed(model, adapter, config, x_NTF[one, :n], lengths_N[one], ACCENTS[one])
    assert_same(together, alone)
    others = routed(model, adapter, config, x_NTF, lengths_N, (ACCENTS + 1) % 3)
    assert sum(a[0].tokens != b[0].tokens for a, b in zip(together, others)) > 8, "experts hardly mattered"


def routed(model, adapter, config, x_NTF, lengths_N, accents_N):
    with adapter.route(accents_N, model.stream_lengths(lengths_N)):
        return run(model, config, x_NTF, lengths_N, adapter)


@torch.inference_mode()
def test_experts_of_the_language_model_are_told_what_it_sees():
    (model, adapter), (x_NTF, lengths_N) = with_experts("lm"), features(LENGTHS[:3])
    speech_NLW, frames_N = model.speech(x_NTF, lengths_N)
    prompt_NP = model.prompts(batch(3))
    with adapter.route(ACCENTS[:3], model.stream_lengths(lengths_N)):
        steps = LMSteps(model, speech_NLW, frames_N, adapter)
        steps.step(prompt_NP[:, None])
        prefix_N = frames_N + len(model.config.before) + prompt_NP.shape[1]
        assert torch.equal(adapter.routing.lengths["lm"], prefix_N)
        for beams in (1, 4):
            steps.reorder(torch.zeros(3, beams, dtype=torch.int64))
            steps.step(torch.ones(3, beams, 1, dtype=torch.int64))
            assert adapter.routing.lengths["lm"].tolist() == [beams] * 3
        steps.select(torch.tensor([2, 0]))
        steps.reorder(torch.zeros(2, 4, dtype=torch.int64))
        assert adapter.routing.domains_NE.argmax(1).tolist() == [2, 0]
        found = steps.step(torch.full((2, 4, 1), 3))
    for row, logits_KV in zip((2, 0), found):
        with adapter.route(ACCENTS[row : row + 1]):
            expected = whole(model, speech_NLW[row, : frames_N[row]], prompt_NP[row], [1, 1, 3])
        torch.testing.assert_close(logits_KV, expected.expand(4, -1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("beams", [1, 4])
@pytest.mark.parametrize("kind, tied", [("qwen2", True), ("qwen3", True), ("llama", False)])
@torch.inference_mode()
def test_texts_are_those_of_transformers_one_utterance_at_a_time(kind, tied, beams):
    transformers = pytest.importorskip("transformers")
    model, (x_NTF, lengths_N) = speech_llm(kind, tied=tied), features()
    ours = run(model, SearchConfig("greedy" if beams == 1 else "beam", beams), x_NTF, lengths_N)
    theirs = transformers.AutoModelForCausalLM.from_config(model.lm.config, dtype=torch.float32).eval()
    state = {f"model.{name}": tensor for name, tensor in model.lm.state_dict().items()}
    theirs.load_state_dict({**state, "lm_head.weight": model.output_weight})
    speech_NLW, frames_N = model.speech(x_NTF, lengths_N)
    inputs_NMW, prefix_N = model.prefix(speech_NLW, frames_N, model.prompts(batch(len(LENGTHS))))
    for found, inputs_MW, n, limit in zip(ours, inputs_NMW, prefix_N, model.max_tokens(frames_N).tolist()):
        out = theirs.generate(
            inputs_embeds=inputs_MW[None, :n], attention_mask=torch.ones(1, n), num_beams=beams, do_sample=False,
            max_new_tokens=limit, suppress_tokens=list(SUPPRESS), pad_token_id=END, return_dict_in_generate=True,
            output_scores=True, use_cache=True,
        )  # fmt: skip
        tokens = out.sequences[0].tolist()
        expected = tuple(tokens[: tokens.index(END)] if END in tokens else tokens)
        assert (found[0].tokens, found[0].truncated) == (expected, END not in tokens)
        if beams > 1:
            assert found[0].score == pytest.approx(out.sequences_scores.item(), abs=1e-4)


def test_speech_that_fills_the_context_is_refused_and_long_texts_are_cut():
    model, (x_NTF, lengths_N) = speech_llm(positions=20), features([90, 20])
    frames = model.stream_lengths(lengths_N)["projector"].tolist()
    room = 20 - len(model.config.before) - len(model.config.after) - frames[0]
    assert 0 < room < 2 * frames[0]
    assert model.max_tokens(torch.tensor(frames)).tolist() == [room, 2 * frames[1]]
    with torch.no_grad():
        model.output_weight[END] = 0.0  # texts do not end by themselves
    texts = run(model, SearchConfig("greedy"), x_NTF, lengths_N)
    assert texts[0][0].truncated and len(texts[0][0].tokens) == room
    with pytest.raises(UserError, match="leaves no room for text in the 20 positions .*: cut it"):
        run(model, SearchConfig("greedy"), *features([150, 20]))
