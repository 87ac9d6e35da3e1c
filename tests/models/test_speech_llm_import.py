import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

transformers = pytest.importorskip("transformers")

import lm_checkpoints  # noqa: E402
from whisper_checkpoints import edit  # noqa: E402

from moe_asr.bin.import_speech_llm import ImportConfig, import_speech_llm  # noqa: E402
from moe_asr.data.llm_tokens import LLMTokens  # noqa: E402
from moe_asr.errors import UserError  # noqa: E402
from moe_asr.models.folder import load_model  # noqa: E402
from moe_asr.models.projector import ProjectorConfig  # noqa: E402

PROMPT = "<|im_start|>turn <speech><|im_end|>the light"


@pytest.fixture
def encoder(tmp_path, save_ours):
    """A model folder of ours."""
    return save_ours(tmp_path / "encoder", "conformer_ctc")


@pytest.fixture
def lm(tmp_path):
    lm_checkpoints.save_lm(tmp_path / "lm")
    return tmp_path / "lm"


def taken(encoder, lm, **choices):
    """The model folder that a checkpoint becomes, read again, and the lines about it."""
    config = ImportConfig(str(encoder), str(lm), **{"prompt": PROMPT, "out_dir": str(lm.parent / "ours"), **choices})
    lines = import_speech_llm(config)
    return load_model(config.out_dir), lines


def change(checkpoint, edit_state):
    """Saves the weights after `edit_state` has changed them in place."""
    state = load_file(checkpoint / "model.safetensors")
    edit_state(state)
    save_file(state, checkpoint / "model.safetensors")


@pytest.mark.parametrize("kind", lm_checkpoints.MODELS)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("shards", [{}, {"max_shard_size": "20KB"}])
def test_every_weight_and_setting_is_taken_over(tmp_path, encoder, kind, tied, shards):
    theirs = lm_checkpoints.save_lm(tmp_path / "lm", kind, tied, **shards)
    assert bool(shards) == (tmp_path / "lm/model.safetensors.index.json").is_file()
    ours, lines = taken(encoder, tmp_path / "lm", tokens_per_frame=0.5, normaliser="english")
    config, tokens = ours.config.model.speech_llm, ours.tokens
    for name, tensor in theirs.model.state_dict().items():
        assert torch.equal(ours.model.lm.state_dict()[name], tensor)
    assert (ours.model.lm_head is None) == tied
    assert tied or torch.equal(ours.model.lm_head.weight, theirs.lm_head.weight)
    for name, tensor in load_model(encoder).model.encoder.state_dict().items():
        assert torch.equal(ours.model.encoder.state_dict()[name], tensor)
    assert isinstance(tokens, LLMTokens) and tokens.size == config.vocab_size == lm_checkpoints.VOCAB
    assert config.before == (281, *tokens.encode("turn ")) and config.after == (282, *tokens.encode("the light"))
    assert config.prompt == PROMPT and config.end == 282 and config.suppress == (280, 281, *range(283, 288))
    assert config.tokens_per_frame == 0.5 and ours.config.untrained and not ours.config.finetuned
    assert ours.config.features == load_model(encoder).config.features and ours.config.normaliser == "english"
    lm_size = theirs.num_parameters()
    output = "output tied to the embedding" if tied else "with its output layer"
    assert f"{lm_size:,} parameters of {tmp_path / 'lm'} ({kind}, float32, {output})" in lines[2]
    encoder_size = sum(p.numel() for p in ours.model.encoder.parameters())
    assert f"{encoder_size:,} parameters of {encoder} (" in lines[1] and "2 others of it left out" in lines[1]
    assert "text ends with <|im_end|>" in lines[4] and len(lines) == 5


def test_precision_of_the_language_model_is_kept_or_chosen(tmp_path, encoder):
    lm_checkpoints.save_lm(tmp_path / "lm", dtype=torch.bfloat16, tied=False)
    for choice, dtype in (("keep", torch.bfloat16), ("fp32", torch.float32), ("bf16", torch.bfloat16)):
        model = taken(encoder, tmp_path / "lm", lm_dtype=choice)[0].model
        assert {p.dtype for part in (model.lm, model.lm_head) for p in part.parameters()} == {dtype}
        assert {p.dtype for part in (model.encoder, model.projector) for p in part.parameters()} == {torch.float32}


def test_only_the_projector_depends_on_the_seed(encoder, lm):
    states = [taken(encoder, lm, seed=seed)[0].model.state_dict() for seed in (3, 3, 4)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    differing = {name.split(".")[0] for name in states[0] if not torch.equal(states[0][name], states[2][name])}
    assert differing == {"projector"}
    model, lines = taken(encoder, lm, projector=ProjectorConfig(hidden=5, ffn=6, stride=3))
    projector = model.model.projector
    assert projector.conv1.weight.shape == (5, 12, 3) and projector.linear2.weight.shape == (16, 6)
    assert lines[3] == f"projector: {sum(p.numel() for p in projector.parameters()):,} parameters, new (seed 0)"


class TestTokens:
    def test_are_converted_where_there_is_no_tokenizer_json(self, encoder, lm):
        expected = taken(encoder, lm)[0].tokens
        content = json.loads((lm / "tokenizer.json").read_text(encoding="utf-8"))
        (lm / "vocab.json").write_text(json.dumps(content["model"]["vocab"]), encoding="utf-8")
        merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in content["model"]["merges"]]
        (lm / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]), encoding="utf-8")
        decoder = {t["id"]: {k: v for k, v in t.items() if k != "id"} for t in content["added_tokens"]}
        settings = {"tokenizer_class": "Qwen2Tokenizer", "added_tokens_decoder": decoder}
        (lm / "tokenizer_config.json").write_text(json.dumps(settings))
        (lm / "tokenizer.json").unlink()
        tokens = taken(encoder, lm)[0].tokens
        assert [tokens.piece(i) for i in range(tokens.size)] == [expected.piece(i) for i in range(expected.size)]
        assert tokens.encode("the light 灯") == expected.encode("the light 灯")

    def test_of_sentencepiece(self, tmp_path, encoder):
        import sentencepiece

        folder = tmp_path / "lm"
        lm_checkpoints.save_lm(folder, "llama")
        (folder / "tokenizer.json").unlink()
        text = tmp_path / "text"
        text.write_text("\n".join(lm_checkpoints.TEXTS), encoding="utf-8")
        sentencepiece.SentencePieceTrainer.train(
            input=str(text), model_prefix=str(tmp_path / "pieces"), vocab_size=288, model_type="bpe",
            byte_fallback=True, minloglevel=2,
        )  # fmt: skip
        (tmp_path / "pieces.model").rename(folder / "tokenizer.model")
        (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer", "add_bos_token": true}')
        edit(folder / "config.json", eos_token_id=2)
        edit(folder / "generation_config.json", eos_token_id=2)
        ours, lines = taken(encoder, folder, prompt="turn <speech> the")
        assert ours.tokens.decode(ours.tokens.encode("the light 灯")) == "the light 灯"
        assert ours.tokens.size == lm_checkpoints.VOCAB and ours.tokens.piece(ours.model.end) == "</s>"
        assert lines[-1].startswith("note: ") and "begin with <s>, this prompt does not" in lines[-1]
        assert "note" not in taken(encoder, folder, prompt="<s>turn <speech> the")[1][-1]

    def test_that_are_none(self, encoder, lm):
        (lm / "tokenizer.json").unlink()
        with pytest.raises(UserError, match="lm has no tokenizer .tokenizer.json, tokenizer.model, or vocab.json and"):
            taken(encoder, lm)
        (lm / "tokenizer.model").write_bytes(b"rubbish")
        with pytest.raises(UserError, match="has no tokenizer.json, and its other tokenizer cannot be read") as caught:
            taken(encoder, lm)
        assert "\n" not in str(caught.value)

    def test_more_than_the_embedding(self, tmp_path, encoder):
        lm_checkpoints.make_lm(vocab=200).save_pretrained(tmp_path / "lm")
        lm_checkpoints.save_tokenizer(tmp_path / "lm")
        with pytest.raises(UserError, match="^.*/lm: its tokenizer has 283 tokens, but its model only 200"):
            taken(encoder, tmp_path / "lm")
        content = json.loads((tmp_path / "lm/tokenizer.json").read_text(encoding="utf-8"))["model"]
        (tmp_path / "lm/tokenizer.json").unlink()
        (tmp_path / "lm/vocab.json").write_text(json.dumps(content["vocab"]), encoding="utf-8")
        merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in content["merges"]]
        (tmp_path / "lm/merges.txt").write_text("\n".join(merges), encoding="utf-8")
        with pytest.raises(UserError, match="^.*/lm: its tokenizer has [0-9]+ tokens, but its model only 200"):
            taken(encoder, tmp_path / "lm")

    def test_of_the_language_model_stay_so_whatever_they_are_called(self, encoder, lm):
        text = (lm / "tokenizer.json").read_text(encoding="utf-8").replace("<|endoftext|>", "<|startoftranscript|>")
        (lm / "tokenizer.json").write_text(text, encoding="utf-8")
        assert type(taken(encoder, lm)[0].tokens) is LLMTokens


class TestPrompt:
    @pytest.mark.parametrize(
        "prompt, message",
        [
            ("write:", "does not say where the speech goes: write <speech> there"),
            ("a <speech> b <speech> c", "has <speech> more than once"),
            ("listen: <speech>", "ends with the speech: put something behind <speech>"),
        ],
    )
    def test_has_one_speech_and_something_behind_it(self, encoder, lm, prompt, message):
        with pytest.raises(UserError, match=message):
            taken(encoder, lm, prompt=prompt)

    def test_may_begin_with_the_speech(self, encoder, lm):
        assert taken(encoder, lm, prompt="<speech>the")[0].config.model.speech_llm.before == ()

    def test_can_be_written_in_the_tokens(self, encoder, lm):
        import tokenizers

        words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0, "the": 1, "light": 2}, "[UNK]"))
        words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
        words.save(str(lm / "tokenizer.json"))
        assert taken(encoder, lm, prompt="the <speech> light")[0].config.model.speech_llm.after == (2,)
        with pytest.raises(UserError, match="the prompt ' radio' cannot be written .*: there is none for 'r'"):
            taken(encoder, lm, prompt="the <speech> radio")

    def test_end_is_that_of_the_language_model_or_chosen(self, encoder, lm):
        assert taken(encoder, lm, end="<|endoftext|>")[0].model.end == 280
        with pytest.raises(UserError, match="has no token </s> to end a text: leave out --end"):
            taken(encoder, lm, end="</s>")
        edit(lm / "generation_config.json", eos_token_id=[281, 282])
        assert taken(encoder, lm)[0].model.end == 281
        for name in ("generation_config.json", "config.json"):
            edit(lm / name, eos_token_id=None)
        assert taken(encoder, lm)[0].model.end == 282  # <|im_end|>
        (lm / "tokenizer.json").write_text((lm / "tokenizer.json").read_text().replace("im_end", "im_stop"))
        with pytest.raises(UserError, match="names no token that ends a text .eos_token_id.: give --end"):
            taken(encoder, lm, prompt="turn <speech> the")


@pytest.mark.parametrize(
    "edit_state, message",
    [
        (lambda s: s.pop("model.norm.weight"), "lm does not fit its configuration: it lacks norm.weight"),
        (lambda s: s.update({"model.more.weight": torch.ones(2)}), "it has an unexpected more.weight"),
        (
            lambda s: s.update({"model.embed_tokens.weight": s["model.embed_tokens.weight"][:-1]}),
            r"embed_tokens.weight is \(287, 16\), expected \(288",
        ),
        (
            lambda s: s.update({"lm_head.weight": s["model.embed_tokens.weight"] + 1}),
            "lm_head.weight differs from model.embed_tokens.weight",
        ),
        (lambda s: s.update({"model.norm.weight": torch.ones(16, dtype=torch.int8)}), "quantised checkpoints are not"),
        (
            lambda s: s.update({"model.norm.weight": torch.ones(16).to(torch.float8_e4m3fn)}),
            "float8_e4m3fn; quantised checkpoints are not",
        ),
    ],
)
def test_other_weights_are_refused(encoder, lm, edit_state, message):
    change(lm, edit_state)
    with pytest.raises(UserError, match=message) as caught:
        taken(encoder, lm)
    assert "\n" not in str(caught.value) and not (lm.parent / "ours").exists()


def test_an_output_layer_of_its_own_is_needed_where_it_is_not_tied(tmp_path, encoder):
    lm_checkpoints.save_lm(tmp_path / "lm", tied=False)
    change(tmp_path / "lm", lambda state: state.pop("lm_head.weight"))
    with pytest.raises(UserError, match="lm does not fit its configuration: it lacks weight"):
        taken(encoder, tmp_path / "lm")


def test_what_old_checkpoints_store_beside_the_weights_goes(encoder, lm):
    expected = taken(encoder, lm)[0].model.state_dict()
    change(lm, lambda s: s.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2)}))
    change(lm, lambda s: s.update({"lm_head.weight": s["model.embed_tokens.weight"].clone()}))
    state = taken(encoder, lm)[0].model.state_dict()
    assert state.keys() == expected.keys() and all(torch.equal(state[name], expected[name]) for name in state)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model_type": "bert"}, "lm is no language model that can be taken over: its model_type is bert, known are"),
        ({"quantization_config": {"bits": 4}}, "lm is quantised: take the checkpoint that it was made from"),
        ({"vocab_size": None}, "config.json lacks vocab_size"),
        ({"hidden_act": "none"}, "transformers cannot make this language model"),
    ],
)
def test_other_models_are_refused(encoder, lm, changes, message):
    edit(lm / "config.json", **changes)
    with pytest.raises(UserError, match=message) as caught:
        taken(encoder, lm)
    assert "\n" not in str(caught.value)


def test_pickled_weights_and_folders_without_settings_are_refused(tmp_path, encoder, lm):
    (lm / "model.safetensors").unlink()
    (lm / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match="pytorch_model.bin is not read, since loading pickled weights can run code"):
        taken(encoder, lm)
    (lm / "config.json").unlink()
    with pytest.raises(UserError, match="lm is not a checkpoint of transformers: it has no config.json"):
        taken(encoder, lm)
    with pytest.raises(UserError, match="there is no folder .*/none, and it is no name on the Hugging Face hub"):
        taken(encoder, tmp_path / "none")


@pytest.mark.parametrize("wanted", ["encoder", "lm"])
def test_a_hub_name_without_a_network_is_one_line(tmp_path, encoder, lm, wanted):
    pytest.importorskip("huggingface_hub")
    sources = {"encoder": str(encoder), "lm": str(lm), wanted: "some/model"}
    command = [sys.executable, "-m", "moe_asr.bin.import_speech_llm", "--prompt", PROMPT, "--out_dir", "nowhere"]
    command += [word for name, source in sources.items() for word in (f"--{name}", source)]
    offline = {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "PYTHONPATH": ":".join(sys.path)}
    run = subprocess.run(command, capture_output=True, text=True, env=offline)
    assert run.returncode == 1 and run.stderr.count("\n") == 1
    assert run.stderr.startswith("error: cannot fetch some/model from the Hugging Face hub")
