"""AdamW over named parameter groups, and the proof that what trains is what was declared."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from moe_asr.errors import UserError
from moe_asr.quant import num_parameters
from moe_asr.training.schedule import ScheduleConfig


@dataclass(frozen=True)
class GroupConfig:
    """Parameters that are trained differently from the rest.

    Args:
        pattern: regular expression searched in the parameters' names; the first group that matches takes a parameter
        lr_factor: factor of the common learning rate
        weight_decay: instead of the common one
    """

    pattern: str
    lr_factor: float = 1.0
    weight_decay: float | None = None


@dataclass(frozen=True)
class OptimConfig:
    """AdamW and its learning rate.

    Args:
        lr: peak learning rate
        betas: decay of the running mean of gradients and of their squares
        eps: added to the root of the second moment
        weight_decay: decoupled weight decay
        decay_vectors: whether weight decay also applies to parameters of fewer than two dimensions (biases, norms)
        clip_grad_norm: largest Euclidean norm of the whole gradient; unset: no clipping
        groups: parameters with a learning rate or weight decay of their own
        alternate: whether the groups take turns, one an update, in their order and the rest last: each is then an
            optimiser of its own, which sees every second (third, ...) update and clips its own gradient alone
        schedule: learning rate over the updates
    """

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-8
    weight_decay: float = 0.01
    decay_vectors: bool = False
    clip_grad_norm: float | None = 5.0
    groups: tuple[GroupConfig, ...] = ()
    alternate: bool = False
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)

    def __post_init__(self):
        if self.clip_grad_norm is not None and self.clip_grad_norm <= 0:
            raise UserError(f"optim.clip_grad_norm is {self.clip_grad_norm}; leave it unset (null) for no clipping")


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Name to parameter, of all that require a gradient; a shared parameter appears once."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def check_trainable(model: nn.Module, declared: Iterable[str]) -> None:
    """Refuses a model whose trainable parameters are not exactly the declared ones.

    Raises:
        UserError: names, in one line, what is declared but would not train and what would train undeclared.
    """
    actual, declared = set(trainable_parameters(model)), set(declared)
    if not declared:
        raise UserError("no parameter is declared trainable; check the adapter's targets or the model's freezing")
    frozen, undeclared = sorted(declared - actual), sorted(actual - declared)
    parts = []
    if frozen:
        parts.append(f"declared but frozen or missing: {shorten(frozen)}")
    if undeclared:
        parts.append(f"trainable but not declared: {shorten(undeclared)}")
    if parts:
        raise UserError(f"the trainable parameters are not the declared ones; {'; '.join(parts)}")


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW over all trainable parameters.

    Each of its groups also carries `name`, `lr_factor`, `names` (of its parameters) and `turn` (see `turns`).

    Raises:
        UserError: a group's pattern is no regular expression or takes no trainable parameter, or groups should take
            turns where there is only one.
    """
    patterns = [_compile(group.pattern) for group in config.groups]
    last = len(config.groups)
    kinds: list[dict] = [{"name": "default", "lr_factor": 1.0, "weight_decay": config.weight_decay, "turn": last}]
    for turn, group in enumerate(config.groups):
        decay = config.weight_decay if group.weight_decay is None else group.weight_decay
        kinds.append({"name": group.pattern, "lr_factor": group.lr_factor, "weight_decay": decay, "turn": turn})

    members: dict[tuple[int, bool], dict[str, nn.Parameter]] = {}
    for name, parameter in trainable_parameters(model).items():
        kind = next((i for i, pattern in enumerate(patterns, 1) if pattern.search(name)), 0)
        decayed = config.decay_vectors or parameter.ndim >= 2
        members.setdefault((kind, decayed), {})[name] = parameter
    for kind, group in enumerate(config.groups, 1):
        if not any(key[0] == kind for key in members):
            raise UserError(f"optim.groups: the pattern '{group.pattern}' takes no trainable parameter")

    groups = []
    for (kind, decayed), named in sorted(members.items(), key=lambda item: (item[0][0], not item[0][1])):
        group = dict(
            kinds[kind], params=list(named.values()), names=list(named), lr=config.lr * kinds[kind]["lr_factor"]
        )
        if not decayed:
            group["weight_decay"] = 0.0
        groups.append(group)
    if config.alternate and len({group["turn"] for group in groups}) < 2:
        raise UserError(
            "optim.alternate: the trainable parameters are all in one group; name others in optim.groups, or leave it"
            " out"
        )
    return torch.optim.AdamW(groups, betas=tuple(config.betas), eps=config.eps, fused=True)


def turns(optimizer: torch.optim.Optimizer) -> int:
    """How many groups there are to take turns; `turn` counts them from 0 in the order of the configuration, and those
    of one name, with and without weight decay, share one."""
    return 1 + max(group["turn"] for group in optimizer.param_groups)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Gives every group `lr` times its own factor."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_factor"]


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as flat tensors named `<parameter>|<key>`, for safetensors."""
    return {
        f"{name}|{key}": value
        for group in optimizer.param_groups
        for name, parameter in zip(group["names"], group["params"])
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """The inverse of `optimizer_tensors`; parameters that never had a gradient have no state.

    Raises:
        UserError: `tensors` holds state of a parameter which is not being trained.
    """
    by_name: dict[str, dict[str, Tensor]] = {}
    for full, tensor in tensors.items():
        name, _, key = full.rpartition("|")
        by_name.setdefault(name, {})[key] = tensor
    names = [name for group in optimizer.param_groups for name in group["names"]]
    if unknown := sorted(set(by_name) - set(names)):
        raise UserError(
            f"the checkpoint's optimizer state has parameters that are not trained here: {shorten(unknown)}"
        )
    packed = optimizer.state_dict()
    packed["state"] = {index: by_name[name] for index, name in enumerate(names) if name in by_name}
    optimizer.load_state_dict(packed)


def describe_parameters(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """One line per group and one for the whole model: what trains, how much of it, and how."""
    rows = []
    for group in optimizer.param_groups:
        size = sum(p.numel() for p in group["params"])
        how = f"lr {group['lr']:.3g}, weight decay {group['weight_decay']:.3g}"
        rows.append((group["name"], len(group["params"]), size, how))
    total = num_parameters(model)
    trained = sum(row[2] for row in rows)
    share = f"{100 * trained / total:.2f} % of {total:,}"
    rows.append(("trainable", sum(row[1] for row in rows), trained, share))
    width = max(len(row[0]) for row in rows)
    return [
        f"  {name:<{width}} {tensors:>6} tensors {size:>14,} parameters  {how}" for name, tensors, size, how in rows
    ]


def _compile(pattern: str) -> re.Pattern:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise UserError(f"optim.groups: '{pattern}' is no regular expression ({error})") from None


def shorten(names: Sequence[str], most: int = 5) -> str:
    """The first few names and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
