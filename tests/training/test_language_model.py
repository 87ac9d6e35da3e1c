"""A language model from scratch: the loss by hand, an ordinary folder, and an interrupted run like a whole one."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from moe_asr.config import parse_config
from moe_asr.data.text_batches import Pair, TextDataConfig, TextLoader
from moe_asr.data.unit_noise import NoiseConfig
from moe_asr.data.unit_tokens import build_tokenizer
from moe_asr.errors import UserError
from moe_asr.models.language_model import LanguageModel, LanguageModelConfig
from moe_asr.models.lm_checkpoint import read_lm
from moe_asr.training.config import TrainConfig
from moe_asr.training.language_model import LanguageModelRunConfig, begin_like_units, train_language_model
from moe_asr.training.optimizer import OptimConfig
from moe_asr.training.schedule import ScheduleConfig

SIZE = LanguageModelConfig(width=16, layers=2, heads=4, kv_heads=2, ffn=32, max_positions=64)


@pytest.fixture
def config(tmp_path):
    words = ["ab", "ba", "aab", "c", "abc", "cba", "bb", "ac"]
    path = tmp_path / "pairs.jsonl"
    lines = [{"source": " ".join(f"[{c}]" for c in word), "target": word} for word in words]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = TextDataConfig(files=[str(path)], max_tokens=40, noise=NoiseConfig(substitute=0.1, repeat=2, blank=0.2))
    valid = TextDataConfig(files=[str(path)], max_tokens=40, shuffle=False)
    loop = TrainConfig(max_epochs=3, log_every=1, tensorboard=False, optim=OptimConfig(lr=0.01))
    return LanguageModelRunConfig(str(tmp_path / "run"), data, valid, model=SIZE, train=loop)


def weights(config):
    return load_file(f"{config.exp_dir}/final/model.safetensors")


def test_loss_is_the_cross_entropy_of_what_counts():
    torch.manual_seed(0)
    model = LanguageModel(SIZE, 11, 1)
    tokens_NM, next_NM = torch.randint(11, (3, 9)), torch.randint(11, (3, 9))
    next_NM[:, :4] = -1
    next_NM[1, 7:] = -1
    loss = model(tokens_NM, next_NM)
    total, correct, count = 0.0, 0, 0
    for n in range(3):
        for m in range(9):
            if next_NM[n, m] >= 0:
                # each position alone, from what stands before it and nothing behind
                logits_V = model.lm(tokens_NM[n : n + 1, : m + 1]).logits[0, -1].detach()
                total -= float(logits_V.log_softmax(-1)[next_NM[n, m]])
                correct += int(logits_V.argmax() == next_NM[n, m])
                count += 1
    assert loss.total.item() == pytest.approx(total, rel=1e-5)
    assert int(loss.count) == count == 13 and int(loss.parts["accuracy"]) == correct


def test_padding_changes_nothing():
    model = LanguageModel(SIZE, 11, 1)
    tokens_NM, next_NM = torch.randint(11, (2, 6)), torch.randint(11, (2, 6))
    padded, ignored = (torch.nn.functional.pad(x, (0, 5), value=fill) for x, fill in ((tokens_NM, 7), (next_NM, -1)))
    assert torch.allclose(model(tokens_NM, next_NM).total, model(padded, ignored).total, rtol=1e-6)


def test_learns_and_leaves_an_ordinary_folder(config):
    optim = OptimConfig(lr=0.02, schedule=ScheduleConfig(kind="cosine"))
    loop = replace(config.train, max_epochs=80, validate_every=20, optim=optim)
    config = replace(config, train=loop, data=replace(config.data, noise=NoiseConfig(blank=0.2)))
    train_language_model(config)
    lines = [json.loads(line) for line in open(f"{config.exp_dir}/metrics.jsonl", encoding="utf-8")]
    valid = [line["valid"] for line in lines if "valid" in line]
    assert valid[-1]["parts"]["accuracy"] > 0.9 > valid[0]["parts"]["accuracy"]
    assert valid[-1]["perplexity"] == pytest.approx(torch.tensor(valid[-1]["loss"]).exp().item(), rel=1e-5)

    folder = f"{config.exp_dir}/final"
    tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")
    lm = AutoModelForCausalLM.from_pretrained(folder)
    assert lm.generation_config.eos_token_id == lm.config.eos_token_id == tokenizer.token_to_id("<|end|>")
    prompt = torch.tensor([tokenizer.encode("[c][b][a]=").ids])
    written = lm.generate(prompt, max_new_tokens=6, do_sample=False)[0, prompt.shape[1] :]
    assert tokenizer.decode(written.tolist()) == "cba"


def test_the_folder_holds_the_model_that_was_trained(tmp_path):
    torch.manual_seed(0)
    model = LanguageModel(SIZE, 11, 1).eval()
    model.save(tmp_path)
    tokens = torch.randint(11, (2, 7))
    with torch.no_grad():
        assert AutoModelForCausalLM.from_pretrained(tmp_path)(tokens).logits.equal(model.lm(tokens).logits)


def test_the_folder_can_be_imported(config):
    train_language_model(config)
    lm = read_lm(f"{config.exp_dir}/final")
    assert lm.config["max_position_embeddings"] == 64 and lm.tokens.piece(lm.end) == "<|end|>"
    assert lm.output is None and lm.state["embed_tokens.weight"].shape == (lm.tokens.size, 16)


def test_characters_begin_near_their_units():
    pairs = [
        Pair(("[x]", "[y]"), "ab", ""),
        Pair(("[x]", "[z]"), "aa", ""),
        Pair(("[y]", "[y]"), "a", ""),  # not one unit for each
    ]
    tokenizer = build_tokenizer(["abc"], ["[x]", "[y]", "[z]"], "<speech>=")
    torch.manual_seed(0)
    model = LanguageModel(SIZE, tokenizer.get_vocab_size(), 1)
    weight_VW, number = model.lm.get_input_embeddings().weight, tokenizer.token_to_id
    before = weight_VW.detach().clone()
    begin_like_units(model, pairs, tokenizer)
    x, y, z = (before[number(f"[{unit}]")] for unit in "xyz")
    torch.testing.assert_close(weight_VW[number("a")], before[number("a")] / 2 + 2 / 3 * x + 1 / 3 * z)
    torch.testing.assert_close(weight_VW[number("b")], before[number("b")] / 2 + y)
    rest = [i for i in range(len(before)) if i not in (number("a"), number("b"))]
    assert torch.equal(weight_VW[rest], before[rest])
    with pytest.raises(UserError, match="like_units needs pairs with one unit for each character"):
        begin_like_units(model, pairs[2:], tokenizer)


def test_heads_that_begin_as_a_copier_find_the_unit_after_the_two_that_were_written():
    """Even where each of the two comes more than once in the source, and with heads that share keys and values."""
    letters = "abcdefghijklmnopaicmbkdnejfp"
    for kv_heads in (0, 1):
        tokenizer = build_tokenizer([letters], [f"[{c}]" for c in letters], "<speech>=")
        torch.manual_seed(0)
        size = LanguageModelConfig(512, layers=2, heads=4, kv_heads=kv_heads, ffn=32)
        model = LanguageModel(size, tokenizer.get_vocab_size(), 1)
        begin_like_units(model, [Pair(tuple(f"[{c}]" for c in letters), letters, "")], tokenizer)
        first, second = (layer.self_attn for layer in model.lm.model.layers)
        norm = model.lm.model.layers[0].input_layernorm
        size, table = first.head_dim, model.lm.get_input_embeddings().weight
        units_LW, characters_LW = (
            table[[tokenizer.token_to_id(form.format(c)) for c in letters]] for form in ("[{}]", "{}")
        )

        def seen(head, x_LW):  # what a head of the first layer writes of it
            rows = slice(head * size, (head + 1) * size)
            values = slice(0, size) if kv_heads else rows
            return norm(x_LW) @ first.v_proj.weight[values].T @ first.o_proj.weight[:, rows].T

        units_before = units_LW[2:] + seen(0, units_LW[1:-1]) + seen(1, units_LW[:-2])
        written = characters_LW[1:-1] + seen(0, characters_LW[:-2])
        queries_LK = norm(written) @ second.q_proj.weight[:size].T
        scores = queries_LK @ (norm(units_before) @ second.k_proj.weight[:size].T).T
        assert scores.argmax(1).tolist() == list(range(len(letters) - 2))
        passed_LW = units_LW @ second.v_proj.weight[:size].T @ second.o_proj.weight[:, :size].T
        assert [letters[i] for i in (passed_LW @ characters_LW.T).argmax(1)] == list(letters)
        quick = torch.arange(size) % (size // 2) < size // 4
        assert not second.q_proj.weight[:size][quick].any() and not second.k_proj.weight[:size][quick].any()
    with pytest.raises(UserError, match="guidance needs two layers and two heads"):
        LanguageModel(replace(SIZE, layers=1), 40, 1, guidance=0.1)
    with pytest.raises(UserError, match="like_units needs two layers and two heads"):
        begin_like_units(LanguageModel(replace(SIZE, layers=1), 40, 1), [], tokenizer)


def test_guided_heads_are_paid_for_where_they_look(config):
    """The loss by hand; without guidance, and outside training, it is the cross-entropy alone."""
    tokenizer = build_tokenizer(["abc"], ["[x]", "[y]", "[z]"], "<speech>=")
    pairs = [Pair(("[x]", "[y]", "[z]"), "abc", ""), Pair(("[y]", "[x]"), "ba", "")]
    noise = NoiseConfig(blank=0.5, blanks=2, drop=0.2)
    (batch,) = TextLoader(TextDataConfig(max_tokens=60, noise=noise), pairs, tokenizer, "<speech>=", 64)
    torch.manual_seed(0)
    model = LanguageModel(SIZE, tokenizer.get_vocab_size(), 1, guidance=0.3)
    plain = model.eval()(batch.tokens_NM, batch.next_NM, batch.look_NLM).total
    weights = model.lm.model(batch.tokens_NM, output_attentions=True).attentions
    expected = plain.clone()
    for (layer, head), place_NM in zip([(0, 0), (0, 1), (1, 0)], batch.look_NLM.unbind(1)):
        for n in range(2):
            for m in range(place_NM.shape[1]):
                if place_NM[n, m] >= 0:
                    expected -= 0.3 * weights[layer][n, head, m, place_NM[n, m]].log()
    assert expected > plain + 1
    torch.testing.assert_close(model.train()(batch.tokens_NM, batch.next_NM, batch.look_NLM).total, expected)
    without = LanguageModel(SIZE, tokenizer.get_vocab_size(), 1)
    without.load_state_dict(model.state_dict())
    torch.testing.assert_close(without.train()(batch.tokens_NM, batch.next_NM, batch.look_NLM).total, plain)


def test_an_interrupted_run_is_the_whole_run(config, tmp_path):
    config = replace(config, train=replace(config.train, save_every=1))
    train_language_model(config)
    half = replace(config, exp_dir=str(tmp_path / "half"))
    train_language_model(replace(half, train=replace(half.train, max_steps=4)))
    train_language_model(half)
    expected, found = weights(config), weights(half)
    assert expected.keys() == found.keys() and all(expected[name].equal(found[name]) for name in expected)


def test_other_data_is_another_run(config):
    train_language_model(config)
    other = replace(config, data=replace(config.data, seed=1))
    with pytest.raises(UserError, match="started with data.seed = 0"):
        train_language_model(other)
    train_language_model(replace(other, on_change="restart"))
    path = config.data.files[0]
    with open(path, "a", encoding="utf-8") as file:
        file.write('{"source": "[a]", "target": "a"}\n')
    with pytest.raises(UserError, match="started with contents"):
        train_language_model(other)


def test_a_limited_vocabulary(config):
    train_language_model(replace(config, vocab_size=1))
    written = Tokenizer.from_file(f"{config.exp_dir}/final/tokenizer.json").get_vocab()
    assert {token for token in written if len(token) == 1} == {"a", "="}


@pytest.mark.parametrize(
    "option, says",
    [
        ("--prompt=nothing", "does not say where the speech goes"),
        ("--model.width=10", "must be a multiple of twice the heads"),
        ("--model.kv_heads=3", "heads of kv_heads"),
        ("--model.max_positions=7", "more than max_positions of the model, 7"),
        ("--data.files=[]", "no text files"),
    ],
)
def test_what_does_not_fit_is_refused(config, option, says):
    path = config.data.files[0]
    argv = [f"--exp_dir={config.exp_dir}", f"--data.files=[{path}]", f"--valid.files=[{path}]", "--model.heads=4"]
    with pytest.raises(UserError, match=says) as caught:
        train_language_model(parse_config(LanguageModelRunConfig, [*argv, option]))
    assert "\n" not in str(caught.value)
