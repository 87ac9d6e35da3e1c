"""Decoding of Whisper, against `generate` of transformers with its padding to 30 s.

    python tools/bench/decode.py --check

Models have the size of Whisper tiny and the same random weights on both sides; every text is as long as allowed.
Shapes: N utterances, S samples, T frames, F mel bins.
"""

from __future__ import annotations

from types import SimpleNamespace

import torch
from common import Call, Row, main, paired
from torch import Tensor
from whisper_step import FREE, TOKENS_PER_SECOND, WINDOW, speech, whisper

from moe_asr.data.features import log_mel
from moe_asr.decoding.search import Search
from moe_asr.decoding.search_config import SearchConfig
from moe_asr.models.whisper import Whisper


def models(quick: bool, seconds: float, limit_from: float) -> tuple[object, Whisper]:
    """The model of transformers and ours, which stops after the tokens that so many seconds have.

    Args:
        limit_from: seconds of audio that ours sees, from which it takes its limit on tokens
    """
    import transformers

    transformers.logging.set_verbosity_error()
    tokens = round(TOKENS_PER_SECOND * seconds)
    ours = whisper(quick, tokens_per_frame=(tokens - 0.5) / (50 * limit_from)).eval()  # rounded up
    decoder, encoder = ours.decoder, ours.encoder
    config = transformers.WhisperConfig(
        vocab_size=decoder.embed_tokens.num_embeddings,
        d_model=decoder.width,
        encoder_layers=len(encoder.layers),
        decoder_layers=len(decoder.layers),
        encoder_attention_heads=decoder.config.heads,
        decoder_attention_heads=decoder.config.heads,
        encoder_ffn_dim=decoder.config.ffn,
        decoder_ffn_dim=decoder.config.ffn,
        decoder_start_token_id=ours.prompt[0],
        **dict.fromkeys(("eos_token_id", "pad_token_id", "bos_token_id"), ours.end),
    )
    theirs = transformers.WhisperForConditionalGeneration(config).eval()
    state = {f"model.{name}": tensor for name, tensor in ours.state_dict().items()}
    theirs.load_state_dict({**state, "proj_out.weight": decoder.embed_tokens.weight})
    theirs.generation_config = transformers.GenerationConfig(
        decoder_start_token_id=ours.prompt[0],
        eos_token_id=ours.end,
        pad_token_id=ours.end,
        no_timestamps_token_id=ours.prompt[1],
        is_multilingual=False,
        max_new_tokens=tokens,
    )
    return theirs, ours


def generate(model, features_NTF: Tensor, beams: int) -> Call:
    return torch.inference_mode()(lambda: model.generate(features_NTF.transpose(1, 2), num_beams=beams))


def search(model: Whisper, features_NTF: Tensor, lengths_N: Tensor, beams: int) -> Call:
    found = Search(model, SearchConfig("greedy" if beams == 1 else "beam", beams))
    batch = SimpleNamespace(tokens_NU=torch.zeros(len(lengths_N), 0, dtype=torch.int64))
    return torch.inference_mode()(lambda: found(features_NTF, lengths_N, batch))


def decoding(quick: bool, num: int, seconds: float, beams: int, bar: float | None) -> Row:
    def build() -> tuple[Call, Call]:
        theirs, ours = models(quick, seconds, limit_from=seconds)
        audio = speech(num, seconds)
        return generate(theirs, log_mel(*audio, WINDOW)[0], beams), search(ours, *log_mel(*audio, FREE), beams)

    name = f"generate on 30 s / {_name(beams)} search, {num} utterances of {seconds:g} s"
    return Row(name, paired(build), bar, better="higher")


def same_tokens(quick: bool, num: int, seconds: float, beams: int) -> Row:
    def measure(rounds: int) -> list[float]:
        theirs, ours = models(quick, seconds, limit_from=30.0)
        features_NTF, lengths_N = log_mel(*speech(num, seconds), WINDOW)
        expected = generate(theirs, features_NTF, beams)().tolist()
        found = [list(texts[0].tokens) for texts in search(ours, features_NTF, lengths_N, beams)()]
        expected = [row[: row.index(ours.end)] if ours.end in row else row for row in expected]
        return [sum(a == b for a, b in zip(found, expected)) / num]

    name = f"texts equal to those of generate on the same features, {_name(beams)}"
    return Row(name, measure, 1.0, "of all", "higher")


def _name(beams: int) -> str:
    return "greedy" if beams == 1 else f"{beams}-beam"


def make_rows(quick: bool) -> list[Row]:
    num, seconds = (2, 2.0) if quick else (8, 10.0)
    return [
        decoding(quick, num, seconds, 1, 2.5),
        decoding(quick, num, seconds, 5, None),
        same_tokens(quick, num, seconds, 1),
        same_tokens(quick, num, seconds, 5),
    ]


if __name__ == "__main__":
    main(make_rows, "Decoding of Whisper: CPU time, features not counted.")
