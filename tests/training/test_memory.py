import pytest
import torch
from toy import Toy, ToyBatch, batches

from moe_asr.training.memory import out_of_memory
from moe_asr.training.optimizer import OptimConfig, build_optimizer
from moe_asr.training.update import Updater


class Divisible(ToyBatch):
    def part(self, chosen):
        return Divisible(self.ids[chosen], self.x_NI[chosen], self.y_N[chosen])


def updates(room: int):
    """An update of three batches of 3, 1 and 4 where more than `room` utterances do not fit; and the weights after."""
    model = Toy(dtype=torch.float64)
    seen = []

    def forward(batch, generator):
        loss = model(batch, generator)
        seen.append(len(batch.ids))
        if len(batch.ids) > room:
            loss.total.backward()  # gradients are there already when it happens
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return loss

    updater = Updater(forward, build_optimizer(model, OptimConfig()), torch.device("cpu"))
    given = [Divisible(b.ids, b.x_NI, b.y_N) for b in batches(0, dtype=torch.float64)[:3]]
    return updater(given, 0, 0, lr=0.1), list(model.parameters()), seen


@pytest.mark.parametrize("room", [3, 2, 1])
def test_parts_are_the_whole(room):
    (whole, weights, _), (parts, same_weights, _) = updates(9), updates(room)
    assert parts.made and parts.sums.count == 8 and parts.sums.loss == pytest.approx(whole.sums.loss, rel=1e-14)
    assert parts.grad_norm == pytest.approx(whole.grad_norm, rel=1e-13)
    for a, b in zip(weights, same_weights, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)
    assert whole.troubles == () and {t["reason"] for t in parts.troubles} == {"out of memory: computed in two parts"}
    assert [len(t["ids"]) for t in parts.troubles] == {3: [4], 2: [3, 4], 1: [3, 2, 4, 2, 2]}[room]


def test_a_batch_that_cannot_be_divided_is_left_out():
    model = Toy()

    def forward(batch, generator):
        if len(batch.ids) == 4:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
        return model(batch, generator)

    update = Updater(forward, build_optimizer(model, OptimConfig()), torch.device("cpu"))(batches(0)[:3], 0, 0, lr=0.1)
    assert update.made and update.sums.count == 4
    assert update.troubles == ({"reason": "out of memory: left out", "ids": batches(0)[2].ids},)


def test_evaluation_in_parts():
    model = Toy(dtype=torch.float64).eval()

    def forward(batch, generator):
        if len(batch.ids) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return model(batch, generator)

    batch = batches(0, dtype=torch.float64)[2]
    make = [Updater(f, build_optimizer(model, OptimConfig()), torch.device("cpu")) for f in (model, forward)]
    whole, parts = (updater.evaluate(Divisible(batch.ids, batch.x_NI, batch.y_N)) for updater in make)
    assert (parts.total, parts.count) == (pytest.approx(whole.total, rel=1e-14), 4)
    assert parts.parts == pytest.approx(whole.parts, rel=1e-14)


def test_what_is_out_of_memory():
    assert out_of_memory(MemoryError()) and out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert not out_of_memory(RuntimeError("shapes do not fit")) and not out_of_memory(KeyError("memory"))
