"""A small causal language model, trained from scratch; on disk an ordinary model folder of `transformers`.

Shape letters: N sequences, M positions, W width, V vocabulary, C positions that count, L guided heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from moe_asr.errors import UserError
from moe_asr.losses.cross_entropy import chunked_cross_entropy
from moe_asr.models.interface import Loss

GUIDED = ((0, 0), (0, 1), (1, 0))
"""Layer and head of those that look at the unit before, at the one before that, and at the unit to write."""


@dataclass(frozen=True)
class LanguageModelConfig:
    """Size of a Transformer decoder in the form of Llama, without dropout (that form has none).

    Args:
        width: Of the model, W.
        layers: How many.
        heads: Attention heads, which divide the width.
        kv_heads: Heads of keys and values, which divide the heads; 0 for as many.
        ffn: Hidden width of the gated feed-forward layers.
        max_positions: Longest sequence in tokens, prompt and speech included.
    """

    width: int = 256
    layers: int = 4
    heads: int = 4
    kv_heads: int = 0
    ffn: int = 1024
    max_positions: int = 1024

    def __post_init__(self):
        if min(self.width, self.layers, self.heads, self.ffn, self.max_positions) < 1 or self.kv_heads < 0:
            raise UserError("model: width, layers, heads, ffn and max_positions must be at least 1")
        if self.width % (2 * self.heads) or self.heads % (self.kv_heads or self.heads):
            raise UserError(
                f"model: width {self.width} must be a multiple of twice the heads ({self.heads}), and heads of kv_heads"
            )


class LanguageModel(nn.Module):
    """The model with the loss that it is trained by.

    Llama's form and not that of Qwen2, which is the same but for biases: AutoTokenizer gives every folder that names
    Qwen2 a byte-level tokenizer, whatever its `tokenizer.json` says. Input and output embeddings are one matrix.

    Args:
        vocab_size: V
        end: id of the token that ends a text; also pads
        guidance: weight g in the loss of training, of where three heads are to look

    Raises:
        UserError: guidance of a single layer or head
    """

    def __init__(self, config: LanguageModelConfig, vocab_size: int, end: int, guidance: float = 0.0):
        from transformers import LlamaConfig, LlamaForCausalLM  # takes a second to import

        super().__init__()
        self.lm = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=vocab_size,
                hidden_size=config.width,
                num_hidden_layers=config.layers,
                num_attention_heads=config.heads,
                num_key_value_heads=config.kv_heads or config.heads,
                intermediate_size=config.ffn,
                max_position_embeddings=config.max_positions,
                tie_word_embeddings=True,
                bos_token_id=None,
                eos_token_id=end,
                pad_token_id=end,
            )
        )
        if guidance and min(config.layers, config.heads) < 2:
            raise UserError("guidance needs two layers and two heads, or more")
        self.guidance = guidance
        if guidance:
            self.lm.set_attn_implementation("eager")  # which gives the weights of attention

    def forward(self, tokens_NM: Tensor, next_NM: Tensor, look_NLM: Tensor | None = None) -> Loss:
        """Sum of  -log p(next | tokens up to here)  over the positions that count, in nats; `accuracy` beside it.

        In training with guidance, sum of  -g log a  is added, with a the weight by which a head of `GUIDED` looks from
        m at look_m. From text alone a small model is long in finding out that it is to go through its source from left
        to right: for that it must know which unit follows those that it wrote last. (After guided attention, Tachibana
        et al. 2018; where to look is known here.)

        Padding needs no mask: it is on the right, where causal attention does not look.

        Args:
            tokens_NM: ids, anything in padding
            next_NM: what follows each position, negative where that does not count
            look_NLM: positions to look at, a row for each head of `GUIDED`, negative where that does not matter
        """
        guided = self.guidance > 0 and self.training
        found = self.lm.model(input_ids=tokens_NM, use_cache=False, output_attentions=guided)
        hidden_NMW = found.last_hidden_state
        counted_C = (next_NM >= 0).flatten().nonzero().squeeze(1)
        hidden_CW = hidden_NMW.flatten(0, 1).index_select(0, counted_C)
        total, parts = chunked_cross_entropy(hidden_CW, self.lm.lm_head.weight, next_NM.flatten()[counted_C])
        if guided:
            for place_NM, (layer, head) in zip(look_NLM.unbind(1), GUIDED):
                weight_NMM = found.attentions[layer][:, head]
                seen_NM = weight_NMM.gather(2, place_NM.clamp(min=0)[..., None]).squeeze(2)
                missed = -seen_NM[place_NM >= 0].clamp(min=1e-9).log().sum()
                total = total + self.guidance * missed
        return Loss(total, torch.tensor(len(counted_C)), parts)

    @torch.no_grad()
    def begin_copying(self) -> None:
        """Has three heads begin as a copier: where those of the first layer look at the unit before and at the one
        before that, which they must learn, that of the second layer finds the unit after the two that were written
        last, and passes it on.

        One would not do: where a unit comes twice, the copier could not tell after which of the two it stands.

        With orthonormal rows R, S, T and U, d for a head: the heads of the first layer write R x of what they see as
        S^T R x and U^T R x. The head of the second layer compares R of a character plus P S of what was written there,
        so of the character before (by a factor of 0.3), to S of what was written at a unit plus P U of that; P turns
        the one comparison into directions that have little to do with the other. It writes T^T T x. It compares in
        those dimensions alone that rotary positions turn slowly.
        """
        first, second = (layer.self_attn for layer in self.lm.model.layers[:2])
        size, width = first.head_dim, first.q_proj.weight.shape[1]
        basis = torch.linalg.qr(torch.randn(width, width))[0]
        R, S, T, U = (basis[torch.arange(start, start + size) % width] for start in range(0, 4 * size, size))
        slow = torch.arange(size) % (size // 2) >= size // 4
        P = torch.zeros(size, size)
        P[slow.nonzero(), slow.nonzero().T] = torch.linalg.qr(torch.randn(int(slow.sum()), int(slow.sum())))[0]
        for head, written in enumerate((S, U)):
            values = head // first.num_key_value_groups * size
            first.v_proj.weight[values : values + size] = R
            first.o_proj.weight[:, head * size : (head + 1) * size] = 0.05 * written.T  # as long as an embedding
        # the character itself counts more than the one before, although that was written longer than an embedding is
        second.q_proj.weight[:size] = 1.5 * (R * slow[:, None] + 0.3 * P @ S)
        second.k_proj.weight[:size] = 1.5 * (S * slow[:, None] + P @ U)
        second.v_proj.weight[:size] = T
        second.o_proj.weight[:, :size] = 0.3 * T.T

    def save(self, folder: str | Path) -> None:
        """Writes `config.json`, `generation_config.json` and `model.safetensors` into an existing folder."""
        from transformers.utils import logging

        logging.disable_progress_bar()  # for a file written in a moment
        self.lm.save_pretrained(folder)
