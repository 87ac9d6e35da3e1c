"""What a run trains, and from what it starts."""

import os
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from moe_asr.config import load_config
from moe_asr.errors import UserError
from moe_asr.methods.adaptation import AdaptationConfig
from moe_asr.methods.saml import SamlConfig
from moe_asr.models.folder import load_model, save_model
from moe_asr.quant import QuantConfig, quantise
from moe_asr.training.run import RunConfig, train


@pytest.fixture
def config(corpus, tmp_path):
    return load_config(RunConfig, _with_folder(corpus, tmp_path))


def _with_folder(corpus, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text((corpus / "lora.yaml").read_text() + f"exp_dir: {tmp_path / 'lora'}\n")
    return path


def changed(before, after):
    return {name for name in before if not torch.equal(before[name], after[name])}


def experts_of(folder):
    return load_file(folder / "adapter/adapter.safetensors")


def test_what_a_finished_run_left_stays_as_it_is_byte_for_byte(config, tmp_path):
    def contents():
        files = [path for path in (tmp_path / "lora/final").rglob("*") if path.is_file()]
        return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}

    train(config)
    before = contents()
    train(replace(config, on_change="restart"))
    train(config)
    assert contents() == before
    longer = replace(config, train=replace(config.train, max_epochs=config.train.max_epochs + 1))
    train(longer)
    after = contents()
    assert after.keys() == before.keys() and after != before
    # as if killed behind the last update of the longer run, which left the outcome of the shorter one
    for path, (content, _) in before.items():
        path.write_bytes(content)
    os.utime(tmp_path / "lora/final", (0, 0))
    train(longer)
    assert {path.name: content for path, (content, _) in contents().items() if path.suffix == ".safetensors"} == {
        path.name: content for path, (content, _) in after.items() if path.suffix == ".safetensors"
    }


def test_frozen_parameters_stay_as_they_were(config, corpus, tmp_path):
    plain = replace(config, adaptation=None, exp_dir=str(tmp_path / "run"), frozen=(r"^encoder\.subsampling", "norm"))
    train(plain)
    before = load_model(corpus / "base").model.state_dict()
    after = load_model(tmp_path / "run/final").model.state_dict()
    frozen = {name for name in before if name.startswith("encoder.subsampling") or "norm" in name}
    assert changed(before, after) == set(before) - frozen


def test_a_pattern_that_freezes_nothing_is_refused(config, tmp_path):
    plain = replace(config, adaptation=None, exp_dir=str(tmp_path / "run"), frozen=("nowhere",))
    with pytest.raises(UserError, match="'nowhere' is found in no name of a parameter"):
        train(plain)


@pytest.mark.parametrize("part", ["experts", "routers", "all"])
def test_goes_on_with_an_adaptation_and_trains_a_part_of_it(config, tmp_path, part):
    saml = AdaptationConfig(saml=SamlConfig(num_experts=2, dropout=0.0))
    train(replace(config, adaptation=saml))
    before = experts_of(tmp_path / "lora/final")
    later = replace(config, adaptation=None, init_adaptation=str(tmp_path / "lora/final"), train_only=part)
    train(replace(later, exp_dir=str(tmp_path / "later")))
    routers = {name for name in before if ".router." in name}
    expected = {"routers": routers, "experts": set(before) - routers, "all": set(before)}[part]
    assert changed(before, experts_of(tmp_path / "later/final")) == expected


def test_another_start_is_another_run(config, tmp_path):
    train(config)
    later = replace(config, adaptation=None, init_adaptation=str(tmp_path / "lora/final"), exp_dir=str(tmp_path / "b"))
    train(later)
    train(replace(config, train=replace(config.train, seed=1), on_change="restart"))  # other experts in the same place
    with pytest.raises(UserError, match="started with initial_experts"):
        train(later)


def test_a_quantised_model_is_not_fine_tuned(config, corpus, tmp_path):
    loaded = load_model(corpus / "base")
    small = QuantConfig(targets=("up", "down"))
    quantise(loaded.model, small)
    save_model(tmp_path / "nf4", loaded.model, replace(loaded.config, quantisation=small), loaded.tokens)
    with pytest.raises(UserError, match="is quantised and cannot be fine-tuned"):
        train(replace(config, init=str(tmp_path / "nf4"), adaptation=None))
    train(replace(config, init=str(tmp_path / "nf4")))


def test_contradictions_are_refused(config):
    for change, says in (
        ({"init_adaptation": "x"}, "give one of them"),
        ({"frozen": ("norm",)}, "frozen is for fine-tuning"),
        ({"adaptation": None, "train_only": "experts"}, "train_only is for experts"),
        ({"adaptation": AdaptationConfig()}, "give either experts or saml"),
    ):
        with pytest.raises(UserError, match=says):
            train(replace(config, **change))


def test_another_input_or_prompt_is_another_run(config, corpus, tmp_path):
    """The weights are the same, but not what they are fed with."""
    train(replace(config, train=replace(config.train, max_steps=1)))
    loaded = load_model(corpus / "base")
    other = replace(loaded.config, features=replace(loaded.config.features, low_freq=40.0))
    save_model(tmp_path / "other", loaded.model, other, loaded.tokens)
    (tmp_path / "base").symlink_to(corpus / "base")
    moved = replace(config, init=str(tmp_path / "base"), exp_dir=str(tmp_path / "moved"))
    train(replace(moved, train=replace(config.train, max_steps=1)))
    (tmp_path / "base").unlink()
    (tmp_path / "base").symlink_to(tmp_path / "other")
    with pytest.raises(UserError, match="initial_model.features.low_freq = 20.0"):
        train(moved)


def test_too_long_utterances_are_named_before_training(config, monkeypatch):
    def too_long(self, frames, tokens):
        return "it is" if frames > 220 else None

    monkeypatch.setattr("moe_asr.models.conformer_ctc.ConformerCTC.too_long", too_long)
    train(config)  # the longest has 24,800 samples
    slow = replace(config.data, speed_factors=(0.6, 1.0))
    with pytest.raises(UserError, match="utterance u[0-9]+ is too long: it is; cut it"):
        train(replace(config, data=slow))


def test_tokens_of_a_model_that_has_its_own(config, corpus):
    with pytest.raises(UserError, match="tokens and features are those of the model that init names"):
        train(replace(config, tokens=str(corpus / "tokens")))
