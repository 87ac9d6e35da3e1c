"""The part of a model that training changes: trainable parameters, and buffers that no longer are what they were.

Only this part is stored in checkpoints, so that a checkpoint of an adapter on a large frozen model stays small.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from moe_asr.errors import UserError
from moe_asr.training.optimizer import trainable_parameters


class ChangingWeights:
    """A view of `model`, taken before the first update, that knows which of its weights are being changed."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        stored = model.state_dict(keep_vars=True)
        # PyTorch counts in-place changes of a tensor; keeping the tensor keeps its identity from being used again.
        self._at_start = {n: (b, b._version) for n, b in model.named_buffers() if n in stored}

    def tensors(self) -> dict[str, Tensor]:
        """Name to tensor, detached but not copied."""
        return {name: p.detach() for name, p in trainable_parameters(self.model).items()} | self.changed_buffers()

    def changed_buffers(self) -> dict[str, Tensor]:
        """Those buffers that no longer are what they were, such as running means."""
        found = {}
        for name, buffer in self.model.named_buffers():
            if name in self._at_start:
                before, version = self._at_start[name]
                if buffer is not before or buffer._version != version:
                    found[name] = buffer.detach()
        return found

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor], source: str) -> None:
        """Copies `tensors` into the model: all trainable parameters and any of the buffers, nothing else.

        Raises:
            UserError: a parameter is missing, unexpected or of another shape; `source` is named.
        """
        parameters = trainable_parameters(self.model)
        buffers = {name: b for name, b in self.model.named_buffers() if name in self._at_start}
        if missing := sorted(set(parameters) - set(tensors)):
            raise UserError(
                f"{source} lacks the weights of {missing[0]} and {len(missing) - 1} more; it is another model's"
            )
        for name, tensor in tensors.items():
            target = parameters.get(name, buffers.get(name))
            if target is None:
                raise UserError(f"{source} holds {name}, which is not trained here; it is another model's")
            if target.shape != tensor.shape:
                raise UserError(f"{source} holds {name} as {tuple(tensor.shape)}, the model has {tuple(target.shape)}")
        for name, tensor in tensors.items():
            parameters.get(name, buffers.get(name)).copy_(tensor)
