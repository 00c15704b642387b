"""Numbers in the text of an answer, and stretches of it that were read already."""

import re
from collections.abc import Sequence
from typing import NamedTuple

NUMBER = r"-?\d{1,7}(?:\.\d{1,6})?"
_GAP = r"(?:[ \t,;()\[\]]{1,6}|,\s{1,40})"
# `rest` gives nothing back; written with a look-ahead, as `*+` over a group ends it wrongly in Python 3.11.2
_RUN = re.compile(
    rf"(?<![\w.])(?P<open>[\[(]\s{{0,4}})?(?P<first>{NUMBER})(?=(?P<rest>(?:{_GAP}{NUMBER})*))(?P=rest)(?![\w.]*\d)"
    r"(?P<close>\s{0,4}[\])])?"
)
_ANY_BRACKET = re.compile(r"[()\[\]]")
ONE_NUMBER = re.compile(NUMBER)
MARKUP = re.compile(r"<\|[^|<>]{1,40}\|>|</[^<>]{0,40}>|<(?:box|ref|quad|answer)>|[*`#]+|~~~")
TAKEN_OUT = "}"  # stands where a block was: no name before it belongs to a box after it


class Run(NamedTuple):
    """Numbers that follow each other in a text with nothing but brackets and commas between them."""

    start: int
    end: int
    numbers: list[str]
    bracketed: bool  # opened before the first, closed after the last
    touched: bool  # any bracket at all


def runs(text: str) -> list[Run]:
    return [
        Run(
            match.start(),
            match.end(),
            [match["first"], *ONE_NUMBER.findall(match["rest"])],
            bool(match["open"] and match["close"]),
            bool(match["open"] or match["close"] or _ANY_BRACKET.search(match["rest"])),
        )
        for match in _RUN.finditer(text)
    ]


def without(text: str, spans: Sequence[tuple[int, int]]) -> str:
    """The text with spans taken out, as long as before."""
    characters = list(text)
    for start, end in spans:
        characters[start:end] = TAKEN_OUT * (end - start)
    return "".join(characters)


def bare_label(label: str) -> str:
    """A label without what a list or a markup puts around it."""
    return label.replace("<", " ").replace(">", " ").replace('"', " ").strip()
