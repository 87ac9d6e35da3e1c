"""Small models to put experts on."""

import torch
from torch import nn

from moe_asr.experts import ExpertSpec, RouterSpec, attach


class Block(nn.Module):
    def __init__(self, width, inner):
        super().__init__()
        self.q_proj, self.k_proj = nn.Linear(width, width), nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x):
        x = x + torch.tanh(self.q_proj(x)) * self.k_proj(x)
        return x + self.down(torch.relu(self.up(x)))


class Tower(nn.Module):
    """Frame by frame, so that padding can only matter through routing."""

    def __init__(self, width=12, inner=20, layers=2, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.layers = nn.ModuleList(Block(width, inner) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


def fill(adapter, seed=1):
    """Trained-looking experts and routers."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))


E = 3
TARGETS = ("q_proj", "k_proj", "up", "down")
ATTENTION = dict(route="local", select="all", granularity="utterance", pooling="attention", bias=True, scope="kind")
SPECS = {
    "hdmole": ExpertSpec(TARGETS, E, 2),
    "given": ExpertSpec(TARGETS, E, 2, router=RouterSpec(route="given", select="all")),
    "dense": ExpertSpec(TARGETS, E, 2, router=RouterSpec(route="local", select="all")),
    "topk": ExpertSpec(TARGETS, E, 2, router=RouterSpec(route="local", select="topk", top_k=1)),
    "adamole": ExpertSpec(TARGETS, E, 2, router=RouterSpec(route="local")),
    "sparsegen": ExpertSpec(TARGETS, E, 2, router=RouterSpec(route="local", select="sparsegen")),
    "pooled": ExpertSpec(TARGETS, E, 2, router=RouterSpec(granularity="utterance")),
    "factor": ExpertSpec(TARGETS, E, 2, mixing="factor", router=RouterSpec(granularity="utterance", select="all")),
    "saml": ExpertSpec(("q_proj", "k_proj"), E, 2, mixing="factor", router=RouterSpec(**ATTENTION)),
    "prefix": ExpertSpec(("q_proj", "k_proj"), E, 2, mixing="factor", router=RouterSpec(**ATTENTION, over="prefix")),
    "block": ExpertSpec(("q_proj", "k_proj"), E, 2, router=RouterSpec(scope="block")),
    "model": ExpertSpec(("q_proj", "k_proj", "up"), E, 2, router=RouterSpec(scope="model")),
}

LENGTHS = torch.tensor([7, 3, 5])
DOMAINS = torch.tensor([0, 2, 1])


def batch(seed=3):
    return torch.randn(3, 7, 12, generator=torch.Generator().manual_seed(seed))


def adapted(name, filled=True):
    model = Tower()
    adapter = attach(model, SPECS[name])
    if filled:
        fill(adapter)
    return model, adapter
