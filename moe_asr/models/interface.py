"""What every model of the toolkit offers to training and decoding. Models know nothing of experts.

Shape letters: N utterances, T frames, F mel bins, D encoder width, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

from torch import Tensor, nn
from torch.utils.checkpoint import noop_context_fn

from moe_asr.errors import UserError

ContextFn = Callable[[], tuple[AbstractContextManager, AbstractContextManager]]


class Targets(Protocol):
    """What a loss needs to know of a batch; `moe_asr.data.batches.Batch` is one."""

    tokens_NU: Tensor
    token_lengths_N: Tensor
    domains_N: Tensor
    languages: list[str]


@dataclass(frozen=True)
class Loss:
    """Loss of one batch; total / count, both summed over all batches of an update, is what training minimises.

    Args:
        total: sum over the batch, with its graph.
        count: number of things summed over (tokens or utterances, each model says which), as a scalar tensor.
        parts: further sums over the batch to report, detached; like `total` they are read as part / count.
    """

    total: Tensor
    count: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Predictions:
    """What a model with a decoder says of given texts, before it is a loss.

    Args:
        hidden_MD: states before each token and each end, padding left out.
        weight_VD: of the output layer, `logits = hidden weight^T`.
        targets_M: what comes there.
    """

    hidden_MD: Tensor
    weight_VD: Tensor
    targets_M: Tensor


Criterion = Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, dict[str, Tensor]]]
"""(hidden_MD, weight_VD, targets_M, label smoothing) -> sum of a loss over positions, and parts of it to report; see
`chunked_cross_entropy`."""


class Model(nn.Module, ABC):
    """An encoder of features and a loss.

    No result for an utterance may depend on its padding or on its batch-mates.

    Subclasses make `encoder`, whose forward returns states and lengths.
    """

    encoder: nn.Module
    encoder_cache: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None
    """What is called in the place of a frozen encoder, if anything is."""

    frozen_parts: ClassVar[tuple[str, ...]] = ()
    """Beginnings of the names of parameters that are never fine-tuned; in a model folder they are stored apart."""

    @abstractmethod
    def forward(self, features_NTF: Tensor, feature_lengths_N: Tensor, batch: Targets) -> Loss:
        """Loss of a batch, whose features may have been augmented."""

    def encode(self, features_NTF: Tensor, feature_lengths_N: Tensor) -> tuple[Tensor, Tensor]:
        """Encoder states_NTD, zero in padding frames, and the number of encoder frames of each utterance."""
        return (self.encoder_cache or self.encoder)(features_NTF, feature_lengths_N)

    def output_lengths(self, feature_lengths_N: Tensor) -> Tensor:
        """Encoder frames from feature frames; all linear layers of the encoder see that many."""
        return self.encoder.output_lengths(feature_lengths_N)

    def set_gradient_checkpointing(self, enabled: bool, context_fn: ContextFn = noop_context_fn) -> None:
        """Recomputes activations in the backward pass while training: less memory, more time, the same gradients.

        Args:
            context_fn: contexts for the two passes, see `torch.utils.checkpoint`; layers with a context need it
        """
        self.encoder.set_gradient_checkpointing(enabled, context_fn)


class Recogniser(Model):
    """A model that turns speech into tokens.

    Those that predict token after token have `predictions`, and their forward takes another `criterion` than
    cross-entropy for them.
    """

    blank: ClassVar[int] = 0

    default_targets: ClassVar[tuple[str, ...]]
    """Regular expressions that match whole names of the linear layers which adapters go to unless told otherwise."""

    attention_targets: ClassVar[dict[str, tuple[str, ...]]]
    """Regular expressions for the query, key, value and output projections of each kind of attention that the model
    has: `encoder`, `decoder` (over tokens) and `cross` (of tokens to encoder states). Empty where the parts are not our
    own."""

    text_streams: ClassVar[frozenset[str]] = frozenset()
    """Those of the streams (see `stream_of`) whose frames are tokens, which come one after another in decoding."""

    def stream_of(self, layer: str) -> str:
        """The sequence that a linear layer sees, by the layer's name: "default" is that of encoder frames."""
        return "default"

    def stream_lengths(self, feature_lengths_N: Tensor, batch: Targets | None = None) -> dict[str, Tensor]:
        """Real positions of each utterance in each stream.

        Args:
            batch: its texts, where they are given to the model; without them there are no text streams
        """
        return {"default": self.output_lengths(feature_lengths_N)}

    def too_long(self, feature_frames: int, num_tokens: int) -> str | None:
        """Why an utterance of that many feature frames and tokens is too long for the model; None if it is not."""
        return self.encoder.too_long(feature_frames)

    def predictions(self, features_NTF: Tensor, feature_lengths_N: Tensor, batch: Targets) -> Predictions:
        """What the model says of the texts of a batch, teacher-forced.

        Raises:
            UserError: it does not predict token after token
        """
        raise UserError("this model has no decoder that predicts token after token, only CTC")

    @abstractmethod
    def log_probs(self, features_NTF: Tensor, feature_lengths_N: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities of tokens and blank in each encoder frame, log_probs_NTV in float32, and frame counts."""
