"""The formulas of the expert layer as naive loops, to compare with."""

import math

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


def _select(spec, p_E, tau_logit):
    if spec.select == "all":
        return p_E
    if spec.select == "topk":
        return top_k(p_E, spec.top_k)
    level = spec.fixed_threshold if spec.threshold == "fixed" else 1 / (1 + math.exp(-tau_logit.item()))
    if spec.hard:
        return hard_threshold(p_E, level / len(p_E))
    return soft_threshold(p_E, level / len(p_E))


def _pooled(router, x_TI, memory_TI, frames, t):
    """z of one utterance, from `AttentivePooling` and means, which have tests of their own."""
    spec, parts = router.spec, []
    T = len(x_TI)
    last = {"real": frames, "prefix": t + 1, "all": T}[spec.over]
    for source, frames_TI, count in (("layer", x_TI, last), ("memory", memory_TI, T if spec.over == "all" else frames)):
        if spec.source not in (source, "both"):
            continue
        if spec.pooling == "mean":
            parts.append(frames_TI[:count].mean(0))
        else:
            over = "prefix" if (spec.over, source) == ("prefix", "layer") else "real"
            pooling = getattr(router, f"pool_{source}")
            parts.append(pooling(frames_TI[None, :count], torch.ones(1, count, dtype=torch.bool), over)[0, -1])
    return torch.cat(parts)


def router_weights(router, x_TI, memory_TI, g_E, frames, t):
    """Weights of one frame of one utterance."""
    spec, mean = router.spec, x_TI[:frames].mean(0)
    looked_at = x_TI[t] if spec.granularity == "frame" else _pooled(router, x_TI, memory_TI, frames, t)
    parts = {}
    for route, p_E, seen in (
        ("global", (g_E.log() / spec.temperature).softmax(-1), x_TI[t] if spec.threshold_over == "frame" else mean),
        ("local", None, looked_at),
    ):
        if {"given": "global", "local": "local"}.get(spec.route, route) != route:
            continue
        if route == "local":
            logits_E = router.local @ seen + getattr(router, "local_bias", 0)
            p_E = (logits_E / spec.local_temperature).softmax(-1)
        tau = getattr(router, f"threshold_{route}_bias", torch.zeros(1))
        if hasattr(router, f"threshold_{route}"):
            tau = tau + getattr(router, f"threshold_{route}")[0] @ seen
        parts[route] = _select(spec, p_E, tau)
    if len(parts) == 1:
        return next(iter(parts.values()))
    g, l = parts["global"], parts["local"]
    if spec.combine == "gate":
        a = (router.gate @ looked_at).softmax(-1)
        return a[0] * g + a[1] * l
    if spec.combine == "product":
        return g * l / (g * l).sum() if (g * l).sum() > 0 else (g + l) / 2
    return (g + l) if spec.combine == "sum" else (g + l) / 2
