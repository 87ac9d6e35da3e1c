"""Speech LLMs of random weights whose texts differ between utterances, and some of which end before the limit."""

from types import SimpleNamespace

import torch

from moe_asr.decoding.search import Search
from moe_asr.models.conformer import ConformerConfig
from moe_asr.models.encoders import EncoderConfig
from moe_asr.models.projector import ProjectorConfig
from moe_asr.models.speech_llm import SpeechLLM, SpeechLLMConfig

VOCAB, END, SUPPRESS = 30, 2, (0, 5)
KINDS = {"qwen2": 13, "qwen3": 17, "llama": 11}  # with a lively seed for each
LENGTHS = [70, 33, 90, 12, 51, 24, 81, 45, 9, 66, 38, 90, 57, 17, 29, 75]


def speech_llm(kind="qwen2", seed=None, positions=96, tied=True):
    torch.manual_seed(KINDS[kind] if seed is None else seed)
    lm = dict(model_type=kind, vocab_size=VOCAB, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
              num_attention_heads=4, num_key_value_heads=2, head_dim=4, max_position_embeddings=positions,
              tie_word_embeddings=tied, bos_token_id=1, eos_token_id=END)  # fmt: skip
    encoder = ConformerConfig(mels=7, width=12, layers=1, heads=2, ffn_multiplier=3, kernel=5, dropout=0.0)
    projector = ProjectorConfig(ffn=20, stride=2)
    tokens = dict(before=(5, 6), after=(7, 8), end=END, suppress=SUPPRESS, tokens_per_frame=2.0)
    model = SpeechLLM(SpeechLLMConfig(EncoderConfig(conformer=encoder), lm, projector, **tokens))
    for module in model.modules():
        if isinstance(module, (torch.nn.Linear, torch.nn.Conv1d)):
            torch.nn.init.xavier_normal_(module.weight, 1.5)
    with torch.no_grad():
        torch.nn.init.normal_(model.output_weight, std=0.5)[END].mul_(1.3)
    return model.eval()


def features(lengths=LENGTHS):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(len(lengths), max(lengths), 7, generator=generator), torch.tensor(lengths)


def batch(num):
    return SimpleNamespace(tokens_NU=torch.zeros(num, 1, dtype=torch.int64))


@torch.inference_mode()
def run(model, config, x_NTF, lengths, adapter=None):
    return Search(model, config)(x_NTF, lengths, batch(len(lengths)), adapter)
