"""Training experts that others teach."""

import json
import os
import signal
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from moe_asr.config import load_config, parse_config
from moe_asr.data.features import FeatureConfig, SpecAugmentConfig
from moe_asr.data.tokens import load_tokens
from moe_asr.errors import UserError
from moe_asr.experts import base_identity
from moe_asr.methods.adapt import load_adapted
from moe_asr.methods.distillation import DistillationConfig, Distiller
from moe_asr.models.build import ModelConfig, build_model
from moe_asr.models.conformer import ConformerConfig
from moe_asr.models.conformer_aed import ConformerAEDConfig
from moe_asr.models.folder import FolderConfig, load_model, save_model
from moe_asr.models.transformer_decoder import DecoderConfig
from moe_asr.training.loop import Trainer
from moe_asr.training.run import RunConfig, train


@pytest.fixture
def config(corpus, tmp_path):
    """A LoRA on a model with decoder, and three speakers who teach it."""
    tokens = load_tokens(corpus / "tokens")
    encoder = ConformerConfig(mels=20, width=16, layers=1, heads=2, kernel=5)
    model = ModelConfig(conformer_aed=ConformerAEDConfig(encoder, DecoderConfig(1, 2, 16, max_tokens=20), tokens.size))
    torch.manual_seed(0)
    save_model(tmp_path / "aed", build_model(model), FolderConfig(model, FeatureConfig(num_mels=20)), tokens)
    (tmp_path / "run.yaml").write_text((corpus / "lora.yaml").read_text() + f"exp_dir: {tmp_path / 'student'}\n")
    config = replace(load_config(RunConfig, tmp_path / "run.yaml"), init=str(tmp_path / "aed"))
    experts = replace(config.adaptation.experts, targets=("default",), rank=2, alpha=4.0)
    config = replace(config, adaptation=replace(config.adaptation, experts=experts))
    for seed in range(3):
        teach(config, tmp_path, seed, seed)
    taught = DistillationConfig(str(tmp_path / "{speaker}/final"), weight=0.8, temperature=2.0)
    return replace(config, distillation=taught, augment=SpecAugmentConfig(time_mask_frames=5, mel_mask_bins=3))


def teach(config, folder, speaker, seed):
    """Makes the teacher of a speaker, of random experts."""
    from moe_asr.methods.adapt import adapt

    adapted = adapt(load_model(config.init).model, config.adaptation)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in adapted.adapter.parameters():
            parameter.normal_(std=0.3)
    adapted.save(folder / f"s{speaker}/final")


def experts(folder):
    return load_file(folder / "final/adapter/adapter.safetensors")


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_the_student_learns_what_its_teachers_say(config, tmp_path):
    longer = replace(config.train, max_epochs=12, optim=replace(config.train.optim, lr=1e-2))
    taught = replace(config.distillation, weight=1.0)
    train(replace(config, train=longer, augment=None, distillation=taught))
    valid = [line["valid"]["parts"] for line in metrics(tmp_path / "student") if "valid" in line]
    assert set(valid[0]) >= {"ce", "kl", "accuracy", "ctc"}
    kl = [parts["kl"] for parts in valid]
    assert kl[-1] < 0.9 * kl[0], kl
    adapted = load_adapted(load_model(tmp_path / "aed").model, tmp_path / "student/final")
    assert adapted.adapter.num_experts == 1  # the student alone, no teacher


def test_a_run_that_was_stopped_and_killed_ends_as_if_nothing_had_been(config, tmp_path, monkeypatch):
    train(replace(config, exp_dir=str(tmp_path / "whole")))
    with monkeypatch.context() as patch:
        update = Trainer._update

        def stops(self, batches):
            update(self, batches)
            if self.progress.step == 4:
                os.kill(os.getpid(), signal.SIGTERM)

        patch.setattr(Trainer, "_update", stops)
        with pytest.raises(SystemExit):
            train(config)
    with monkeypatch.context() as patch:

        def dies(self, batches):
            if self.progress.step == 8:
                raise RuntimeError("killed")
            update(self, batches)

        patch.setattr(Trainer, "_update", dies)
        with pytest.raises(RuntimeError):
            train(config)
    train(config)
    whole, parts = experts(tmp_path / "whole"), experts(tmp_path / "student")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def cached(config, tmp_path, **options):
    taught = replace(config.distillation, **{"top_k": 3, "cache": str(tmp_path / "cache.safetensors"), **options})
    return replace(config, distillation=taught, augment=None)


def test_what_teachers_say_is_kept_and_serves_the_same_run(config, tmp_path, monkeypatch):
    asked = []
    ask = Distiller._ask
    monkeypatch.setattr(Distiller, "_ask", lambda self, *args: asked.append(1) or ask(self, *args))
    kept = cached(config, tmp_path)
    without = replace(kept, distillation=replace(kept.distillation, cache=None), exp_dir=str(tmp_path / "without"))
    train(without)
    count = len(asked)
    train(replace(kept, train=replace(kept.train, max_steps=5)))
    assert len(asked) == count + 12  # 12 utterances in pairs, of training and of validation
    train(kept)  # goes on, and asks nobody
    assert len(asked) == count + 12
    for name, tensor in experts(tmp_path / "without").items():  # padding differs, and so the rounding
        torch.testing.assert_close(experts(tmp_path / "student")[name], tensor, rtol=1e-3, atol=1e-5)
    train(replace(kept, exp_dir=str(tmp_path / "again")))
    again, first = experts(tmp_path / "again"), experts(tmp_path / "student")
    assert all(torch.equal(again[name], first[name]) for name in first)


def test_a_cache_of_something_else_is_refused(config, tmp_path):
    short = replace(config, train=replace(config.train, max_steps=1))
    kept = cached(short, tmp_path)
    train(kept)
    other = replace(kept, exp_dir=str(tmp_path / "other"))
    for changed, match in (
        (cached(other, tmp_path, top_k=2), "was made from other top_k"),
        (cached(other, tmp_path, temperature=1.0), "was made from other temperature"),
        (replace(other, data=replace(other.data, speed_factors=(0.9, 1.0))), "leave out data.speed_factors"),
        (replace(other, augment=SpecAugmentConfig()), "leave out augment"),
    ):
        with pytest.raises(UserError, match=match):
            train(changed)
    teach(config, tmp_path, 2, 8)
    with pytest.raises(UserError, match="was made from other teachers"):
        train(other)
    (tmp_path / "cache.safetensors").write_bytes(b"damaged")
    with pytest.raises(UserError, match="is no cache of teachers, or damaged"):
        train(other)
    for options, match in (({"top_k": 0}, "set top_k"), ({"top_k": -1}, "must not be negative")):
        with pytest.raises(UserError, match=match):
            cached(config, tmp_path, **options)


def test_another_teacher_is_another_run(config, tmp_path):
    train(config)
    train(config)
    teach(config, tmp_path, 1, 9)
    with pytest.raises(UserError, match="teachers"):
        train(config)
    train(replace(config, on_change="restart"))


def test_students_start_from_others_and_the_base_stays(config, tmp_path):
    before = base_identity(load_model(config.init).model)
    train(replace(config, exp_dir=str(tmp_path / "first")))
    later = replace(config, adaptation=None, init_adaptation=str(tmp_path / "first/final"))
    train(later)
    assert base_identity(load_model(config.init).model) == before
    assert any(not torch.equal(t, experts(tmp_path / "student")[n]) for n, t in experts(tmp_path / "first").items())


def test_what_contradicts_itself_is_refused_before_the_first_step(config, tmp_path):
    with pytest.raises(UserError, match="distillation teaches experts"):
        train(replace(config, adaptation=None))
    missing = replace(config.distillation, teachers=str(tmp_path / "none/{speaker}"))
    with pytest.raises(UserError, match="no teacher for speaker s0"):
        train(replace(config, distillation=missing))
    assert not (tmp_path / "student/checkpoints").exists()


def test_options(config, tmp_path):
    argv = ["--exp_dir", "x", "--data.manifests", "[a]", "--valid.manifests", "[b]", "--distillation.weight", "0.4"]
    found = parse_config(RunConfig, [*argv, "--distillation.teachers", "exp/{language}/final"]).distillation
    assert found == DistillationConfig("exp/{language}/final", weight=0.4)
    found = parse_config(RunConfig, [*argv, "--distillation.teachers", "{de: a/de, fr: b}"]).distillation
    assert found.teachers == {"de": "a/de", "fr": "b"}
