"""How sure a language model was of a box: the geometric mean probability of the tokens that write its numbers."""

import math
import re
from collections.abc import Sequence
from typing import Any

from labeler.grounding.parsing.parse import parse_answer
from labeler.grounding.vocabulary import Vocabulary

ROUNDING = 1e-3  # log-probabilities of half precision may be a little above 0
_NUMBER = re.compile(r"(?<![\w.])-?\d++(?:\.\d++)?(?:[eE][+-]?\d++)?(?![A-Za-z_])")


class _Placed(float):
    """A number of the answer that knows where it is written."""

    start: int
    end: int


def box_scores(logprobs: Any, parts: Sequence[str], vocabulary: Vocabulary) -> dict[str, float]:
    """A score in 0..1 for every part whose box is found in the answer's tokens; empty when there are none.

    The tokens are parsed like the answer, each number replaced by its place, so that a box and its score always come
    from the same entry, whatever the order of names and boxes.

    Args:
        logprobs: the `logprobs` field of an OpenAI chat completion choice, of any shape.
        parts: what was asked for; with one part its name need not be in the answer.
    """
    tokens = _tokens(logprobs)
    text = "".join(token for token, _ in tokens)
    written = list(_NUMBER.finditer(text))
    if not written:
        return {}

    def number(literal: str | float) -> float:
        index = int(literal)
        if not 0 <= index < len(written):
            raise ValueError(literal)
        placed = _Placed(written[index][0])
        placed.start, placed.end = written[index].span()
        return placed

    places = iter(range(len(written)))
    parsed = parse_answer(_NUMBER.sub(lambda _: str(next(places)), text), "stop", parts, vocabulary, number)
    scores: dict[str, float] = {}
    for part, answer in parsed.items():
        spans = [(corner.start, corner.end) for corner in answer.box or () if isinstance(corner, _Placed)]
        if inside := _logprobs_of(tokens, spans):
            scores[part] = math.exp(sum(inside) / len(inside))
    return scores


def _logprobs_of(tokens: Sequence[tuple[str, float]], spans: Sequence[tuple[int, int]]) -> list[float]:
    """Of the tokens that write a digit inside the spans."""
    place, found = 0, []
    for token, logprob in tokens:
        if any(
            start < place + index + 1 and place + index < end
            for index, character in enumerate(token)
            if character.isdigit()
            for start, end in spans
        ):
            found.append(logprob)
        place += len(token)
    return found


def _tokens(logprobs: Any) -> list[tuple[str, float]]:
    content = logprobs.get("content") if isinstance(logprobs, dict) else None
    if not isinstance(content, list):
        return []
    tokens = []
    for item in content:
        token, logprob = (item.get("token"), _log(item.get("logprob"))) if isinstance(item, dict) else (None, None)
        if not isinstance(token, str) or logprob is None:  # without it the others are another text
            return []
        tokens.append((token, logprob))
    return tokens


def _log(value: Any) -> float | None:
    """The logarithm of a probability; None for what is none, as an integer of hundreds of digits."""
    is_number = isinstance(value, float) or (type(value) is int and abs(value) < 2**53)
    return min(0.0, float(value)) if is_number and value <= ROUNDING else None
