"""Whole decodes of a small speech LLM with experts, on noise."""

import dataclasses
import json

import numpy as np
import pytest
import soundfile
import torch

from moe_asr.data.features import FeatureConfig
from moe_asr.data.manifests import Utterance, write_manifest
from moe_asr.data.tokens import train_tokens
from moe_asr.decoding.batch_decoder import BatchDecoder
from moe_asr.decoding.run import DecodeConfig, decode
from moe_asr.decoding.search_config import SearchConfig
from moe_asr.errors import UserError
from moe_asr.experts import ExpertSpec, RouterSpec
from moe_asr.methods.adapt import adapt
from moe_asr.methods.adaptation import AdaptationConfig
from moe_asr.models.build import ModelConfig, build_model
from moe_asr.models.conformer import ConformerConfig
from moe_asr.models.encoders import EncoderConfig
from moe_asr.models.folder import FolderConfig, load_model, save_model
from moe_asr.models.projector import ProjectorConfig
from moe_asr.models.speech_llm import SpeechLLMConfig

ACCENTS, END = ("a", "b", "c"), 2
EXPERTS = {
    "projector": ExpertSpec(("default",), 3, 2, router=RouterSpec()),
    "lm": ExpertSpec((r"lm\..*\.(q|down)_proj",), 3, 2, router=RouterSpec(threshold_over="frame")),
    "local": ExpertSpec(("default",), 3, 2, router=RouterSpec(route="local")),
}
SMALL = 1.0  # seconds in a batch, so that there is one utterance in each


def noise(folder, name, seconds, accent, rng):
    samples = int(16000 * seconds)
    sound = rng.standard_normal(samples) * np.sin(np.arange(samples) / (20 + 9 * ord(name[-1]) % 50))
    soundfile.write(folder / f"{name}.wav", 0.1 * sound.astype("float32"), 16000)
    return Utterance(name, str(folder / f"{name}.wav"), samples, 16000, "a bc", accent=accent)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, three adaptations of it, and 6 utterances; in `other.jsonl` the shortest has an unknown accent."""
    folder = tmp_path_factory.mktemp("run")
    rng = np.random.default_rng(0)
    utterances = [noise(folder, f"u{n}", 0.5 + 0.1 * n, ACCENTS[n % 3], rng) for n in range(6)]
    write_manifest(folder / "all.jsonl", utterances)
    write_manifest(folder / "other.jsonl", [dataclasses.replace(utterances[0], accent="x"), *utterances[1:]])
    write_manifest(folder / "long.jsonl", [*utterances, noise(folder, "long7", 8, "a", rng)])
    tokens = train_tokens(["abcdefghij klmnop"], folder / "tokens", "char")
    lm = dict(model_type="qwen2", vocab_size=tokens.size, hidden_size=24, intermediate_size=32, num_hidden_layers=2,
              num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
              tie_word_embeddings=True)  # fmt: skip
    encoder = EncoderConfig(ConformerConfig(mels=20, width=16, layers=1, heads=2, ffn_multiplier=2, kernel=3))
    speech_llm = SpeechLLMConfig(encoder, lm, ProjectorConfig(ffn=20, stride=2), after=(3, 4), end=END, suppress=(0, 1))
    torch.manual_seed(5)
    config = ModelConfig(speech_llm=speech_llm)
    model = build_model(config).eval()
    for module in model.modules():
        if isinstance(module, (torch.nn.Linear, torch.nn.Conv1d)):
            torch.nn.init.xavier_normal_(module.weight, 1.5)
    torch.nn.init.normal_(model.lm.embed_tokens.weight, std=0.5)
    about = FolderConfig(config, FeatureConfig(num_mels=20))
    save_model(folder / "model", model, about, tokens)
    save_model(folder / "untrained", model, dataclasses.replace(about, untrained=True), tokens)
    for where, experts in EXPERTS.items():
        names = ACCENTS if experts.router.needs_domains else ()
        adaptation = AdaptationConfig(experts, domains=names, global_route="label")
        adapted = adapt(load_model(folder / "model").model, adaptation)
        for parameter in adapted.adapter.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
        adapted.save(folder / where)
    return folder


def run(folder, out, where=None, manifest="all", model="model", **options):
    adaptation = str(folder / where) if where else None
    paths = str(folder / model), str(folder / f"{manifest}.jsonl"), str(folder / out)
    decode(DecodeConfig(*paths, adaptation, device="cpu", **options))
    lines = map(json.loads, (folder / out / "hyps.jsonl").read_text().splitlines())
    return {line["id"]: line["hyp"] for line in lines}, json.loads((folder / out / "system.json").read_text())


def refused(folder, says, *args, **options):
    """In one line, before anything is written."""
    with pytest.raises(UserError, match=says) as error:
        run(folder, "refused", *args, **options)
    assert "\n" not in str(error.value) and not (folder / "refused").exists()


@pytest.mark.parametrize("search", [SearchConfig("greedy"), SearchConfig("beam", 3)], ids=lambda s: s.kind)
@pytest.mark.parametrize("where", ["projector", "lm"])
def test_hypotheses_do_not_depend_on_the_batches(folder, where, search):
    out = f"{where}-{search.kind}"
    together, system = run(folder, out, where, search=search)
    alone, _ = run(folder, f"{out}-small", where, search=search, max_duration=SMALL)
    base, base_system = run(folder, f"{out}-base", search=search)
    assert together == alone and len(set(together.values())) > 3
    assert sum(together[name] != base[name] for name in together) > 3, "experts hardly mattered"
    layers = load_model(folder / "model").model.named_modules()
    expected = {n for n, m in layers if isinstance(m, torch.nn.Linear) and n.startswith(f"{where}.")}
    assert set(system["routing"]["layers"]) <= expected and 1 <= system["mean_active_experts"] <= 3
    assert 0 < system["trainable_parameters"] and base_system["routing"] is None
    assert (folder / out / "routing.png").stat().st_size > 1000 and not (folder / out / "routing.jsonl").exists()


@pytest.mark.parametrize("where", ["projector", "lm"])
def test_a_decode_that_was_interrupted_ends_in_the_same_bytes(folder, monkeypatch, where):
    _, system = run(folder, f"{where}-whole", where, max_duration=SMALL)
    texts, calls = BatchDecoder.__call__, []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return texts(*args)

    monkeypatch.setattr(BatchDecoder, "__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(folder, f"{where}-parts", where, max_duration=SMALL)
    assert not (folder / f"{where}-parts/system.json").exists()
    _, resumed = run(folder, f"{where}-parts", where, max_duration=SMALL)
    assert len(calls) == 4 + 3  # three batches were kept
    for name in ("hyps.jsonl", "routing.png"):
        assert (folder / f"{where}-parts" / name).read_bytes() == (folder / f"{where}-whole" / name).read_bytes()
    assert resumed["routing"] == system["routing"]


def test_what_cannot_be_decoded_is_found_before_the_first_batch(folder):
    refused(folder, "utterance long7 is too long: its speech, prompt and text take .* has 64", manifest="long")
    says = "other.jsonl: accent 'x' is none that .*projector knows, which are a, b, c: correct .* global_route"
    refused(folder, says, "projector", "other")
    refused(folder, "global_route posterior needs a domain_classifier", "projector", global_route="posterior")
    refused(folder, "fallback are for experts whose routers see the domain", "local", fallback=1.0)
    refused(folder, "untrained: its projector is still random: train it, see bin/import_speech_llm", model="untrained")
    texts, _ = run(folder, "uniform", "projector", "other", global_route="uniform")
    assert len(texts) == 6


def test_bf16_gives_nearly_the_same(folder):
    exact, _ = run(folder, "fp32", "lm")
    close, _ = run(folder, "bf16", "lm", precision="bf16")
    same = sum(a == b for name in exact for a, b in zip(exact[name], close[name]))
    assert same > 0.5 * sum(map(len, exact.values()))
