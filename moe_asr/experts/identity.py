"""Which base model an adapter belongs to."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

from moe_asr.experts.adapter import Adapter
from moe_asr.experts.layer import ExpertLinear


def base_identity(model: nn.Module) -> str:
    """SHA-256 over names, types, shapes and bytes of the base's state, the same with experts attached or not."""
    experts = {name for name, module in model.named_modules() if isinstance(module, ExpertLinear)}
    tensors: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        parents = [name[:i] for i, char in enumerate(name) if char == "."]
        layer = next((parent for parent in parents if parent in experts), None)
        if layer is not None:
            rest = name[len(layer) + 1 :]
            if not rest.startswith("base."):
                continue  # belongs to the experts
            name = f"{layer}.{rest[len('base.') :]}"
        tensors[name] = tensor
    # hashlib releases the lock on large buffers, so big models are hashed on all cores.
    with ThreadPoolExecutor() as pool:
        digests = pool.map(lambda name: _digest(name, tensors[name]), sorted(tensors))
        return hashlib.sha256(b"".join(digests)).hexdigest()


def adapter_identity(adapter: Adapter) -> str:
    """SHA-256 of the adapter's own tensors."""
    return hashlib.sha256(b"".join(_digest(n, t) for n, t in sorted(adapter.state_dict().items()))).hexdigest()


def _digest(name: str, tensor: Tensor) -> bytes:
    data = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    digest = hashlib.sha256(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
    digest.update(data)
    return digest.digest()
