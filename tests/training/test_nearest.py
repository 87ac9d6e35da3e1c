"""One more language: which expert is nearest to it, and that starting from one changes no file of it."""

import dataclasses
import hashlib

import numpy as np
import pytest
import soundfile
import torch

from moe_asr.config import from_plain
from moe_asr.data.batches import BatchLoader, DataConfig
from moe_asr.data.features import FeatureConfig, log_mel
from moe_asr.data.manifests import Utterance, write_manifest
from moe_asr.data.tokens import train_tokens
from moe_asr.errors import UserError
from moe_asr.experts import ExpertSpec
from moe_asr.methods.adapt import adapt, load_adapted
from moe_asr.methods.adaptation import AdaptationConfig
from moe_asr.methods.language_experts import FUSION
from moe_asr.models.build import ModelConfig, build_model, complete_config
from moe_asr.models.folder import FolderConfig, load_model, save_model
from moe_asr.models.whisper import WhisperConfig
from moe_asr.training.nearest import NearestConfig, nearest
from moe_asr.training.run import RunConfig, train

LANGUAGES = ["de", "fa", "pt", "zh"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A multilingual base, random experts of three of its languages, and speech of a fourth, pt, and of de."""
    folder = tmp_path_factory.mktemp("nearest")
    rng, utterances = np.random.default_rng(0), []
    for n in range(6):
        path = str(folder / f"{n}.wav")
        soundfile.write(path, 0.1 * rng.standard_normal(9000 + 800 * n).astype("float32"), 16000)
        language = ["pt", "de"][n % 2]
        utterances.append(Utterance(f"u{n}", path, 9000 + 800 * n, 16000, "ab cd"[: 2 + n % 4], language=language))
    write_manifest(folder / "all.jsonl", utterances)
    tokens = train_tokens([u.text for u in utterances], folder / "tokens", "char", languages=LANGUAGES)
    whisper = WhisperConfig(
        mels=20, width=16, encoder_layers=1, decoder_layers=1, heads=2, ffn=24, max_frames=100, max_tokens=20
    )
    config = complete_config(ModelConfig(whisper=whisper), 20, tokens.size, (), tokens.languages)
    torch.manual_seed(0)
    save_model(folder / "base", build_model(config), FolderConfig(config, FeatureConfig(num_mels=20)), tokens)
    for number, name in enumerate(["de", "fa", "zh"]):
        experts = AdaptationConfig(ExpertSpec(("default",), 1, 2, router=FUSION))
        adapted = adapt(load_model(folder / "base").model, experts)
        generator = torch.Generator().manual_seed(number)
        with torch.no_grad():
            for parameter in adapted.adapter.parameters():
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
        adapted.save(folder / name / "final")
    (folder / "names").write_text("de\nfa\nzh\n")
    return folder


def settings(folder, **changes):
    config = NearestConfig(
        f"{folder}/base", f"{folder}/{{name}}/final", f"{folder}/names", f"{folder}/all.jsonl", "pt", device="cpu"
    )
    return dataclasses.replace(config, **changes)


def naive_loss(folder, name):
    """Utterance by utterance."""
    loaded = load_model(folder / "base")
    model = load_adapted(loaded.model, folder / name / "final").eval() if name else loaded.model.eval()
    data = DataConfig([str(folder / "all.jsonl")], language="pt", max_utterances=1, shuffle=False)
    losses = []
    for batch in BatchLoader(data, loaded.tokens):
        with torch.no_grad():
            losses.append(model(*log_mel(batch.audio_NS, batch.audio_lengths_N, loaded.config.features), batch))
    assert len(losses) == 3
    return float(sum(loss.total for loss in losses) / sum(loss.count for loss in losses))


def test_the_nearest_has_the_smallest_loss(folder, tmp_path, capsys):
    found = nearest(settings(folder, output=f"{tmp_path}/to/nearest"))
    losses = {name: naive_loss(folder, name) for name in ("", "de", "fa", "zh")}
    assert found == min(["de", "fa", "zh"], key=losses.get)
    out = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in out] == ["base", "de", "fa", "zh", "nearest:"]
    for line, loss in zip(out, losses.values()):
        assert float(line.split()[-1]) == pytest.approx(loss, abs=2e-4)
    assert (tmp_path / "to/nearest").read_text() == f"{folder}/{found}/final\n"
    assert out[-1] == f"nearest: {found}, start from {folder}/{found}/final"


def test_starting_from_it_changes_no_file(folder, tmp_path):
    before = {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}
    start = f"{folder}/{nearest(settings(folder))}/final"
    data = {"manifests": [f"{folder}/all.jsonl"], "language": "pt", "domain_key": "language"}
    config = {"exp_dir": f"{tmp_path}/pt", "init": f"{folder}/base", "init_adaptation": start, "data": data,
              "valid": data, "device": "cpu", "train": {"max_epochs": 1, "tensorboard": False}}  # fmt: skip
    train(from_plain(RunConfig, config))
    own = (tmp_path / "pt/final/adapter/adapter.safetensors").read_bytes()
    assert own != open(f"{start}/adapter/adapter.safetensors", "rb").read()
    after = {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}
    assert after == before


def test_bad_input_is_one_line(folder, tmp_path):
    with pytest.raises(UserError, match="adaptations must contain {name}"):
        settings(folder, adaptations=f"{folder}/de/final")
    with pytest.raises(UserError, match="has no utterance of language eo; it has 2 languages, such as de, pt"):
        nearest(settings(folder, language="eo"))
    (tmp_path / "names").write_text("de\nnl\n")
    with pytest.raises(UserError, match="no adaptation in .*/nl/final"):
        nearest(settings(folder, names=f"{tmp_path}/names"))
