"""Whole decodes of a small model on noise."""

import dataclasses
import json

import numpy as np
import pytest
import soundfile
import torch
from toy_recogniser import lively, save_aed

from moe_asr.data.lang import spell, write_lang
from moe_asr.data.manifests import Utterance, write_manifest
from moe_asr.decoding.run import DecodeConfig, decode
from moe_asr.decoding.search import Search
from moe_asr.decoding.search_config import SearchConfig
from moe_asr.errors import UserError
from moe_asr.methods.adapt import adapt
from moe_asr.methods.adaptation import AdaptationConfig
from moe_asr.methods.saml import SamlConfig
from moe_asr.models.build import ModelConfig
from moe_asr.models.folder import load_model, save_model
from moe_asr.quant import QuantConfig, quantise

SPEAKERS = ("ada", "ben", "cyd")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, 9 utterances of 3 speakers, all in `all.jsonl` and those of each in `SPEAKER.jsonl`."""
    folder = tmp_path_factory.mktemp("run")
    rng, generator = np.random.default_rng(0), torch.Generator().manual_seed(21)
    utterances = []
    for n in range(9):
        samples = 4000 + 1500 * n
        sound = rng.standard_normal(samples) * np.sin(np.arange(samples) / (20 + 9 * n))
        soundfile.write(folder / f"{n}.wav", 0.1 * sound.astype("float32"), 16000)
        utterances.append(Utterance(f"u{n}", str(folder / f"{n}.wav"), samples, 16000, "a bc", speaker=SPEAKERS[n % 3]))
    write_manifest(folder / "all.jsonl", utterances)
    for speaker in SPEAKERS:
        write_manifest(folder / f"{speaker}.jsonl", [u for u in utterances if u.speaker == speaker])
    save_aed(folder / "model", generator)
    for context in ("encoder", "prefix"):
        for speaker in SPEAKERS:
            recogniser = load_model(folder / "model").model
            adapted = adapt(recogniser, AdaptationConfig(saml=SamlConfig(3, 2, router_context=context)))
            for layer in adapted.adapter.layers.values():
                torch.nn.init.normal_(layer.B, std=0.5, generator=generator)
            for router in adapted.adapter.routers.values():
                lively(router, generator)
            adapted.save(folder / context / speaker)
    return folder


def test_the_same_weights_with_another_limit_or_input_are_another_model(folder, tmp_path):
    loaded = load_model(folder / "model")
    aed = dataclasses.replace(loaded.config.model.conformer_aed, tokens_per_frame=0.2)
    features = dataclasses.replace(loaded.config.features, low_freq=60.0)
    for number, config in enumerate((
        loaded.config,
        dataclasses.replace(loaded.config, model=ModelConfig(conformer_aed=aed)),
        dataclasses.replace(loaded.config, features=features),
    )):  # fmt: skip
        save_model(tmp_path / "model", loaded.model, config, loaded.tokens)
        settings = DecodeConfig(f"{tmp_path}/model", f"{folder}/ada.jsonl", f"{tmp_path}/out", device="cpu")
        if number == 0:
            decode(settings)
        else:
            with pytest.raises(UserError, match="decoded with another model_config"):
                decode(settings)


def run(folder, out, manifest="all", **options):
    if "adaptation" in options:
        options["adaptation"] = f"{folder}/{options['adaptation']}"
    decode(DecodeConfig(f"{folder}/model", f"{folder}/{manifest}.jsonl", f"{folder}/{out}", device="cpu", **options))
    lines = map(json.loads, (folder / out / "hyps.jsonl").read_text().splitlines())
    return {line["id"]: line["hyp"] for line in lines}, json.loads((folder / out / "system.json").read_text())


@pytest.mark.parametrize("context", ["encoder", "prefix"])
@pytest.mark.parametrize("search", [SearchConfig("greedy"), SearchConfig("beam", 3, 5, ctc_weight=0.3),
                                    SearchConfig("rescore", 3, 5)])  # fmt: skip
def test_several_speakers_in_one_batch_as_each_alone(folder, context, search):
    out = f"{context}-{search.kind}"
    together, system = run(folder, out, adaptation=f"{context}/{{speaker}}", search=search)
    alone = {}
    for speaker in SPEAKERS:
        texts, own = run(folder, f"{out}-{speaker}", speaker, adaptation=f"{context}/{speaker}", search=search)
        alone |= texts
        assert own["trainable_parameters"] == system["trainable_parameters"]
        assert own["total_parameters"] == system["total_parameters"]
    assert together == alone
    swapped, _ = run(folder, f"{out}-swapped", adaptation=f"{context}/ada", search=search)
    assert sum(swapped[name] != text for name, text in together.items()) >= 3
    assert all(swapped[name] == together[name] for name in ("u0", "u3", "u6"))


@pytest.mark.parametrize("context, cache", [("encoder", True), ("prefix", False)])
def test_no_cache_where_routers_look_at_the_whole_text(folder, monkeypatch, context, cache):
    made = []

    def spy(*args, **options):
        made.append(options)
        return Search(*args, **options)

    monkeypatch.setattr("moe_asr.decoding.batch_decoder.Search", spy)
    run(folder, f"cache-{context}", adaptation=f"{context}/{{speaker}}")
    assert made == [{"cache": cache}]


def test_quantised_weights_count_as_parameters(folder):
    loaded = load_model(folder / "model")
    plain, system = run(folder, "plain", search=SearchConfig("greedy"))
    config = QuantConfig()
    assert quantise(loaded.model, config)
    about = dataclasses.replace(loaded.config, quantisation=config)
    save_model(folder / "nf4", loaded.model, about, loaded.tokens)
    decode(DecodeConfig(f"{folder}/nf4", f"{folder}/all.jsonl", f"{folder}/small", device="cpu"))
    small = json.loads((folder / "small/system.json").read_text())
    assert small["total_parameters"] == system["total_parameters"]
    assert small["model_bytes"] < system["model_bytes"]


def test_facts_of_the_system(folder):
    texts, system = run(folder, "facts", search=SearchConfig("greedy"))
    lines = [json.loads(line) for line in (folder / "facts/hyps.jsonl").read_text().splitlines()]
    assert system["truncated"] == sum("truncated" in line for line in lines) > 0
    assert 0 < system["seconds_per_utterance"] * len(lines) < system["seconds"]
    assert system["adaptation_bytes"] is None
    assert system["model_bytes"] > 4 * system["total_parameters"]
    _, adapted = run(folder, "facts-adapted", adaptation="encoder/{speaker}")
    assert 4 * adapted["trainable_parameters"] < adapted["adaptation_bytes"] < adapted["model_bytes"]
    assert adapted["total_parameters"] == system["total_parameters"]


@pytest.mark.parametrize("adaptation", [None, "encoder/{speaker}"])
def test_bf16_gives_nearly_the_same(folder, adaptation):
    options = {"adaptation": adaptation} if adaptation else {}
    exact, _ = run(folder, f"fp32-{bool(adaptation)}", search=SearchConfig("prefix_beam"), **options)
    search = SearchConfig("prefix_beam")
    close, _ = run(folder, f"bf16-{bool(adaptation)}", search=search, precision="bf16", **options)
    same = sum(a == b for name in exact for a, b in zip(exact[name], close[name]))
    assert same > 0.5 * sum(map(len, exact.values()))


def test_what_cannot_be_decoded_is_refused_before_anything_is_written(folder):
    with pytest.raises(UserError, match="no adaptation for speaker ada"):
        run(folder, "refused", adaptation="nowhere/{speaker}")
    with pytest.raises(UserError, match="no lang folder|needs k2"):
        run(folder, "refused", search=SearchConfig("lattice", lang=f"{folder}/nowhere"))
    assert not (folder / "refused").exists()


def test_a_decode_over_a_lang_folder_gives_its_words_and_knows_it_again(folder, tmp_path):
    pytest.importorskip("k2", reason="k2 is not installed (tools/install_k2.sh)")
    tokens = load_model(folder / "model").tokens
    write_lang(tmp_path / "lang", spell(["ab", "de", "nop"], tokens), tokens)
    for kind in ("lattice", "lattice_rescore"):
        weight = 0.3 if kind == "lattice_rescore" else 0.0
        search = SearchConfig(kind, beam=3, ctc_weight=weight, lang=str(tmp_path / "lang"))
        found, _ = run(folder, f"out-{kind}", search=search)
        assert {word for text in found.values() for word in text.split()[:-1]} <= {"ab", "de", "nop"}
        assert any(" " in text for text in found.values())
        run(folder, f"out-{kind}", search=search)
    write_lang(tmp_path / "lang", spell(["ab"], tokens), tokens)
    with pytest.raises(UserError, match="lang"):
        run(folder, "out-lattice", search=SearchConfig("lattice", 3, lang=str(tmp_path / "lang")))
