"""Whole decodes of a small multilingual model, with experts for languages and without."""

import json

import numpy as np
import pytest
import soundfile
import torch
from toy_recogniser import save_aed

from moe_asr.data.batches import BatchLoader, DataConfig
from moe_asr.data.features import log_mel
from moe_asr.data.manifests import Utterance, write_manifest
from moe_asr.decoding.run import DecodeConfig, decode
from moe_asr.decoding.search_config import SearchConfig
from moe_asr.errors import UserError
from moe_asr.experts import ExpertSpec, RouterSpec
from moe_asr.methods.adapt import adapt
from moe_asr.methods.adaptation import AdaptationConfig
from moe_asr.models.folder import load_model

CODES = ["de", "fa", "zh"]
LABELS = ["zh-CN", "de", "fa"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, experts of its languages with a router, and 6 utterances of three languages."""
    folder = tmp_path_factory.mktemp("run")
    rng, generator = np.random.default_rng(0), torch.Generator().manual_seed(21)
    utterances = []
    for n in range(6):
        samples = 4000 + 1500 * n
        sound = rng.standard_normal(samples) * np.sin(np.arange(samples) / (20 + 30 * n))
        soundfile.write(folder / f"{n}.wav", 0.1 * sound.astype("float32"), 16000)
        path = str(folder / f"{n}.wav")
        utterances.append(Utterance(f"u{n}", path, samples, 16000, "a bc", language=LABELS[n % 3]))
        write_manifest(folder / f"{n}.jsonl", utterances[-1:])
    write_manifest(folder / "all.jsonl", utterances)
    save_aed(folder / "model", generator, CODES)
    experts = ExpertSpec(("default",), 3, 2, router=RouterSpec(route="given", select="all"))
    config = AdaptationConfig(experts, domains=tuple(sorted(LABELS)), domain_key="language", global_route="router")
    adapted = adapt(load_model(folder / "model").model, config)
    for layer in adapted.adapter.layers.values():
        torch.nn.init.normal_(layer.B, std=0.5, generator=generator)
    _, _, (features_NTF, lengths_N) = batch_of(folder)
    with torch.no_grad(), adapted.adapter.disabled():
        states_NTD, frames_N = adapted.recogniser.encode(features_NTF, lengths_N)
        mean_ND = states_NTD.sum(1) / frames_N[:, None]  # states of padding are zero
        weight = adapted.domain_router.weight.copy_(20 * (mean_ND - mean_ND.mean(0))[:3])
        adapted.domain_router.bias.copy_(-weight @ mean_ND.mean(0))
    adapted.save(folder / "experts")
    return folder


def lines(folder, out, manifest="all", **options):
    config = DecodeConfig(str(folder / "model"), str(folder / f"{manifest}.jsonl"), str(out), device="cpu", **options)
    decode(config)
    found = [json.loads(line) for line in (out / "hyps.jsonl").read_text().splitlines()]
    return {line["id"]: line for line in found}


def with_experts(folder, **options):
    return {"adaptation": str(folder / "experts"), **options}


@pytest.mark.parametrize("search", [SearchConfig(), SearchConfig("beam", 3, ctc_weight=0.3)])
@pytest.mark.parametrize("language", ["label", "detect"])
@pytest.mark.parametrize("experts", [False, True])
def test_a_mixed_batch_has_the_texts_of_each_alone(folder, tmp_path, search, language, experts):
    options = {"search": search, "language": language} | (with_experts(folder) if experts else {})
    together = lines(folder, tmp_path / "all", **options)
    for n in range(6):
        alone = lines(folder, tmp_path / str(n), str(n), **options)
        assert alone[f"u{n}"] == together[f"u{n}"]
    assert len({line["hyp"] for line in together.values()}) > 3


def test_the_language_decides_the_text(folder, tmp_path):
    labelled = lines(folder, tmp_path / "label")
    assert all("detected" not in line for line in labelled.values())
    fixed = {code: lines(folder, tmp_path / code, language=code) for code in CODES}
    for n, code in enumerate(["zh", "de", "fa"] * 2):
        assert labelled[f"u{n}"] == fixed[code][f"u{n}"]
    assert fixed["de"] != fixed["fa"] and lines(folder, tmp_path / "full", language="zh-TW") == fixed["zh"]


def batch_of(folder):
    loaded = load_model(folder / "model")
    [batch] = BatchLoader(DataConfig([str(folder / "all.jsonl")], shuffle=False), None)
    return loaded, batch, log_mel(batch.audio_NS, batch.audio_lengths_N, loaded.config.features)


def test_the_model_detects_what_it_expects(folder, tmp_path):
    found = lines(folder, tmp_path / "detect", language="detect")
    loaded, batch, features = batch_of(folder)
    best_N = loaded.model.language_posteriors(*loaded.model.encode(*features)).argmax(1)
    assert {i: line["detected"] for i, line in found.items()} == dict(zip(batch.ids, (CODES[n] for n in best_N)))
    for code in set(line["detected"] for line in found.values()):
        fixed = lines(folder, tmp_path / code, language=code)
        assert all(fixed[i]["hyp"] == line["hyp"] for i, line in found.items() if line["detected"] == code)


def test_experts_and_prompt_take_one_language(folder, tmp_path):
    found = lines(folder, tmp_path / "detect", language="detect", **with_experts(folder, best=True))
    assert len({line["detected"] for line in found.values()}) > 1
    for code in set(line["detected"] for line in found.values()):
        fixed = lines(folder, tmp_path / code, language=code, **with_experts(folder, global_route="label"))
        assert all(fixed[i]["hyp"] == line["hyp"] for i, line in found.items() if line["detected"] == code)
    mixed = lines(folder, tmp_path / "mixed", language="detect", **with_experts(folder))
    assert any(mixed[i]["hyp"] != line["hyp"] for i, line in found.items())
    oracle = lines(folder, tmp_path / "oracle", **with_experts(folder, global_route="label"))
    beta = lines(folder, tmp_path / "beta", **with_experts(folder, global_route="label", beta=0.5))
    assert any(beta[i]["hyp"] != line["hyp"] for i, line in oracle.items())


def test_another_choice_is_another_decode(folder, tmp_path):
    lines(folder, tmp_path / "out")
    with pytest.raises(UserError, match="decoded with another language"):
        lines(folder, tmp_path / "out", language="de")


def test_bad_choices_are_one_line(folder, tmp_path):
    def refused(message, manifest="all", **options):
        with pytest.raises(UserError, match=message) as caught:
            lines(folder, tmp_path / "refused", manifest, **options)
        assert "\n" not in str(caught.value) and not (tmp_path / "refused").exists()

    refused("the model has no language 'eo'; it knows de, fa, zh", language="eo")
    refused("global_route, beta, best and fallback are for experts; give their folder", best=True)
    refused("beta is for global_route label, not for router", **with_experts(folder, beta=0.5))
    refused("beta is the weight of the true domain, from 0 to 1, not 2", **with_experts(folder, beta=2.0))
    unknown = Utterance("x", str(folder / "0.wav"), 4000, 16000, "a", language="eo")
    write_manifest(folder / "unknown.jsonl", [unknown])
    refused("language 'eo' is none that the model knows, which are de, fa, zh: .* set language to detect", "unknown")
    save_aed(folder / "english", torch.Generator())
    config = DecodeConfig(str(folder / "english"), str(folder / "all.jsonl"), str(tmp_path / "no"), language="detect")
    with pytest.raises(UserError, match="this model is told no language: leave language out, which is 'detect'"):
        decode(config)
