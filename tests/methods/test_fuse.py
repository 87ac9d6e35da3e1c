import dataclasses

import pytest
import torch
from recognisers import DOMAINS, batch, features, fill, recogniser, save_classifier

from moe_asr.bin import adapter as command
from moe_asr.config import run_commands
from moe_asr.errors import UserError
from moe_asr.experts import ExpertSpec, RouterSpec, read_adapter_info
from moe_asr.methods.adapt import adapt, load_adapted, load_stacked
from moe_asr.methods.adaptation import AdaptationConfig
from moe_asr.methods.adapter_config import AverageConfig, FuseConfig
from moe_asr.methods.fuse import average_adaptations, fuse_adaptations

LORA = ExpertSpec(("default",), 1, 2, alpha=4.0, router=RouterSpec(route="given", select="all"))
COMMANDS = {name: command.COMMANDS[name] for name in ("fuse", "average")}


def lora(folder, seed=1, spec=LORA, kind="whisper"):
    fill(adapt(recogniser(kind), AdaptationConfig(spec)), seed).save(folder)
    return str(folder)


def loss(adapted):
    with torch.no_grad():
        return adapted.eval()(*features(batch()), batch()).total


@pytest.mark.parametrize("kind", ["whisper", "speech_llm"])
def test_a_fused_adaptation_is_the_sum(tmp_path, capsys, kind):
    spec = dataclasses.replace(LORA, targets=(r".*(q_proj|linear1|fc1)",))
    folders = [lora(tmp_path / name, seed, spec, kind) for seed, name in enumerate("ab")]
    fuse_adaptations(FuseConfig(str(tmp_path / "sum"), folders, [0.3, 0.8]))
    shown = capsys.readouterr().out
    assert f"{tmp_path}/sum: 0.3 x {tmp_path}/a + 0.8 x {tmp_path}/b\nrank 4, " in shown and "exact" in shown
    summed = load_adapted(recogniser(kind), tmp_path / "sum")
    expected = recogniser(kind)
    for folder, weight in zip(folders, (0.3, 0.8)):
        adapted = load_adapted(recogniser(kind), folder)
        merged = adapted.adapter.merged([weight])
        for name in adapted.adapter.layers:
            delta = merged.get_submodule(name).weight - adapted.adapter.layers[name].base.weight
            expected.get_submodule(name).weight.data += delta
    with torch.no_grad():
        alone = expected(*features(batch()), batch()).total
        base = recogniser(kind)(*features(batch()), batch()).total
    torch.testing.assert_close(loss(summed), alone, rtol=1e-5, atol=0)
    assert abs(float(alone - base)) > 1e-2
    about = read_adapter_info(tmp_path / "sum" / "adapter")["about"]
    assert about["fused"] == dict(zip(folders, (0.3, 0.8))) and about["relative_error"] == 0


def test_experts_of_a_bank_by_number_and_domain(tmp_path):
    classifier = save_classifier(tmp_path / "classifier")
    config = AdaptationConfig(
        dataclasses.replace(LORA, num_experts=2, router=RouterSpec()), base_domain="b", domain_classifier=classifier
    )
    bank = fill(adapt(recogniser(), config))
    bank.save(tmp_path / "bank")
    assert bank.config.domains == DOMAINS
    bank_folder, out = str(tmp_path / "bank"), str(tmp_path / "out")
    for names in ([f"{bank_folder}:c"], [f"{bank_folder}:1"]):
        fuse_adaptations(FuseConfig(out, names))
        one = load_adapted(recogniser(), out)
        assert one.config.domains == () and one.classifier is None and one.adapter.num_experts == 1
        for name, (A, B) in bank.adapter.expert(1).items():
            assert torch.equal(one.adapter.layers[name].A[0], A) and torch.equal(one.adapter.layers[name].B[0], B)
    average_adaptations(AverageConfig(out, [bank_folder], rank=3))
    averaged, merged = load_adapted(recogniser(), out).adapter.merged([1.0]), bank.adapter.merged([0.5, 0.5])
    info = read_adapter_info(f"{out}/adapter")["about"]
    assert 0 < info["relative_error"] < 0.7 and info["fused"] == {f"{bank_folder}:0": 0.5, f"{bank_folder}:1": 0.5}
    for name, layer in bank.adapter.layers.items():
        base, D = layer.base.weight, merged.get_submodule(name).weight - layer.base.weight
        lost = (averaged.get_submodule(name).weight - base - D).norm() / D.norm()
        assert float(lost) == pytest.approx(info["relative_errors"][name], rel=1e-3)
    for wrong in ("b", "2", "x"):
        with pytest.raises(UserError, match=rf"bank has no expert {wrong}; its experts are 0 to 1, or a, c"):
            fuse_adaptations(FuseConfig(out, [f"{bank_folder}:{wrong}"]))


def test_fused_adaptations_stack_and_start_others(tmp_path):
    folders = [lora(tmp_path / name, seed) for seed, name in enumerate("abc")]
    for name, pair in (("ab", folders[:2]), ("bc", folders[1:])):
        average_adaptations(AverageConfig(str(tmp_path / name), pair, rank=2))
    members = {"x": tmp_path / "ab", "y": tmp_path / "bc"}
    stacked = load_stacked(recogniser("whisper"), members, "speaker")
    both = dataclasses.replace(batch(2), speakers=["y", "x"])
    with torch.no_grad():
        together = stacked(*features(both), both).total
    alone = []
    for n, name in enumerate(("bc", "ab")):
        mask = dataclasses.replace(both, token_lengths_N=both.token_lengths_N.clone())
        rows = {k: v[n : n + 1] for k, v in vars(mask).items()}
        one = dataclasses.replace(mask, **rows)
        adapted = load_adapted(recogniser("whisper"), tmp_path / name)
        with torch.no_grad():
            alone.append(adapted(*features(one), one).total)
    torch.testing.assert_close(together, sum(alone), rtol=1e-4, atol=0)
    started = adapt(recogniser("whisper"), AdaptationConfig(LORA, initial_experts=(str(tmp_path / "ab"),)))
    assert any(layer.B.abs().sum() > 0 for layer in started.adapter.layers.values())


def run(*argv):
    with pytest.raises(SystemExit) as stop:
        run_commands(COMMANDS, list(argv))
    return stop.value.code


def test_what_is_wrong_is_said_in_one_line(tmp_path, capsys):
    one = lora(tmp_path / "one")
    other = lora(tmp_path / "other", kind="conformer_ctc")
    out = str(tmp_path / "out")
    for argv, code, message in (
        ([], 2, "give a subcommand: fuse, average"),
        (["fus"], 2, "there is no subcommand 'fus'; did you mean 'fuse'?"),
        (["xyz"], 2, "there is no subcommand 'xyz'; known are fuse, average"),
        (["fuse", one], 2, "required: out_dir"),
        (["fuse", "--out_dir", out], 1, "fuse: no adapters given"),
        (["fuse", one, str(tmp_path / "none"), "--out_dir", out], 1, "no adaptation in"),
        (["fuse", one, "--out_dir", one], 1, "out_dir is one of the adaptations"),
        (["fuse", one, other, "--out_dir", out], 1, "belong to different base models"),
        (["fuse", one, one, "--weights", "[1]", "--out_dir", out], 1, "1 weights for 2 experts"),
        (["average", one, "--rank", "0", "--out_dir", out], 1, "rank must be at least 1"),
        (["average", one, "--weights", "[1]", "--out_dir", out], 2, "weights"),
    ):
        assert run(*argv) == code, argv
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()
