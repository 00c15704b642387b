"""The collection of answer forms: read from its file, and how an outcome compares with what is wanted."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from labeler.grounding.parsing.parse import Parsed, parse_answer
from labeler.grounding.vocabulary import SHARED, Vocabulary
from shared.geometry import Box
from shared.schemas import PARTS, LabelStatus

FILE = Path(__file__).with_suffix(".yaml")
BOXES = {"A": (10, 20, 60, 70), "B": (5, 72, 90, 150), "C": (12, 152, 80, 290), "D": (33, 44, 55, 66)}
FAILURES = {"-": LabelStatus.ABSENT, "?": LabelStatus.UNPARSEABLE, "R": LabelStatus.REFUSED}


@dataclass(frozen=True)
class Form:
    """One answer and, by part, the outcomes that are right."""

    text: str
    want: Mapping[str, tuple[str, ...]]
    boxes: Mapping[str, Box]
    vocabulary: Vocabulary
    size: tuple[float, float] = (280.0, 560.0)  # width and height of the image that was sent

    def parsed(self) -> dict[str, Parsed]:
        return parse_answer(self.text, "stop", tuple(self.want), self.vocabulary, size=self.size)

    def verdict(self) -> str:
        """`right`: all boxes as wanted; `named`: no box is wanted and none is given; `lost`: a wanted box is missing;
        `wrong`: a box, or a "not visible", that is not what the answer says."""
        found = self.parsed()
        matches = {part: any(self._matches(found[part], one) for one in want) for part, want in self.want.items()}
        if all(matches.values()):
            return (
                "right"
                if any(one.status in (LabelStatus.OK, LabelStatus.ABSENT) for one in found.values())
                else "named"
            )
        final = (LabelStatus.OK, LabelStatus.ABSENT)
        if any(found[part].status in final for part, match in matches.items() if not match):
            return "wrong"
        return "lost"

    def _matches(self, outcome: Parsed, want: str) -> bool:
        if want in FAILURES:
            return outcome.status == FAILURES[want] and outcome.box is None
        flagged = "ambiguous" in getattr(outcome, "flags", ())
        return outcome.box == self.boxes[want[0]] and flagged == want.endswith("*")


def forms() -> list[Form]:
    return [_form(entry) for entry in yaml.safe_load(FILE.read_text(encoding="utf-8"))]


def _form(entry: dict) -> Form:
    boxes = {letter: Box(*map(float, entry.get(letter, numbers))) for letter, numbers in BOXES.items()}
    text = entry["say"]
    for letter, numbers in BOXES.items():
        text = text.replace(f"${letter}", ", ".join(map(str, numbers)))
    parts = PARTS if entry["ask"] == "joint" else (entry["ask"],)
    want = dict(zip(parts, (tuple(one.split("/")) for one in entry["want"].split()), strict=True))
    added = entry.get("words", {})
    words = {part: (*known, *added.get(part, ())) for part, known in SHARED.words.items()}
    return Form(text, want, boxes, Vocabulary(words) if added else SHARED)


def counts() -> Counter[str]:
    return Counter(form.verdict() for form in forms())


if __name__ == "__main__":
    for form in forms():
        if form.verdict() not in ("right", "named"):
            print(
                form.verdict(),
                repr(form.text),
                {part: (one.status.value, one.box) for part, one in form.parsed().items()},
            )
    print(dict(counts()), len(forms()))
