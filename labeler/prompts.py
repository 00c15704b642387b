"""What a vision-language model is asked, in which form it must answer, and the version of both.

Two modes: `joint` asks for all parts at once and is about three times cheaper; `per_part` asks one question per part,
the form of the paper (Sec. 1 of the method). The version that goes into every label row is the mode and a hash of
every word that can reach the model, so that no edit of a template passes unnoticed.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from labeler.coordinates import Sent, Space
from shared.schemas import PART_WORDS

PromptMode = Literal["joint", "per_part"]

_QUESTIONS: dict[PromptMode, str] = {
    "joint": (
        "The image shows one person. Locate these body parts: {words}. "
        "Answer with one JSON object with the keys {keys}. "
        "Each value is the bounding box [x_min,y_min,x_max,y_max] of that part in {coordinates}, as integers, "
        "or null if the part is not visible. No other text, no line breaks."
    ),
    "per_part": (
        "The image shows one person. Locate the {words} of the person. "
        "Answer with one JSON object with the key {keys}. "
        "Its value is the bounding box [x_min,y_min,x_max,y_max] in {coordinates}, as integers, "
        "or null if it is not visible. No other text, no line breaks."
    ),
}
_COORDINATES: dict[Space, str] = {
    "sent_pixels": "pixels of this image",
    "thousandths": "thousandths of the image's width and height (0 to 1000)",
}
_TOKENS_PER_BOX = 40  # a key, four numbers of up to four digits, brackets and commas
_TOKENS_AROUND = 16
_TOKENS_FREE_ANSWER = 160  # without a schema models like to add a fence and a sentence


@dataclass(frozen=True)
class Question:
    """One request to the model: the parts it asks for, its text, the schema of the answer, its token limit."""

    parts: tuple[str, ...]
    text: str
    schema: dict[str, Any]
    max_tokens: int


def questions(
    mode: PromptMode, parts: Sequence[str], sent: Sent, *, with_schema: bool, words: Mapping[str, str] = PART_WORDS
) -> list[Question]:
    """The questions that cover `parts` of one image: one in `joint` mode, one per part otherwise."""
    groups = [tuple(parts)] if mode == "joint" else [(part,) for part in parts]
    return [_question(mode, group, sent, with_schema, words) for group in groups]


def _question(
    mode: PromptMode, parts: tuple[str, ...], sent: Sent, with_schema: bool, words: Mapping[str, str]
) -> Question:
    text = _QUESTIONS[mode].format(
        words=", ".join(words[part] for part in parts),
        keys=", ".join(f'"{part}"' for part in parts),
        coordinates=_COORDINATES[sent.space],
    )
    tokens = _TOKENS_AROUND + _TOKENS_PER_BOX * len(parts)
    return Question(parts, text, _schema(parts, sent.limits), tokens if with_schema else tokens + _TOKENS_FREE_ANSWER)


def _schema(parts: Sequence[str], limits: tuple[float, float]) -> dict[str, Any]:
    """Bounded lists of bounded integers: guided decoding has no room to loop in."""
    number = {"type": "integer", "minimum": 0, "maximum": int(max(limits))}
    box = {"type": "array", "items": number, "minItems": 4, "maxItems": 4}
    return {
        "type": "object",
        "properties": {part: {"anyOf": [box, {"type": "null"}]} for part in parts},
        "required": list(parts),
        "additionalProperties": False,
    }


def prompt_version(mode: PromptMode, space: Space, words: Mapping[str, str] = PART_WORDS) -> str:
    """The mode and eight hex digits over its template, the coordinates it names, the parts and their words."""
    content = json.dumps([_QUESTIONS[mode], _COORDINATES[space], list(words.items())])
    return f"{mode}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"
