"""Training and decoding with kept states of a frozen encoder: the same results, and no utterance is encoded twice."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from moe_asr.config import load_config
from moe_asr.data.features import FeatureConfig, SpecAugmentConfig
from moe_asr.decoding.run import DecodeConfig, decode
from moe_asr.errors import UserError
from moe_asr.experts import ExpertSpec, RouterSpec, base_identity
from moe_asr.methods.adaptation import AdaptationConfig
from moe_asr.methods.encoder_cache import EncoderCache
from moe_asr.models.build import ModelConfig
from moe_asr.models.conformer import ConformerEncoder
from moe_asr.models.domain_classifier import DomainClassifierConfig
from moe_asr.models.folder import load_model
from moe_asr.training.run import RunConfig, train


@pytest.fixture
def config(corpus, base, tmp_path):
    (tmp_path / "run.yaml").write_text((corpus / "lora.yaml").read_text() + f"exp_dir: {tmp_path / 'one'}\n")
    found = load_config(RunConfig, tmp_path / "run.yaml")
    return replace(found, init=str(base), adaptation=None, train=replace(found.train, log_every=1))


def experts_on(where, num_experts=2, domain_classifier=None, **options):
    experts = ExpertSpec((where,), num_experts=num_experts, rank=1, router=RouterSpec(**options))
    return AdaptationConfig(experts, domain_classifier=domain_classifier)


def losses(folder):
    records = map(json.loads, (Path(folder) / "metrics.jsonl").read_text().splitlines())
    return [r.get("loss") or r["valid"]["loss"] for r in records]


@pytest.fixture
def encoded(monkeypatch):
    """How many utterances the encoder is given."""
    counts, forward = [], ConformerEncoder.forward

    def counting(self, features_NTF, lengths_N):
        counts.append(len(lengths_N))
        return forward(self, features_NTF, lengths_N)

    monkeypatch.setattr(ConformerEncoder, "forward", counting)
    return counts


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_each_utterance_is_encoded_once_for_all_runs(config, tmp_path, encoded, precision):
    config = replace(config, train=replace(config.train, precision=precision))
    train(config)
    assert sum(encoded) == 2 * (12 + 12)  # in each epoch for training and validation
    encoded.clear()
    cached = replace(config, encoder_cache=str(tmp_path / "cache"))
    for name in ("two", "three"):
        train(replace(cached, exp_dir=str(tmp_path / name)))
    assert encoded == [1] * 12 and len(list((tmp_path / "cache").rglob("*.safetensors"))) == 12
    assert losses(tmp_path / "two") == pytest.approx(
        losses(tmp_path / "one"), rel=1e-5 if precision == "fp32" else 0.02
    )
    assert losses(tmp_path / "two") == losses(tmp_path / "three")
    train(replace(cached, exp_dir=str(tmp_path / "four"), adaptation=experts_on("projector.linear1", route="local")))
    assert encoded == [1] * 12


def test_a_domain_classifier_on_the_same_encoder_shares_its_states(config, base, tmp_path, encoded):
    """Both in its own training, and in that of experts whose domains it gives."""
    data = {name: replace(getattr(config, name), domain_key="speaker") for name in ("data", "valid")}
    classifier = ModelConfig(domain_classifier=DomainClassifierConfig(embedding=8))
    cached = replace(config, encoder_cache=str(tmp_path / "cache"), exp_dir=str(tmp_path / "classifier"), **data)
    init = dict(init=None, init_encoder=str(base), frozen=("^encoder",))
    train(replace(cached, model=classifier, **init))
    written = load_model(tmp_path / "classifier/final")
    assert written.config.features == FeatureConfig(num_mels=20)
    assert base_identity(written.model.encoder) == base_identity(load_model(base).model.encoder)
    assert encoded == [1] * 12
    experts = experts_on("projector.linear1", 3, str(tmp_path / "classifier/final"))
    for name, cache in (("with", cached.encoder_cache), ("without", "")):
        train(replace(cached, exp_dir=str(tmp_path / name), adaptation=experts, encoder_cache=cache))
        assert name == "without" or encoded == [1] * 12
    assert losses(tmp_path / "with") == pytest.approx(losses(tmp_path / "without"), rel=1e-5)


def test_decoding_takes_the_same_states(config, corpus, base, tmp_path, encoded):
    options = dict(model=str(base), manifest=str(corpus / "all.jsonl"))
    decode(DecodeConfig(out_dir=str(tmp_path / "plain"), **options))
    for name in ("first", "again"):
        decode(DecodeConfig(out_dir=str(tmp_path / name), encoder_cache=str(tmp_path / "cache"), **options))
    plain, first, again = ((tmp_path / name / "hyps.jsonl").read_bytes() for name in ("plain", "first", "again"))
    assert plain == first == again
    assert encoded.count(1) == 12 and sum(encoded) == 24


def test_what_is_kept_is_exact_and_a_damaged_file_is_written_anew(base, tmp_path):
    encoder = load_model(base).model.encoder
    folder = tmp_path / "cache"
    cache = EncoderCache(encoder, folder)
    features_NTF, lengths_N = torch.randn(2, 60, 20), torch.tensor([60, 37])
    with torch.no_grad():
        expected, expected_lengths_N = encoder(features_NTF, lengths_N)
        found = [cache(features_NTF, lengths_N)]
        files = sorted(folder.rglob("*.safetensors"))
        kept = [file.read_bytes() for file in files]
        files[0].write_bytes(kept[0][: len(kept[0]) // 2])
        found.append(cache(features_NTF, lengths_N))
    assert [file.read_bytes() for file in files] == kept and len(kept) == 2
    for states_NLD, lengths_L in found:
        assert lengths_L.tolist() == expected_lengths_N.tolist() and torch.equal(states_NLD, found[0][0])
        torch.testing.assert_close(states_NLD, expected)
    assert load_file(files[0])["states_LD"].dtype == torch.float32


def test_other_weights_have_other_states(base, tmp_path):
    loaded, other = load_model(base).model.encoder, load_model(base).model.encoder
    with torch.no_grad():
        next(other.parameters()).add_(1)
    features_NTF, lengths_N = torch.randn(1, 40, 20), torch.tensor([40])
    one, two = (EncoderCache(encoder, tmp_path / "cache")(features_NTF, lengths_N)[0] for encoder in (loaded, other))
    assert not torch.equal(one, two) and len(list((tmp_path / "cache").rglob("*.safetensors"))) == 2


def test_encoders_that_change_are_refused(config, corpus, tmp_path):
    config = replace(config, encoder_cache=str(tmp_path / "cache"))
    with pytest.raises(UserError, match="is for an encoder that stays as it is"):
        train(replace(config, init=str(corpus / "base")))
    with pytest.raises(UserError, match="augment changes it each time"):
        train(replace(config, augment=SpecAugmentConfig()))
    with pytest.raises(UserError, match="there are experts on the encoder"):
        train(replace(config, adaptation=experts_on(r"encoder\..*q_proj", route="local")))
