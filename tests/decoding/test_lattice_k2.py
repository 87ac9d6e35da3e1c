import itertools
import math
from types import SimpleNamespace

import pytest
import torch

from moe_asr.data.lang import spell, write_lang
from moe_asr.data.ngram import learn_bigram
from moe_asr.data.tokens import train_tokens
from moe_asr.decoding import lattice_k2
from moe_asr.decoding.ctc import greedy
from moe_asr.decoding.search import Search
from moe_asr.decoding.search_config import SearchConfig
from moe_asr.errors import UserError
from moe_asr.models.conformer import ConformerConfig
from moe_asr.models.conformer_aed import ConformerAED, ConformerAEDConfig
from moe_asr.models.transformer_decoder import DecoderConfig

k2 = pytest.importorskip("k2", reason="k2 is not installed (tools/install_k2.sh)")

TEXTS = ["ab a", "a ab b", "b ab", "ab", "b", "a b b"]


@pytest.fixture(params=["char", "bpe"])
def tokens(request, tmp_path):
    """<blk> <unk> <sos/eos>, a, b and a mark of words; with bpe also pieces of two."""
    return train_tokens(TEXTS * 4, tmp_path / "tokens", request.param, 0 if request.param == "char" else 8)


@pytest.fixture
def lang(tmp_path, tokens):
    words = sorted({word for text in TEXTS for word in text.split()})
    ngrams = learn_bigram(TEXTS, words)
    write_lang(tmp_path / "lang", spell(words, tokens), tokens, ngrams)
    return str(tmp_path / "lang"), words, ngrams


def random_log_probs(lengths, num_tokens, seed=0, sharp=2.0):
    generator = torch.Generator().manual_seed(seed)
    logits = sharp * torch.randn(len(lengths), max(lengths), num_tokens, generator=generator)
    return logits.log_softmax(2), torch.tensor(lengths)


def collapse(path):
    return tuple(token for token, _ in itertools.groupby(path) if token != 0)


def alignments(log_probs_TV):
    """Best and summed log-probability of the alignments of every text, by going through all of them."""
    best, total = {}, {}
    rows = log_probs_TV.tolist()
    for path in itertools.product(range(len(rows[0])), repeat=len(rows)):
        score, tokens = sum(row[v] for row, v in zip(rows, path)), collapse(path)
        best[tokens] = max(best.get(tokens, -math.inf), score)
        total[tokens] = total.get(tokens, 0.0) + math.exp(score)
    return best, {tokens: math.log(p) for tokens, p in total.items()}


def log_p_words(ngrams, words):
    """log P of a sentence as a graph has it: the better of n-gram and back-off."""
    total, before = 0.0, "<s>"
    for word in [*words, "</s>"]:
        backoff = ngrams[before,][1] + ngrams[word,][0]
        total += max(ngrams.get((before, word), (-math.inf, 0.0))[0], backoff)
        before = word
    return total


def sentences(words, longest):
    return [s for n in range(longest + 1) for s in itertools.product(words, repeat=n)]


def test_best_path_over_the_topology_is_that_of_greedy_search(tokens):
    log_probs, lengths = random_log_probs([40, 1, 0, 33, 12], tokens.size)
    search = lattice_k2.LatticeSearch(SearchConfig("lattice"), tokens)
    found = search.one_best(log_probs, lengths)
    assert [list(text.tokens) for text in found] == greedy(log_probs, lengths)
    for text, row, n in zip(found, log_probs, lengths):
        assert text.score == pytest.approx(row[:n].max(1).values.sum().item(), abs=1e-4)


@pytest.mark.parametrize("lm_scale", [0.0, 1.0, 2.5])
def test_best_path_of_hlg_against_all_alignments_of_all_sentences(tokens, lang, lm_scale):
    folder, words, ngrams = lang
    search = lattice_k2.LatticeSearch(SearchConfig("lattice", lang=folder, lm_scale=lm_scale), tokens)
    lm = {tuple(tokens.encode(" ".join(s))): log_p_words(ngrams, s) for s in sentences(words, 5)}
    for seed in range(3):
        log_probs, lengths = random_log_probs([5, 4, 1, 5], tokens.size, seed)
        for text, row, n in zip(search.one_best(log_probs, lengths), log_probs, lengths):
            best, _ = alignments(row[:n])
            scores = {y: best[y] + lm_scale * lm[y] for y in best if y in lm}
            assert text.score == pytest.approx(max(scores.values()), abs=1e-4)
            assert scores[text.tokens] == pytest.approx(text.score, abs=1e-4)


@pytest.mark.parametrize("bonus", [0.0, 1.5])
def test_scores_of_several_texts_sum_over_alignments(tokens, lang, bonus):
    folder, words, ngrams = lang
    config = SearchConfig("lattice_rescore", beam=5, lang=folder, lm_scale=0.7, length_bonus=bonus)
    search = lattice_k2.LatticeSearch(config, tokens)
    lm = {tuple(tokens.encode(" ".join(s))): log_p_words(ngrams, s) for s in sentences(words, 5)}
    log_probs, lengths = random_log_probs([5, 4, 5], tokens.size, seed=3, sharp=1.0)
    several = 0
    for found, row, n in zip(search.n_best(log_probs, lengths), log_probs, lengths):
        _, total = alignments(row[:n])
        for text in found:
            expected = total[text.tokens] + 0.7 * lm[text.tokens] + bonus * len(text.tokens)
            assert text.score == pytest.approx(expected, abs=1e-4)
        assert [t.score for t in found] == sorted((t.score for t in found), reverse=True)
        assert len({t.tokens for t in found}) == len(found) <= 5
        several += len(found) > 2
    assert several


def test_wide_n_best_finds_the_best_texts(tokens):
    log_probs, lengths = random_log_probs([5, 3], tokens.size, seed=5)
    search = lattice_k2.LatticeSearch(SearchConfig("lattice_rescore", beam=100), tokens)
    for found, row, n in zip(search.n_best(log_probs, lengths), log_probs, lengths):
        _, total = alignments(row[:n])
        best = sorted(total, key=lambda y: -total[y])[:3]
        assert [text.tokens for text in found[:3]] == best


@pytest.mark.parametrize("with_lang", [False, True])
def test_alone_equals_in_any_batch_whatever_the_padding_holds(tokens, lang, with_lang):
    config = SearchConfig("lattice_rescore", beam=4, lang=lang[0] if with_lang else None)
    search = lattice_k2.LatticeSearch(config, tokens)
    log_probs, lengths = random_log_probs([12, 4, 17, 0, 17], tokens.size)
    together = search.one_best(log_probs, lengths), search.n_best(log_probs, lengths)
    noisy = log_probs.clone()
    for row, n in zip(noisy, lengths):
        row[n:] = torch.randn_like(row[n:]).log_softmax(1)
    assert (search.one_best(noisy, lengths), search.n_best(noisy, lengths)) == together
    for row, n, one, several in zip(log_probs, lengths, *together):
        assert search.one_best(row[None, :n], n[None]) == [one]
        assert search.n_best(row[None, :n], n[None]) == [several]


def test_an_utterance_cut_off_within_a_word_gives_its_beginning(tmp_path, tokens):
    write_lang(tmp_path / "lang", spell(["babba"], tokens), tokens)
    ids = tuple(tokens.encode("babba")[:-1])
    log_probs, lengths = torch.full((1, 2 * len(ids), tokens.size), -math.inf), torch.tensor([2 * len(ids)])
    log_probs[0, ::2, 0] = log_probs[0, range(1, 2 * len(ids), 2), ids] = 0.0
    search = lattice_k2.LatticeSearch(SearchConfig("lattice", lang=str(tmp_path / "lang")), tokens)
    (text,), ((best, *_),) = (find(log_probs, lengths) for find in (search.one_best, search.n_best))
    assert text.tokens == best.tokens == ids
    assert text.score == pytest.approx(0.0, abs=1e-4) and best.score == pytest.approx(0.0, abs=1e-4)


def test_the_graph_is_kept_until_its_lang_folder_changes(tmp_path, tokens, lang, monkeypatch):
    built = []
    build = lattice_k2.build_hlg
    monkeypatch.setattr(lattice_k2, "build_hlg", lambda *args: built.append(1) or build(*args))
    config = SearchConfig("lattice", lang=lang[0])
    log_probs, lengths = random_log_probs([6, 5], tokens.size)
    first = lattice_k2.LatticeSearch(config, tokens).one_best(log_probs, lengths)
    assert lattice_k2.LatticeSearch(config, tokens).one_best(log_probs, lengths) == first and len(built) == 1
    kept = tmp_path / "lang" / "HLG.safetensors"
    kept.write_bytes(kept.read_bytes()[:100])
    assert lattice_k2.LatticeSearch(config, tokens).one_best(log_probs, lengths) == first and len(built) == 2
    old = kept.read_bytes()
    write_lang(lang[0], spell(["b"], tokens), tokens)
    kept.write_bytes(old)
    (text, _) = lattice_k2.LatticeSearch(config, tokens).one_best(log_probs, lengths)
    assert len(built) == 3 and set(tokens.decode(text.tokens)) <= {"b", " "}


def test_a_lang_folder_of_other_tokens_is_refused(tmp_path, tokens, lang):
    other = train_tokens(["xyz"], tmp_path / "other", "char")
    with pytest.raises(UserError, match="made for other tokens"):
        lattice_k2.LatticeSearch(SearchConfig("lattice", lang=lang[0]), other)


@torch.inference_mode()
def test_a_decoder_chooses_among_the_texts_of_the_lattice(tokens, lang):
    torch.manual_seed(1)
    encoder = ConformerConfig(mels=7, width=12, layers=1, heads=2, ffn_multiplier=2, kernel=5, dropout=0.0)
    model = ConformerAED(ConformerAEDConfig(encoder, DecoderConfig(1, 2, 24, max_tokens=90), tokens.size)).eval()
    config = SearchConfig("lattice_rescore", beam=4, ctc_weight=0.6, lang=lang[0])
    x, lengths = torch.randn(3, 120, 7), torch.tensor([120, 60, 90])
    batch = SimpleNamespace(tokens_NU=torch.zeros(3, 1, dtype=torch.int64))
    found = Search(model, config, tokens)(x, lengths, batch)
    states, frames = model.encode(x, lengths)
    first = lattice_k2.LatticeSearch(config, tokens).n_best(model.ctc_log_probs(states), frames)
    assert [{text.tokens for text in texts} for texts in found] == [{text.tokens for text in texts} for texts in first]
    assert max(map(len, found)) > 1
    for n, texts in enumerate(first):
        scores = {text.tokens: text.score for text in texts}
        for text in found[n]:
            ids, length = torch.tensor([[text.tokens]], dtype=torch.int64), torch.tensor([[len(text.tokens)]])
            decoder = model.score(states[n : n + 1], frames[n : n + 1], model.prompts(batch)[:1], ids, length)
            assert text.score == pytest.approx(0.4 * decoder.item() + 0.6 * scores[text.tokens], abs=1e-3)
        assert [text.score for text in found[n]] == sorted((text.score for text in found[n]), reverse=True)
    best = Search(model, SearchConfig("lattice", lang=lang[0]), tokens)(x, lengths, batch)
    assert [len(texts) for texts in best] == [1, 1, 1]


def test_the_best_path_has_no_length_bonus(tokens):
    with pytest.raises(UserError, match="length_bonus is for texts"):
        lattice_k2.LatticeSearch(SearchConfig("lattice", length_bonus=1.0), tokens)


def test_only_candidates_and_the_blank_are_tried(tokens, lang):
    log_probs, lengths = random_log_probs([9, 6, 7], tokens.size, sharp=1.0)
    cut = torch.full_like(log_probs, -math.inf)
    for n, t in itertools.product(range(3), range(9)):
        for v in [0, *sorted(range(tokens.size), key=lambda v: -log_probs[n, t, v])[:3]]:
            cut[n, t, v] = log_probs[n, t, v]
    few, all_ = (lattice_k2.LatticeSearch(SearchConfig("lattice", candidates=k, lang=lang[0]), tokens) for k in (3, 0))
    assert few.one_best(log_probs, lengths) == all_.one_best(cut, lengths) != all_.one_best(log_probs, lengths)
