"""The formulas of the expert layer as naive loops, to compare with."""

import torch


def mixture(weight_OI, bias_O, x_NTI, A_ERI, B_ERO, gates, scale, mixing):
    """One utterance, one frame, one expert at a time."""
    N, T, _ = x_NTI.shape
    E = A_ERI.shape[0]
    if gates.dim() == 2:
        gates = gates[:, None].expand(N, T, E)
    rows = []
    for n in range(N):
        for t in range(T):
            x_I, w_E = x_NTI[n, t], gates[n, t]
            y_O = weight_OI @ x_I + (0 if bias_O is None else bias_O)
            if mixing == "product":
                for e in range(E):
                    y_O = y_O + scale * w_E[e] * (B_ERO[e].T @ (A_ERI[e] @ x_I))
            else:
                A_RI = sum(w_E[e] * A_ERI[e] for e in range(E))
                B_RO = sum(w_E[e] * B_ERO[e] for e in range(E))
                y_O = y_O + scale * (B_RO.T @ (A_RI @ x_I))
            rows.append(y_O)
    return torch.stack(rows).view(N, T, -1)


def soft_threshold(p_E, tau):
    kept = [max(p.item() - float(tau), 0.0) for p in p_E]
    return torch.tensor([k / sum(kept) for k in kept], dtype=p_E.dtype)


def hard_threshold(p_E, tau):
    kept = [p.item() if p.item() >= float(tau) else 0.0 for p in p_E]
    return torch.tensor([k / sum(kept) for k in kept], dtype=p_E.dtype)


def top_k(p_E, k):
    order = sorted(range(len(p_E)), key=lambda e: (-p_E[e].item(), e))[:k]
    total = sum(p_E[e].item() for e in order)
    return torch.tensor([p_E[e].item() / total if e in order else 0.0 for e in range(len(p_E))], dtype=p_E.dtype)
