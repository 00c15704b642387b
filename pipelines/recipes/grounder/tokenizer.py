"""A small byte-level BPE tokenizer in which a question is a few tokens and a box is twelve.

Whole numbers, the constant stretches of our questions and the pieces between two numbers of an answer are one token
each, so that a coordinate is one decision of the model. Everything else is spelled in bytes.
"""

from typing import Any

import transformers
from tokenizers.pre_tokenizers import ByteLevel

from labeler.grounding.coordinates import FAMILIES
from labeler.grounding.prompts import constant_texts
from labeler.grounding.vocabulary import SHARED
from pipelines.recipes.grounder.special_tokens import CHAT_TEMPLATE, SPECIAL

LARGEST_NUMBER = 1399  # pixels; a longer side than any crop of usual shape is enlarged to


def build_tokenizer() -> Any:
    """The tokenizer, as transformers' class of the family."""
    vocabulary = [*sorted(ByteLevel.alphabet()), *SPECIAL]
    made = transformers.Qwen2Tokenizer(
        vocab={token: index for index, token in enumerate(vocabulary)},
        merges=[],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=list(SPECIAL),
        model_max_length=4096,
    )
    made.add_tokens(list(dict.fromkeys([*_numbers(), *_answer_pieces(), *_question_pieces()])))
    made.chat_template = CHAT_TEMPLATE
    return made


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
