"""What is told of all the speech in a command, its language and accent, and what is found out instead."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from moe_asr.data.languages import find_language
from moe_asr.decoding.prompt_language import DETECT, LABEL
from moe_asr.errors import UserError
from moe_asr.methods.adaptation import AdaptedRecogniser
from moe_asr.methods.routes import Route, RouteOptions
from moe_asr.models.interface import Recogniser


@dataclass(frozen=True)
class Told:
    """Labels of every utterance, empty where nothing is told, and how to use them.

    Args:
        prompt: where the language that the model is told comes from: label or detect
        route: where the domain of the experts comes from, if not as in training
    """

    language: str = ""
    accent: str = ""
    prompt: str = LABEL
    route: Optional[Route] = None


def check_told(
    language: Optional[str],
    accent: Optional[str],
    recogniser: Recogniser,
    adapted: Optional[AdaptedRecogniser],
    folder: Optional[str],
) -> Told:
    """Fits what is told to what model and experts ask for.

    A model that knows several languages detects what it is not told. Experts that were trained with the language as a
    label then go by the model's own posteriors.

    Args:
        language: a code; None or detect for none
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
    if language is not None and not codes and (key != "language" or language == DETECT):
        raise UserError("language is for models that know several: leave it out")
    language = None if language == DETECT else language
    if language is not None and codes and find_language(codes, language) is None:
        raise UserError(f"language {language} is none that the model knows, which are {', '.join(codes)}")
    if language is not None and key == "language":
        found = find_language(domains, language)
        if found is None:
            raise UserError(f"language {language} is none that {folder} knows, which are {', '.join(domains)}")
        language = found
    prompt = DETECT if codes and language is None else LABEL
    if {"accent": accent, "language": language}.get(key) is not None:
        return Told(language or "", accent or "", prompt, "label")
    if source == "label" and key == "language" and codes:
        adapted.domain_source(RouteOptions("model"))
        return Told("", "", prompt, "model")
    if source == "label":
        options = f"give --{key}, one of {', '.join(domains)}"
        advice = "this command cannot tell it" if key == "speaker" else options
        raise UserError(f"{folder} must be told the {key} of what it hears: {advice}")
    return Told(language or "", accent or "", prompt)
