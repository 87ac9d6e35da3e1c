import dataclasses

import pytest
import torch
from models import Tower, fill

from moe_asr.errors import UserError
from moe_asr.experts import (
    ExpertSpec,
    RouterSpec,
    attach,
    load_adapter,
    read_adapter_info,
    read_adapter_tensors,
    save_adapter,
)
from moe_asr.experts.adapter_files import write_adapter
from moe_asr.experts.fuse import fuse, read_loras

ALONE = RouterSpec(route="given", select="all")
SPECS = (
    ExpertSpec(("q_proj", "up"), 1, 2, alpha=6.0, dropout=0.1, router=ALONE),
    ExpertSpec((r"layers\.\d\.down",), 1, 3, alpha=3.0, router=ALONE, stream="decoder"),
)
WEIGHTS = (0.7, 0.5, -0.2)


def saved(folder, seed, specs=SPECS, model=None):
    adapter = attach(model or Tower().double(), specs)
    fill(adapter, seed)
    save_adapter(adapter, folder)
    return folder


def loras(*folders):
    return [
        lora for folder in folders for lora in read_loras(str(folder), read_adapter_info(folder),
                                                          read_adapter_tensors(folder))
    ]  # fmt: skip


@pytest.fixture
def three(tmp_path):
    """LoRAs of different rank, scale and grouping on the same layers."""
    other = (
        ExpertSpec(("q_proj", "down"), 1, 4, alpha=2.0, router=ALONE),
        ExpertSpec(("up",), 1, 1, alpha=5.0, mixing="factor", router=ALONE),
    )
    return loras(*(saved(tmp_path / str(n), n, specs) for n, specs in enumerate((SPECS, other, SPECS))))


def delta(specs_of, layers):
    """s B^T A of each layer, (O, I)."""
    return {n: specs_of(n).scale * (B.double().T @ A.double()) for n, (A, B) in layers.items()}


def summed(three, weights=WEIGHTS):
    parts = [delta(lora.spec_of, lora.layers) for lora in three]
    return {n: sum(w * part[n] for w, part in zip(weights, parts)) for n in parts[0]}


def of(fused):
    lora = read_loras("", {"specs": [dataclasses.asdict(s) for s in fused.specs], "base": ""}, fused.state)[0]
    return delta(lora.spec_of, lora.layers)


def test_the_exact_sum_is_the_weighted_sum_of_all(three):
    fused, expected = fuse(three, WEIGHTS), summed(three)
    found = of(fused)
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-12, atol=1e-14)
    assert [spec.rank for spec in fused.specs] == [2 + 4 + 2, 3 + 4 + 3]
    assert [spec.scale for spec in fused.specs] == [spec.scale for spec in SPECS]
    assert [spec.stream for spec in fused.specs] == ["default", "decoder"]
    assert fused.error == 0 and set(fused.errors.values()) == {0}


@pytest.mark.parametrize("rank", [1, 3, 7])
def test_a_truncated_sum_is_the_best_of_its_rank_and_its_error_is_told(three, rank):
    fused, whole = fuse(three, WEIGHTS, rank), summed(three)
    found, lost, total = of(fused), 0.0, 0.0
    for name, D in whole.items():
        U, S, Vh = torch.linalg.svd(D)
        best = U[:, :rank] * S[:rank] @ Vh[:rank]
        torch.testing.assert_close(found[name], best, rtol=1e-9, atol=1e-12)
        assert fused.errors[name] == pytest.approx(float((D - best).norm() / D.norm()), rel=1e-6, abs=1e-12)
        lost, total = lost + float((D - best).square().sum()), total + float(D.square().sum())
    assert fused.error == pytest.approx((lost / total) ** 0.5, rel=1e-9)
    assert all(spec.rank == rank for spec in fused.specs)
    for name in whole:  # singular values are shared evenly
        A, B = fused.state[f"{name}.A"][0], fused.state[f"{name}.B"][0]
        torch.testing.assert_close(A @ A.T, B @ B.T, rtol=1e-9, atol=1e-12)


def test_a_rank_above_that_of_the_sum_loses_nothing(three):
    fused, whole = fuse(three, WEIGHTS, 30), summed(three)
    for name, D in of(fused).items():
        torch.testing.assert_close(D, whole[name], rtol=1e-9, atol=1e-12)
    assert fused.error < 1e-12 and fused.specs[0].rank == 30


def test_fused_experts_that_do_nothing_stay_so(tmp_path):
    model = Tower()
    save_adapter(attach(model, SPECS), tmp_path / "fresh")
    fused = fuse(loras(tmp_path / "fresh", tmp_path / "fresh"), (0.5, 0.5), 2)
    assert fused.error == 0 and all(torch.isfinite(tensor).all() for tensor in fused.state.values())
    assert all(D.abs().max() == 0 for D in of(fused).values())


def test_the_result_loads_and_gives_the_outputs_of_the_sum(three, tmp_path):
    fused = fuse(three, WEIGHTS)
    write_adapter(tmp_path / "fused", fused.specs, fused.state, three[0].base)
    model, plain = Tower().double().eval(), Tower().double().eval()
    adapter = load_adapter(model, tmp_path / "fused")
    for name, D in summed(three).items():
        plain.get_submodule(name).weight.data += D
    x = torch.randn(2, 5, 12, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    with adapter.route(domains=torch.ones(2, 1).double()):
        torch.testing.assert_close(model(x), plain(x), rtol=1e-10, atol=1e-12)


def test_experts_of_one_bank(tmp_path):
    """Under fixed weights they give what a merge of the bank gives."""
    bank = dataclasses.replace(SPECS[0], num_experts=3, router=RouterSpec())
    model = Tower().double()
    adapter = attach(model, bank)
    fill(adapter, 5)
    save_adapter(adapter, tmp_path / "bank")
    experts = loras(tmp_path / "bank")
    assert [lora.name.rpartition(":")[2] for lora in experts] == ["0", "1", "2"]
    merged, base = adapter.merged(WEIGHTS), Tower().double()
    for name, D in of(fuse(experts, WEIGHTS)).items():
        expected = merged.get_submodule(name).weight - base.get_submodule(name).weight
        torch.testing.assert_close(D, expected, rtol=1e-6, atol=1e-7)  # the weights of a merge are float32


def test_what_does_not_fit_is_named(three, tmp_path):
    with pytest.raises(UserError, match="no adapters"):
        fuse([], [])
    with pytest.raises(UserError, match="2 weights for 3 experts"):
        fuse(three, WEIGHTS[:2])
    with pytest.raises(UserError, match="finite"):
        fuse(three, (0.5, float("nan"), 0.5))
    with pytest.raises(UserError, match="rank must be at least 1, not 0"):
        fuse(three, WEIGHTS, 0)
    other = loras(saved(tmp_path / "other", 0, model=Tower(seed=9).double()))
    with pytest.raises(UserError, match="belong to different base models"):
        fuse([three[0], *other], (1, 1))
    fewer = loras(saved(tmp_path / "fewer", 0, SPECS[:1]))
    with pytest.raises(UserError, match=r"0 has an expert on layers.0.down, .*fewer has none"):
        fuse([three[0], *fewer], (1, 1))
    wide = loras(saved(tmp_path / "wide", 0, model=Tower(inner=24).double()))
    wide = [dataclasses.replace(lora, base=three[0].base) for lora in wide]
    with pytest.raises(UserError, match=r"layers.0.down goes from 20 to 12 in .*0, from 24 to 12 in .*wide"):
        fuse([three[0], *wide], (1, 1))
