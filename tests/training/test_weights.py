import pytest
import torch
from toy import Toy, batches

from moe_asr.errors import UserError
from moe_asr.training.weights import ChangingWeights


def test_trainable_parameters_and_changed_buffers_only():
    model = Toy()
    model.hidden.requires_grad_(False)
    weights = ChangingWeights(model)
    trained = {"norm.weight", "norm.bias", "out.weight", "out.bias"}
    assert set(weights.tensors()) == trained
    model(batches(0)[0], torch.Generator())  # counts in the buffer `seen`
    assert set(weights.tensors()) == trained | {"seen"}
    model.constant = torch.zeros(3)  # replaced instead of changed in place
    assert set(weights.tensors()) == trained | {"seen", "constant"}


def test_load_is_exact():
    model, other = Toy(), Toy()
    weights, others = ChangingWeights(model), ChangingWeights(other)
    torch.nn.init.normal_(model.out.weight)
    model.seen += 5
    tensors = {name: t.clone() for name, t in weights.tensors().items()}
    others.load(tensors, "here")
    assert torch.equal(other.out.weight, model.out.weight) and other.seen == 5
    assert other.out.weight.requires_grad and "seen" in others.tensors()

    for change, says in [
        ({"out.weight": None}, "here lacks the weights of out.weight"),
        ({"more": torch.ones(1)}, "here holds more, which is not trained here"),
        ({"out.weight": torch.ones(1, 9)}, r"out.weight as \(1, 9\), the model has \(1, 8\)"),
    ]:
        bad = {n: t for n, t in {**tensors, **change}.items() if t is not None}
        before = other.out.bias.clone()
        bad["out.bias"] = tensors["out.bias"] + 1
        with pytest.raises(UserError, match=says):
            others.load(bad, "here")
        assert torch.equal(other.out.bias, before)
