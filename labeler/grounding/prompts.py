"""Prompts of a vision-language model, the JSON schema of its answers, and the version of both.

Mode `joint` asks for all parts at once and is about three times cheaper; `per_part` asks one question per part, the
form of the paper and the only one for models that answer with bare boxes. The version in every label row is the mode
and a hash of all words that can reach the model or be recognised in its answer, so every edit of a template changes it.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from string import Formatter
from typing import Any, Literal, Self

from labeler.grounding.coordinates import AnswerForm, ModelFamily, Sent, Space
from labeler.grounding.vocabulary import Vocabulary
from shared.errors import ConfigError

PromptMode = Literal["joint", "per_part"]

_QUESTIONS: dict[tuple[AnswerForm, PromptMode], str] = {
    ("json", "joint"): (
        "The image shows one person. Locate these body parts: {words}. "
        "Answer with one JSON object with the keys {keys}. "
        "Each value is the bounding box [x_min,y_min,x_max,y_max] of that part in {coordinates}, as integers, "
        "or null if the part is not visible. No other text, no line breaks."
    ),
    ("json", "per_part"): (
        "The image shows one person. Locate the {words} of the person. "
        "Answer with one JSON object with the key {keys}. "
        "Its value is the bounding box [x_min,y_min,x_max,y_max] in {coordinates}, as integers, "
        "or null if it is not visible. No other text, no line breaks."
    ),
    # CogVLM-grounding was trained on questions that end like this (Wang et al. 2023) and answers no others.
    ("brackets", "per_part"): "Where is the {words} of the person? answer in [[x0,y0,x1,y1]] format.",
}
_COORDINATES: dict[Space, str] = {
    "sent_pixels": "pixels of this image",
    "thousandths": "thousandths of the image's width and height (0 to 1000)",
}
_TOKENS_PER_BOX = 40  # a key, four numbers of up to four digits, brackets and commas
_TOKENS_AROUND = 16
_TOKENS_FREE_ANSWER = 160  # without a schema models often add a code fence and a sentence


@dataclass(frozen=True)
class Question:
    """One request to the model: its parts, its text, the schema and the token limit of the answer.

    Args:
        schema: JSON schema for guided decoding; None for free text.
    """

    parts: tuple[str, ...]
    text: str
    schema: dict[str, Any] | None
    max_tokens: int


@dataclass(frozen=True)
class Prompts:
    """The prompts of one model in one run; created by `Prompts.choose`."""

    family: ModelFamily
    mode: PromptMode
    vocabulary: Vocabulary

    @classmethod
    def choose(cls, family: ModelFamily, mode: PromptMode | None, vocabulary: Vocabulary) -> Self:
        """`mode` None: the cheapest that the family can answer. Raises ConfigError when it cannot answer `mode`."""
        known = [known for form, known in _QUESTIONS if form == family.form]
        if mode is not None and mode not in known:
            raise ConfigError(
                f"models of the family {family.name} cannot answer {mode} questions",
                fix=f"set LABELER_PROMPT_MODE={known[0]}",
            )
        return cls(family, mode or known[0], vocabulary)

    @property
    def version(self) -> str:
        """The mode, and eight hex digits of a hash of its template, coordinate words, parts and their names."""
        template = _QUESTIONS[self.family.form, self.mode]
        content = json.dumps([template, _COORDINATES[self.family.space], list(self.vocabulary.words.items())])
        return f"{self.mode}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"

    def questions(self, parts: Sequence[str], sent: Sent, *, with_schema: bool) -> list[Question]:
        """The questions about `parts` of one image: one in mode `joint`, one per part otherwise."""
        groups = [tuple(parts)] if self.mode == "joint" else [(part,) for part in parts]
        return [self._question(group, sent, with_schema) for group in groups]

    def _question(self, parts: tuple[str, ...], sent: Sent, with_schema: bool) -> Question:
        text = _QUESTIONS[self.family.form, self.mode].format(
            words=", ".join(map(self.vocabulary.asked, parts)),
            keys=", ".join(f'"{part}"' for part in parts),
            coordinates=_COORDINATES[sent.space],
        )
        schema = _schema(parts, sent.limits) if with_schema and self.family.form == "json" else None
        tokens = _TOKENS_AROUND + _TOKENS_PER_BOX * len(parts)
        return Question(parts, text, schema, tokens if schema else tokens + _TOKENS_FREE_ANSWER)


def constant_texts(family: ModelFamily) -> list[str]:
    """The constant pieces of a family's questions, in both modes, and its words for coordinates."""
    templates = [template for (form, _), template in _QUESTIONS.items() if form == family.form]
    stretches = [text for template in templates for text, *_ in Formatter().parse(template) if text.strip()]
    return list(dict.fromkeys([*stretches, _COORDINATES[family.space]]))


def _schema(parts: Sequence[str], limits: tuple[float, float]) -> dict[str, Any]:
    """Fixed-length lists of bounded integers, so that guided decoding cannot loop."""
    number = {"type": "integer", "minimum": 0, "maximum": int(max(limits))}
    box = {"type": "array", "items": number, "minItems": 4, "maxItems": 4}
    return {
        "type": "object",
        "properties": {part: {"anyOf": [box, {"type": "null"}]} for part in parts},
        "required": list(parts),
        "additionalProperties": False,
    }
