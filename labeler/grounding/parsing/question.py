"""What an answer is to be read for: the parts asked about, their names, and how its numbers become coordinates."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from labeler.grounding.parsing import wording
from labeler.grounding.parsing.claims import ABSENT, UNPARSEABLE, Parsed
from labeler.grounding.parsing.loose_json import Pairs
from labeler.grounding.parsing.numbers import ONE_NUMBER
from labeler.grounding.vocabulary import Vocabulary, plain
from shared.geometry import Box
from shared.schemas import LabelStatus

_LONGEST_LABEL = 400  # characters
_BRACKETS = re.compile(r"\[\[(\d{1,4}),(\d{1,4}),(\d{1,4}),(\d{1,4})\]\]")


@dataclass(frozen=True)
class Asked:
    """What was asked for and how answers may call it."""

    parts: tuple[str, ...]
    vocabulary: Vocabulary
    number: Callable[[str | float], float]
    size: tuple[float, float] | None = None  # width and height that coordinates are measured in

    @cached_property
    def names(self) -> dict[str, str]:
        return self.vocabulary.names(self.parts)

    @cached_property
    def all_names(self) -> dict[str, str]:
        return self.vocabulary.names(tuple(dict.fromkeys((*self.vocabulary.parts, *self.parts))))

    def part_of(self, label: str, *, sentence: bool = False) -> str | None:
        """The part that a label names, None for anything else. Parts that were not asked for are told too."""
        if (part := self.all_names.get(plain(label))) is not None:
            return part
        known = self._named
        if (label, sentence) not in known:
            long = len(label) > _LONGEST_LABEL
            known[label, sentence] = None if long else wording.named_part(label, self.all_names, sentence=sentence)
        return known[label, sentence]

    @cached_property
    def _named(self) -> dict[tuple[str, bool], str | None]:
        return {}

    def simple_brackets(self, text: str) -> dict[str, Parsed] | None:
        """The outcome of `[[x0,y0,x1,y1]]` about one part; None for any other form."""
        match = _BRACKETS.fullmatch(text) if len(self.parts) == 1 else None
        box = self.box(match.groups()) if match else None
        return {self.parts[0]: Parsed(LabelStatus.OK, box)} if box else None

    def simple(self, value: Any) -> dict[str, Parsed] | None:
        """Outcomes of the forms most often met, read without looking further; None for all others.

        They are an object with the parts asked for, and a list of `{"bbox_2d": ..., "label": ...}`, in which each part
        is named in its own words, once, with four numbers or null.
        """
        named: Sequence[tuple[str, Any]]
        if isinstance(value, Pairs):
            named = value if len(value) == len(self.parts) else ()
        elif isinstance(value, list):
            named = [entry for item in value if (entry := _labelled_box(item))]
            named = named if len(named) == len(value) else ()
        else:
            named = ()
        found: dict[str, Parsed] = {}
        for name, said in named:
            part = self.names.get(name) or self.names.get(plain(name))
            if part is None or part in found:
                return None
            if said is None:
                found[part] = ABSENT
            elif isinstance(said, list) and (box := self.box(said)):
                found[part] = Parsed(LabelStatus.OK, box)
            else:
                return None
        return {part: found.get(part, UNPARSEABLE) for part in self.parts} if found else None

    def box(self, values: Sequence[Any]) -> Box | None:
        """Four numbers, or texts of numbers, as a box."""
        numbers = self.numbers(values) if len(values) == 4 else None
        return Box(*numbers) if numbers else None

    def numbers(self, values: Sequence[Any]) -> list[float] | None:
        found = []
        for value in values:
            kind = type(value)
            if not (kind is int or kind is float or (kind is str and ONE_NUMBER.fullmatch(value.strip()))):
                return None
            try:
                found.append(self.number(value))
            except (ValueError, OverflowError):
                return None
        return found if all(map(math.isfinite, found)) else None


def _labelled_box(item: Any) -> tuple[str, Any] | None:
    """Label and value of `{"bbox_2d": value, "label": label}`, in either order."""
    if not isinstance(item, Pairs) or len(item) != 2:
        return None
    (first, one), (second, other) = item
    if first == "label":
        first, one, second, other = second, other, first, one
    return (other, one) if second == "label" and first == "bbox_2d" and isinstance(other, str) else None
