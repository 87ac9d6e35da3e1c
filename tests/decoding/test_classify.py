"""Whole runs of a small classifier on noise."""

import dataclasses
import json

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from moe_asr.data.batches import make_batch
from moe_asr.data.features import FeatureConfig, log_mel
from moe_asr.data.manifests import Utterance, write_manifest
from moe_asr.data.tokens import train_tokens
from moe_asr.decoding.classify import ClassifyConfig, classify
from moe_asr.errors import UserError
from moe_asr.models.build import ModelConfig, build_model
from moe_asr.models.conformer import ConformerConfig
from moe_asr.models.conformer_ctc import ConformerCTCConfig
from moe_asr.models.domain_classifier import DomainClassifierConfig
from moe_asr.models.encoders import EncoderConfig
from moe_asr.models.folder import FolderConfig, load_model, save_model
from moe_asr.scoring.classification import Classified, classification

DOMAINS, FEATURES = ("Min", "Wu", "Yue"), FeatureConfig(num_mels=20)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A classifier and 12 utterances; those of `all.jsonl` have labels that it knows, one of `other.jsonl` has not."""
    folder = tmp_path_factory.mktemp("classify")
    rng, utterances = np.random.default_rng(0), []
    for n in range(12):
        samples = 4000 + 900 * n
        sound = rng.standard_normal(samples) * np.sin(np.arange(samples) / (20 + 9 * n))
        soundfile.write(folder / f"{n}.wav", 0.1 * sound.astype("float32"), 16000)
        accent = DOMAINS[n % 2]
        utterances.append(Utterance(f"u{n}", str(folder / f"{n}.wav"), samples, 16000, "a", f"s{n % 4}", accent))
    write_manifest(folder / "all.jsonl", utterances)
    other = [dataclasses.replace(utterances[0], accent="Jin"), *utterances[1:]]
    write_manifest(folder / "other.jsonl", other)
    write_manifest(folder / "none.jsonl", other[:1])
    torch.manual_seed(0)
    encoder = ConformerConfig(mels=20, width=16, layers=1, heads=2, ffn_multiplier=2, kernel=3)
    config = ModelConfig(domain_classifier=DomainClassifierConfig(EncoderConfig(encoder), 8, domains=DOMAINS))
    model = build_model(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.xavier_normal_(parameter, 2.0)
    save_model(folder / "model", model, FolderConfig(config, FEATURES))
    return folder, utterances


def run(folder, manifest="all", **options):
    config = ClassifyConfig(str(folder / "model"), str(folder / f"{manifest}.jsonl"), str(folder / "out"), **options)
    classify(config)
    return json.loads((folder / "out" / "classification.json").read_text())


def test_what_is_written_is_what_the_model_says(folder, capsys):
    folder, utterances = folder
    found = run(folder, max_duration=2.0)
    model, naive = load_model(folder / "model").model.eval(), []
    for one in utterances:
        batch = make_batch([one], None, DOMAINS)
        with torch.no_grad():
            p = model.posteriors(*log_mel(batch.audio_NS, batch.audio_lengths_N, FEATURES))[0]
        assert found["posteriors"][one.id] == pytest.approx(p.tolist(), abs=1e-4)
        naive.append(Classified(one.id, one.accent, DOMAINS[int(p.argmax())], one.speaker))
    expected = classification(naive, DOMAINS)
    assert len({one.guess for one in naive}) > 1
    assert found["confusion"] == expected.confusion and found["each"]["Wu"]["right"] == expected.each["Wu"].right
    assert tuple(found["overall"]["interval"]) == expected.overall.interval and found["unit"] == "speaker"
    text = (folder / "out" / "confusion.txt").read_text()
    assert expected.table() in text and text.startswith("all.jsonl: accuracy ") and text in capsys.readouterr().out
    assert min(Image.open(folder / "out" / "confusion.png").size) > 100


def test_a_label_that_the_classifier_does_not_know_is_one_line(folder):
    folder, _ = folder
    says = "other.jsonl: accent 'Jin' is none that .*model knows, which are Min, Wu, Yue"
    with pytest.raises(UserError, match=says) as error:
        run(folder, "other")
    assert "\n" not in str(error.value)
    assert run(folder, "other", unknown_domain="leave_out")["overall"]["utterances"] == 11
    with pytest.raises(UserError, match="none.jsonl has a label"):
        run(folder, "none", unknown_domain="leave_out")


def test_only_classifiers(folder, tmp_path):
    tokens = train_tokens(["abc"], tmp_path / "tokens", "char")
    encoder = ConformerConfig(mels=20, width=16, layers=1, heads=2)
    config = ModelConfig(conformer_ctc=ConformerCTCConfig(encoder=encoder, vocab_size=tokens.size))
    save_model(tmp_path / "ctc", build_model(config), FolderConfig(config, FEATURES), tokens)
    with pytest.raises(UserError, match="is no domain classifier"):
        classify(ClassifyConfig(str(tmp_path / "ctc"), str(folder[0] / "all.jsonl"), str(tmp_path / "out")))
