import sys
from types import SimpleNamespace

import pytest
import torch
from toy_speech_llm import speech_llm

from moe_asr.decoding.ctc import prefix_beam
from moe_asr.decoding.search import Search, search_kinds
from moe_asr.decoding.search_config import SearchConfig
from moe_asr.errors import UserError
from moe_asr.models.conformer import ConformerConfig
from moe_asr.models.conformer_aed import ConformerAED, ConformerAEDConfig
from moe_asr.models.conformer_ctc import ConformerCTC, ConformerCTCConfig
from moe_asr.models.transformer_decoder import DecoderConfig
from moe_asr.models.whisper import Whisper, WhisperConfig

LENGTHS = [70, 33, 90, 12, 51]
ENCODER = ConformerConfig(mels=7, width=12, layers=2, heads=2, ffn_multiplier=3, kernel=5, dropout=0.0)


def whisper():
    size = dict(mels=7, width=16, encoder_layers=1, decoder_layers=2, heads=2, ffn=24, vocab_size=20, max_frames=60)
    return Whisper(WhisperConfig(**size, max_tokens=40, prompt=(5, 6), suppress=(0, 5), begin_suppress=(2, 8)))


def conformer_aed(ctc_weight=0.3):
    config = ConformerAEDConfig(ENCODER, DecoderConfig(2, 2, 24, max_tokens=30), 20, ctc_weight)
    return ConformerAED(config)


def lively(build, seed):
    """A model with weights and a seed with which texts differ between utterances, and some end before the limit."""
    torch.manual_seed(seed)
    model = build()
    for module in model.modules():
        if isinstance(module, (torch.nn.Linear, torch.nn.Conv1d)):
            torch.nn.init.xavier_normal_(module.weight, 2.0)
    with torch.no_grad():
        for layer in model.decoder.layers:
            layer.encoder_attn.out_proj.weight.mul_(10.0)
        torch.nn.init.normal_(model.decoder.embed_tokens.weight, std=0.5)[model.end].mul_(1.3)
        if isinstance(model.decoder.embed_positions, torch.nn.Embedding):
            torch.nn.init.normal_(model.decoder.embed_positions.weight)
    return model.eval()


MODELS = {"whisper": lambda: lively(whisper, 14), "conformer_aed": lambda: lively(conformer_aed, 5)}
ATTENTION = [SearchConfig("greedy"), SearchConfig("beam", 1), SearchConfig("beam", 4)]
WITH_CTC = [SearchConfig("beam", 4, 5, ctc_weight=0.4), SearchConfig("rescore", 4, 5, ctc_weight=0.4)]
WITH_CTC += [SearchConfig("prefix_beam", 4, 5)]


def features(lengths):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(len(lengths), max(lengths), 7, generator=generator), torch.tensor(lengths)


def batch(num):
    return SimpleNamespace(tokens_NU=torch.zeros(num, 1, dtype=torch.int64))


@torch.inference_mode()
def run(model, config, x_NTF, lengths, **options):
    return Search(model, config, None, **options)(x_NTF, lengths, batch(len(lengths)))


def assert_same(found, expected):
    for one, other in zip(found, expected):
        assert [(a.tokens, a.truncated) for a in one] == [(b.tokens, b.truncated) for b in other]
        if one[0].score is not None:
            assert [a.score for a in one] == pytest.approx([b.score for b in other], abs=1e-4)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("config", ATTENTION)
def test_the_cache_changes_nothing(name, config):
    model = MODELS[name]()
    found = run(model, config, *features(LENGTHS))
    assert_same(found, run(model, config, *features(LENGTHS), cache=False))
    assert len({beams[0].tokens for beams in found}) > 3
    assert any(len(one.tokens) > 3 and not one.truncated for beams in found for one in beams)


@pytest.mark.parametrize(
    "name, config", [*((n, c) for n in MODELS for c in ATTENTION), *(("conformer_aed", c) for c in WITH_CTC)]
)
def test_alone_equals_in_any_batch_whatever_the_padding_holds(name, config):
    model = MODELS[name]()
    x_NTF, lengths = features(LENGTHS * 3)
    together = run(model, config, x_NTF, lengths)
    for row, n in zip(x_NTF, lengths):
        row[n:] = 1e3
    assert_same(run(model, config, x_NTF, lengths), together)
    for number in range(len(LENGTHS)):
        n = lengths[number]
        alone = run(model, config, x_NTF[number : number + 1, :n], n[None])
        assert_same(alone, together[number : number + 1])


@pytest.mark.parametrize("beams", [1, 2, 5])
@pytest.mark.parametrize("seed", [3, 11, 20])
def test_tokens_are_those_of_transformers(beams, seed):
    transformers = pytest.importorskip("transformers")
    model = lively(whisper, seed)
    c = transformers.WhisperConfig(
        vocab_size=20, d_model=16, num_mel_bins=7, encoder_layers=1, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=24, decoder_ffn_dim=24, max_source_positions=60,
        max_target_positions=40, decoder_start_token_id=5, pad_token_id=2, eos_token_id=2, bos_token_id=2,
    )  # fmt: skip
    theirs = transformers.WhisperForConditionalGeneration(c).eval()
    state = {f"model.{name}": value for name, value in model.state_dict().items()}
    theirs.load_state_dict({**state, "proj_out.weight": model.decoder.embed_tokens.weight})
    x_NTF, lengths = features([120] * 6)
    ours = run(model, SearchConfig("greedy" if beams == 1 else "beam", beams), x_NTF, lengths)
    with torch.inference_mode():
        states = theirs.model.encoder(x_NTF.transpose(1, 2)).last_hidden_state
        ids = transformers.GenerationMixin.generate(
            theirs, encoder_outputs=transformers.modeling_outputs.BaseModelOutput(states),
            decoder_input_ids=torch.tensor([[5, 6]] * 6), num_beams=beams, do_sample=False, max_new_tokens=30,
            suppress_tokens=[0, 5], begin_suppress_tokens=[2, 8],
        )  # fmt: skip
    expected = [row[2:].tolist() for row in ids]
    expected = [tuple(row[: row.index(2)] if 2 in row else row) for row in expected]
    assert [beams[0].tokens for beams in ours] == expected
    assert len(set(expected)) > 3 and any(len(tokens) < 30 for tokens in expected)


@pytest.mark.parametrize("weight, bonus", [(0.0, 0.0), (0.4, 0.0), (0.4, 2.0)])
def test_rescoring_adds_the_scores_of_each_text(weight, bonus):
    model, (x_NTF, lengths) = MODELS["conformer_aed"](), features(LENGTHS)
    config = SearchConfig("rescore", 6, 5, bonus, ctc_weight=weight)
    found = run(model, config, x_NTF, lengths)
    with torch.inference_mode():
        states_NTD, frames_N = model.encode(x_NTF, lengths)
        first = prefix_beam(model.ctc_log_probs(states_NTD), frames_N, config)
        for n, texts in enumerate(first):
            scores = {}
            for text in texts:
                ids = torch.tensor([[2, *text.tokens]])
                hidden = model.decoder(ids, states_NTD[n : n + 1], frames_N[n : n + 1])
                log_p = model.decoder.logits(hidden).log_softmax(-1)[0, range(ids.shape[1]), [*text.tokens, 2]].sum()
                ctc = text.score - bonus * len(text.tokens)
                scores[text.tokens] = (1 - weight) * log_p.item() + weight * ctc + bonus * len(text.tokens)
            ranked = sorted(scores, key=lambda tokens: -scores[tokens])
            assert [one.tokens for one in found[n]] == ranked
            assert [one.score for one in found[n]] == pytest.approx([scores[y] for y in ranked], abs=1e-4)
    assert any(one[0].tokens != two[0].tokens for one, two in zip(found, first)), "rescoring never mattered"


def test_each_model_says_what_it_can_do():
    ctc = ConformerCTC(ConformerCTCConfig(ENCODER, 20))
    assert search_kinds(ctc) == ("greedy", "prefix_beam", "lattice")
    assert search_kinds(whisper()) == search_kinds(speech_llm()) == ("greedy", "beam")
    assert search_kinds(conformer_aed()) == ("greedy", "beam", "prefix_beam", "lattice", "rescore", "lattice_rescore")
    with pytest.raises(UserError, match="no search of kind beam; it has greedy, prefix_beam, lattice$"):
        Search(ctc, SearchConfig("beam"), None)
    with pytest.raises(UserError, match="no search of kind rescore; it has greedy, beam$"):
        Search(conformer_aed(ctc_weight=0.0), SearchConfig("rescore"), None)
    for model in (whisper(), speech_llm()):
        with pytest.raises(UserError, match="no CTC output: leave search.ctc_weight at 0"):
            Search(model, SearchConfig("beam", ctc_weight=0.3), None)


def test_ctc_models_search_as_ever():
    torch.manual_seed(0)
    model, (x_NTF, lengths) = ConformerCTC(ConformerCTCConfig(ENCODER, 20)).eval(), features(LENGTHS)
    with torch.inference_mode():
        expected = prefix_beam(*model.log_probs(x_NTF, lengths), SearchConfig("prefix_beam"))
    assert run(model, SearchConfig("prefix_beam"), x_NTF, lengths) == expected
    assert all(len(texts) == 1 for texts in run(model, SearchConfig(), x_NTF, lengths))


@pytest.mark.parametrize("kind", ["lattice", "lattice_rescore"])
def test_without_k2_the_installer_is_named(monkeypatch, kind):
    monkeypatch.setitem(sys.modules, "k2", None)
    with pytest.raises(UserError, match="k2 .*tools/install_k2.sh"):
        Search(conformer_aed(), SearchConfig(kind), None)
