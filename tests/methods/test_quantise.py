import re

import pytest
import torch
from safetensors.torch import load_file

from moe_asr.config import run_command
from moe_asr.data.features import FeatureConfig
from moe_asr.data.llm_tokens import LLMTokens
from moe_asr.data.tokens import train_tokens
from moe_asr.errors import UserError
from moe_asr.experts import ExpertSpec, RouterSpec
from moe_asr.files import folder_bytes
from moe_asr.methods.adapt import adapt
from moe_asr.methods.adaptation import AdaptationConfig
from moe_asr.methods.quantise import QuantiseConfig, _noise, quantise_folder, stored_bytes
from moe_asr.models.build import ModelConfig, build_model
from moe_asr.models.conformer import ConformerConfig
from moe_asr.models.conformer_ctc import ConformerCTCConfig
from moe_asr.models.encoders import EncoderConfig
from moe_asr.models.folder import FolderConfig, LoadedModel, load_model, save_model
from moe_asr.models.projector import ProjectorConfig
from moe_asr.models.speech_llm import SpeechLLM, SpeechLLMConfig
from moe_asr.quant import QuantConfig, is_quantised, quantise


@pytest.fixture
def base(tmp_path):
    """Folder of a small recogniser, its widths multiples of the block."""
    torch.manual_seed(0)
    tokens = train_tokens(["a cab", "bad dab"], tmp_path / "lang", "char")
    encoder = ConformerConfig(mels=7, width=64, layers=2, heads=2, kernel=5)
    config = FolderConfig(
        ModelConfig(conformer_ctc=ConformerCTCConfig(encoder, tokens.size)), FeatureConfig(num_mels=7)
    )
    save_model(tmp_path / "base", build_model(config.model), config, tokens)
    return tmp_path / "base"


@pytest.fixture
def packed(base, capsys):
    folder = base.with_name("nf4")
    quantise_folder(QuantiseConfig(str(base), str(folder)))
    return folder


def states(model, adapter=None):
    torch.manual_seed(3)
    with torch.no_grad():
        return model.encode(torch.randn(2, 50, 7), torch.tensor([50, 40]))[0]


def test_weights_shrink_more_than_sevenfold_and_what_is_printed_was_measured(base, packed, capsys):
    loaded, original = load_model(packed), load_model(base)
    names = quantise(original.model)
    assert is_quantised(loaded.model) and loaded.config.quantisation == QuantConfig()
    for name, tensor in original.model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], tensor)
    ratio = stored_bytes(base, names) / stored_bytes(packed, names)
    assert ratio == sum(
        w.numel() * 4 for n, w in load_file(base / "model.safetensors").items() if n[:-7] in names
    ) / sum(t.nbytes for n, t in load_file(packed / "model.safetensors").items() if n.endswith((".codes", ".absmax")))
    assert ratio > 7
    printed = capsys.readouterr().out
    assert f"{len(names)} layers in 4.50" in printed and f"{ratio:.2f} times smaller" in printed
    assert f"{folder_bytes(base) / folder_bytes(packed):.2f} times smaller" in printed
    off = float(re.search(r"([\d.]+)% off", printed)[1]) / 100
    assert 0.05 < off < 0.12
    change = float(re.search(r"change by (\S+) relative", printed)[1])
    assert 0 < change < 0.5


def test_simulation_is_said_to_save_nothing(base, capsys):
    quantise_folder(QuantiseConfig(str(base), str(base.with_name("pqm")), QuantConfig(simulate=True)))
    assert "32 (simulated) bits" in (printed := capsys.readouterr().out) and " 1.00 times smaller" in printed
    loaded = load_model(base.with_name("pqm"))
    quantise_folder(QuantiseConfig(str(base), str(base.with_name("nf4"))))
    assert torch.equal(states(loaded.model), states(load_model(base.with_name("nf4")).model))


def test_dequantised_folder_is_a_plain_model_that_computes_the_same(packed, capsys):
    plain = packed.with_name("plain")
    capsys.readouterr()
    quantise_folder(QuantiseConfig(str(packed), str(plain), dequantise=True))
    assert "change by 0 relative, at most 0 absolute" in capsys.readouterr().out
    loaded = load_model(plain)
    assert loaded.config.quantisation is None and not is_quantised(loaded.model)
    assert torch.equal(states(loaded.model), states(load_model(packed).model))


@pytest.mark.parametrize("num_experts, weights", [(1, (1.0,)), (2, (0.25, 0.75))])
def test_experts_are_merged_into_the_dequantised_model(packed, capsys, num_experts, weights):
    router = RouterSpec(route="given", select="all")
    domains = ("north", "south")[:num_experts] if num_experts > 1 else ()
    experts = ExpertSpec(("default",), num_experts, 4, router=router)
    config = AdaptationConfig(experts=experts, domains=domains, global_route="label")
    adapted = adapt(load_model(packed).model, config)
    for parameter in adapted.adapter.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    adapted.eval().save(packed.with_name("lora"))
    with adapted.adapter.route(torch.tensor([weights] * 2), torch.tensor([13, 10])):
        expected = states(adapted.recogniser)
    capsys.readouterr()
    arguments = ["--model", packed, "--out_dir", packed.with_name("plain"), "--dequantise", "true"]
    arguments += ["--adaptation", packed.with_name("lora"), "--weights", list(weights)]
    run_command(QuantiseConfig, quantise_folder, [str(argument) for argument in arguments])
    merged = load_model(packed.with_name("plain"))
    assert not is_quantised(merged.model)
    torch.testing.assert_close(states(merged.model), expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(expected, states(load_model(packed).model), atol=1e-2)
    printed = capsys.readouterr().out
    assert "merged in" in printed and 0 <= float(re.search(r"change by (\S+) relative", printed)[1]) < 1e-4


@pytest.mark.parametrize(
    "change, says",
    [
        ({"model": "nowhere"}, "no model folder at nowhere"),
        ({"model": "nf4"}, "nf4 is quantised already"),
        ({"dequantise": True}, "base is not quantised"),
        ({"out_dir": "base"}, "out_dir is the model itself"),
        ({"adaptation": "lora"}, "adaptation is for dequantise"),
        ({"model": "nf4", "dequantise": True, "weights": (1.0,)}, "weights are of experts: give their adaptation too"),
        ({"model": "nf4", "dequantise": True, "adaptation": "lora"}, "no adaptation in lora"),
        ({"quantisation": QuantConfig(("nothing",))}, "'nothing' matches no"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(packed, monkeypatch, change, says):
    monkeypatch.chdir(packed.parent)
    with pytest.raises(UserError, match=says) as error:
        quantise_folder(QuantiseConfig(**{"model": "base", "out_dir": "new", **change}))
    assert "\n" not in str(error.value) and not (packed.parent / "new").exists()


class TestSpeechLLM:
    """Its projector stays as it is; the language model is quantised, and the encoder where that is asked for."""

    @pytest.fixture
    def speech_llm(self, tmp_path):
        tokenizers = pytest.importorskip("tokenizers")
        pytest.importorskip("transformers")
        torch.manual_seed(0)
        lm = dict(model_type="qwen2", vocab_size=64, hidden_size=64, intermediate_size=64, num_hidden_layers=2)
        lm |= dict(num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=64, tie_word_embeddings=True)
        encoder = EncoderConfig(conformer=ConformerConfig(mels=7, width=64, layers=1, heads=2, kernel=5))
        config = SpeechLLMConfig(encoder, lm, ProjectorConfig(ffn=64), after=(3, 4), end=2)
        vocab = {str(i): i for i in range(64)}
        tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token="0")).save(str(tmp_path / "tokenizer.json"))
        folder = FolderConfig(ModelConfig(speech_llm=config), FeatureConfig(num_mels=7), untrained=True)
        save_model(tmp_path / "llm", build_model(folder.model), folder, LLMTokens(tmp_path))
        return tmp_path / "llm"

    def test_language_model_is_quantised_and_its_outputs_are_compared(self, speech_llm, capsys):
        folder = speech_llm.with_name("nf4")
        quantise_folder(QuantiseConfig(str(speech_llm), str(folder)))
        printed = capsys.readouterr().out
        loaded, original = load_model(folder), load_model(speech_llm)
        packed = {name for name, module in loaded.model.named_modules() if hasattr(module, "codes")}
        layers = {name for name, module in original.model.lm.named_modules() if isinstance(module, torch.nn.Linear)}
        assert packed == {f"lm.{name}" for name in layers} and len(packed) == 2 * 7
        assert "14 layers in 4.50" in printed and loaded.config.untrained
        for part in ("encoder", "projector"):
            theirs = getattr(original.model, part).state_dict()
            assert all(torch.equal(getattr(loaded.model, part).state_dict()[name], theirs[name]) for name in theirs)
        change = float(re.search(r"change by (\S+) relative", printed)[1])
        assert change == pytest.approx(self.change(original.model, loaded.model), rel=0.01) and 0 < change < 0.5

    @staticmethod
    @torch.no_grad()
    def change(before, after):
        """Of the language model's states, one utterance at a time."""
        noise = torch.randn(2, 200, 7, generator=torch.Generator().manual_seed(0))
        states = [[], []]
        for found, model in zip(states, (before, after)):
            for length in (200, 130):
                speech = model.speech(noise[len(found), None, :length], torch.tensor([length]))[0][0]
                inputs = torch.cat([speech, model.embed(torch.tensor([3, 4]))])
                found.append(model.lm(inputs_embeds=inputs[None]).last_hidden_state[0])
        before, after = (torch.cat(found) for found in states)
        return float((after - before).norm() / before.norm())

    def test_encoder_is_quantised_where_it_is_named(self, speech_llm, capsys):
        folder = speech_llm.with_name("nf4")
        targets = ("default", r"encoder\.layers\..*")
        quantise_folder(QuantiseConfig(str(speech_llm), str(folder), QuantConfig(targets)))
        packed = {name.split(".")[0] for name, m in load_model(folder).model.named_modules() if hasattr(m, "codes")}
        assert packed == {"encoder", "lm"}

    def test_projector_is_refused_before_anything_is_computed(self, speech_llm, monkeypatch):
        folder = speech_llm.with_name("nf4")
        monkeypatch.setattr(SpeechLLM, "forward", None)
        monkeypatch.setattr(SpeechLLM, "speech", None)
        monkeypatch.setattr("moe_asr.methods.quantise.quantise", None)
        with pytest.raises(UserError, match="projector.linear1 is for training and stays as it is: leave it out"):
            quantise_folder(QuantiseConfig(str(speech_llm), str(folder), QuantConfig(("linear1",))))
        assert not folder.exists()

    def test_experts_of_the_projector_are_merged(self, speech_llm, capsys):
        folder, plain, lora = (speech_llm.with_name(name) for name in ("nf4", "plain", "lora"))
        quantise_folder(QuantiseConfig(str(speech_llm), str(folder)))
        experts = ExpertSpec(("default",), 1, 4, router=RouterSpec(route="given", select="all"))
        adapted = adapt(load_model(folder).model, AdaptationConfig(experts=experts, global_route="label"))
        for parameter in adapted.adapter.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        adapted.eval().save(lora)
        capsys.readouterr()
        quantise_folder(QuantiseConfig(str(folder), str(plain), dequantise=True, adaptation=str(lora)))
        change = float(re.search(r"change by (\S+) relative", capsys.readouterr().out)[1])
        merged, before = load_model(plain).model, load_model(folder).model
        assert 0 <= change < 1e-4 and not is_quantised(merged)
        assert not torch.equal(merged.projector.linear1.weight, before.projector.linear1.weight)


@pytest.mark.parametrize("kind, frames", [("waveform", 32000), ("whisper", 200)])
def test_noise_is_of_the_kind_that_the_model_hears(kind, frames):
    config = FolderConfig(ModelConfig(), getattr(FeatureConfig, kind)())
    features, lengths = _noise(LoadedModel(None, config, None))
    assert features.shape == (2, frames, config.features.num_mels) and lengths.tolist() == [frames, frames * 13 // 20]
