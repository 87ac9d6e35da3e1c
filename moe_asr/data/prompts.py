"""What a language model reads around speech."""

from __future__ import annotations

from moe_asr.errors import UserError

SPEECH = "<speech>"  # its place in a prompt


def split_prompt(prompt: str) -> tuple[str, str]:
    """What stands before the speech and what behind it, with which the text is announced.

    Raises:
        UserError: there is no place for the speech, more than one, or nothing behind it.
    """
    before, found, after = prompt.partition(SPEECH)
    if not found:
        raise UserError(f"the prompt {prompt!r} does not say where the speech goes: write {SPEECH} there")
    if SPEECH in after:
        raise UserError(f"the prompt {prompt!r} has {SPEECH} more than once: there is one speech in it")
    if not after:
        raise UserError(f"the prompt {prompt!r} ends with the speech: put something behind {SPEECH}")
    return before, after
