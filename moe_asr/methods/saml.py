"""SAML (arXiv 2406.19706): speaker-adaptive mixture of LoRA experts on a quantised recogniser, after PQM (2309.09136).

What the paper states: a quantised recogniser is adapted to a speaker by a mixture of LoRA experts with routers; 7 times
smaller, and 29.1 % (Whisper) and 31.1 % (Conformer) relative WER reduction against the full-precision unadapted
models. From the method's public code:

| part | there, and here |
| --- | --- |
| experts | 10 of rank 1, alpha 4, dropout 0.2, on q, k, v, out of encoder, decoder and cross-attention |
| mixing | factor, one w for each utterance |
| routers | three, one for each kind of attention, shared by its layers; q, k, v, out of a block have one w |
| weights | z = attentive pooling of the block's normed input, w = softmax((W z + c) / T), T = 1 |
| cross-attention | z = [z_decoder ; z_encoder], each with a convolution and pooling of its own |
| initialisation | expert e is the LoRA of one speaker of the training data; all of these started from one A |
| stages | speaker LoRAs; experts and routers on all speakers; adaptation to each target speaker; decode; score |

There the decoder's routers pool over the whole teacher-forced text and over padding, and so see in training what they
do not see when decoding step by step. `router_context: official` does that, for comparison. Our reading, not theirs:
`encoder` (the default; encoder states alone decide for decoder and cross-attention), `prefix` (they see the text up to
each token), padding left out of both, and pruning of experts. The Conformer with decoder is our reading too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Mapping, Sequence

from moe_asr.errors import UserError
from moe_asr.experts import ExpertSpec, RouterSpec

MEMORY_TARGETS = ("k_proj", "v_proj")  # of cross-attention: they see the encoder's states


@dataclass(frozen=True)
class SamlConfig:
    """SAML's experts and routers on all attention of a recogniser.

    Args:
        num_experts: E
        rank: R of each expert
        alpha: the experts' output is scaled by alpha / rank
        dropout: on the experts' input only
        mixing: factor, or product for comparison
        router_context: what decoder and cross-attention are weighed by: encoder (its states alone, so that decoding
            may keep a cache), prefix (the text up to each token as well) or official (the whole text and padding)
        temperature: of the routers' softmax
        same_start: all experts start from one A; LoRAs trained from one seed share it anyway, and new experts that
            share it hardly come apart
    """

    num_experts: int = 10
    rank: int = 1
    alpha: float = 4.0
    dropout: float = 0.2
    mixing: Literal["factor", "product"] = "factor"
    router_context: Literal["encoder", "prefix", "official"] = "encoder"
    temperature: float = 1.0
    same_start: bool = False


def saml_router(config: SamlConfig, kind: str) -> RouterSpec:
    """The router of one kind of attention: encoder, decoder or cross."""
    source, over = {
        ("encoder", "encoder"): ("layer", "real"),
        ("encoder", "decoder"): ("memory", "real"),
        ("encoder", "cross"): ("memory", "real"),
        ("prefix", "encoder"): ("layer", "real"),
        ("prefix", "decoder"): ("layer", "prefix"),
        ("prefix", "cross"): ("both", "prefix"),
        ("official", "encoder"): ("layer", "all"),
        ("official", "decoder"): ("layer", "all"),
        ("official", "cross"): ("both", "all"),
    }[config.router_context, kind]
    return RouterSpec(
        route="local",
        select="all",
        granularity="utterance",
        pooling="attention",
        source=source,
        over=over,
        bias=True,
        local_temperature=config.temperature,
        scope="kind",
    )


def saml_specs(config: SamlConfig, attention_targets: Mapping[str, Sequence[str]]) -> tuple[ExpertSpec, ...]:
    """Experts and a router for each kind of attention that the model has.

    Layers of the encoder take their lengths from the stream `default`, those of the decoder from `decoder`. With
    `prefix`, each token has a weight of its own; keys and values of the encoder's states, which all tokens share, take
    that of the first token: our reading.

    Args:
        attention_targets: layers of each kind, see `Recogniser.attention_targets`

    Raises:
        UserError: there is none, as of a speech LLM, or one of an unknown kind
    """
    if not attention_targets:
        raise UserError(
            "saml is for models with attention in encoder and decoder of our own, which this is not; use experts on a "
            "speech_llm"
        )
    unknown = sorted(attention_targets.keys() - {"encoder", "decoder", "cross"})
    if unknown:
        raise UserError(f"saml: kinds of attention are encoder, decoder and cross, not {', '.join(unknown)}")
    return tuple(
        ExpertSpec(
            targets=tuple(targets),
            num_experts=config.num_experts,
            rank=config.rank,
            alpha=config.alpha,
            dropout=config.dropout,
            mixing=config.mixing,
            same_start=config.same_start,
            router=saml_router(config, kind),
            stream="default" if kind == "encoder" else "decoder",
            memory_targets=MEMORY_TARGETS if kind == "cross" else (),
        )
        for kind, targets in attention_targets.items()
    )
