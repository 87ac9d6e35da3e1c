"""The frozen language model of a speech LLM in parts: each process holds a share of every layer.

FSDP2 of torch (`fully_shard`): before a layer computes, forwards or backwards, its weights are gathered from all
processes, and let go again after it. So all processes must run through the layers equally often; one that has no batch
runs through them with a sequence of one position, of which nothing is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import nn

from moe_asr.errors import UserError
from moe_asr.methods.adaptation import AdaptedRecogniser
from moe_asr.models.speech_llm import SpeechLLM
from moe_asr.training.distributed import world_size

Idle = Callable[[bool], None]


def check_shardable(model: nn.Module) -> None:
    """Raises UserError where the model has no frozen language model in the number format of its weights."""
    recogniser = model.recogniser if isinstance(model, AdaptedRecogniser) else model
    if not isinstance(recogniser, SpeechLLM):
        raise UserError("shard_frozen shares out the layers of a language model: it is for a speech_llm")
    if any(not p.is_floating_point() for p in recogniser.lm.state_dict().values()):
        raise UserError(
            "shard_frozen cannot cut weights of 4 bits: leave it out, or start from the model in full precision"
        )


def shard_frozen(model: nn.Module) -> Idle | None:
    """Leaves each process its share of the layers' weights; embeddings, the last norm and experts stay whole.

    Returns:
        what a process without a batch must call in the place of a forward pass and, where told so, a backward pass;
        None with one process, where all stays as it was
    """
    if world_size() == 1:
        return None
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    adapted = isinstance(model, AdaptedRecogniser)
    recogniser = model.recogniser if adapted else model
    weight = recogniser.output_weight
    mesh = init_device_mesh(weight.device.type, (world_size(),))
    for layer in recogniser.lm.layers:
        trained = {parameter for parameter in layer.parameters() if parameter.requires_grad}
        fully_shard(layer, mesh=mesh, reshard_after_forward=True, ignored_params=trained)

    def idle(backwards: bool) -> None:
        with model.adapter.disabled() if adapted else nullcontext(), torch.set_grad_enabled(backwards):
            inputs_1MW = torch.zeros(1, 1, weight.shape[1], dtype=recogniser.lm.norm.weight.dtype, device=weight.device)
            inputs_1MW.requires_grad_(backwards)
            hidden_1MW = recogniser.lm(inputs_embeds=inputs_1MW, use_cache=False).last_hidden_state
            if backwards:
                torch.autograd.grad(hidden_1MW.sum(), inputs_1MW)

    return idle
