"""Routers of several adapters side by side, so that utterances of one batch can be served by different adapters.

Shapes: N utterances, T frames, I layer input width, S adapters, E experts of each.
"""

from __future__ import annotations

from typing import Optional, Sequence

from torch import Tensor, nn

from moe_asr.errors import UserError
from moe_asr.experts.context import Routing
from moe_asr.experts.routers import Router


class RouterBank(nn.Module):
    """Router s of S looks at the utterances of member s only, and weighs the experts s E to (s + 1) E - 1 alone."""

    def __init__(self, members: Sequence[Router]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, x_NTI: Tensor, mask_NT: Optional[Tensor], routing: Routing) -> Tensor:
        """Weights (N, S * E) or (N, T, S * E), zero for the experts of other members."""
        N, members_N = x_NTI.shape[0], routing.members_N
        if members_N is None or members_N.shape[0] != N:
            known = "none is named" if members_N is None else f"{members_N.shape[0]} are named"
            raise UserError(
                f"each of {N} utterances is served by one of {len(self.members)} adapters, but {known}: call the model "
                "inside `with adapter.route(members=numbers of the adapters):`"
            )
        gates = None
        for member in members_N.unique().tolist():
            rows = (members_N == member).nonzero().flatten().to(x_NTI.device)
            if len(rows) == N:
                own = self.members[member](x_NTI, mask_NT, routing)
            else:
                mask = None if mask_NT is None else mask_NT[rows]
                own = self.members[member](x_NTI[rows], mask, routing.rows(rows))
            if gates is None:
                gates = own.new_zeros(N, *own.shape[1:-1], len(self.members), own.shape[-1])
            gates[..., member, :][rows] = own
        return gates.flatten(-2)
