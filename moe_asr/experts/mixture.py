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
    base: nn.Module,
    x_NTI: Tensor,
    A_ERI: Tensor,
    B_ERO: Tensor,
    gates: Tensor,
    scale: float,
    dropped_NTI: Optional[Tensor] = None,
) -> Tensor:
    """`y = W x + b + scale * sum_e w_e B_e A_e x`.

    Forward and backward cost `1 + 3 E R / d` of the frozen layer alone (square layer of width d), and keep only x,
    `A x` (T * E * R items) and the gates. Gradients reach x, A, B and the gates, never W.

    Args:
        base: the frozen linear layer, see `frozen_weight`
        gates: weights w, shape (N, E) or (N, T, E)
        dropped_NTI: the experts' input where it differs from x (dropout)
    """
    if gates.dim() == 2:
        gates = gates[:, None]
    return _Product.apply(base, x_NTI, dropped_NTI, A_ERI.flatten(0, 1), B_ERO.flatten(0, 1), gates, scale)


def factor_mixture(
    base: nn.Module,
    x_NTI: Tensor,
    A_ERI: Tensor,
    B_ERO: Tensor,
    gates: Tensor,
    scale: float,
    dropped_NTI: Optional[Tensor] = None,
) -> Tensor:
    """`y = W x + b + scale * (sum_e w_e B_e)(sum_e w_e A_e) x`: one LoRA of rank R for each utterance.

    With weights for each frame it is one LoRA for each frame, and costs what `product_mixture` costs:
    `h = sum_e w_e A_e x`, `y = W x + b + scale * sum_e w_e B_e h`.

    Args:
        gates: weights w, shape (N, E) or (N, T, E)
    """
    if gates.dim() == 3:
        return _FrameFactor.apply(base, x_NTI, dropped_NTI, A_ERI.flatten(0, 1), B_ERO.flatten(0, 1), gates, scale)
    A_NRI = (gates @ A_ERI.flatten(1)).unflatten(1, A_ERI.shape[1:])
    B_NRO = (gates @ B_ERO.flatten(1)).unflatten(1, B_ERO.shape[1:])
    return _Factor.apply(base, x_NTI, dropped_NTI, A_NRI, B_NRO, scale)


def merged_weight(
    weight_OI: Tensor, A_ERI: Tensor, B_ERO: Tensor, gates_E: Tensor, scale: float, mixing: str
) -> Tensor:
    """The weight of the one linear layer equal to base and experts under the fixed weights `gates_E`; a new tensor."""
    if mixing == "factor":
        A_KI, B_KO = torch.tensordot(gates_E, A_ERI, 1), torch.tensordot(gates_E, B_ERO, 1)
    else:
        A_KI, B_KO = A_ERI.flatten(0, 1), (B_ERO * gates_E[:, None, None]).flatten(0, 1)
    return torch.addmm(weight_OI, B_KO.t(), A_KI, alpha=scale)


def frozen_weight(base: nn.Module) -> Tensor:
    """The (O, I) weight of a frozen layer; a quantised layer gives it through `dequantise()`, anew each time."""
    return base.weight if isinstance(base, nn.Linear) else base.dequantise()


def base_product(base: nn.Module, x: Tensor) -> Tensor:
    """`W x + b`, computed in the type of x."""
    return F.linear(x, frozen_weight(base).to(x.dtype), None if base.bias is None else base.bias.to(x.dtype))


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, base, x_NTI, dropped_NTI, A_KI, B_KO, gates, scale):
        u_NTI = x_NTI if dropped_NTI is None else dropped_NTI
        z_NTK = F.linear(u_NTI, A_KI)
        zg_MK = _gated(z_NTK, gates * scale).flatten(0, 1)
        y_NTO = base_product(base, x_NTI)
        y_NTO.flatten(0, 1).addmm_(zg_MK, B_KO)
        ctx.base, ctx.scale, ctx.dropped = base, scale, dropped_NTI is not None
        ctx.save_for_backward(u_NTI, A_KI, B_KO, gates, z_NTK)
        return y_NTO

    @staticmethod
    @once_differentiable
    def backward(ctx, dy_NTO):
        u_NTI, A_KI, B_KO, gates, z_NTK = ctx.saved_tensors
        _, need_x, need_dropped, need_A, need_B, need_gates, _ = ctx.needs_input_grad
        dx = ddropped = dA = dB = dgates = None
        dy_MO, u_MI = dy_NTO.flatten(0, 1), u_NTI.flatten(0, 1)
        scaled = gates * ctx.scale
        dzg_NTK = F.linear(dy_MO, B_KO).view_as(z_NTK)
        scratch_NTK = torch.empty_like(z_NTK)  # used twice: at these widths fresh memory costs more than arithmetic
        if need_gates:
            per_rank = torch.mul(dzg_NTK, z_NTK, out=scratch_NTK)
            if gates.shape[1] == 1:
                per_rank = per_rank.sum(1, keepdim=True)
            dgates = per_rank.unflatten(-1, (gates.shape[-1], -1)).sum(-1).mul_(ctx.scale)
        if need_B:
            dB = _gated(z_NTK, scaled, out=scratch_NTK).flatten(0, 1).t() @ dy_MO
        dz_MK = _gated(dzg_NTK, scaled, out=dzg_NTK).flatten(0, 1)
        if need_A:
            dA = dz_MK.t() @ u_MI
        if need_x or need_dropped:
            # The narrow product comes first: the wide one hides the time that adding to memory takes.
            du_MI = dz_MK @ A_KI
            if ctx.dropped:
                ddropped = du_MI.view_as(u_NTI)
        if need_x:
            weight_OI = frozen_weight(ctx.base).to(dy_MO.dtype)
            dx = (dy_MO @ weight_OI if ctx.dropped else du_MI.addmm_(dy_MO, weight_OI)).view_as(u_NTI)
        return None, dx, ddropped, dA, dB, dgates, None


class _Factor(torch.autograd.Function):
    @staticmethod
    def forward(ctx, base, x_NTI, dropped_NTI, A_NRI, B_NRO, scale):
        u_NTI = x_NTI if dropped_NTI is None else dropped_NTI
        z_NTR = torch.bmm(u_NTI, A_NRI.transpose(1, 2))
        y_NTO = base_product(base, x_NTI)
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


class _FrameFactor(torch.autograd.Function):
    @staticmethod
    def forward(ctx, base, x_NTI, dropped_NTI, A_KI, B_KO, gates_NTE, scale):
        u_NTI = x_NTI if dropped_NTI is None else dropped_NTI
        z_NTK = F.linear(u_NTI, A_KI)
        h_NTR = _summed(z_NTK, gates_NTE)
        y_NTO = base_product(base, x_NTI)
        y_NTO.flatten(0, 1).addmm_(_spread(h_NTR, gates_NTE * scale).flatten(0, 1), B_KO)
        ctx.base, ctx.scale, ctx.dropped = base, scale, dropped_NTI is not None
        ctx.save_for_backward(u_NTI, A_KI, B_KO, gates_NTE, z_NTK)
        return y_NTO

    @staticmethod
    @once_differentiable
    def backward(ctx, dy_NTO):
        u_NTI, A_KI, B_KO, gates_NTE, z_NTK = ctx.saved_tensors
        _, need_x, need_dropped, need_A, need_B, need_gates, _ = ctx.needs_input_grad
        dx = ddropped = dA = dB = dgates = None
        E, dy_MO = gates_NTE.shape[-1], dy_NTO.flatten(0, 1)
        scaled, h_NTR = gates_NTE * ctx.scale, _summed(z_NTK, gates_NTE)
        dhg_NTK = F.linear(dy_MO, B_KO).view_as(z_NTK)  # gradient of the R columns that go into each B_e
        dh_NTR = _summed(dhg_NTK, scaled)
        if need_gates:
            per_rank = z_NTK.unflatten(-1, (E, -1)) * dh_NTR[..., None, :]
            per_rank += ctx.scale * (dhg_NTK.unflatten(-1, (E, -1)) * h_NTR[..., None, :])
            dgates = per_rank.sum(-1)
        if need_B:
            dB = _spread(h_NTR, scaled).flatten(0, 1).t() @ dy_MO
        dz_MK = _spread(dh_NTR, gates_NTE).flatten(0, 1)
        if need_A:
            dA = dz_MK.t() @ u_NTI.flatten(0, 1)
        if need_x or need_dropped:
            du_NTI = (dz_MK @ A_KI).view_as(u_NTI)
            ddropped = du_NTI if ctx.dropped else None
        if need_x:
            dx = (dy_MO @ frozen_weight(ctx.base).to(dy_MO.dtype)).view_as(u_NTI)
            dx = dx if ctx.dropped else dx.add_(du_NTI)
        return None, dx, ddropped, dA, dB, dgates, None


def _summed(z_NTK: Tensor, gates_NTE: Tensor) -> Tensor:
    """`sum_e w_e z_e` over the R columns of each expert: (N, T, R)."""
    return (gates_NTE[..., None, :] @ z_NTK.unflatten(-1, (gates_NTE.shape[-1], -1))).squeeze(-2)


def _spread(h_NTR: Tensor, gates_NTE: Tensor) -> Tensor:
    """`w_e h` for each expert side by side: (N, T, K)."""
    return (gates_NTE[..., None] * h_NTR[..., None, :]).flatten(-2)


def _gated(z_NTK: Tensor, gates: Tensor, out: Optional[Tensor] = None) -> Tensor:
    """The R columns of each expert times its gate; gates are (N, T, E) or (N, 1, E)."""
    E = gates.shape[-1]
    R = z_NTK.shape[-1] // E
    if gates.shape[1] > 1 and R * z_NTK.element_size() >= 64:
        # A broadcast over R is fastest where R items fill vector registers, and several times slower where they do not.
        z_NTER = z_NTK.unflatten(-1, (E, R))
        out_NTER = torch.empty_like(z_NTER) if out is None else out.view_as(z_NTER)
        return torch.mul(z_NTER, gates[..., None], out=out_NTER).flatten(-2)
    return torch.mul(z_NTK, gates.repeat_interleave(R, -1), out=out)
