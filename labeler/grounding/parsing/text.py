"""Plain text in an answer: boxes that stand beside or directly after their names, tables, parts said not to be seen."""

import re
from collections.abc import Iterator, Sequence

from labeler.grounding.parsing import wording
from labeler.grounding.parsing.claims import NOT_THERE, UNREADABLE, Claims, Said
from labeler.grounding.parsing.numbers import MARKUP, NUMBER, TAKEN_OUT, Run, bare_label, runs, without
from labeler.grounding.parsing.question import Asked
from labeler.grounding.parsing.said import said_of
from labeler.grounding.parsing.tables import table_rows
from labeler.grounding.vocabulary import places
from shared.geometry import Box
from shared.schemas import LabelStatus

_MOST_BOXES = 64  # in plain text; more belong to no answer about one person
_SENTENCE_END = re.compile(r"[.!]\s|\n")
_TABLE_TAGS = (
    (re.compile(r"</t[dh]>", re.IGNORECASE), " | "),
    (re.compile(r"</tr>", re.IGNORECASE), " \n"),
    (re.compile(r"</?(?:table|tr|td|th|tbody|thead)>", re.IGNORECASE), " "),
)
_KEYED = re.compile(r"^\s*(?:[-*+\u2022]\s+)?[\"']?[A-Za-z_ ]{1,20}[\"']?\s?[:=]\s*\S")  # `label: head`
_ITEM = re.compile(r"^[ \t]*[-+\u2022][ \t]", re.MULTILINE)
_ENUMERATION = re.compile(r"^[ \t]{0,8}\d{1,2}[.)][ \t]", re.MULTILINE)
_NAMED_COORDINATES = re.compile(
    r"\W,?\s{0,4}".join(
        rf"\b(?:{name})[ \t]{{0,3}}[:=][ \t]{{0,3}}({NUMBER})(?![.\d])"
        for name in ("x ?min|x1|left", "y ?min|y1|top", "x ?max|x2|right", "y ?max|y2|bottom")
    ),
    re.IGNORECASE,
)


class PlainText:
    """Adds what the plain text of an answer says to `claims`."""

    def __init__(self, asked: Asked, claims: Claims) -> None:
        self.asked, self.claims = asked, claims

    def take(self, text: str) -> None:
        """Read the boxes that stand in plain text, and the parts that it says are not visible."""
        if not text.strip(TAKEN_OUT + " \n"):
            return
        for html, sign in _TABLE_TAGS:
            text = html.sub(sign, text)
        text = _ENUMERATION.sub(" ", MARKUP.sub(" ", text).replace("_", " "))
        text = _NAMED_COORDINATES.sub(r" (\1, \2, \3, \4) ", text)
        unseen = list(wording.unseen_parts(text, self.asked.all_names))
        self.claims.new_source()
        for *_, part in unseen:
            self.claims.add(part, NOT_THERE)
        text = without(text, [(start, end) for start, end, _ in unseen])
        if len(self.asked.parts) == 1 and not self.claims.all and wording.says_nothing(text):
            self.claims.add(self.asked.parts[0], NOT_THERE)
            return
        if rows := table_rows(text, self.asked.part_of, self.asked.number):
            for part, cells in rows.claims:
                said = Said(LabelStatus.OK, cells) if isinstance(cells, Box) else said_of(self.asked, cells, part)
                if said:
                    self.claims.add(part, said)
            text = without(text, rows.spans)
        found = runs(text)
        if any(run.touched and len(run.numbers) > 2 and not (run.bracketed and len(run.numbers) == 4) for run in found):
            self.claims.doubt = True  # a longer list, or brackets that do not close
            return
        found = [run for run in found if len(run.numbers) == 4]
        if not found:
            return
        if len(found) > _MOST_BOXES:
            self.claims.doubt = True
            return
        if len(self.asked.parts) == 1 and wording.is_filler(
            without(text, [(run.start, run.end) for run in found]).replace(TAKEN_OUT, " ")
        ):
            named = [(self.asked.parts[0], run) for run in found] if all(run.bracketed for run in found) else None
        else:
            named = self._by_line(text, found)
            if named is None:
                named = self._after_names(text, found)
        if named is None:
            self.claims.doubt = True
            return
        for part, run in named:
            box = self.asked.box(run.numbers)
            self.claims.add(part, Said(LabelStatus.OK, box) if box else UNREADABLE)

    def _by_line(self, text: str, boxes: Sequence[Run]) -> list[tuple[str, Run]] | None:
        """Boxes and names that share a line, one of each: all names before their boxes, or all boxes before."""
        lines = list(_lines(text))
        found: list[tuple[str, Run]] = []
        orders = set()
        known = True
        used = 0
        for start, end in lines:
            inside = [run for run in boxes if start <= run.start < end]
            if not inside:
                continue
            if len(inside) != 1 or inside[0].end > end:
                return None
            run = inside[0]
            used += 1
            before, after = text[start : run.start], text[run.end : end]
            name_before, name_after = wording.has_words(before), wording.has_words(wording.without_remarks(after))
            if name_before == name_after or TAKEN_OUT in before + after:
                return None
            orders.add(name_before)
            label = bare_label(before if name_before else after)
            if wording.is_filler(label):
                return None
            part = self.asked.part_of(label, sentence=True)
            known &= part is not None
            if part:
                found.append((part, run))
        if len(orders) != 1 or used != len(boxes):
            return None
        if False in orders:  # boxes first: every one must be known, and no name may stand above them
            above = text[: boxes[0].start]
            if not known or places(above, self.asked.all_names):
                return None
        return found

    def _after_names(self, text: str, boxes: Sequence[Run]) -> list[tuple[str, Run]] | None:
        """Boxes that each follow directly after one name; None when that does not hold for every one.

        Names stand all beside their boxes or all on lines above, and after the last box no words may follow that could
        be its name: then the boxes might stand first, below a heading.
        """
        names = self.asked.all_names
        found = []
        above, keyed = set(), set()
        end = 0
        for run in boxes:
            between = text[end : run.start]
            lines = [line for line in between.splitlines() if line.strip()]
            while len(lines) > 1 and wording.is_filler(lines[-1]):  # `label: head`, and below it `bbox:`
                lines.pop()
            if not lines:
                return None
            label = lines[-1]
            head, _, gap = between.rpartition(label)
            if places(head, names) and (end or not head.rstrip().endswith((":", "."))):
                return None  # only a sentence before the first box may name parts too
            spots = places(label, names)
            part = self.asked.part_of(bare_label(label), sentence=True) if spots else None
            if part is None or not run.bracketed or TAKEN_OUT in label[spots[-1][1] :] + gap:
                return None
            if "\n" in gap and end and "\n" not in head:
                return None  # the name is beside the box before
            above.add("\n" in gap)
            if "\n" in gap:
                keyed.add(_KEYED.match(label) is not None)
                if True in keyed and _ITEM.search(gap):
                    return None  # another entry begins between name and box
            found.append((part, run))
            end = run.end
        after = wording.without_remarks(text[end:]).strip(" \"'.,;:)]}|")
        if above != {True}:
            after = _SENTENCE_END.split(after, maxsplit=1)[0]
        if len(keyed) > 1:
            return None  # a heading above entries: a name may then stand below its box
        if len(above) != 1 or places(text[end:], names) or not wording.is_filler(after):
            return None
        return found


def _lines(text: str) -> Iterator[tuple[int, int]]:
    start = 0
    for line in text.splitlines(keepends=True):
        yield start, start + len(line)
        start += len(line)
