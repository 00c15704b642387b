"""A byte-level tokenizer with added tokens, in which a question is a few tokens and a box is twelve.

Whole numbers, the constant passages of the questions and the pieces between two numbers of an answer are one token
each, so that a coordinate is one prediction. All other text is tokenized by bytes.
"""

from typing import Any

from labeler.grounding.coordinates import FAMILIES
from labeler.grounding.prompts import constant_texts
from labeler.grounding.vocabulary import SHARED
from pipelines.recipes.grounder.special_tokens import byte_tokenizer

LARGEST_NUMBER = 1399  # pixels; more than the longer side of any resized crop of common shape


def build_tokenizer() -> Any:
    """The tokenizer, as transformers' class of the family."""
    return byte_tokenizer([*_numbers(), *_answer_pieces(), *_question_pieces()], max_length=4096)


def number_ids(tokenizer: Any) -> list[int]:
    """The ids of the numbers 0..LARGEST_NUMBER."""
    ids: list[int] = tokenizer.convert_tokens_to_ids(_numbers())
    return ids


def _numbers() -> list[str]:
    return [str(number) for number in range(LARGEST_NUMBER + 1)]


def _answer_pieces() -> list[str]:
    before = ("{", "],", ",")
    return [
        ",",
        "]}",
        "}",
        *(f'{start}"{part}":{value}' for part in SHARED.parts for start in before for value in ("[", "null")),
    ]


def _question_pieces() -> list[str]:
    parts = [word for part in SHARED.parts for word in (SHARED.asked(part), f'"{part}"')]
    return [*constant_texts(FAMILIES["qwen2.5-vl"]), *parts, ", ", "user\n", "assistant\n"]
