"""Decoding with a language model behind speech, against `generate` of transformers on the same inputs.

    python tools/bench/llm_decode.py --check

A Qwen2 of 4 layers and width 256 with the same random weights on both sides hears 16 utterances of 60 to 140 frames;
every text has 30 tokens. `generate` gets the padding in front, as it wants it. Encoder and projector are not counted.
Shapes: N utterances, L frames of projected speech, M positions of the prefix, W width of the language model.
"""

from __future__ import annotations

import torch
from common import Call, Row, main, paired
from torch import Tensor

from moe_asr.decoding.attention import TokenRules, beam, greedy
from moe_asr.decoding.llm_steps import LMSteps
from moe_asr.decoding.search_config import SearchConfig
from moe_asr.models.conformer import ConformerConfig
from moe_asr.models.encoders import EncoderConfig
from moe_asr.models.projector import ProjectorConfig
from moe_asr.models.speech_llm import SpeechLLM, SpeechLLMConfig

END = 2


def speech_llm(quick: bool) -> SpeechLLM:
    """Its encoder and projector are not used."""
    width, layers, heads, vocab = (16, 1, 2, 50) if quick else (256, 4, 4, 4000)
    lm = dict(model_type="qwen2", vocab_size=vocab, hidden_size=width, intermediate_size=4 * width, eos_token_id=END,
              num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=heads,
              max_position_embeddings=32768, tie_word_embeddings=True)  # fmt: skip
    encoder = EncoderConfig(conformer=ConformerConfig(mels=4, width=4, layers=1, heads=1))
    tokens = dict(before=(3, 4), after=(5, 6), end=END, suppress=(END,))
    return SpeechLLM(SpeechLLMConfig(encoder, lm, ProjectorConfig(ffn=4), **tokens)).eval()


class Task:
    """The same prefixes for both sides."""

    def __init__(self, quick: bool) -> None:
        self.model, self.tokens = speech_llm(quick), 5 if quick else 30
        lengths = range(6, 10) if quick else range(60, 140, 5)
        self.lengths_N = torch.tensor(list(lengths))
        width = self.model.lm.config.hidden_size
        self.speech_NLW = torch.randn(len(lengths), max(lengths), width)
        self.prompt_NP = torch.tensor([self.model.config.after]).expand(len(lengths), -1)

    @torch.inference_mode()
    def ours(self, beams: int) -> list[list[int]]:
        steps = LMSteps(self.model, self.speech_NLW, self.lengths_N)
        limits_N, rules = torch.full_like(self.lengths_N, self.tokens), TokenRules(END, self.model.suppress)
        if beams == 1:
            return [list(text.tokens) for text in greedy(steps, self.prompt_NP, limits_N, rules)]
        found = beam(steps, self.prompt_NP, limits_N, rules, SearchConfig("beam", beams))
        return [list(texts[0].tokens) for texts in found]

    def theirs(self, beams: int) -> Call:
        """A call of `generate`; making the model and its inputs is not timed."""
        import transformers

        transformers.logging.set_verbosity_error()
        lm = transformers.AutoModelForCausalLM.from_config(self.model.lm.config, dtype=torch.float32).eval()
        state = {f"model.{name}": tensor for name, tensor in self.model.lm.state_dict().items()}
        lm.load_state_dict({**state, "lm_head.weight": self.model.lm.embed_tokens.weight})
        inputs_NMW, mask_NM = self._padded_in_front()
        options = dict(num_beams=beams, do_sample=False, max_new_tokens=self.tokens, use_cache=True, pad_token_id=END,
                       suppress_tokens=[END])  # fmt: skip
        return torch.inference_mode()(
            lambda: lm.generate(inputs_embeds=inputs_NMW, attention_mask=mask_NM, **options).tolist()
        )

    @torch.inference_mode()
    def _padded_in_front(self) -> tuple[Tensor, Tensor]:
        inputs_NMW, lengths_N = self.model.prefix(self.speech_NLW, self.lengths_N, self.prompt_NP)
        size = inputs_NMW.shape[1]
        moved_NMW = torch.stack([x_MW.roll(size - n, 0) for x_MW, n in zip(inputs_NMW, lengths_N.tolist())])
        return moved_NMW, (torch.arange(size) >= size - lengths_N[:, None]).long()


def decoding(quick: bool, beams: int, bar: float | None) -> Row:
    def build() -> tuple[Call, Call]:
        task = Task(quick)
        return task.theirs(beams), lambda: task.ours(beams)

    return Row(f"generate / {_name(beams)} search behind speech", paired(build), bar, better="higher")


def same_tokens(quick: bool, beams: int) -> Row:
    def measure(rounds: int) -> list[float]:
        task = Task(quick)
        pairs = list(zip(task.ours(beams), task.theirs(beams)()))
        return [sum(a == b for a, b in pairs) / len(pairs)]

    return Row(f"texts equal to those of generate, {_name(beams)}", measure, 1.0, "of all", "higher")


def _name(beams: int) -> str:
    return "greedy" if beams == 1 else f"{beams}-beam"


def make_rows(quick: bool) -> list[Row]:
    return [decoding(quick, 1, 1.0), decoding(quick, 4, 2.0), same_tokens(quick, 1), same_tokens(quick, 4)]


if __name__ == "__main__":
    main(make_rows, "Decoding of a speech LLM: CPU time of the language model.")
