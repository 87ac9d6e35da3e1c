import pytest

from moe_asr.decoding.search_config import SearchConfig
from moe_asr.errors import UserError


@pytest.mark.parametrize(
    "settings, says",
    [
        ({"beam": 0}, "beam"),
        ({"candidates": -1}, "candidates"),
        ({"kind": "beam", "ctc_weight": 1.0}, "prefix_beam is CTC alone"),
        ({"kind": "beam", "ctc_weight": -0.1}, "ctc_weight"),
        ({"ctc_weight": 0.3}, "not for greedy"),
        ({"lang": "x"}, "not for greedy"),
    ],
)
def test_impossible_settings_are_refused(settings, says):
    with pytest.raises(UserError, match=says):
        SearchConfig(**settings)
