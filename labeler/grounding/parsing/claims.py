"""What an answer says about each part, entry by entry, and the one rule for what that comes to.

When one part is answered in several ways:

- the same box several times is one answer;
- several boxes that nearly coincide (IoU SAME_IOU or more): the first, with the flag AMBIGUOUS;
- bare boxes in the order of the question, the corners of an upright rectangle, and what follows "final answer" after
  other boxes: that box, with the flag AMBIGUOUS;
- all else that differs, and a box beside "not visible": unparseable. Where whole sets of parts contradict each other,
  or the words tell several people apart, all parts are.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from shared.geometry import Box, iou, ordered
from shared.schemas import LabelStatus

SAME_IOU = 0.95  # from here on two boxes are one answer, said twice
AMBIGUOUS = "ambiguous"  # flag of a box that was clearly meant, though the answer can be read otherwise


@dataclass(frozen=True)
class Parsed:
    """How one part was answered: `box` (in the model's space) only when `status` is OK; `flags`: what is doubtful."""

    status: LabelStatus
    box: Box | None = None
    flags: tuple[str, ...] = ()


ABSENT = Parsed(LabelStatus.ABSENT)
UNPARSEABLE = Parsed(LabelStatus.UNPARSEABLE)


class Said(NamedTuple):
    """What a value says about a part; `doubtful` makes its box AMBIGUOUS."""

    status: LabelStatus
    box: Box | None = None
    doubtful: bool = False


NOT_THERE = Said(LabelStatus.ABSENT)
UNREADABLE = Said(LabelStatus.UNPARSEABLE)


class Claim(NamedTuple):
    """What one entry of the answer says about a part; `source` numbers the set of parts that the entry belongs to."""

    part: str
    said: Said
    source: int


@dataclass
class Claims:
    """Everything an answer says."""

    parts: tuple[str, ...]
    all: list[Claim] = field(default_factory=list)
    empty: bool = False  # an honest empty list of detections stood there
    doubt: bool = False  # a box that could be anyone's
    sources: int = 0

    def new_source(self) -> None:
        """What is added from here on belongs to another set of parts."""
        self.sources += 1

    def add(self, part: str | None, said: Said | None) -> None:
        """Nothing where the part is unknown or nothing is said."""
        if part is not None and said is not None:
            self.all.append(Claim(part, said, self.sources))

    def settled(self) -> dict[str, Parsed]:
        """One outcome by part, by the rule of this module."""
        parts = self.parts
        if self.doubt:
            return dict.fromkeys(parts, UNPARSEABLE)
        if self.empty and not self.all:
            return dict.fromkeys(parts, ABSENT)
        by_part: dict[str, list[Claim]] = {part: [] for part in parts}
        for claim in self.all:
            if claim.part in by_part:
                by_part[claim.part].append(claim)
        found = {part: _settle([claim.said for claim in claims]) for part, claims in by_part.items()}
        for part, claims in by_part.items():
            if found[part].status == LabelStatus.UNPARSEABLE and len({claim.source for claim in claims}) > 1:
                return dict.fromkeys(parts, UNPARSEABLE)
        return found


def _settle(said: Sequence[Said]) -> Parsed:
    """One outcome of all that is said about a part."""
    if not said or any(one == UNREADABLE for one in said):
        return UNPARSEABLE
    boxes = [one.box for one in said if one.box]
    if not boxes:
        return ABSENT
    if len(boxes) != len(said):
        return UNPARSEABLE
    flags = (AMBIGUOUS,) if any(one.doubtful for one in said) else ()
    for other in boxes[1:]:
        if other != boxes[0]:
            flags = (AMBIGUOUS,)
            if iou(ordered(boxes[0]), ordered(other)) < SAME_IOU:
                return UNPARSEABLE
    return Parsed(LabelStatus.OK, boxes[0], flags)
