"""An adapter on disk: a folder with `adapter.safetensors` and `adapter.json`."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path
from typing import Any, Mapping, Optional, Sequence, Union

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from moe_asr import __version__
from moe_asr.config import from_plain, to_plain
from moe_asr.errors import UserError
from moe_asr.experts.adapter import Adapter
from moe_asr.experts.attach import attach
from moe_asr.experts.identity import base_identity
from moe_asr.experts.layer import ExpertSpec
from moe_asr.files import atomic_folder
from moe_asr.strict_json import parse_json

FORMAT = 1


def save_adapter(
    adapter: Adapter,
    folder: Union[str, Path],
    about: Optional[Mapping[str, Any]] = None,
    base: Optional[str] = None,
) -> None:
    """Writes the adapter atomically: specs, identity of the base, versions, and all tensors.

    Args:
        about: anything worth knowing (method, domain names, training data), kept as it is
        base: identity of the base where its weights are no longer in the types that it is stored in

    Raises:
        UserError: the adapter is a stack of several
    """
    adapter.check_single("save")
    width = adapter.domain_router.weight.shape[1] if adapter.domain_router is not None else 0
    write_adapter(folder, adapter.specs, adapter.state_dict(), base or base_identity(adapter.model), about, width)


def write_adapter(
    folder: Union[str, Path],
    specs: Sequence[ExpertSpec],
    state: Mapping[str, Tensor],
    base: str,
    about: Optional[Mapping[str, Any]] = None,
    domain_width: int = 0,
) -> None:
    """Writes an adapter from its parts, for a base of this identity; see `save_adapter` and `attach`."""
    info = {
        "format": FORMAT,
        "specs": [to_plain(spec) for spec in specs],
        "base": base,
        **({"domain_width": domain_width} if domain_width else {}),
        "parameters": sum(tensor.numel() for tensor in state.values()),
        "versions": {"moe_asr": __version__, "torch": metadata.version("torch")},
        "about": dict(about or {}),
    }
    with atomic_folder(folder) as new:
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, new / "adapter.safetensors")
        (new / "adapter.json").write_text(json.dumps(info, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_adapter_info(folder: Union[str, Path]) -> dict[str, Any]:
    """The contents of `adapter.json`, checked for being one.

    Raises:
        UserError: no such folder, or not an adapter, or of a newer format
    """
    path = Path(folder) / "adapter.json"
    if not path.is_file():
        raise UserError(f"no adapter in {folder}: it needs adapter.json and adapter.safetensors")
    try:
        info = parse_json(path.read_bytes())
        known = type(info["format"]) is int and info["format"] > 0 and isinstance(info["base"], str)
        known = known and isinstance(info["specs"], list) and all(isinstance(spec, dict) for spec in info["specs"])
        width = info.get("domain_width", 0)
        known = known and info["specs"] and type(width) is int and width >= 0
    except (ValueError, KeyError, TypeError):
        known = False
    if not known:
        raise UserError(f"{path} is damaged or not an adapter description")
    if info["format"] > FORMAT:
        raise UserError(f"{path} has format {info['format']}, this version reads up to {FORMAT}: update moe_asr")
    return info


def read_adapter_tensors(folder: Union[str, Path]) -> dict[str, Tensor]:
    """The contents of `adapter.safetensors`.

    Raises:
        UserError: it is missing or damaged
    """
    try:
        return load_file(Path(folder) / "adapter.safetensors")
    except FileNotFoundError:
        raise UserError(f"no adapter in {folder}: adapter.safetensors is missing") from None
    except SafetensorError as error:
        raise UserError(f"{folder}/adapter.safetensors is damaged: {error}") from None


def load_adapter(model: nn.Module, folder: Union[str, Path]) -> Adapter:
    """Attaches the experts of `folder` to their base model; exact or not at all.

    Raises:
        UserError: another base, a missing, unexpected or misshapen tensor, a damaged file; the model is left as it was
    """
    info = read_adapter_info(folder)
    check_base(info, folder, base_identity(model))
    return attach_state(model, info, read_adapter_tensors(folder), str(folder))


def check_base(info: dict[str, Any], folder: Union[str, Path], identity: str) -> None:
    """Raises UserError unless the adapter belongs to the model of this identity."""
    if identity != info["base"]:
        raise UserError(
            f"adapter {folder} belongs to another base model (it was trained on {info['base'][:12]}, this one is "
            f"{identity[:12]}): load the base that it was trained on"
        )


def attach_state(
    model: nn.Module, info: dict[str, Any], state: dict[str, Tensor], source: str, members: int = 1
) -> Adapter:
    """Attaches experts as `info` describes them, with these tensors; exact, or the model is left as it was."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    specs = [from_plain(ExpertSpec, spec) for spec in info["specs"]]
    adapter = attach(model, specs, members, info.get("domain_width", 0))
    try:
        adapter.load_state_dict(state)
    except UserError as error:
        adapter.detach()
        for parameter in trainable:
            parameter.requires_grad_(True)
        raise UserError(f"adapter {source} does not fit: {error}") from None
    return adapter
