import pytest
import torch
from safetensors.torch import load, save
from toy import Toy, batches

from moe_asr.errors import UserError
from moe_asr.training.optimizer import (
    GroupConfig,
    OptimConfig,
    build_optimizer,
    check_trainable,
    describe_parameters,
    load_optimizer_tensors,
    optimizer_tensors,
    set_learning_rate,
    trainable_parameters,
    turns,
)


def test_groups_take_each_parameter_once():
    model = Toy()
    model.out.bias.requires_grad_(False)
    groups = (GroupConfig(r"^hidden\.", lr_factor=0.1, weight_decay=0.5), GroupConfig("hidden|norm", lr_factor=3.0))
    optimizer = build_optimizer(model, OptimConfig(lr=1.0, weight_decay=0.2, groups=groups))
    set_learning_rate(optimizer, 2.0)
    found = {n: (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for n in g["names"]}
    assert found == {
        "hidden.weight": (0.2, 0.5),
        "hidden.bias": (0.2, 0.0),
        "norm.weight": (6.0, 0.0),
        "norm.bias": (6.0, 0.0),
        "out.weight": (2.0, 0.2),
    }
    assert sum(len(g["params"]) for g in optimizer.param_groups) == 5
    for group in optimizer.param_groups:
        assert [id(p) for p in group["params"]] == [id(model.get_parameter(n)) for n in group["names"]]


def test_vectors_decay_only_if_asked():
    optimizer = build_optimizer(Toy(), OptimConfig(weight_decay=0.2, decay_vectors=True))
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.2]


@pytest.mark.parametrize(("pattern", "says"), [("encoder", "takes no trainable"), ("(", "no regular expression")])
def test_bad_pattern(pattern, says):
    with pytest.raises(UserError, match=says):
        build_optimizer(Toy(), OptimConfig(groups=(GroupConfig(pattern),)))


def alternating(*patterns):
    return OptimConfig(alternate=True, groups=tuple(GroupConfig(pattern) for pattern in patterns))


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (("norm", "hidden"), [{"norm"}, {"hidden"}, {"out"}]),  # the rest comes last
        (("out", "hidden|norm"), [{"out"}, {"hidden", "norm"}]),  # there is no rest
        (("out", "."), [{"out"}, {"hidden", "norm"}]),
    ],
)
def test_turns_are_in_the_order_of_the_groups(patterns, expected):
    optimizer = build_optimizer(Toy(), alternating(*patterns))
    found = [{} for _ in range(turns(optimizer))]
    for group in optimizer.param_groups:
        for name in group["names"]:
            found[group["turn"]].setdefault(name.split(".")[0], []).append(name)
    assert [set(layers) for layers in found] == expected
    assert all(len(names) == 2 for layers in found for names in layers.values())  # decayed and undecayed together


@pytest.mark.parametrize("patterns", [(), (".",)])
def test_one_group_cannot_take_turns(patterns):
    with pytest.raises(UserError, match="optim.alternate: .* all in one group"):
        build_optimizer(Toy(), alternating(*patterns))


def test_clip_of_zero_is_refused():
    with pytest.raises(UserError, match="clip_grad_norm"):
        OptimConfig(clip_grad_norm=0)


def test_declared_set():
    model = Toy()
    names = [name for name, _ in model.named_parameters()]
    check_trainable(model, names)
    model.out.bias.requires_grad_(False)
    with pytest.raises(UserError, match="declared but frozen or missing: out.bias$"):
        check_trainable(model, names)
    with pytest.raises(
        UserError, match="trainable but not declared: hidden.bias, hidden.weight, norm.bias, norm.weight"
    ):
        check_trainable(model, ["out.weight"])
    with pytest.raises(UserError, match="no parameter is declared"):
        check_trainable(model, [])


def test_table_counts():
    model = Toy()
    model.hidden.requires_grad_(False)
    optimizer = build_optimizer(model, OptimConfig(groups=(GroupConfig("out"),)))
    lines = describe_parameters(model, optimizer)
    # trainable: norm 16 (no decay), out 8 + 1; the whole model also has hidden 4 * 8 + 8
    assert [line.split()[:4] for line in lines] == [
        ["default", "2", "tensors", "16"],
        ["out", "1", "tensors", "8"],
        ["out", "1", "tensors", "1"],
        ["trainable", "4", "tensors", "25"],
    ]
    assert lines[-1].endswith("38.46 % of 65")


def test_state_goes_through_safetensors():
    """After a round trip the next updates are the same, also where a parameter has had no gradient so far."""

    def update(model, optimizer, number):
        model(batches(number)[0], None).total.backward()
        if number < 2:
            model.hidden.bias.grad = None
        optimizer.step()
        optimizer.zero_grad()

    first, second = Toy(), Toy()
    optimizer = build_optimizer(first, OptimConfig())
    for number in range(2):
        update(first, optimizer, number)
    second.load_state_dict(first.state_dict())
    restored = build_optimizer(second, OptimConfig())
    tensors = optimizer_tensors(optimizer)
    assert set(tensors) == {
        f"{n}|{k}" for n in trainable_parameters(first) for k in ("step", "exp_avg", "exp_avg_sq")
    } - {f"hidden.bias|{k}" for k in ("step", "exp_avg", "exp_avg_sq")}
    load_optimizer_tensors(restored, load(save(tensors)))
    for number in range(2, 4):
        update(first, optimizer, number)
        update(second, restored, number)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_state_of_another_model_is_refused():
    with pytest.raises(UserError, match="not trained here: encoder.weight"):
        load_optimizer_tensors(build_optimizer(Toy(), OptimConfig()), {"encoder.weight|step": torch.tensor(1.0)})
