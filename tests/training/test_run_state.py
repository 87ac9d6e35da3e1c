import pytest

from moe_asr.errors import UserError
from moe_asr.training.run_state import check_unchanged


def test_changed_settings_are_named():
    old = {"train": {"lr": 1.0, "max_epochs": 3, "optim": {"betas": [0.9, 0.98]}}, "data": {"seed": 1}}
    check_unchanged(old, {**old, "train": {**old["train"], "max_epochs": 9}}, {"train.max_epochs"})
    for new, says in [
        ({**old, "data": {"seed": 2}}, "data.seed = 1 and cannot go on with 2"),
        ({**old, "train": {**old["train"], "max_epochs": 9}}, "train.max_epochs = 3 and cannot"),
        ({**old, "train": {**old["train"], "optim": {"betas": [0.9, 0.99]}}}, "train.optim.betas = "),
        ({**old, "data": {"seed": 1, "speed": 2}}, "data.speed = unset and cannot go on with 2"),
        ({"train": old["train"]}, "data = "),
    ]:
        with pytest.raises(UserError, match=says):
            check_unchanged(old, new, set())
