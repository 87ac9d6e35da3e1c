import pytest

from moe_asr.data.prompts import split_prompt
from moe_asr.errors import UserError


def test_a_prompt_has_two_halves():
    assert split_prompt("<|user|><speech>:") == ("<|user|>", ":")
    assert split_prompt("<speech>\n") == ("", "\n")


@pytest.mark.parametrize(
    "prompt, why",
    [("=", "does not say where"), ("", "does not say where"), ("a<speech>", "ends with the speech"),
     ("<speech>=<speech>=", "more than once")],
)  # fmt: skip
def test_there_is_one_place_for_speech_and_something_behind_it(prompt, why):
    with pytest.raises(UserError, match=why):
        split_prompt(prompt)
