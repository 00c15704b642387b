"""How sure a language model was of a box: the geometric mean probability of the tokens that write its numbers."""

import math
import re
from collections.abc import Sequence
from typing import Any

from labeler.grounding.vocabulary import Vocabulary, places

_BRACKET = re.compile(r"\[[\d\s.,-]{1,80}[\];]")


def box_scores(logprobs: Any, parts: Sequence[str], vocabulary: Vocabulary) -> dict[str, float]:
    """A score in 0..1 for every part whose box is found in the answer's tokens; empty when there are none.

    Args:
        logprobs: the `logprobs` field of an OpenAI chat completion choice, of any shape.
        parts: what was asked for; with one part its name need not be in the answer.
    """
    tokens = _tokens(logprobs)
    text = "".join(token for token, _ in tokens)
    scores: dict[str, float] = {}
    ends: dict[str, int] = {}
    for _, end, part in places(text, vocabulary.names(parts)):
        ends.setdefault(part, end)
    for part in parts:
        if part not in ends and len(parts) > 1:
            continue
        bracket = _BRACKET.search(text, ends.get(part, 0))
        if bracket is None:
            continue
        place, inside = 0, []
        for token, logprob in tokens:
            if place < bracket.end() and place + len(token) > bracket.start() and any(c.isdigit() for c in token):
                inside.append(logprob)
            place += len(token)
        if inside:
            scores[part] = math.exp(sum(inside) / len(inside))
    return scores


def _tokens(logprobs: Any) -> list[tuple[str, float]]:
    content = logprobs.get("content") if isinstance(logprobs, dict) else None
    if not isinstance(content, list):
        return []
    pairs = [(item.get("token"), item.get("logprob")) for item in content if isinstance(item, dict)]
    return [
        (token, min(0.0, float(logprob)))
        for token, logprob in pairs
        if isinstance(token, str) and isinstance(logprob, int | float) and not math.isnan(logprob)
    ]
