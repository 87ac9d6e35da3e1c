"""Experts on a Whisper taken over from transformers, back in the formats of transformers and PEFT."""

import dataclasses
import sys
from pathlib import Path

import pytest
import torch

transformers = pytest.importorskip("transformers")
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "models"))

import whisper_checkpoints  # noqa: E402

from moe_asr.bin.adapter import COMMANDS  # noqa: E402
from moe_asr.config import run_commands  # noqa: E402
from moe_asr.data.features import log_mel  # noqa: E402
from moe_asr.data.tokens import train_tokens  # noqa: E402
from moe_asr.decoding.search import Search  # noqa: E402
from moe_asr.decoding.search_config import SearchConfig  # noqa: E402
from moe_asr.errors import UserError  # noqa: E402
from moe_asr.experts import ExpertSpec  # noqa: E402
from moe_asr.methods.adapt import adapt, load_adapted  # noqa: E402
from moe_asr.methods.adaptation import AdaptationConfig  # noqa: E402
from moe_asr.methods.adapter_config import (  # noqa: E402
    ExportConfig,
    FuseConfig,
    ImportConfig,
    MergeConfig,
    ShowConfig,
)
from moe_asr.methods.adapter_tools import export, import_lora, merge, show  # noqa: E402
from moe_asr.methods.fuse import fuse_adaptations  # noqa: E402
from moe_asr.methods.language_experts import FUSION  # noqa: E402
from moe_asr.models.folder import load_model  # noqa: E402
from moe_asr.models.whisper_import import Choices, import_whisper  # noqa: E402

END = 275


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint (theirs), the same as base, and on it experts of en and zh, alone and together."""
    folder = tmp_path_factory.mktemp("tools")
    whisper_checkpoints.save_checkpoint(folder / "theirs", multilingual=True, kept_tokens=12)
    import_whisper(str(folder / "theirs"), folder / "base", "english", Choices(pad_to_30s=True))
    for number, name in enumerate(["en", "zh", "both"]):
        several = name == "both"
        experts = ExpertSpec(("default",), 2 if several else 1, 2, alpha=3.0, router=FUSION)
        config = AdaptationConfig(
            experts, domains=("en", "zh") if several else (), domain_key="language", global_route="label"
        )
        adapted = adapt(load_model(folder / "base").model, config)
        generator = torch.Generator().manual_seed(number)
        with torch.no_grad():
            for parameter in adapted.adapter.parameters():
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
        adapted.save(folder / name, {"base": str(folder / "base"), "git": "abc"})
    return folder


def speech(config):
    generator = torch.Generator().manual_seed(0)
    audio = torch.randn(6, 32000, generator=generator) * torch.linspace(0.05, 0.4, 6)[:, None]
    return log_mel(audio, torch.tensor([32000, 3000, 16000, 8000, 12000, 5000]), config.features)


@dataclasses.dataclass
class Texts:
    languages: list
    tokens_NU: torch.Tensor = dataclasses.field(default_factory=lambda: torch.zeros(6, 1, dtype=torch.int64))


def ours(model, loaded, adapted=None, weights=None, language="zh"):
    """Tokens of our greedy search on the model."""
    features = speech(loaded.config)
    search = Search(model, SearchConfig(), loaded.tokens)
    batch = Texts([language] * 6)
    with torch.inference_mode():
        if adapted is None:
            return [texts[0].tokens for texts in search(*features, batch)]
        with adapted.adapter.route(torch.tensor([weights] * 6), model.stream_lengths(features[1])):
            return [texts[0].tokens for texts in search(*features, batch, adapted.adapter)]


def theirs(model, loaded, language="zh"):
    """Tokens of transformers on the same features."""
    with torch.inference_mode():
        rows = model.generate(
            speech(loaded.config)[0].transpose(1, 2), language=language, task="transcribe", max_new_tokens=50
        ).tolist()
    return [tuple(row[: row.index(END)] if END in row else row) for row in rows]


def adapted(folder, name):
    loaded = load_model(folder / "base")
    return loaded, load_adapted(loaded.model, folder / name)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_merged_folder_loads_in_transformers_and_writes_the_same(folder, tmp_path, language):
    loaded, experts = adapted(folder, "both")
    expected = ours(loaded.model, loaded, experts, [0.7, 0.3], language)
    assert expected != ours(load_model(folder / "base").model, loaded, language=language)
    assert len(set(expected)) > 2, "these texts test little"
    base, both = str(folder / "base"), str(folder / "both")
    merge(MergeConfig(base, both, f"{tmp_path}/hf", [0.7, 0.3], format="transformers"))
    model = transformers.WhisperForConditionalGeneration.from_pretrained(tmp_path / "hf").eval()
    assert theirs(model, loaded, language) == expected
    assert transformers.WhisperProcessor.from_pretrained(tmp_path / "hf").tokenizer.decode(
        expected[0], skip_special_tokens=True
    ).strip() == loaded.tokens.decode(expected[0])
    merge(MergeConfig(base, both, f"{tmp_path}/ours", [0.7, 0.3]))
    again = load_model(tmp_path / "ours")
    assert ours(again.model, again, language=language) == expected and again.config.finetuned
    import_whisper(f"{tmp_path}/hf", tmp_path / "back", "english", Choices(pad_to_30s=True))  # and back again
    back = load_model(tmp_path / "back")
    assert back.config == dataclasses.replace(again.config, finetuned=False)
    assert all(torch.equal(w, again.model.state_dict()[name]) for name, w in back.model.state_dict().items())


def test_fused_experts_load_in_peft_and_come_back(folder, tmp_path):
    peft = pytest.importorskip("peft")
    parts = [str(folder / "en"), str(folder / "zh")]
    fuse_adaptations(FuseConfig(f"{tmp_path}/sum", parts, [0.6, 0.4]))
    loaded, fused = adapted(folder, tmp_path / "sum")
    expected = ours(loaded.model, loaded, fused, [1.0])
    export(ExportConfig(str(folder / "base"), f"{tmp_path}/sum", f"{tmp_path}/peft"))
    base = transformers.WhisperForConditionalGeneration.from_pretrained(folder / "theirs")
    model = peft.PeftModel.from_pretrained(base, tmp_path / "peft").eval()
    assert theirs(model, loaded) == expected
    features_NTF, lengths_N = speech(loaded.config)
    text = torch.randint(20, 30, (6, 7))
    with torch.inference_mode(), fused.adapter.route(torch.ones(6, 1), loaded.model.stream_lengths(lengths_N)):
        hidden = loaded.model.decoder(text, *loaded.model.encode(features_NTF, lengths_N))
        logits = model(input_features=features_NTF.transpose(1, 2), decoder_input_ids=text).logits
        torch.testing.assert_close(loaded.model.decoder.logits(hidden), logits, rtol=1e-4, atol=1e-4)
    import_lora(ImportConfig(str(folder / "base"), f"{tmp_path}/peft", f"{tmp_path}/back"))
    loaded, back = adapted(folder, tmp_path / "back")
    for name, layer in back.adapter.layers.items():
        assert torch.equal(layer.A, fused.adapter.layers[name].A) and layer.spec.scale == layer.spec.alpha / 4
        torch.testing.assert_close(
            layer.B * layer.spec.scale, fused.adapter.layers[name].B * fused.adapter.specs[0].scale
        )


def test_show_says_what_it_is(folder, capsys):
    show(ShowConfig(str(folder / "both"), str(folder / "base")))
    out = capsys.readouterr().out
    for part in (
        "2 experts of rank 2, scale 1.5, product mixing", "domains: en, zh (language), told by label",
        "encoder.layers.*.self_attn.q_proj: 2", "decoder.layers.*.fc2: 2", "base is its base", "git abc", "torch 2",
        "router on the stream default: given, all",
    ):  # fmt: skip
        assert part in out, out
    other = folder / "other"
    whisper_checkpoints.save_checkpoint(folder / "theirs2", multilingual=True, seed=5)
    import_whisper(str(folder / "theirs2"), other, "english")
    show(ShowConfig(str(folder / "both"), str(other)))
    assert "other is NOT its base" in capsys.readouterr().out


def test_tokens_of_our_own_have_no_tokenizer_there(folder, tmp_path, capsys):
    train_tokens(["ab ba"], tmp_path / "tokens", "char", languages=["de", "fa"])
    import_whisper(str(folder / "theirs"), tmp_path / "own", "none", Choices(tokens=str(tmp_path / "tokens")))
    loaded = load_model(tmp_path / "own")
    adapt(loaded.model, AdaptationConfig(ExpertSpec(("q_proj",), 1, 2, router=FUSION))).save(tmp_path / "lora")
    merge(MergeConfig(f"{tmp_path}/own", f"{tmp_path}/lora", f"{tmp_path}/hf", format="transformers"))
    out = capsys.readouterr().out
    assert "generate with decoder_input_ids=[[2, 3]]" in out and "without padding to 30 s" in out
    model = transformers.WhisperForConditionalGeneration.from_pretrained(tmp_path / "hf")
    assert model.config.vocab_size == loaded.tokens.size and not list(Path(tmp_path / "hf").glob("token*"))


def test_mistakes_are_one_line(folder, tmp_path, capsys):
    base, both = str(folder / "base"), str(folder / "both")

    def refused(message, function, config):
        with pytest.raises(UserError, match=message):
            function(config)
        assert not Path(config.out_dir).exists()

    out = f"{tmp_path}/out"
    refused("has 2 experts: give their weights, or choose one with --expert", merge, MergeConfig(base, both, out))
    refused("has 2 experts, but 1 weights are given", merge, MergeConfig(base, both, out, [1.0]))
    refused("has no expert fr; its experts are 0 to 1, or en, zh", merge, MergeConfig(base, both, out, None, "fr"))
    refused("give weights or expert, not both", merge, MergeConfig(base, both, out, [1.0, 0.0], "en"))
    refused("has 2 experts: choose one with --expert, 0 to 1, or en, zh", export, ExportConfig(base, both, out))
    refused("holds no adapter in PEFT's format", import_lora, ImportConfig(base, both, out))
    refused("no adaptation in", merge, MergeConfig(base, str(folder), out))
    with pytest.raises(SystemExit):
        run_commands(COMMANDS, ["exprot"])
    assert "there is no subcommand 'exprot'; did you mean 'export'?" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run_commands(COMMANDS, ["show"])
    assert "required: adaptation" in capsys.readouterr().err
    run_commands(COMMANDS, ["show", both, "--model", base])
    assert "base is its base" in capsys.readouterr().out
