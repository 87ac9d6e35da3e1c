"""Speed and memory of the expert layer, against what its arithmetic costs at least and against other implementations.

    python tools/bench/expert_layer.py --check

Shapes: N utterances, T frames, I input width, O output width, E experts, R rank, d width of a square layer.
"""

from __future__ import annotations

import tempfile
from contextlib import nullcontext
from typing import Callable, Optional

import torch
from common import Call, Row, main, paired
from torch import Tensor, nn

from moe_asr.experts import Adapter, ExpertLinear, ExpertSpec, RouterSpec, attach
from moe_asr.experts.context import RoutingContext

NUM_EXPERTS, RANK = 8, 16
SAML = RouterSpec(route="local", select="all", granularity="utterance", pooling="attention", bias=True, scope="kind")
DENSE = RouterSpec(route="local", select="all")
GIVEN = RouterSpec(route="given", select="all")
HIERARCHICAL = RouterSpec()


class Linear(nn.Module):
    """The model around a single layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.linear.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


class Projections(nn.Module):
    """The linear layers of an attention block, without the attention."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.out_proj(self.q_proj(x) + self.k_proj(x) + self.v_proj(x))


class FixedWeights(nn.Module):
    """Stands in for a router: weights that are simply there, so that mixing is timed alone."""

    def __init__(self, gates: Tensor) -> None:
        super().__init__()
        self.gates = nn.Parameter(gates)

    def forward(self, x_NTI: Tensor, mask_NT: Optional[Tensor], routing: object) -> Tensor:
        return self.gates


class LoopedExperts(nn.Module):
    """The formula as it is usually written: one pair of small layers for each expert, one after another."""

    def __init__(self, linear: nn.Linear, gates_NTE: Tensor, rank: int, scale: float) -> None:
        super().__init__()
        self.linear, self.scale, self.gates = linear, scale, nn.Parameter(gates_NTE)
        experts = range(gates_NTE.shape[-1])
        self.down = nn.ModuleList(nn.Linear(linear.in_features, rank, bias=False) for _ in experts)
        self.up = nn.ModuleList(nn.Linear(rank, linear.out_features, bias=False) for _ in experts)

    def forward(self, x_NTI: Tensor) -> Tensor:
        y_NTO = self.linear(x_NTI)
        for e, (down, up) in enumerate(zip(self.down, self.up)):
            y_NTO = y_NTO + self.scale * self.gates[..., e : e + 1] * up(down(x_NTI))
        return y_NTO


def step(module: nn.Module, x: Tensor, *others: Tensor) -> Call:
    """One forward and backward pass, with gradients for x, the parameters that train, and `others`."""
    inputs = [x.clone().requires_grad_(), *(p for p in module.parameters() if p.requires_grad), *others]
    dy = torch.randn_like(x)

    def call() -> tuple:
        y = module(inputs[0])
        return y, torch.autograd.grad(y, inputs, dy)

    return call


def step_of(adapter: Adapter, x: Tensor, **routing: Tensor) -> Call:
    """The same for an adapted model inside `route`, with gradients for the routing where it asks for them."""
    call = step(adapter.model, x, *(tensor for tensor in routing.values() if tensor.requires_grad))

    def routed() -> tuple:
        with adapter.route(**routing):
            return call()

    return routed


def experts_on(d: int, router: RouterSpec, num_experts: int = NUM_EXPERTS, rank: int = RANK, **options) -> Adapter:
    return _filled(attach(Linear(d), ExpertSpec(("linear",), num_experts, rank, router=router, **options)))


def mixing_layer(d: int, frames: int) -> ExpertLinear:
    gates_NTE = torch.rand(1, frames, NUM_EXPERTS).softmax(-1)
    spec = ExpertSpec(("linear",), NUM_EXPERTS, RANK)
    layer = ExpertLinear(Linear(d).linear, spec, FixedWeights(gates_NTE), RoutingContext())
    nn.init.normal_(layer.B, std=0.02)
    return layer


def peft_lora(d: int, rank: int) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=rank, lora_alpha=32, target_modules=["linear"])
    return get_peft_model(Linear(d), config).base_model.model.linear


def against_floor(d: int, frames: int) -> list[Row]:
    def row(name: str, ours: Callable[[Tensor], Call], bar: Optional[float] = None) -> Row:
        def build() -> tuple[Call, Call]:
            x = torch.randn(1, frames, d)
            return ours(x), step(Linear(d), x)

        return Row(f"{name} / FLOP floor, d = {d}", paired(build, 1 + 3 * NUM_EXPERTS * RANK / d), bar)

    def routed(router: RouterSpec, **routing: Tensor) -> Callable[[Tensor], Call]:
        return lambda x: step_of(experts_on(d, router), x, **routing)

    domains, lengths = torch.tensor([2]), torch.tensor([frames])
    return [
        row("experts", lambda x: step(mixing_layer(d, frames), x), 1.08),
        row("experts and dense router", routed(DENSE)),
        row("experts and hierarchical router", routed(HIERARCHICAL, domains=domains, lengths=lengths)),
    ]


def against_lora(d: int, frames: int, rank: int, bar: float) -> Row:
    def build() -> tuple[Call, Call]:
        x = torch.randn(1, frames, d)
        return step(mixing_layer(d, frames), x), step(peft_lora(d, rank), x)

    return Row(f"experts / PEFT LoRA of rank {rank}, d = {d}", paired(build), bar)


def against_loop(d: int, frames: int) -> Row:
    def build() -> tuple[Call, Call]:
        x = torch.randn(1, frames, d)
        layer = mixing_layer(d, frames)
        loop = LoopedExperts(layer.base, layer.router.gates.detach(), RANK, layer.spec.scale)
        return step(loop, x), step(layer, x)

    return Row(f"loop over experts / experts, d = {d}", paired(build), 1.5, better="higher")


def kept_for_backward(name: str, router: RouterSpec, bar: Optional[float], d: int, frames: int) -> Row:
    def measure(rounds: int) -> list[float]:
        adapter, x = experts_on(d, router), torch.randn(1, frames, d, requires_grad=True)
        known = {tensor.untyped_storage().data_ptr() for tensor in (x, *adapter.model.parameters())}
        kept: dict[int, Tensor] = {}

        def pack(tensor: Tensor) -> Tensor:
            if tensor.untyped_storage().data_ptr() not in known:
                kept[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        with adapter.route(domains=torch.tensor([2]), lengths=torch.tensor([frames])):
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                adapter.model(x)
        return [sum(tensor.untyped_storage().nbytes() // x.element_size() for tensor in kept.values()) / frames]

    return Row(f"kept for backward beyond x, {name}, d = {d}", measure, bar, "items per frame")


def inference(d: int, frames: int) -> list[Row]:
    weights = torch.linspace(0.05, 0.2, NUM_EXPERTS)

    def forward(model: nn.Module, x: Tensor, adapter: Optional[Adapter] = None) -> Call:
        def call() -> Tensor:
            with torch.no_grad(), adapter.route(domains=weights[None]) if adapter else nullcontext():
                return model(x)

        return call

    def build(once: bool) -> tuple[Call, Call]:
        x, adapter = torch.randn(1, frames, d), experts_on(d, GIVEN)
        adapter.model.eval()
        ours = forward(adapter.merged(weights), x) if once else forward(adapter.model, x, adapter)
        return ours, forward(Linear(d), x)

    return [
        Row(f"merged once, forward / frozen linear, d = {d}", paired(lambda: build(True)), 1.03),
        Row(f"merged for each utterance, forward / frozen linear, d = {d}", paired(lambda: build(False)), 1.20),
    ]


def factor_mixing(d: int, frames: int, num_experts: int, rank: int) -> Row:
    def build() -> tuple[Call, Call]:
        x = torch.randn(1, frames, d)
        weights = torch.rand(1, num_experts).softmax(-1).requires_grad_()
        ours = step_of(experts_on(d, GIVEN, num_experts, rank, mixing="factor"), x, domains=weights)
        return ours, step(peft_lora(d, rank), x)

    return Row(f"factor mixing / PEFT LoRA, d = {d}, rank {rank}, {num_experts} experts", paired(build), 1.15)


def saml_block(d: int, frames: int) -> Row:
    """Projections of one block with SAML's experts, its router included."""
    from peft import LoraConfig, get_peft_model

    def build() -> tuple[Call, Call]:
        targets, x = ["q_proj", "k_proj", "v_proj", "out_proj"], torch.randn(1, frames, d)
        spec = ExpertSpec(tuple(targets), 10, 1, alpha=4.0, mixing="factor", router=SAML)
        ours = step_of(_filled(attach(Projections(d), spec)), x, lengths=torch.tensor([frames]))
        lora = get_peft_model(Projections(d), LoraConfig(r=1, lora_alpha=4, target_modules=targets))
        return ours, step(lora.base_model.model, x)

    return Row(f"factor mixing and attentive router on q k v out / PEFT LoRA, d = {d}", paired(build))


def against_xlora(d: int, frames: int) -> list[Row]:
    """A small causal language model with experts in all linear layers of its blocks and weights for each token."""

    def models() -> tuple[nn.Module, nn.Module, Tensor]:
        from peft import LoraConfig, XLoraConfig, get_peft_model
        from transformers import LlamaConfig, LlamaForCausalLM

        sizes = {"hidden_size": d, "intermediate_size": 2 * d, "num_hidden_layers": 2, "num_attention_heads": 4}
        config = LlamaConfig(vocab_size=256, use_cache=False, **sizes)
        targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        ours = _filled(attach(LlamaForCausalLM(config), ExpertSpec(tuple(targets), NUM_EXPERTS, RANK, router=DENSE)))
        with tempfile.TemporaryDirectory() as folder:
            lora = LoraConfig(r=RANK, target_modules=targets, init_lora_weights=False, task_type="CAUSAL_LM")
            get_peft_model(LlamaForCausalLM(config), lora).save_pretrained(folder)
            options = {"adapters": {str(e): folder for e in range(NUM_EXPERTS)}, "use_trainable_adapters": True}
            mixture = XLoraConfig(hidden_size=d, task_type="CAUSAL_LM", **options)
            theirs = get_peft_model(LlamaForCausalLM(config), mixture)
        return theirs, ours.model, torch.randint(256, (3, frames // 3))

    def forward(model: nn.Module, tokens: Tensor) -> Call:
        return torch.no_grad()(lambda: model(input_ids=tokens))

    def training(model: nn.Module, tokens: Tensor) -> Call:
        trained = [p for p in model.parameters() if p.requires_grad]
        return lambda: torch.autograd.grad(model(input_ids=tokens, labels=tokens).loss, trained, allow_unused=True)

    def build(call: Callable[[nn.Module, Tensor], Call]) -> tuple[Call, Call]:
        theirs, ours, tokens = models()
        return call(theirs, tokens), call(ours, tokens)

    name = f"PEFT X-LoRA / experts, whole model, d = {d}"
    return [
        Row(f"{name}, forward", paired(lambda: build(forward)), 3.0, better="higher"),
        Row(name, paired(lambda: build(training)), 2.5, better="higher"),
    ]


def make_rows(quick: bool) -> list[Row]:
    frames, small, middle, large = (30, 24, 32, 48) if quick else (1500, 384, 768, 1280)
    rows = [row for d in (small, middle, large) for row in against_floor(d, frames)]
    rows += [against_lora(large, frames, RANK, 1.28)]
    rows += [against_lora(d, frames, NUM_EXPERTS * RANK, 1.02) for d in (small, middle, large)]
    most = NUM_EXPERTS * (RANK + 2)
    rows += [kept_for_backward("dense router", DENSE, most, large, frames)]
    rows += [kept_for_backward("hierarchical router", HIERARCHICAL, None, large, frames)]
    rows += inference(large, frames)
    rows += [factor_mixing(large, frames, experts, rank) for rank in (1, RANK) for experts in (4, 8, 10, 16)]
    rows += [saml_block(d, frames) for d in (small, large)]
    rows += [against_loop(d, frames) for d in (small, large)]
    rows += against_xlora(middle, frames)
    return rows


@torch.no_grad()
def _filled(adapter: Adapter) -> Adapter:
    """Experts that do something: a fresh B is zero, and arithmetic on zeros may be faster."""
    for name, parameter in adapter.named_parameters().items():
        if name.endswith(".B"):
            parameter.normal_(std=0.02)
    return adapter


if __name__ == "__main__":
    main(make_rows, "Expert layer: CPU time, forward and backward unless said otherwise; lower is better at '<='.")
