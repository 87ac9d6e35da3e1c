"""What expert layers need to know about the batch, and how it reaches them.

Layers of one adapted model share one `RoutingContext`. Whoever calls the model says what is known about the batch with
`adapter.route(...)`; nothing is global and no forward of the model is patched.

Shapes: N utterances, T frames, E experts.
"""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Iterator, Mapping, Optional, Union

import torch
from torch import Tensor

from moe_asr.errors import UserError
from moe_asr.experts.statistics import RoutingStatistics

Lengths = Union[Tensor, Mapping[str, Tensor]]


@dataclass
class Shared:
    """Weights that the layers of a block have in common, the shape they were computed for, and who has used them."""

    gates: Tensor
    shape: torch.Size
    layers: set[str] = field(default_factory=set)


@dataclass
class Routing:
    """One batch, as its routers see it.

    Args:
        domains_NE: probability of each domain (given ids are one-hot); None where the domain is not known
        lengths: for each stream, the number of real frames of each utterance at the frame rate of its layers
        scale_N: a factor on the experts of each utterance, 0 is the base model alone
        statistics: collects the weights if given
        labels_N: domain ids for the statistics, default the most probable domain
        balance: load-balancing terms, filled by routers while training
        shared: weights that several layers of a block have in common, filled by the first of them
    """

    domains_NE: Optional[Tensor] = None
    lengths: Mapping[str, Tensor] = field(default_factory=dict)
    scale_N: Optional[Tensor] = None
    statistics: Optional[RoutingStatistics] = None
    labels_N: Optional[Tensor] = None
    balance: list[Tensor] = field(default_factory=list)
    shared: dict[str, Shared] = field(default_factory=dict)
    _masks: dict[tuple[str, int], Tensor] = field(default_factory=dict)

    def mask(self, stream: str, num_frames: int, device: Optional[torch.device] = None) -> Optional[Tensor]:
        """(N, T) True on real frames, or None where the lengths of this stream were not given."""
        if stream not in self.lengths:
            return None
        key = (stream, num_frames)
        if key not in self._masks:
            lengths_N = self.lengths[stream].to(device)
            if int(lengths_N.max()) > num_frames or int(lengths_N.min()) < 1:
                raise UserError(
                    f"routing lengths of stream '{stream}' range from {int(lengths_N.min())} to "
                    f"{int(lengths_N.max())}, but its layers see 1 to {num_frames} frames: give lengths at the layers' "
                    "own frame rate"
                )
            self._masks[key] = torch.arange(num_frames, device=lengths_N.device) < lengths_N[:, None]
        return self._masks[key]

    def balance_loss(self) -> Tensor:
        """Sum of the load-balancing terms of all layers run so far; 0 where no router asks for one."""
        return torch.stack(self.balance).sum() if self.balance else torch.zeros(())


class RoutingContext:
    """The place where the layers of one adapted model find the current `Routing`."""

    def __init__(self) -> None:
        self._current: Optional[Routing] = None
        self.enabled = True

    @property
    def routing(self) -> Routing:
        """What is known of the current batch; outside of `use` a fresh one each time, so that nothing piles up."""
        return Routing() if self._current is None else self._current

    @property
    def active(self) -> bool:
        """Whether somebody has said what is known of the batch."""
        return self._current is not None

    @contextmanager
    def use(self, routing: Optional[Routing], enabled: Optional[bool] = None) -> Iterator[Optional[Routing]]:
        before = self._current, self.enabled
        self._current = routing
        if enabled is not None:
            self.enabled = enabled
        try:
            yield routing
        finally:
            self._current, self.enabled = before

    def checkpoint_context_fn(self):
        """For `torch.utils.checkpoint`'s `context_fn`: the recomputation sees the routing of its own forward pass.

        It needs its own (empty) statistics, balance terms and shared weights, since it runs each layer a second time.
        """
        again = None if self._current is None else replace(self._current, statistics=None, balance=[], shared={})
        return nullcontext(), self.use(again, self.enabled)


def make_routing(
    num_experts: int,
    domains: Optional[Tensor] = None,
    lengths: Optional[Lengths] = None,
    scale: Optional[Tensor] = None,
    statistics: Optional[RoutingStatistics] = None,
    labels: Optional[Tensor] = None,
) -> Routing:
    """Checks what the caller says about a batch; see `Adapter.route`.

    Raises:
        UserError: a domain id or probability out of range, or the wrong number of experts
    """
    domains_NE = None
    if domains is not None and domains.dim() == 1 and not domains.is_floating_point():
        if int(domains.min()) < 0 or int(domains.max()) >= num_experts:
            raise UserError(
                f"domain ids range from {int(domains.min())} to {int(domains.max())}, but there are experts 0 to "
                f"{num_experts - 1}: give probabilities (uniform, say) for utterances of an unknown domain"
            )
        domains_NE = torch.nn.functional.one_hot(domains, num_experts).float()
        labels = domains if labels is None else labels
    elif domains is not None:
        if domains.dim() != 2 or domains.shape[1] != num_experts or not domains.is_floating_point():
            raise UserError(
                f"domains must be ids (N) or weights (N, {num_experts}), not {tuple(domains.shape)} {domains.dtype}"
            )
        if not bool(torch.isfinite(domains).all()) or bool((domains < 0).any()):
            raise UserError("domain weights must be finite and not negative")
        if bool((domains.sum(-1) <= 0).any()):
            raise UserError("the domain weights of an utterance are all zero; use scale to switch its experts off")
        domains_NE = domains
        labels = domains.argmax(-1) if labels is None else labels
    if isinstance(lengths, Tensor):
        lengths = {"default": lengths}
    return Routing(domains_NE, dict(lengths or {}), scale, statistics, labels)
