"""Recomputing the activations of layers in the backward pass."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint, noop_context_fn

from moe_asr.models.interface import ContextFn


class Checkpointed(nn.Module):
    """Layers of which only the inputs are kept while training, once `set_gradient_checkpointing(True)` is called."""

    def __init__(self) -> None:
        super().__init__()
        self.gradient_checkpointing = False
        self.checkpoint_context_fn: ContextFn = noop_context_fn

    def set_gradient_checkpointing(self, enabled: bool, context_fn: ContextFn = noop_context_fn) -> None:
        """See `moe_asr.models.interface.Model`."""
        self.gradient_checkpointing, self.checkpoint_context_fn = enabled, context_fn

    def run_layer(self, layer: nn.Module, *inputs: Any) -> Any:
        """The output of one of the layers."""
        if self.gradient_checkpointing and self.training:
            return checkpoint(layer, *inputs, use_reentrant=False, context_fn=self.checkpoint_context_fn)
        return layer(*inputs)
