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


Memory = tuple[Tensor, Optional[Tensor]]


@dataclass
class Shared:
    """Weights that several layers have in common.

    Args:
        gates: (N, E) or (N, T, E)
        shape: utterances and frames of the layer that they were computed for
        memory: what they were computed from, where that is all they depend on; then they hold for the whole batch
        layers: who has used them
    """

    gates: Tensor
    shape: torch.Size
    memory: Optional[Memory] = None
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
        members_N: which member of a stack of adapters serves each utterance
        memory: states (N, T, I) of an encoder, and True (N, T) on real ones, for routers that look at them; set by
            whoever runs the encoder
        balance: load-balancing terms, filled by routers while training
        shared: weights that several layers have in common, filled by the first of them
        thresholds: of the router that ran last, for the statistics: route, threshold or sparsity from 0 to below 1 as
            (N, 1, 1), (N, T, 1) or (1), and True on real frames
    """

    domains_NE: Optional[Tensor] = None
    lengths: Mapping[str, Tensor] = field(default_factory=dict)
    scale_N: Optional[Tensor] = None
    statistics: Optional[RoutingStatistics] = None
    labels_N: Optional[Tensor] = None
    members_N: Optional[Tensor] = None
    memory: Optional[Memory] = None
    balance: list[Tensor] = field(default_factory=list)
    shared: dict[str, Shared] = field(default_factory=dict)
    thresholds: list[tuple[str, Tensor, Optional[Tensor]]] = field(default_factory=list)
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

    def rows(self, index: Tensor) -> "Routing":
        """The routing of the utterances `index` (ids) of this batch; statistics and balance terms stay common."""

        def pick(tensor: Optional[Tensor]) -> Optional[Tensor]:
            return None if tensor is None else tensor[index.to(tensor.device)]

        memory = None if self.memory is None else (pick(self.memory[0]), pick(self.memory[1]))
        return replace(
            self,
            domains_NE=pick(self.domains_NE),
            lengths={stream: pick(lengths_N) for stream, lengths_N in self.lengths.items()},
            scale_N=pick(self.scale_N),
            labels_N=pick(self.labels_N),
            members_N=pick(self.members_N),
            memory=memory,
            shared={k: Shared(pick(s.gates), s.shape, memory) for k, s in self.of_the_batch().items()},
            _masks={},
        )

    def of_the_batch(self) -> dict[str, Shared]:
        """Those shared weights that no pass over a block computes anew."""
        known = self.memory is not None
        return {key: shared for key, shared in self.shared.items() if known and shared.memory is self.memory}

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

        It needs its own (empty) statistics, balance terms and shared weights, since it runs each layer a second time;
        weights that were there before it are there again.
        """
        again = current = self._current
        if current is not None:
            again = replace(current, statistics=None, balance=[], shared=current.of_the_batch())
        return nullcontext(), self.use(again, self.enabled)

    def narrow(self, index: Tensor) -> None:
        """From now on the batch consists of its utterances `index` only."""
        if self._current is not None:
            self._current = self._current.rows(index)

    def set_lengths(self, stream: str, lengths_N: Tensor) -> None:
        """From now on this stream has so many real frames."""
        if self._current is not None:
            lengths = {**self._current.lengths, stream: lengths_N}
            self._current = replace(self._current, lengths=lengths, _masks={})


def make_routing(
    num_experts: int,
    domains: Optional[Tensor] = None,
    lengths: Optional[Lengths] = None,
    scale: Optional[Tensor] = None,
    statistics: Optional[RoutingStatistics] = None,
    labels: Optional[Tensor] = None,
    members: Optional[Tensor] = None,
    num_members: int = 1,
) -> Routing:
    """Checks what the caller says about a batch; see `Adapter.route`.

    Raises:
        UserError: a domain id, member or probability out of range, or the wrong number of experts
    """
    if members is not None and (int(members.min()) < 0 or int(members.max()) >= num_members):
        raise UserError(
            f"members range from {int(members.min())} to {int(members.max())}, but there are adapters 0 to "
            f"{num_members - 1}"
        )
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
    return Routing(domains_NE, dict(lengths or {}), scale, statistics, labels, members)
