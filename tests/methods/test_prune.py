import numpy as np
import pytest
import soundfile
import torch

from moe_asr.bin.prepare import PrepareConfig, prepare
from moe_asr.data.features import FeatureConfig
from moe_asr.data.tokens import Tokens, train_tokens
from moe_asr.errors import UserError
from moe_asr.methods.adapt import adapt, load_adapted
from moe_asr.methods.adaptation import AdaptationConfig, AdaptedRecogniser
from moe_asr.methods.prune import PruneConfig, prune
from moe_asr.methods.saml import SamlConfig
from moe_asr.models.build import ModelConfig, build_model
from moe_asr.models.conformer import ConformerConfig
from moe_asr.models.conformer_aed import ConformerAEDConfig
from moe_asr.models.folder import FolderConfig, load_model, save_model
from moe_asr.models.transformer_decoder import DecoderConfig

E = 4


@pytest.fixture
def data(tmp_path):
    """A model, the adaptations of two speakers and a manifest with both."""
    generator = np.random.default_rng(0)
    lines = ["id\taudio\ttext\tspeaker"]
    for n in range(4):
        soundfile.write(tmp_path / f"{n}.wav", generator.normal(0, 0.1, 6000 + 2000 * n), 16000)
        lines.append(f"u{n}\t{n}.wav\tabc{'de' * n}\ts{n % 2}")
    (tmp_path / "dev.tsv").write_text("\n".join(lines))
    prepare(PrepareConfig(str(tmp_path / "dev.tsv"), str(tmp_path / "dev.jsonl")))
    train_tokens(["abcdededede"], tmp_path / "tokens", "char")
    tokens = Tokens(tmp_path / "tokens")
    encoder = ConformerConfig(mels=20, width=16, layers=1, heads=2)
    decoder = DecoderConfig(layers=1, heads=2, ffn=16, max_tokens=40)
    config = ModelConfig(conformer_aed=ConformerAEDConfig(encoder, decoder, tokens.size))
    torch.manual_seed(0)
    save_model(tmp_path / "base", build_model(config), FolderConfig(config, FeatureConfig(num_mels=20)), tokens)
    for seed in range(2):
        adapted = adapt(load_model(tmp_path / "base").model, AdaptationConfig(saml=SamlConfig(num_experts=E)))
        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter in adapted.adapter.parameters():
                parameter.normal_(std=0.3)
            for number, router in enumerate(adapted.adapter.routers.values()):
                router.local.mul_(0.01)
                router.local_bias.copy_(torch.arange(E).roll(number + seed))  # who counts most is known
        adapted.save(tmp_path / f"s{seed}")
    return tmp_path


def config(data, adaptation="s0", out_dir="out", drop=2):
    manifest = str(data / "dev.jsonl")
    return PruneConfig(str(data / "base"), str(data / adaptation), manifest, str(data / out_dir), drop, device="cpu")


def kept(seed, number, drop=2):
    order = torch.arange(E).roll(number + seed).argsort(descending=True)
    return sorted(order[: E - drop].tolist())


def test_writes_a_smaller_adaptation(data, capsys):
    prune(config(data))
    before = load_adapted(load_model(data / "base").model, data / "s0")
    after = load_adapted(load_model(data / "base").model, data / "out")
    assert after.config.saml.num_experts == after.adapter.num_experts == E - 2
    for number, key in enumerate(before.adapter.routers):
        assert torch.equal(
            after.adapter.routers[key].local_bias, before.adapter.routers[key].local_bias[kept(0, number)]
        )
    out = capsys.readouterr().out
    assert "group0 keeps 2 3; group1 keeps 0 3; group2 keeps 0 1" in out and out.count("\n") == 1


def test_each_speaker_by_its_own_utterances(data, capsys, monkeypatch):
    seen, forward = [], AdaptedRecogniser.forward
    monkeypatch.setattr(AdaptedRecogniser, "forward", lambda self, x, lengths, batch: (
        seen.append(set(batch.speakers)), forward(self, x, lengths, batch))[1])  # fmt: skip
    prune(config(data, "{speaker}", "pruned/{speaker}", drop=1))
    for seed in range(2):
        after = load_adapted(load_model(data / "base").model, data / "pruned" / f"s{seed}")
        before = load_adapted(load_model(data / "base").model, data / f"s{seed}")
        assert after.adapter.num_experts == E - 1
        for number, key in enumerate(before.adapter.routers):
            expected = before.adapter.routers[key].local_bias[kept(seed, number, 1)]
            assert torch.equal(after.adapter.routers[key].local_bias, expected)
    assert capsys.readouterr().out.count("\n") == 2 and seen == [{"s0"}, {"s1"}]


def test_a_speaker_cannot_lead_out_of_the_folder(data):
    """Nor does one before it get anything."""
    (data / "in").mkdir()
    (data / "s0").rename(data / "in/s0")
    table = (data / "dev.tsv").read_text().replace("\ts1", "\t../s1")
    (data / "dev.tsv").write_text(table)
    prepare(PrepareConfig(str(data / "dev.tsv"), str(data / "dev.jsonl")))
    with pytest.raises(UserError, match="dev.jsonl names '../s1', which cannot be part of a folder's name"):
        prune(config(data, "in/{speaker}", "pruned/out/{speaker}", drop=1))
    assert not (data / "pruned").exists()


@pytest.mark.parametrize(
    "options, says",
    [
        (dict(drop=E), "drop from 0 to 3"),
        (dict(out_dir="s0"), "is the adaptation itself"),
        (dict(out_dir="{speaker}"), "in both"),
        (dict(adaptation="nobody"), "no adaptation in"),
    ],
)
def test_refused(data, options, says):
    with pytest.raises(UserError, match=says):
        prune(config(data, **options))
    assert not (data / "out").exists()
