"""Experts on models that nobody here wrote, and under what training does to models."""

import json
import subprocess
import sys

import pytest
import torch

from moe_asr.errors import UserError
from moe_asr.experts import ExpertSpec, RouterSpec, attach, export_expert, import_expert, load_adapter, save_adapter

transformers = pytest.importorskip("transformers")
E = 3


def whisper():
    torch.manual_seed(0)
    config = transformers.WhisperConfig(
        vocab_size=50, num_mel_bins=8, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=24, decoder_ffn_dim=24, d_model=16, max_source_positions=20,
        max_target_positions=16, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
        suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    return transformers.WhisperForConditionalGeneration(config).eval()


def causal_lm():
    torch.manual_seed(0)
    config = transformers.Qwen2Config(
        vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64,
    )  # fmt: skip
    return transformers.Qwen2ForCausalLM(config).eval()


def fill(adapter, size=0.1):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.copy_(size * torch.randn(parameter.shape, generator=generator))


def whisper_batch(n=3):
    generator = torch.Generator().manual_seed(2)
    return {
        "input_features": torch.randn(n, 8, 40, generator=generator),
        "labels": torch.randint(3, 50, (n, 6), generator=generator),
    }


WHISPER_SPECS = [
    ExpertSpec((r"model\.encoder\..*(q_proj|k_proj|v_proj|out_proj|fc1|fc2)",), E, 2, stream="encoder"),
    ExpertSpec((r"model\.decoder\..*(q_proj|k_proj|v_proj|out_proj|fc1|fc2)",), E, 2,
               router=RouterSpec(route="given", select="all")),
]  # fmt: skip
LENGTHS = {"encoder": torch.tensor([20, 20, 20])}
DOMAINS = torch.tensor([0, 2, 1])


def test_whisper_trains_and_a_mixed_batch_equals_one_by_one():
    base, model = whisper(), whisper()
    adapter = attach(model, WHISPER_SPECS)
    batch = whisper_batch()
    with adapter.route(DOMAINS, LENGTHS):
        assert torch.equal(model(**batch).logits, base(**batch).logits)
    fill(adapter)
    with adapter.route(DOMAINS, LENGTHS):
        out = model(**batch)
    out.loss.backward()
    adapter.check_trainable()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in adapter.parameters())
    for n in range(3):
        one = {name: tensor[n : n + 1] for name, tensor in batch.items()}
        with adapter.route(DOMAINS[n : n + 1], {"encoder": LENGTHS["encoder"][n : n + 1]}):
            torch.testing.assert_close(model(**one).logits[0], out.logits[n], rtol=1e-4, atol=1e-5)


def test_generate_leaves_mode_and_trainable_set_alone():
    model = whisper()
    adapter = attach(
        model, ExpertSpec((r"model\..*(q_proj|v_proj)",), E, 2, router=RouterSpec(route="given", select="all"))
    )
    fill(adapter, 0.5)
    model.train()
    features = whisper_batch()["input_features"]
    modes = [m.training for m in model.modules()]
    with adapter.route(DOMAINS):
        together = model.eval().generate(input_features=features, max_new_tokens=8, do_sample=False)
    model.train()
    assert [m.training for m in model.modules()] == modes
    adapter.check_trainable()
    model.eval()
    for n in range(3):
        with adapter.route(DOMAINS[n : n + 1]):
            alone = model.generate(input_features=features[n : n + 1], max_new_tokens=8, do_sample=False)
        length = min(alone.shape[1], together.shape[1])
        assert torch.equal(alone[0, :length], together[n, :length])


@pytest.mark.parametrize("context_fn", [True, False])
def test_gradient_checkpointing_gives_the_same_gradients(context_fn):
    def gradients(checkpointing):
        model = causal_lm()
        adapter = attach(model, ExpertSpec(("q_proj", "up_proj", "down_proj"), E, 2, dropout=0.0))
        fill(adapter)
        model.train()
        if checkpointing:
            kwargs = {"use_reentrant": False}
            if context_fn:
                kwargs["context_fn"] = adapter.checkpoint_context_fn
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=kwargs)
        ids = torch.randint(0, 50, (3, 9), generator=torch.Generator().manual_seed(0))
        with adapter.route(DOMAINS, torch.tensor([9, 9, 9])):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()  # outside of route, where the recomputation must still find its routing
        return {name: p.grad for name, p in adapter.named_parameters().items()}

    if not context_fn:
        with pytest.raises(UserError, match="adapter.route"):
            gradients(True)
        return
    plain, checkpointed = gradients(False), gradients(True)
    for name in plain:
        torch.testing.assert_close(checkpointed[name], plain[name], rtol=1e-5, atol=1e-7)


def test_save_load_on_a_causal_lm(tmp_path):
    model = causal_lm()
    adapter = attach(model, ExpertSpec(("q_proj", "down_proj"), E, 2))
    fill(adapter)
    save_adapter(adapter, tmp_path / "a")
    again = causal_lm()
    loaded = load_adapter(again, tmp_path / "a")
    ids = torch.randint(0, 50, (3, 9))
    with adapter.route(DOMAINS, torch.tensor([9, 9, 9])), loaded.route(DOMAINS, torch.tensor([9, 9, 9])):
        assert torch.equal(model(input_ids=ids).logits, again(input_ids=ids).logits)


def test_tied_output_embedding_is_not_touched():
    model = whisper()
    embedding = model.model.decoder.embed_tokens.weight
    before = embedding.clone()
    adapter = attach(model, ExpertSpec(("proj_out",), E, 2, router=RouterSpec(route="given", select="all")))
    fill(adapter)
    with adapter.route(DOMAINS):
        model(**whisper_batch()).loss.backward()
    assert embedding.grad is None and torch.equal(embedding, before) and model.proj_out.weight is embedding


def test_export_loads_in_peft_and_comes_back(tmp_path):
    peft = pytest.importorskip("peft")
    model = causal_lm()
    adapter = attach(model, [ExpertSpec(("q_proj", "down_proj"), E, 2, alpha=6.0),
                             ExpertSpec(("o_proj",), E, 3, alpha=5.0)])  # fmt: skip
    fill(adapter)
    ids = torch.randint(0, 50, (2, 9))
    for expert in range(E):
        export_expert(adapter, expert, tmp_path / str(expert))
        theirs = peft.PeftModel.from_pretrained(causal_lm(), tmp_path / str(expert)).eval()
        one_hot = torch.nn.functional.one_hot(torch.tensor(expert), E)
        expected = adapter.merged(one_hot.tolist())(input_ids=ids).logits
        torch.testing.assert_close(theirs(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match="patterns"):
        import_expert(adapter, 0, tmp_path / "1")


def test_import_of_a_lora_that_peft_trained(tmp_path):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, lora_alpha=3, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    theirs = peft.get_peft_model(causal_lm(), config).eval()
    theirs.save_pretrained(tmp_path / "lora")
    model = causal_lm()
    given = RouterSpec(route="given", select="all")
    adapter = attach(
        model, ExpertSpec(("q_proj", "down_proj"), E, 4, alpha=16.0, router=given)
    )  # larger rank, other scale
    import_expert(adapter, 1, tmp_path / "lora")
    ids = torch.randint(0, 50, (2, 9))
    with adapter.route(torch.tensor([1, 1])):
        torch.testing.assert_close(model(input_ids=ids).logits, theirs(input_ids=ids).logits, rtol=1e-4, atol=1e-5)
    small = attach(causal_lm(), ExpertSpec(("q_proj", "down_proj"), E, 1))
    other = attach(causal_lm(), ExpertSpec(("q_proj",), E, 4))
    for bad, says in ((small, "rank 2 does not fit"), (other, "no experts on")):
        with pytest.raises(UserError, match=says):
            import_expert(bad, 0, tmp_path / "lora")
    settings = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    (tmp_path / "lora" / "adapter_config.json").write_text(json.dumps({**settings, "use_dora": True}))
    with pytest.raises(UserError, match="use_dora"):
        import_expert(adapter, 0, tmp_path / "lora")
    with pytest.raises(UserError, match="adapter_config.json is missing"):
        import_expert(adapter, 0, tmp_path)


def test_autocast_follows_float32():
    model = causal_lm()
    adapter = attach(model, ExpertSpec(("q_proj", "down_proj"), E, 2))
    fill(adapter)
    ids = torch.randint(0, 50, (3, 9))
    route = lambda: adapter.route(DOMAINS, torch.tensor([9, 9, 9]))  # noqa: E731
    with route():
        expected = model(input_ids=ids).logits
        with torch.autocast("cpu", torch.bfloat16):
            out = model(input_ids=ids, labels=ids)
    out.loss.backward()
    assert ((out.logits.float() - expected).norm() / expected.norm()) < 2e-2
    assert all(p.grad.dtype == torch.float32 and torch.isfinite(p.grad).all() for p in adapter.parameters())


DDP = """
import sys, torch, torch.distributed as dist
sys.path[:0] = [{folder!r}]
from models import SPECS, Tower, fill
from moe_asr.experts import attach
dist.init_process_group("gloo", init_method="file://{init}", rank=int(sys.argv[1]), world_size=2)
model = Tower()
adapter = attach(model, SPECS["hdmole"])
fill(adapter)
ddp = torch.nn.parallel.DistributedDataParallel(model)
x = torch.randn(4, 7, 12, generator=torch.Generator().manual_seed(0))
domains, lengths = torch.tensor([0, 1, 2, 1]), torch.tensor([7, 3, 5, 7])
def gradients(run, cut):
    adapter.model.zero_grad()
    with adapter.route(domains[cut], lengths[cut]):
        run(x[cut]).sin().mean().backward()
    return [p.grad.clone() for p in adapter.parameters()]
whole = gradients(model, slice(0, 4))
rank = dist.get_rank()
half = gradients(ddp, slice(2 * rank, 2 * rank + 2))
for a, b in zip(whole, half):
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
adapter.check_trainable()
dist.destroy_process_group()
"""


def test_data_parallel_gradients_equal_one_process(tmp_path):
    from pathlib import Path

    code = DDP.format(folder=str(Path(__file__).parent), init=tmp_path / "init")
    ranks = [subprocess.Popen([sys.executable, "-c", code, str(rank)], stderr=subprocess.PIPE) for rank in range(2)]
    for rank in ranks:
        _, err = rank.communicate(timeout=120)
        assert rank.returncode == 0, err.decode()
