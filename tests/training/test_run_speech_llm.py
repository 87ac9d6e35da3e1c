"""Training on a frozen language model."""

import json
import os
import shutil
import signal
from dataclasses import replace

import pytest
import torch

from moe_asr.config import load_config
from moe_asr.errors import UserError
from moe_asr.experts import ExpertSpec, RouterSpec, base_identity
from moe_asr.methods.adapt import load_adapted
from moe_asr.methods.adaptation import AdaptationConfig
from moe_asr.models.build import ModelConfig, build_model
from moe_asr.models.folder import load_model, save_model
from moe_asr.quant import QuantConfig, quantise
from moe_asr.training.loop import Trainer
from moe_asr.training.run import RunConfig, train


@pytest.fixture
def config(corpus, init, tmp_path):
    (tmp_path / "run.yaml").write_text((corpus / "lora.yaml").read_text() + f"exp_dir: {tmp_path / 'base'}\n")
    return replace(load_config(RunConfig, tmp_path / "run.yaml"), init=str(init), adaptation=None)


def experts_on(where, **options):
    router = RouterSpec(route="local", **options)
    return AdaptationConfig(experts=ExpertSpec((where,), num_experts=2, rank=1, dropout=0.1, router=router))


def changed(a, b):
    a, b = (load_model(folder).model.state_dict() for folder in (a, b))
    return {name for name in a if not torch.equal(a[name], b[name])}


def test_the_projector_alone_is_trained_and_the_rest_is_stored_once(config, init, tmp_path):
    train(config)
    base = tmp_path / "base/final"
    names = load_model(init).model.state_dict()
    assert changed(init, base) == {name for name in names if name.startswith("projector.")}
    assert os.path.samefile(init / "frozen.safetensors", base / "frozen.safetensors")
    found = load_model(base).config
    assert not found.finetuned and not found.untrained  # its first training is no fine-tuning
    train(replace(config, init=str(base), exp_dir=str(tmp_path / "full")))
    assert load_model(tmp_path / "full/final").config.finetuned
    assert os.path.samefile(init / "frozen.safetensors", tmp_path / "full/final/frozen.safetensors")


@pytest.mark.parametrize("how", ["replaced", "removed"])
def test_the_frozen_parts_are_those_that_it_was_trained_with(config, init, tmp_path, monkeypatch, how):
    """Whatever happens to init while it runs."""
    before, train_on = (init / "frozen.safetensors").read_bytes(), Trainer.train

    def meanwhile(trainer):
        shutil.rmtree(init)
        if how == "replaced":
            shutil.copytree(tmp_path / "other", init)
        train_on(trainer)

    loaded = load_model(init)
    save_model(tmp_path / "other", build_model(loaded.config.model), loaded.config, loaded.tokens)
    monkeypatch.setattr(Trainer, "train", meanwhile)
    train(config)
    assert (tmp_path / "base/final/frozen.safetensors").read_bytes() == before


@pytest.mark.parametrize("where", [r"projector\.linear[12]", r"encoder\..*q_proj", r"lm\..*\.[qk]_proj"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_experts_anywhere_leave_every_weight_as_it_was(config, base, tmp_path, where, precision):
    identity = base_identity(load_model(base).model)
    loop = replace(config.train, precision=precision)
    train(replace(config, init=str(base), adaptation=experts_on(where, select="all"), train=loop))
    recogniser = load_model(base).model
    assert base_identity(recogniser) == identity
    adapted = load_adapted(recogniser, tmp_path / "base/final")  # which belongs to the weights as they are stored
    assert all((layer.B != 0).any() for layer in adapted.adapter.layers.values())
    assert {parameter.dtype for parameter in adapted.adapter.parameters()} == {torch.float32}
    assert not (tmp_path / "base/final/config.yaml").exists()


def test_experts_on_an_untrained_projector_are_refused(config, init):
    for how in ({"adaptation": experts_on("linear1")}, {"init_adaptation": "somewhere"}):
        with pytest.raises(UserError, match="init has weights that were never trained: train it without experts first"):
            train(replace(config, **how))


class Killed(BaseException):
    """Nothing that was not on the disk survives."""


@pytest.mark.parametrize("how", [signal.SIGTERM, Killed])
def test_a_stopped_run_with_experts_is_the_whole_run(config, base, tmp_path, monkeypatch, how):
    adaptation, update = experts_on(r"(projector|lm)\..*(linear1|q_proj)", select="threshold"), Trainer._update
    loop = replace(config.train, save_every=2, max_epochs=3)
    config = replace(config, init=str(base), adaptation=adaptation, train=loop)

    def stopping(trainer, batches):
        if trainer.progress.step == 9 and how is Killed:
            raise Killed
        if trainer.progress.step == 9:
            os.kill(os.getpid(), how)
        update(trainer, batches)

    train(replace(config, exp_dir=str(tmp_path / "whole")))
    with monkeypatch.context() as patch, pytest.raises(Killed if how is Killed else SystemExit):
        patch.setattr(Trainer, "_update", stopping)
        train(config)
    assert not (tmp_path / "base/final").exists() and (tmp_path / "base/routing/history.jsonl").is_file()
    train(config)
    for name in ("final/adapter/adapter.safetensors", "routing/history.jsonl"):
        assert (tmp_path / "base" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert len((tmp_path / "base/routing/history.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize("with_experts", [False, True])
def test_training_in_bf16_keeps_no_copy_of_the_language_model(config, base, tmp_path, monkeypatch, with_experts):
    adaptation = experts_on(r"lm\..*\.[qv]_proj", select="all") if with_experts else None
    config = replace(config, init=str(base), adaptation=adaptation, train=replace(config.train, log_every=1))
    own, copies, kept = [], [], []

    def load(folder):
        loaded = load_model(folder)
        own.append(loaded.model.lm)
        return loaded

    def keep(tensor):
        kept.append(tensor.shape)
        weights = [p for p in own[-1].parameters() if p.dim() == 2]
        storages = {p.untyped_storage().data_ptr() for p in weights}
        if tensor.dim() == 2 and tensor.untyped_storage().data_ptr() not in storages:
            forms = [form for p in weights for form in (p, p.t()) if form.shape == tensor.shape]
            copies.extend(form.shape for form in forms if torch.equal(form.bfloat16(), tensor.bfloat16()))
        return tensor

    monkeypatch.setattr("moe_asr.training.run.load_model", load)
    losses = {}
    for precision in ("fp32", "bf16"):
        exp_dir = tmp_path / precision
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            train(replace(config, exp_dir=str(exp_dir), train=replace(config.train, precision=precision)))
        lines = (exp_dir / "metrics.jsonl").read_text().splitlines()
        losses[precision] = [line["loss"] for line in map(json.loads, lines) if "loss" in line]
    assert kept and not copies
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.02) and losses["bf16"] != losses["fp32"]
    if not with_experts:
        assert os.path.samefile(base / "frozen.safetensors", tmp_path / "bf16/final/frozen.safetensors")
        assert changed(base, tmp_path / "bf16/final") == changed(base, tmp_path / "fp32/final")


def test_a_quantised_language_model_leaves_the_projector_trainable(config, init, tmp_path):
    loaded = load_model(init)
    quantisation = QuantConfig(targets=(r"lm\.layers\..*_proj",))
    quantise(loaded.model, quantisation)
    save_model(tmp_path / "nf4", loaded.model, replace(loaded.config, quantisation=quantisation), loaded.tokens)
    train(replace(config, init=str(tmp_path / "nf4")))
    names = changed(tmp_path / "nf4", tmp_path / "base/final")
    assert names and all(name.startswith("projector.") for name in names)
    assert os.path.samefile(tmp_path / "nf4/frozen.safetensors", tmp_path / "base/final/frozen.safetensors")


def test_it_is_never_trained_from_nothing(config, init):
    model = load_model(init).config.model
    with pytest.raises(UserError, match="a speech_llm is trained from init, a folder that bin/import_speech_llm makes"):
        train(replace(config, init=None, model=model, tokens=str(init / "tokens")))


def test_an_utterance_that_does_not_fit_into_the_context_is_named(config, init):
    loaded = load_model(init)
    lm = {**loaded.config.model.speech_llm.lm, "max_position_embeddings": 11}
    model = ModelConfig(speech_llm=replace(loaded.config.model.speech_llm, lm=lm))
    save_model(init, build_model(model), replace(loaded.config, model=model), loaded.tokens)
    why = "its speech, prompt and text take 12 positions, the language model has 11"
    with pytest.raises(UserError, match=f"utterance u2 is too long: {why}"):
        train(config)
