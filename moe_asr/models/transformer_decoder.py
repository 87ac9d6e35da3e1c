"""Transformer decoder over tokens: teacher-forced, and step by step with cached keys and values.

Shape letters: N utterances, T encoder frames, D model width, U tokens, K hypotheses of an utterance, P new tokens of
each, V vocabulary, H attention heads, W width of a head.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moe_asr.errors import UserError
from moe_asr.models.checkpointing import Checkpointed
from moe_asr.models.dropout import Dropout
from moe_asr.models.time_conv import real_mask
from moe_asr.models.transformer import FixedPositions, TransformerLayer


@dataclass(frozen=True)
class DecoderConfig:
    """Size of a Transformer decoder.

    Args:
        layers: number of layers.
        heads: attention heads.
        ffn: hidden width of the feed-forward modules.
        dropout: on the output of every module, and on the embedded tokens.
        max_tokens: longest sequence of tokens, prompt included.
        learned_positions: positions are trained; otherwise sinusoids.
    """

    layers: int = 6
    heads: int = 4
    ffn: int = 1024
    dropout: float = 0.1
    max_tokens: int = 448
    learned_positions: bool = False

    def __post_init__(self):
        for name in ("layers", "heads", "ffn", "max_tokens"):
            if getattr(self, name) < 1:
                raise UserError(f"decoder: {name} must be at least 1, not {getattr(self, name)}")
        if not 0.0 <= self.dropout < 1.0:
            raise UserError(f"decoder: dropout must be in [0, 1), not {self.dropout}")


class TransformerDecoder(Checkpointed):
    """hidden = norm(layers(embed(tokens) + positions)); logits = hidden embed^T, with one embedding for both ends."""

    def __init__(self, config: DecoderConfig, width: int, vocab_size: int) -> None:
        super().__init__()
        if width % config.heads:
            raise UserError(f"decoder: width {width} is no multiple of {config.heads} heads")
        self.config, self.width = config, width
        self.embed_tokens = nn.Embedding(vocab_size, width)
        nn.init.normal_(self.embed_tokens.weight, std=width**-0.5)
        positions = nn.Embedding if config.learned_positions else FixedPositions
        self.embed_positions = positions(config.max_tokens, width)
        self.layers = nn.ModuleList(
            TransformerLayer(width, config.heads, config.ffn, config.dropout, cross=True) for _ in range(config.layers)
        )
        self.layer_norm = nn.LayerNorm(width)
        self.dropout = Dropout(config.dropout)

    def forward(self, tokens_NU: Tensor, states_NTD: Tensor, lengths_N: Tensor) -> Tensor:
        """hidden_NUD; position u has seen tokens 0 to u, so that padding at the end of `tokens` changes nothing.

        Args:
            states_NTD: of the encoder, and `lengths_N` of them real
        """
        memory_mask = _memory_mask(states_NTD, lengths_N)
        x_NUD = self._embed(tokens_NU, 0)
        for layer in self.layers:
            x_NUD = self.run_layer(layer, x_NUD, None, states_NTD, memory_mask)
        return self.layer_norm(x_NUD)

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., V) in float32."""
        return F.linear(hidden, self.embed_tokens.weight.to(hidden.dtype)).float()

    def start(self, states_NTD: Tensor, lengths_N: Tensor, max_tokens: int) -> DecoderState:
        """Begins to decode a batch with one empty hypothesis for each utterance.

        Args:
            max_tokens: of a hypothesis, prompt included
        """
        return DecoderState(
            memory=[layer.encoder_attn.keys_values(states_NTD) for layer in self.layers],
            memory_mask=_memory_mask(states_NTD, lengths_N),
            output_weight=self.embed_tokens.weight,  # once, since a quantised one is unpacked each time
            max_tokens=max_tokens,
        )

    def step(self, tokens_NKP: Tensor, state: DecoderState) -> Tensor:
        """logits_NKV after the last of P new tokens of each hypothesis; `state` has seen them then.

        Hypotheses are a dimension of their own: linear layers see (N, K * P, D), and all hypotheses of an utterance
        attend to one copy of its encoder states. Only the first step may have P > 1.
        """
        N, K, P = tokens_NKP.shape
        x_NMD = self._embed(tokens_NKP, state.position).flatten(1, 2)
        for number, layer in enumerate(self.layers):
            attn = layer.self_attn
            y_NMD = layer.self_attn_layer_norm(x_NMD)
            q, k, v = (f(y_NMD).view(N, K, P, attn.heads, -1) for f in (attn.q_proj, attn.k_proj, attn.v_proj))
            k_BHUW, v_BHUW = state.extend(number, k.transpose(2, 3), v.transpose(2, 3))
            q_BHPW = q.transpose(2, 3).flatten(0, 1)
            y_BHPW = F.scaled_dot_product_attention(q_BHPW, k_BHUW, v_BHUW, is_causal=P > 1)
            x_NMD = x_NMD + attn.out_proj(y_BHPW.transpose(1, 2).reshape(N, K * P, -1))
            cross = layer.encoder_attn
            q_NHMW = cross.split(cross.q_proj(layer.encoder_attn_layer_norm(x_NMD)))
            x_NMD = x_NMD + cross.attend(q_NHMW, *state.memory[number], state.memory_mask)
            x_NMD = layer.feed_forward(x_NMD)
        state.position += P
        hidden_NKD = self.layer_norm(x_NMD.view(N, K, P, -1)[:, :, -1])
        return F.linear(hidden_NKD.to(state.output_weight.dtype), state.output_weight).float()

    def _embed(self, tokens: Tensor, first: int) -> Tensor:
        positions_PD = self.embed_positions.weight[first : first + tokens.shape[-1]]
        if positions_PD.shape[0] < tokens.shape[-1]:
            raise UserError(
                f"{first + tokens.shape[-1]} tokens are more than the decoder's {self.config.max_tokens}: cut the "
                "utterance into shorter ones"
            )
        return self.dropout(self.embed_tokens(tokens) + positions_PD)


@dataclass
class DecoderState:
    """What decoding has seen so far: keys and values of encoder states, and of the tokens of each hypothesis.

    Args:
        memory: for each layer the keys and values (N, H, T, W) of the encoder states
        memory_mask: (N, 1, 1, T) True on real frames
        output_weight: (V, D)
        max_tokens: room for so many tokens
        position: tokens seen
        keys: for each layer (N, K, H, max_tokens, W), of which `position` are filled; so the values
    """

    memory: list[tuple[Tensor, Tensor]]
    memory_mask: Tensor
    output_weight: Tensor
    max_tokens: int
    position: int = 0
    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)

    def extend(self, layer: int, k_NKHPW: Tensor, v_NKHPW: Tensor) -> tuple[Tensor, Tensor]:
        """Adds new tokens to one layer; returns keys and values of all tokens, (N * K, H, U, W)."""
        end = self.position + k_NKHPW.shape[3]
        assert end <= self.max_tokens, f"the state has room for {self.max_tokens} tokens"
        found = []
        for caches, new in ((self.keys, k_NKHPW), (self.values, v_NKHPW)):
            if len(caches) == layer:
                caches.append(new.new_empty(*new.shape[:3], self.max_tokens, new.shape[4]))
            caches[layer][:, :, :, self.position : end] = new
            found.append(caches[layer][:, :, :, :end].flatten(0, 1))
        return found[0], found[1]

    def reorder(self, index_NK: Tensor) -> None:
        """Hypothesis k of utterance n continues what was hypothesis `index[n, k]`; their number may change."""
        rows_N1 = torch.arange(index_NK.shape[0], device=index_NK.device)[:, None]
        for caches in (self.keys, self.values):
            for layer, cache in enumerate(caches):
                seen = cache[:, :, :, : self.position][rows_N1, index_NK]
                if index_NK.shape[1] != cache.shape[1]:
                    caches[layer] = cache = cache.new_empty(*index_NK.shape, *cache.shape[2:])
                cache[:, :, :, : self.position] = seen

    def select(self, rows: Tensor) -> None:
        """Keeps only the utterances `rows`."""
        self.memory = [(k[rows], v[rows]) for k, v in self.memory]
        self.memory_mask = self.memory_mask[rows]
        self.keys, self.values = [k[rows] for k in self.keys], [v[rows] for v in self.values]


def _memory_mask(states_NTD: Tensor, lengths_N: Tensor) -> Tensor:
    """(N, 1, 1, T) True on real frames."""
    return real_mask(lengths_N, states_NTD.shape[1])[:, None, None]
