"""Several adapters of one kind on one base, so that a batch is served by all of them, each utterance by its own.

The layers hold the experts of all of them side by side, S * E for S adapters of E experts, and each utterance gives
weight to those of its own adapter alone. Nothing of the base is copied.
"""

from __future__ import annotations

from pathlib import Path
from typing import Sequence, Union

import torch
from torch import Tensor, nn

from moe_asr.errors import UserError
from moe_asr.experts.adapter import Adapter
from moe_asr.experts.adapter_files import attach_state, check_base, read_adapter_info, read_adapter_tensors
from moe_asr.experts.identity import base_identity


def stack_adapters(model: nn.Module, folders: Sequence[Union[str, Path]]) -> Adapter:
    """Attaches the adapters of `folders` to their base; `adapter.route(members=...)` says which serves an utterance.

    Raises:
        UserError: they differ in anything but their numbers, or see `load_adapter`; the model is left as it was
    """
    if not folders:
        raise UserError("stack: no adapters given")
    infos = [read_adapter_info(folder) for folder in folders]
    identity = base_identity(model)
    for folder, info in zip(folders, infos):
        if info.get("domain_width") and len(folders) > 1:
            raise UserError(f"adapter {folder} chooses among its experts for all domains; load it alone")
        check_base(info, folder, identity)
        if info["specs"] != infos[0]["specs"]:
            raise UserError(f"adapters {folders[0]} and {folder} have different specs, so they cannot serve one batch")
    states = [read_adapter_tensors(folder) for folder in folders]
    if len(folders) == 1:
        return attach_state(model, infos[0], states[0], str(folders[0]))
    for folder, state in zip(folders, states):
        if _shapes(state) != _shapes(states[0]):
            name = min(dict(_shapes(state) ^ _shapes(states[0])))
            raise UserError(f"adapters {folders[0]} and {folder} do not go together: {name} differs")
    source = f"{folders[0]} (with {len(folders) - 1} more)"
    return attach_state(model, infos[0], _stacked(states), source, len(folders))


def _stacked(states: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors under their names in an adapter of several members."""
    stacked = {}
    for name in states[0]:
        layer, is_router, parameter = name.partition(".router.")
        if is_router:
            for number, state in enumerate(states):
                stacked[f"{layer}.router.members.{number}.{parameter}"] = state[name]
        else:
            stacked[name] = torch.cat([state[name] for state in states])
    return stacked


def _shapes(state: dict[str, Tensor]) -> set[tuple[str, torch.Size]]:
    return {(name, tensor.shape) for name, tensor in state.items()}
