"""What is told of all the speech in a command: its language and accent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from moe_asr.data.languages import find_language
from moe_asr.errors import UserError
from moe_asr.methods.adaptation import AdaptedRecogniser
from moe_asr.models.interface import Recogniser


@dataclass(frozen=True)
class Told:
    """Labels of every utterance, empty where nothing is known.

    Args:
        domain: whether experts are to go by the label
    """

    language: str = ""
    accent: str = ""
    domain: bool = False


def check_told(
    language: Optional[str],
    accent: Optional[str],
    recogniser: Recogniser,
    adapted: Optional[AdaptedRecogniser],
    folder: Optional[str],
) -> Told:
    """Fits what is told to what model and experts ask for.

    Args:
        folder: of the experts

    Raises:
        UserError: they do not ask for it, do not know it, or need it and are not told
    """
    source = adapted.domain_source() if adapted else None
    key = adapted.config.domain_key if source else None
    domains = adapted.config.domains if source else ()
    codes = getattr(recogniser, "languages", {})
    if accent is not None and key != "accent":
        raise UserError("accent is for an adaptation whose routers see the accent: leave it out")
    if accent is not None and accent not in domains:
        raise UserError(f"accent {accent} is none that {folder} knows, which are {', '.join(domains)}")
    if language is not None and not codes and key != "language":
        raise UserError("language is for models that know several: leave it out")
    if language is not None and codes and find_language(codes, language) is None:
        raise UserError(f"language {language} is none that the model knows, which are {', '.join(codes)}")
    if language is not None and key == "language":
        found = find_language(domains, language)
        if found is None:
            raise UserError(f"language {language} is none that {folder} knows, which are {', '.join(domains)}")
        language = found
    if language is None and codes:
        raise UserError(f"this model must be told the language: give --language, one of {', '.join(codes)}")
    told = {"accent": accent, "language": language}.get(key) is not None
    if source == "label" and not told:
        options = f"give --{key}, one of {', '.join(domains)}"
        advice = "this command cannot tell it" if key == "speaker" else options
        raise UserError(f"{folder} must be told the {key} of what it hears: {advice}")
    return Told(language or "", accent or "", told)
