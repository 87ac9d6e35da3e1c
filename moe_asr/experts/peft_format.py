"""One expert as a plain LoRA in the format of PEFT, and back.

PEFT (https://github.com/huggingface/peft) keeps `lora_A.weight` (R, I) and `lora_B.weight` (O, R) for each layer in
`adapter_model.safetensors`, under `base_model.model.<layer>`, and its scale as `lora_alpha / r` in
`adapter_config.json`.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Union

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from moe_asr.errors import UserError
from moe_asr.experts.adapter import Adapter
from moe_asr.files import atomic_folder
from moe_asr.strict_json import parse_json

PREFIX = "base_model.model."


def export_expert(adapter: Adapter, index: int, folder: Union[str, Path], prefix: str = "") -> None:
    """Writes expert `index` so that `peft.PeftModel.from_pretrained(base, folder)` gives the same outputs.

    Args:
        prefix: what stands before the names of the layers in the model that PEFT gets, where that is not this one
    """
    expert = {f"{prefix}{name}": matrices for name, matrices in adapter.expert(index).items()}
    ranks = {f"{prefix}{name}": layer.spec.rank for name, layer in adapter.layers.items()}
    alphas = {f"{prefix}{name}": layer.spec.alpha for name, layer in adapter.layers.items()}
    rank, alpha = next(iter(ranks.values())), next(iter(alphas.values()))
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {f"^{re.escape(n)}": r for n, r in ranks.items() if r != rank},
        "alpha_pattern": {f"^{re.escape(n)}": a for n, a in alphas.items() if a != alpha},
        "target_modules": list(expert),
        "lora_dropout": next(iter(adapter.layers.values())).spec.dropout,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": False,
    }
    tensors = {}
    for name, (A_RI, B_RO) in expert.items():
        tensors[f"{PREFIX}{name}.lora_A.weight"] = A_RI.contiguous()
        tensors[f"{PREFIX}{name}.lora_B.weight"] = B_RO.t().contiguous()
    with atomic_folder(folder) as new:
        save_file(tensors, new / "adapter_model.safetensors", metadata={"format": "pt"})
        (new / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class PeftLora:
    """A plain LoRA as PEFT stores it.

    Args:
        rank: R of all layers
        alpha: its output is scaled by alpha / rank
        matrices: (A_RI, B_RO) of each layer
    """

    rank: int
    alpha: float
    matrices: dict[str, tuple[Tensor, Tensor]]


def read_lora(folder: Union[str, Path], prefix: str = "") -> PeftLora:
    """A LoRA in PEFT's format.

    Args:
        prefix: what stands before the names of the layers there, and is taken off

    Raises:
        UserError: no such folder, a damaged one, other names, or a variant that is more than a plain LoRA
    """
    config, tensors = _read(Path(folder))
    for option in ("use_dora", "use_rslora", "fan_in_fan_out", "modules_to_save", "lora_bias"):
        if config.get(option):
            raise UserError(f"{folder}: {option} is set; only plain LoRA can become an expert")
    if config.get("bias", "none") != "none" or config.get("rank_pattern") or config.get("alpha_pattern"):
        raise UserError(f"{folder}: trained biases and patterns of rank or alpha cannot become an expert")
    matrices: dict[str, tuple[Tensor, Tensor]] = {}
    for key in sorted(tensors):
        name, _, kind = key.removeprefix(PREFIX).rpartition(".lora_")
        if kind == "A.weight" and f"{PREFIX}{name}.lora_B.weight" in tensors:
            if not name.startswith(prefix):
                raise UserError(f"{folder}: layer {name} does not begin with {prefix}, as those of its model do")
            matrices[name[len(prefix) :]] = tensors[key], tensors[f"{PREFIX}{name}.lora_B.weight"].t()
        elif kind != "B.weight":
            raise UserError(f"{folder}: unexpected tensor {key}")
    if not tensors or len(tensors) != 2 * len(matrices):
        raise UserError(f"{folder}: lora_A and lora_B do not come in pairs")
    return PeftLora(config["r"], config["lora_alpha"], matrices)


def import_expert(adapter: Adapter, index: int, folder: Union[str, Path], prefix: str = "") -> None:
    """Makes a LoRA in PEFT's format expert `index`; its scale goes into B where it differs from the adapter's.

    A smaller rank is filled up with zeros.

    Args:
        prefix: see `read_lora`

    Raises:
        UserError: a larger rank or other layers; see also `read_lora`
    """
    lora, expert = read_lora(folder, prefix), {}
    for name, (A_RI, B_RO) in lora.matrices.items():
        if name not in adapter.layers:
            raise UserError(f"{folder}: this adapter has no experts on {name}")
        spec = adapter.layers[name].spec
        missing = spec.rank - A_RI.shape[0]
        if missing < 0:
            raise UserError(f"{folder}: rank {A_RI.shape[0]} does not fit into experts of rank {spec.rank}")
        factor = lora.alpha / lora.rank / spec.scale
        A_full, B_full = A_RI.new_zeros(spec.rank, A_RI.shape[1]), B_RO.new_zeros(spec.rank, B_RO.shape[1])
        A_full[: A_RI.shape[0]], B_full[: B_RO.shape[0]] = A_RI, B_RO * factor
        expert[name] = A_full, B_full
    adapter.set_expert(index, expert)


def _read(folder: Path) -> tuple[dict, dict[str, Tensor]]:
    try:
        config = parse_json((folder / "adapter_config.json").read_bytes())
        tensors = load_file(folder / "adapter_model.safetensors")
        if config["peft_type"] != "LORA" or config["r"] < 1 or config["lora_alpha"] is None:
            raise UserError(f"{folder} holds a {config['peft_type']} adapter; only LoRA can become an expert")
        if type(config["r"]) is not int or not 0 < abs(config["lora_alpha"] / config["r"]) < 1e6:
            raise ValueError(f"r is {config['r']!r}, lora_alpha {config['lora_alpha']!r}")
    except FileNotFoundError as error:
        raise UserError(
            f"{folder} holds no adapter in PEFT's format: {Path(error.filename or '').name} is missing"
        ) from None
    except UserError:
        raise
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder} holds a damaged adapter: {error}") from None
    return config, tensors
