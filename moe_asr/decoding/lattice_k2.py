"""Search with k2: lattices over CTC's topology, or over H o L o G of a lang folder, and the best texts in them.

Shape letters: N utterances, T frames, V vocabulary with blank, K texts, U tokens, A arcs.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from moe_asr.data.lang import HLG, G, L, read_lang
from moe_asr.data.tokens import BLANK, TokenSet
from moe_asr.decoding.search_config import Scored, SearchConfig
from moe_asr.errors import UserError
from moe_asr.files import atomic_write
from moe_asr.models.ctc_loss import ctc_loss, import_k2

SEARCH_BEAM, OUTPUT_BEAM, MIN_ACTIVE, MAX_ACTIVE = 20.0, 8.0, 30, 10_000  # icefall's
DRAWN = 16  # paths drawn for each text wanted, as many are alignments of the same text


class LatticeSearch:
    """Finds texts in the lattice of the paths that a graph and the log-probabilities share, each path scored

        sum_t log p_t(a_t) + lm_scale * log P_G(words)

    Without a lang folder the graph is CTC's topology, where any tokens may follow each other and log P_G = 0. What is
    found are tokens; the words are those that they spell.

    Args:
        tokens: token set of the model
        device: where to search, if k2 can

    Raises:
        UserError: k2 is missing, or there is no lang folder, or it was made for other tokens, or a best path should
            have a length bonus, which paths have no place for.
    """

    @torch.inference_mode(False)  # here and below, as k2 counts the versions of tensors
    def __init__(self, config: SearchConfig, tokens: TokenSet, device: str | torch.device = "cpu") -> None:
        self._k2, self._config = _import_k2(), config
        if config.kind == "lattice" and config.length_bonus:
            raise UserError("search.length_bonus is for texts, not for the best path of kind lattice: leave it at 0")
        self._device = torch.device(device if self._k2.with_cuda else "cpu")
        graph = load_hlg(config.lang, tokens) if config.lang else self._k2.ctc_topo(tokens.size - 1)
        self._graph = self._k2.create_fsa_vec([self._k2.arc_sort(graph).to(self._device)])
        self._graph.scores = self._graph.scores * config.lm_scale
        self._graph.graph_scores = self._graph.scores.clone()

    @torch.inference_mode(False)
    @torch.no_grad()
    def one_best(self, log_probs_NTV: Tensor, lengths_N: Tensor) -> list[Scored]:
        """The tokens of the best path of each utterance; over CTC's topology those of greedy search."""
        best = [_without_path(length) for length in lengths_N.tolist()]
        for row, lattice, (arcs, *_) in self._paths(log_probs_NTV, lengths_N, 0):
            best[row] = Scored(_collapse(lattice.labels[arcs]), lattice.scores[arcs].double().sum().item())
        return best

    @torch.inference_mode(False)
    @torch.no_grad()
    def n_best(self, log_probs_NTV: Tensor, lengths_N: Tensor) -> list[list[Scored]]:
        """Up to `beam` texts of each utterance, best first, and at least one, be it without tokens.

        Their scores sum over alignments, log P_CTC(tokens | x) + lm_scale * log P_G(words) + length_bonus * tokens, as
        those of prefix beam search do. The texts are those of the best path and of paths drawn from the lattice.
        """
        texts = [[_without_path(length)] for length in lengths_N.tolist()]
        for row, lattice, paths in self._paths(log_probs_NTV, lengths_N, DRAWN * self._config.beam):
            found: dict[tuple[int, ...], list[int]] = {}
            for arcs in paths:
                found.setdefault(_collapse(lattice.labels[arcs]), arcs)
            texts[row] = self._ranked(log_probs_NTV[row, : lengths_N[row]], lattice, found)
        return texts

    def _paths(self, log_probs_NTV: Tensor, lengths_N: Tensor, drawn: int):
        """For each utterance that has a path its row, the lattice, and the arcs of the best path and of drawn ones."""
        rows = [row for row, length in enumerate(lengths_N.tolist()) if length]
        if not rows:
            return
        segments = torch.tensor([[row, 0, int(lengths_N[row])] for row in rows], dtype=torch.int32)
        lattice = self._k2.intersect_dense_pruned(
            self._graph,
            self._k2.DenseFsaVec(self._likely(log_probs_NTV.detach().to(self._device, torch.float32)), segments),
            search_beam=SEARCH_BEAM,
            output_beam=OUTPUT_BEAM,
            min_active_states=MIN_ACTIVE,
            max_active_states=MAX_ACTIVE,
            allow_partial=True,  # of an utterance that is cut off within a word the beginning is found
        )
        lattice.arc = torch.arange(lattice.num_arcs, dtype=torch.int32, device=self._device)
        best = self._k2.shortest_path(lattice, use_double_scores=True)
        paths = [[arcs] for arcs in self._k2.RaggedTensor(best.arcs.shape().remove_axis(1), best.arc).tolist()]
        if drawn:
            more = self._k2.random_paths(lattice, use_double_scores=True, num_paths=drawn).tolist()
            paths = [first + others for first, others in zip(paths, more)]
        lattice = lattice.to("cpu")
        yield from ((row, lattice, arcs) for row, arcs in zip(rows, paths) if arcs[0])

    def _likely(self, log_probs_NTV: Tensor) -> Tensor:
        """Only the most probable tokens of each frame, and the blank: a wide search beam would try almost all."""
        if not 0 < self._config.candidates < log_probs_NTV.shape[2]:
            return log_probs_NTV
        kept_NTV = torch.zeros_like(log_probs_NTV, dtype=torch.bool)
        kept_NTV.scatter_(2, log_probs_NTV.topk(self._config.candidates, dim=2).indices, True)
        kept_NTV[:, :, BLANK] = True
        return log_probs_NTV.masked_fill(~kept_NTV, -torch.inf)

    def _ranked(self, log_probs_TV: Tensor, lattice, found: dict[tuple[int, ...], list[int]]) -> list[Scored]:
        """Scores texts, of each of which one path is known."""
        lengths_K = torch.tensor([len(tokens) for tokens in found])
        tokens_KU = torch.zeros(len(found), int(lengths_K.max()), dtype=torch.int64)
        for row, tokens in zip(tokens_KU, found):
            row[: len(tokens)] = torch.tensor(tokens, dtype=torch.int64)
        frames_K = torch.full_like(lengths_K, log_probs_TV.shape[0])
        log_probs_KTV = log_probs_TV.detach().float().cpu().expand(len(found), -1, -1)
        loss_K, _ = ctc_loss(log_probs_KTV, frames_K, tokens_KU, lengths_K, BLANK)
        graph_K = torch.stack([lattice.graph_scores[arcs].double().sum() for arcs in found.values()])
        # the known path may back off where it need not, or end within a word, which the graph does not let through
        graph_K = torch.maximum(graph_K, self._best_in_graph([lattice.labels[arcs[:-1]] for arcs in found.values()]))
        scores = (graph_K - loss_K + self._config.length_bonus * lengths_K).tolist()
        texts = [Scored(tokens, score) for tokens, score in zip(found, scores)]
        return sorted(texts, key=lambda text: (-text.score, text.tokens))[: self._config.beam]

    def _best_in_graph(self, labels_K: Sequence[Tensor]) -> Tensor:
        """Best score at which the graph lets each sequence of tokens and blanks through; -inf where it does not."""
        linear = self._k2.linear_fsa([labels.tolist() for labels in labels_K], device=self._device)
        zeros = torch.zeros(len(labels_K), dtype=torch.int32, device=self._device)
        through = self._k2.intersect_device(self._graph, linear, b_to_a_map=zeros, sorted_match_a=True)
        return through.get_tot_scores(use_double_scores=True, log_semiring=False).cpu()


def load_hlg(folder: str, tokens: TokenSet):
    """The graph H o L o G of a lang folder over tokens, built and kept there when it is first asked for.

    Raises:
        UserError: see `LatticeSearch`.
    """
    lang = read_lang(folder)
    if lang.tokens != [tokens.piece(i) for i in range(tokens.size)]:
        raise UserError(f"{folder} was made for other tokens than those of the model: make it with the model's tokens")
    path = lang.folder / HLG
    try:
        with safe_open(path, "pt") as file:
            if file.metadata() == {"made_from": lang.digest}:
                return _import_k2().Fsa(file.get_tensor("arcs_A4"))
    except (FileNotFoundError, SafetensorError):
        pass  # not there, or not whole: built again
    texts = [(lang.folder / name).read_text(encoding="utf-8") for name in (L, G)]
    arcs_A4 = build_hlg(*texts, tokens.size)
    with atomic_write(path, "wb") as file:
        file.write(save({"arcs_A4": arcs_A4}, {"made_from": lang.digest}))
    return _import_k2().Fsa(arcs_A4)


def build_hlg(lexicon: str, grammar: str, num_tokens: int) -> Tensor:
    """H o det(L o G), as in icefall's compile_hlg, but for words, which the tokens tell.

    Args:
        lexicon: L in OpenFst's text format; its tokens from `num_tokens` on are disambiguation symbols
        grammar: G in the same format, an acceptor of L's words

    Returns:
        arcs as k2 keeps them, int32: from, to, token with 0 for blank and -1 for the end, and the bits of the score
    """
    k2 = _import_k2()
    l_fst = k2.arc_sort(k2.Fsa.from_openfst(lexicon, acceptor=False))
    g_fsa = k2.arc_sort(k2.Fsa.from_openfst(grammar, acceptor=True))
    lg = k2.connect(k2.compose(l_fst, g_fsa))
    del lg.aux_labels
    lg = k2.connect(k2.determinize(lg))
    lg.labels = lg.labels.masked_fill(lg.labels >= num_tokens, 0)  # they have done their duty
    lg = k2.arc_sort(k2.connect(k2.remove_epsilon(lg)))
    return k2.connect(k2.compose(k2.ctc_topo(num_tokens - 1), lg)).as_dict()["arcs"].contiguous()


def _without_path(length: int) -> Scored:
    return Scored((), -torch.inf if length else 0.0)


def _import_k2():
    return import_k2("a search of kind lattice", "prefix_beam or rescore")


def _collapse(path: Tensor) -> tuple[int, ...]:
    """Repetitions, blanks and the end (-1) go."""
    return tuple(token for token, _ in groupby(path.tolist()) if token > BLANK)
