"""The expert products: one autograd node for a frozen linear layer and its low-rank experts.

Shapes: N utterances, T frames, I input width, O output width, E experts, R rank, K = E * R.
"""

from __future__ import annotations

from typing import Optional

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


def product_mixture(
    base: nn.Module, x_NTI: Tensor, A_ERI: Tensor, B_ERO: Tensor, gates: Tensor, scale: float,
    dropped_NTI: Optional[Tensor] = None,
) -> Tensor:
    """`y = W x + b + scale * sum_e w_e B_e A_e x`.

    Forward and backward cost `1 + 3 E R / d` of the frozen layer alone (square layer of width d), and keep only x, `A x`
    (T * E * R items) and the gates. Gradients reach x, A, B and the gates, never W.

    Args:
        base: the frozen linear layer, see `frozen_weight`
        gates: weights w, shape (N, E) or (N, T, E)
        dropped_NTI: the experts' input where it differs from x (dropout)
    """
    E, R, _ = A_ERI.shape
    if gates.dim() == 2:
        gates = gates[:, None]
    # A small product with this indicator expands the gates to rank level, several times faster than a broadcast over R.
    expand_EK = (torch.eye(E, dtype=x_NTI.dtype, device=x_NTI.device) * scale).repeat_interleave(R, dim=1)
    return _Product.apply(base, x_NTI, dropped_NTI, A_ERI.flatten(0, 1), B_ERO.flatten(0, 1), gates, expand_EK)


def factor_mixture(
    base: nn.Module, x_NTI: Tensor, A_ERI: Tensor, B_ERO: Tensor, gates_NE: Tensor, scale: float,
    dropped_NTI: Optional[Tensor] = None,
) -> Tensor:
    """`y = W x + b + scale * (sum_e w_e B_e)(sum_e w_e A_e) x`: one LoRA of rank R for each utterance."""
    A_NRI = (gates_NE @ A_ERI.flatten(1)).unflatten(1, A_ERI.shape[1:])
    B_NRO = (gates_NE @ B_ERO.flatten(1)).unflatten(1, B_ERO.shape[1:])
    return _Factor.apply(base, x_NTI, dropped_NTI, A_NRI, B_NRO, scale)


def merged_weight(weight_OI: Tensor, A_ERI: Tensor, B_ERO: Tensor, gates_E: Tensor, scale: float, mixing: str) -> Tensor:
    """The weight of the one linear layer equal to base and experts under the fixed weights `gates_E`; a new tensor."""
    if mixing == "factor":
        A_KI, B_KO = torch.tensordot(gates_E, A_ERI, 1), torch.tensordot(gates_E, B_ERO, 1)
    else:
        A_KI, B_KO = A_ERI.flatten(0, 1), (B_ERO * gates_E[:, None, None]).flatten(0, 1)
    return torch.addmm(weight_OI, B_KO.t(), A_KI, alpha=scale)


def frozen_weight(base: nn.Module) -> Tensor:
    """The (O, I) weight of a frozen layer; a quantised layer gives it through `dequantise()`, anew each time."""
    return base.weight if isinstance(base, nn.Linear) else base.dequantise()


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, base, x_NTI, dropped_NTI, A_KI, B_KO, gates, expand_EK):
        u_NTI = x_NTI if dropped_NTI is None else dropped_NTI
        z_NTK = F.linear(u_NTI, A_KI)
        y_NTO = F.linear(x_NTI, frozen_weight(base).to(x_NTI.dtype), _bias(base, x_NTI))
        y_NTO.flatten(0, 1).addmm_((z_NTK * (gates @ expand_EK)).flatten(0, 1), B_KO)
        ctx.base, ctx.dropped = base, dropped_NTI is not None
        ctx.save_for_backward(u_NTI, A_KI, B_KO, gates, z_NTK, expand_EK)
        return y_NTO

    @staticmethod
    @once_differentiable
    def backward(ctx, dy_NTO):
        u_NTI, A_KI, B_KO, gates, z_NTK, expand_EK = ctx.saved_tensors
        _, need_x, need_dropped, need_A, need_B, need_gates, _ = ctx.needs_input_grad
        dx = ddropped = dA = dB = dgates = None
        dy_MO, u_MI = dy_NTO.flatten(0, 1), u_NTI.flatten(0, 1)
        gates_K = gates @ expand_EK
        dzg_NTK = F.linear(dy_NTO, B_KO)
        if need_gates:
            per_rank = dzg_NTK * z_NTK
            if gates.shape[1] == 1:
                per_rank = per_rank.sum(1, keepdim=True)
            dgates = F.linear(per_rank, expand_EK)
        if need_B:
            dB = (z_NTK * gates_K).flatten(0, 1).t() @ dy_MO
        dz_MK = dzg_NTK.mul_(gates_K).flatten(0, 1)
        if need_A:
            dA = dz_MK.t() @ u_MI
        if need_x:
            dx_MI = dy_MO @ frozen_weight(ctx.base).to(dy_MO.dtype)
            dx = (dx_MI if ctx.dropped else dx_MI.addmm_(dz_MK, A_KI)).view_as(u_NTI)
        if need_dropped:
            ddropped = (dz_MK @ A_KI).view_as(u_NTI)
        return None, dx, ddropped, dA, dB, dgates, None


class _Factor(torch.autograd.Function):
    @staticmethod
    def forward(ctx, base, x_NTI, dropped_NTI, A_NRI, B_NRO, scale):
        u_NTI = x_NTI if dropped_NTI is None else dropped_NTI
        z_NTR = torch.bmm(u_NTI, A_NRI.transpose(1, 2))
        y_NTO = F.linear(x_NTI, frozen_weight(base).to(x_NTI.dtype), _bias(base, x_NTI))
        y_NTO.baddbmm_(z_NTR, B_NRO, alpha=scale)
        ctx.base, ctx.scale, ctx.dropped = base, scale, dropped_NTI is not None
        ctx.save_for_backward(u_NTI, A_NRI, B_NRO, z_NTR)
        return y_NTO

    @staticmethod
    @once_differentiable
    def backward(ctx, dy_NTO):
        u_NTI, A_NRI, B_NRO, z_NTR = ctx.saved_tensors
        _, need_x, need_dropped, need_A, need_B, _ = ctx.needs_input_grad
        dx = ddropped = dA = dB = None
        dz_NTR = torch.bmm(dy_NTO, B_NRO.transpose(1, 2)).mul_(ctx.scale)
        if need_B:
            dB = torch.bmm(z_NTR.transpose(1, 2), dy_NTO).mul_(ctx.scale)
        if need_A:
            dA = torch.bmm(dz_NTR.transpose(1, 2), u_NTI)
        if need_x:
            dx = (dy_NTO.flatten(0, 1) @ frozen_weight(ctx.base).to(dy_NTO.dtype)).view_as(u_NTI)
            if not ctx.dropped:
                dx.baddbmm_(dz_NTR, A_NRI)
        if need_dropped:
            ddropped = torch.bmm(dz_NTR, A_NRI)
        return None, dx, ddropped, dA, dB, None


def _bias(base: nn.Module, like: Tensor) -> Optional[Tensor]:
    return None if base.bias is None else base.bias.to(like.dtype)
