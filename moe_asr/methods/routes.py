"""Where the domain of an utterance comes from: what the global routers of expert layers are given.

    label      the true domain: beta for it, (1 - beta) / (G - 1) for each other one; beta = 1 is one-hot
    uniform    1 / G
    posterior  of a domain classifier, trained first and frozen (HDMoLE)
    model      of the frozen recogniser itself: p(language | x) over its language tokens, normalised over the domains
    router     softmax of a linear layer on the mean state of the frozen encoder, trained with the experts and with a
               cross-entropy of its own

G domains. model and router run the encoder once more, with the experts off. Fusion of language experts by label, model
and router is our reading of arXiv 2506.21555, which says that experts are fused, and not how.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Optional

import torch
from torch import Tensor, nn

from moe_asr.data.languages import find_language
from moe_asr.errors import UserError

Route = Literal["posterior", "label", "uniform", "model", "router"]


@dataclass(frozen=True)
class RouteOptions:
    """What decoding has otherwise than training had it.

    Args:
        global_route: instead of the configured one
        fallback: strength of the fallback to the base model where the domain is uncertain, see `entropy_fallback`
        beta: weight of the true domain, for label; None takes the configured one
        best: the most probable domain gets all the weight
    """

    global_route: Optional[Route] = None
    fallback: float = 0.0
    beta: Optional[float] = None
    best: bool = False

    def __post_init__(self) -> None:
        if self.fallback < 0:
            raise UserError(f"fallback must not be negative, but is {self.fallback}")
        if self.beta is not None:
            check_beta(self.beta)

    @property
    def any(self) -> bool:
        """Whether something is otherwise."""
        return self != RouteOptions()


def check_beta(beta: float) -> None:
    """Raises UserError unless it is a weight."""
    if not 0 <= beta <= 1:
        raise UserError(f"beta is the weight of the true domain, from 0 to 1, not {beta}")


def label_weights(domains_N: Tensor, num_domains: int, beta: float) -> Tensor:
    """(N, G): beta for the domain of each utterance, the rest in equal parts for the others."""
    one_hot_NG = nn.functional.one_hot(domains_N, num_domains).float()
    if beta == 1 or num_domains == 1:
        return one_hot_NG
    rest = (1 - beta) / (num_domains - 1)
    return rest + (beta - rest) * one_hot_NG


def language_columns(languages: Mapping[str, int], domains: Sequence[str]) -> list[int]:
    """Which of a model's languages each domain is.

    Raises:
        UserError: the model has no languages, lacks one, or has one for two domains
    """
    if not languages:
        raise UserError("global_route model asks a model that tells languages apart, and this one has no languages")
    codes = [find_language(languages, name) for name in domains]
    if None in codes:
        raise UserError(
            f"global_route model: the model has no token for the domain {domains[codes.index(None)]}; it knows "
            f"{', '.join(languages)}"
        )
    if len(set(codes)) < len(codes):
        raise UserError(f"global_route model: two of the domains {', '.join(domains)} are one language of the model")
    return [list(languages).index(code) for code in codes]


def over_domains(posteriors_NL: Tensor, columns: Sequence[int]) -> Tensor:
    """Posteriors of all languages -> (N, G) of the domains alone; uniform where none of them is at all probable."""
    p_NG = posteriors_NL[:, list(columns)]
    total_N1 = p_NG.sum(1, keepdim=True)
    return torch.where(total_N1 > 1e-30, p_NG / total_N1.clamp_min(1e-30), 1 / len(columns))
