"""Which device to compute on."""

from __future__ import annotations

import torch

from moe_asr.errors import UserError


def pick_device(name: str) -> torch.device:
    """The device of that name; `auto` is a GPU if there is one.

    Raises:
        UserError: there is no such device here
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {name} is not to be had here: {str(error).splitlines()[0]}") from None
