"""Training steps and features of Whisper, against Whisper's padding to 30 s and against other implementations.

    python tools/bench/whisper_step.py --check

Models have the size of Whisper tiny and random weights. Shapes: N utterances, S samples, T frames, I input width,
O output width, E experts, R rank.
"""

from __future__ import annotations

import copy
import random
from types import SimpleNamespace
from typing import Callable, Optional

import torch
from common import Call, Row, main, paired
from torch import Tensor, nn

from moe_asr.data.features import FeatureConfig, log_mel
from moe_asr.data.plan import BatchPlan
from moe_asr.experts import ExpertSpec, RouterSpec, attach
from moe_asr.experts.attach import matching_layers
from moe_asr.models.whisper import Whisper, WhisperConfig

NUM_EXPERTS, RANK = 8, 16
TOKENS_PER_SECOND = 3  # of English speech
WINDOW = FeatureConfig.whisper(pad_seconds=30.0)
FREE = FeatureConfig.whisper()
Wrap = Callable[[Whisper], Whisper]


class RoutedLoop(nn.Module):
    """Experts as they are usually written: small layers, one after another, weighted by a softmax router."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base, self.router = base, nn.Linear(base.in_features, NUM_EXPERTS, bias=False)
        experts = range(NUM_EXPERTS)
        self.down = nn.ModuleList(nn.Linear(base.in_features, RANK, bias=False) for _ in experts)
        self.up = nn.ModuleList(nn.Linear(RANK, base.out_features, bias=False) for _ in experts)

    def forward(self, x_NTI: Tensor) -> Tensor:
        gates_NTE = self.router(x_NTI).softmax(-1)
        y_NTO = self.base(x_NTI)
        for e, (down, up) in enumerate(zip(self.down, self.up)):
            y_NTO = y_NTO + 2.0 * gates_NTE[..., e : e + 1] * up(down(x_NTI))
        return y_NTO


def whisper(quick: bool, **changes: object) -> Whisper:
    """Ours, in the size of Whisper tiny."""
    small = {"width": 16, "heads": 2, "encoder_layers": 1, "decoder_layers": 1, "ffn": 24, "vocab_size": 300}
    tokens = {"prompt": (257, 258), "end": 256, "suppress": ()}
    return Whisper(WhisperConfig(**{"vocab_size": 51864, **(small if quick else {}), **tokens, **changes}))


def speech(num: int, seconds: float) -> tuple[Tensor, Tensor]:
    """Noise of so many utterances, audio_NS and their lengths."""
    samples = round(16000 * seconds)
    return torch.randn(num, samples) * 0.1, torch.full((num,), samples)


def step(model: nn.Module, features_NTF: Tensor, lengths_N: Tensor, seconds: float, bf16: bool = False) -> Call:
    """Loss and gradients of all that trains, with as many tokens as so much speech has."""
    num = len(lengths_N)
    tokens_NU = torch.randint(256, (num, round(TOKENS_PER_SECOND * seconds)))
    batch = SimpleNamespace(tokens_NU=tokens_NU, token_lengths_N=torch.full((num,), tokens_NU.shape[1]))
    trained = [p for p in model.parameters() if p.requires_grad]

    def call() -> tuple:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = model(features_NTF, lengths_N, batch)
        return torch.autograd.grad(loss.total, trained)

    return call


def without_padding(quick: bool, num: int, seconds: float, what: str, wrap: Wrap, bar: Optional[float]) -> Row:
    def build() -> tuple[Call, Call]:
        model, audio = wrap(whisper(quick)), speech(num, seconds)
        return tuple(step(model, *log_mel(*audio, config), seconds) for config in (WINDOW, FREE))

    name = f"step padded to 30 s / not padded, {what}, {num} utterances of {seconds:g} s"
    return Row(name, paired(build), bar, better="higher")


def with_experts(model: Whisper) -> Whisper:
    """Experts with routers of their own in every linear layer."""
    router = RouterSpec(route="local", select="all")
    adapter = attach(model, ExpertSpec(model.default_targets, NUM_EXPERTS, RANK, router=router))
    _fill(parameter for name, parameter in adapter.named_parameters().items() if name.endswith(".B"))
    return model


def with_loops(model: Whisper) -> Whisper:
    model.requires_grad_(False)
    for name in matching_layers(model, model.default_targets):
        model.set_submodule(name, RoutedLoop(model.get_submodule(name)))
    return model


def with_peft(model: Whisper) -> Whisper:
    from peft import LoraConfig, inject_adapter_in_model

    names = matching_layers(model, model.default_targets)
    config = LoraConfig(r=RANK, lora_alpha=32, target_modules=list(names), init_lora_weights=False)
    return inject_adapter_in_model(config, model.requires_grad_(False))


def experts(quick: bool, seconds: float) -> list[Row]:
    """The whole model with experts in every linear layer, no padding."""

    def row(name: str, above: Wrap, below: Wrap, bar: Optional[float], better: str, bf16: bool = False) -> Row:
        def build() -> tuple[Call, Call]:
            model, features = whisper(quick), log_mel(*speech(2, seconds), FREE)
            return tuple(step(wrap(copy.deepcopy(model)), *features, seconds, bf16) for wrap in (above, below))

        return Row(f"step of the whole model, {name}", paired(build), bar, better=better)

    return [
        row("loop over experts / experts", with_loops, with_experts, 1.5, "higher"),
        row("loop over experts / experts, bf16", with_loops, with_experts, 1.9, "higher", bf16=True),
        row("experts / PEFT LoRA of rank 16", with_experts, with_peft, 1.40, "lower"),
    ]


def bucketing() -> Row:
    def measure(rounds: int) -> list[float]:
        draw = random.Random(0)
        durations = [min(30.0, max(1.0, draw.lognormvariate(1.8, 0.6))) for _ in range(5000)]
        shares = []
        for epoch in range(rounds):
            batches = BatchPlan(durations, max_duration=120.0).epoch(epoch)
            padded = sum(len(batch) * max(durations[i] for i in batch) for batch in batches)
            shares.append(padded / sum(durations))
        return shares

    return Row("padded / real frames, buckets by duration", measure, 1.05, "x of real")


def features(num: int, seconds: float, bar: Optional[float]) -> Row:
    def build() -> tuple[Call, Call]:
        from transformers import WhisperFeatureExtractor

        extractor, (audio_NS, lengths_N) = WhisperFeatureExtractor(), speech(num, seconds)
        arrays = list(audio_NS.numpy())
        return lambda: extractor(arrays, sampling_rate=16000), lambda: log_mel(audio_NS, lengths_N, FREE)

    name = f"features by transformers / by us, {num} utterances of {seconds:g} s"
    return Row(name, paired(build), bar, better="higher")


def feature_error(seconds: float) -> Row:
    def measure(rounds: int) -> list[float]:
        from transformers import WhisperFeatureExtractor

        audio_NS, lengths_N = speech(1, seconds)
        theirs = WhisperFeatureExtractor()(audio_NS[0].numpy(), sampling_rate=16000).input_features[0].T
        ours_NTF, _ = log_mel(audio_NS, lengths_N, FREE)
        return [float((ours_NTF[0] - torch.from_numpy(theirs)[: ours_NTF.shape[1]]).abs().max()) * 1e6]

    return Row("features, largest difference to those of transformers", measure, 10.0, "1e-6")


def make_rows(quick: bool) -> list[Row]:
    long, short = (2.0, 1.0) if quick else (10.0, 5.0)
    return [
        without_padding(quick, 2, long, "experts train", with_experts, 4.0),
        without_padding(quick, 4, short, "experts train", with_experts, 7.0),
        without_padding(quick, 2, long, "all weights train", lambda model: model, None),
        bucketing(),
        features(8, long, 8.0),
        features(1, long, None),
        feature_error(long),
        *experts(quick, long),
    ]


@torch.no_grad()
def _fill(parameters) -> None:
    """Experts that do something: a fresh B is zero, and arithmetic on zeros may be faster."""
    for parameter in parameters:
        parameter.normal_(std=0.02)


if __name__ == "__main__":
    main(make_rows, "Whisper: CPU time of training steps (forward and backward) and of features.")
