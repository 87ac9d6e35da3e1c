"""What recipes for accents run for each system, with a python3 that only writes down what it is to do."""

import shlex

import pytest

OPTIONS = 'nj=1\ndata_dir=data\nexp_dir=exp\nresults=R.md\nsystems="full moe"\ntrain_cmd=\n'
BODY = 'general=north normaliser=none train_cmd=${train_cmd:-}\n. "$MOE_ASR_ROOT/utils/adaptation.sh"'
EXPERTS = "adaptation:\n  experts:\n    num_experts: {}\n    router: {}\n"
HIERARCHICAL, GIVEN = "{route: hierarchical}", "{route: given, select: all}"


@pytest.fixture
def systems(recipe):
    """A recipe whose commands go to `commands`, those of conf/broken.yaml fail."""
    root = recipe.folder.parents[2]
    stub = f'#!/bin/sh\necho "$*" >>{shlex.quote(str(recipe.folder))}/commands\ncase "$*" in *broken*) exit 1 ;; esac\n'
    recipe.write(root / "bin/python3", stub, executable=True)
    recipe.write(root / "tools/setup.sh", f"#!/bin/sh\necho {shlex.quote(str(root / 'bin'))}\n", executable=True)
    recipe.write("cmd.sh", "")
    recipe.write("conf/full.yaml", "# name: full fine-tuning\n")
    recipe.write("conf/moe.yaml", EXPERTS.format(3, HIERARCHICAL))
    recipe.write("conf/lora.yaml", EXPERTS.format(1, GIVEN))
    recipe.write("conf/oracle.yaml", "# of: moe\nglobal_route: label\n")
    recipe.write("conf/started.yaml", "# experts from: lora\n" + EXPERTS.format(3, HIERARCHICAL))
    recipe.write("conf/broken.yaml", "")
    recipe.script(BODY, OPTIONS)
    return recipe


def commands(recipe, module):
    """The command lines of one module, sorted."""
    path = recipe.folder / "commands"
    lines = path.read_text().splitlines() if path.exists() else []
    return sorted(line for line in lines if line.startswith(f"-m moe_asr.bin.{module} "))


def test_only_experts_whose_routers_see_the_accent_get_the_accent_recogniser(systems):
    systems.run("--stage", "4", "--stop-stage", "4", "--systems", "full lora moe")
    full, lora, moe = commands(systems, "train")
    assert "--config conf/full.yaml" in full and "--init exp/base/final" in full
    assert "domain_classifier" not in full + lora and "--adaptation.domain_classifier exp/accent/final" in moe


def test_what_all_systems_have_in_common_comes_before_their_own(systems):
    systems.write("conf/systems.yaml", "")
    systems.run("--stage", "2", "--stop-stage", "4")
    base, full = (next(x for x in commands(systems, "train") if f"exp/{name} " in x) for name in ("base", "full"))
    assert "--config conf/systems.yaml --config conf/full.yaml" in full and "systems.yaml" not in base


def test_a_system_of_another_is_decoded_with_its_options_and_not_trained(systems):
    (systems.folder / "exp/moe/final").mkdir(parents=True)
    systems.write("exp/moe/final/adaptation.yaml", "")
    systems.run("--stage", "4", "--stop-stage", "5", "--systems", "moe oracle")
    assert len(commands(systems, "train")) == 1
    base, moe, oracle = sorted(commands(systems, "decode"), key=lambda line: line[line.index("--out_dir") :])
    assert "--adaptation" not in base and "--config" not in base + moe
    model = "--model exp/base/final --adaptation exp/moe/final"
    assert model in moe and f"--config conf/oracle.yaml {model}" in oracle and "exp/oracle/test" in oracle


def test_with_a_back_end_systems_run_at_once_and_one_that_fails_leaves_the_others_theirs(systems):
    systems.write("cmd.sh", "train_cmd=run.sh\n")
    output = systems.run("--stage", "4", "--stop-stage", "4", "--systems", "broken full moe", code=1)
    assert "stage 4: failed" in output and "train-broken.log" in output
    assert len(commands(systems, "train")) == 3
    assert "Ended (code 0)" in (systems.folder / "exp/log/train-moe.log").read_text()


def test_single_accents_come_in_the_order_of_the_accents(systems):
    lines = "id\taccent\ttext\na\twest\tx\nb\tWu\ty\n"
    systems.write("data/train_accents.tsv", lines)
    systems.write("data/train_general.tsv", "id\ttext\taccent\nc\tx\tnorth\n")
    body = BODY + '\nstage_4() { stage "x"; list_accents; each "" train_single "$(started_from)"; adapt started; }'
    systems.script(body, OPTIONS)
    systems.run("--stage", "4", "--stop-stage", "4", "--systems", "started")
    assert (systems.folder / "data/accents.txt").read_text().split() == ["Wu", "north", "west"]
    (each,) = commands(systems, "train_each")
    assert "--exp_dir exp/lora/{name}" in each and "--data.accent {name}" in each
    (started,) = commands(systems, "train")
    assert '--adaptation.initial_experts ["exp/lora/Wu/final","exp/lora/north/final","exp/lora/west/final"]' in started


@pytest.mark.parametrize(
    "names, says",
    [("full nope", "no system 'nope': there is no conf/nope.yaml"), ("full oracle", "oracle needs the system moe")],
)
def test_a_system_that_cannot_be_is_one_line(systems, names, says):
    output = systems.run("--systems", names, code=2)
    assert says in output and output.count("\n") == 1
