"""The values in an answer: which of their entries belong to which part."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from labeler.grounding.parsing import wording
from labeler.grounding.parsing.claims import NOT_THERE, UNREADABLE, Claims, Said
from labeler.grounding.parsing.doubts import Doubts, holds_box
from labeler.grounding.parsing.loose_json import NoValueError, Pairs, blocks, comments, read_json, read_loose
from labeler.grounding.parsing.numbers import MARKUP, ONE_NUMBER, TAKEN_OUT, bare_label, without
from labeler.grounding.parsing.question import Asked
from labeler.grounding.parsing.said import (
    BOX_KEYS,
    LABEL_KEYS,
    NESTING,
    VISIBLE_KEYS,
    denied,
    labelled,
    labels_of,
    mentions,
    said_of,
    unseen_in,
)
from labeler.grounding.parsing.tables import COORDINATES, bare_key
from shared.geometry import Box
from shared.schemas import LabelStatus

_TRIED_BLOCKS = 64  # places in a text where a value is looked for
_MOST_NAMED = 40  # members that name a part, in one object; all parts that can be asked for, twice
_WRAPPERS = BOX_KEYS | frozenset(
    (
        "objects result results answer answers detections detection output outputs data annotations "
        "predictions prediction response parts bodyparts items regions boundingboxes bboxes2d locations "
        "instances"
    ).split()
)
_TEXT_KEYS = frozenset(
    (
        "reasoning thought thoughts thinking explanation comment note notes unit units image file filename format "
        "status task model"
    ).split()
)


_NO_ANSWERS = frozenset("default defaults sample samples schema draft previous old initial".split())
_PEOPLE_KEYS = frozenset("persons people pedestrians humans individuals subjects men women".split())


class Values:
    """Adds what the values of an answer say to `claims`."""

    def __init__(self, asked: Asked, claims: Claims) -> None:
        self.asked, self.claims = asked, claims
        self.doubts = Doubts(asked)
        self.doubtful = False  # whether a value without a box says something that is not known to be harmless

    def take(self, text: str) -> str:
        """Read the values in a text; the text that is left, as long as before."""
        try:
            value = read_json(text)
        except NoValueError:
            pass
        else:
            self.claims.new_source()
            self._collect(value, neutral=True, depth=NESTING)
            return text if isinstance(value, str | int | float) or value is None else ""
        spans = blocks(text)
        values = list(_block_values(text, spans))
        outside = MARKUP.sub(" ", without(text, [(start, end) for start, end, _ in values]))
        introduced = self.asked.part_of(bare_label(outside.replace(TAKEN_OUT, " ")), sentence=True)
        neutral = wording.is_filler(outside) or (introduced,) == self.asked.parts
        alone = len(values) == 1 and wording.is_filler(outside)
        taken = []
        for start, end, value in values:
            if alone or not is_bare(value) or value == []:
                self.claims.new_source()
                doubt = any(map(self.doubts.of_text, comments(text[start:end])))
                self._collect(value, neutral=alone or (neutral and value != []), depth=NESTING, doubt=doubt)
                taken.append((start, end))
                self.doubtful |= not holds_box(value) and self.doubts.beside([value])
        return without(text, taken)

    def _claim(self, part: str, said: Said | None, doubt: bool) -> None:
        if doubt and said and said.box:
            said = said._replace(doubtful=True)
        self.claims.add(part, said)

    def _collect(self, value: Any, *, neutral: bool, depth: int, doubt: bool = False) -> None:
        """Take the entries of a value.

        neutral: nothing around it says that it is about something else.
        doubt: words around it may say so.
        """
        if not depth:
            return
        if isinstance(value, Pairs):
            self._collect_object(value, neutral, depth, doubt)
        elif isinstance(value, list):
            self._collect_list(value, neutral, depth, doubt)

    def _collect_object(self, data: Pairs, neutral: bool, depth: int, doubt: bool) -> None:
        unseen = unseen_in(self.asked, data)
        around, doubt = doubt, doubt or self.doubts.beside(data)
        named = [
            (part, value, key) for key, value in data if (part := self.asked.part_of(key)) and not _is_remark(value)
        ]
        if len(named) > _MOST_NAMED:
            self.claims.doubt = True
            return
        if named:
            self.claims.new_source()
        for part in unseen:
            self.claims.add(part, NOT_THERE)
        if named:
            doubt = doubt or any(
                isinstance(value, list) and holds_box(value) and not self.asked.part_of(key) and self.doubts.of_key(key)
                for key, value in data
            )
            for part, value, name in named:
                said = said_of(self.asked, value, part)
                if said == NOT_THERE and (
                    around
                    or any(box and (bare_key(key) in BOX_KEYS or self._may_be_of(key, box, part)) for key, box in data)
                ):
                    said = UNREADABLE
                if (
                    said
                    and said.box
                    and (
                        denied(self.asked, data, part)
                        or any(self._is_another(key, value, part, said.box) for key, value in data)
                    )
                ):
                    said = UNREADABLE
                self._claim(
                    part,
                    said,
                    doubt
                    or self.doubts.of_key(name)
                    or any(self.doubts.within(one, part) for other, one, _ in named if other == part),
                )
            for key, value in data:
                if isinstance(value, list | Pairs) and not self.asked.part_of(key):
                    self._collect(value, neutral=False, depth=depth - 1, doubt=doubt or self._is_elsewhere(key))
            return
        labels = labels_of(data)
        if labels:
            if part := labelled(self.asked, labels):
                self._claim(part, said_of(self.asked, data, part), around or self.doubts.within(data, part))
            else:
                for key, value in data:
                    if bare_key(key) not in BOX_KEYS:
                        self._collect(value, neutral=False, depth=depth - 1, doubt=doubt or self._is_elsewhere(key))
            return
        if self._collect_parallel(data, doubt):
            return
        neutral = neutral and not _is_described(data)
        if len(self.asked.parts) == 1 and neutral and _has_box(data):
            said = said_of(self.asked, data, self.asked.parts[0])
            if said and said.status != LabelStatus.UNPARSEABLE:
                self._claim(self.asked.parts[0], said, around or self.doubts.within(data, self.asked.parts[0]))
                return
            data = Pairs((key, value) for key, value in data if not is_bare(value))  # what a member denied
        if self._are_people(value for _, value in data) or any(_is_no_answer(key, value) for key, value in data):
            self.claims.doubt = True
            return
        for key, value in data:
            self._collect(
                value,
                neutral=neutral and bare_key(key) in _WRAPPERS,
                depth=depth - 1,
                doubt=doubt or self._is_elsewhere(key),
            )

    def _is_elsewhere(self, key: str) -> bool:
        """`"previous_frame": {...}`"""
        return self.doubts.of_key(key, holds_parts=True)

    def _are_people(self, entries: Iterable[Any]) -> bool:
        """Whether several entries each hold parts, and one of them more than one: sets of parts, of one person each."""
        sets: list[tuple[set[str], Pairs]] = []
        for entry in entries:
            if not isinstance(entry, Pairs) or entry in (before for _, before in sets):
                continue
            if parts := {part for key, _ in entry if (part := self.asked.part_of(key))}:
                sets.append((parts, entry))
        return len(sets) > 1 and any(len(parts) > 1 for parts, _ in sets)

    def _may_be_of(self, key: str, box: Any, part: str) -> bool:
        """`"possible_head": [1, 2, 3, 4]`"""
        return isinstance(box, list) and not self.asked.part_of(key) and mentions(self.asked, key, part)

    def _is_another(self, key: str, value: Any, part: str, box: Box) -> bool:
        """`"head_corrected": [1, 2, 3, 4]`"""
        return self._may_be_of(key, value, part) and (other := self.asked.box(value)) is not None and other != box

    def _collect_parallel(self, data: Pairs, doubt: bool) -> bool:
        """Names and boxes in two lists of one length: `{"labels": [...], "boxes": [...]}`."""
        lists = [(key, _only_labels(value)) for key, value in data if isinstance(value, list) and value]
        labels = [
            value
            for key, value in lists
            if bare_key(key) in LABEL_KEYS | {"classes", "names", "categories", "parts", "textlabels"}
            and _all(value, str)
        ]
        boxes = [value for key, value in lists if bare_key(key) in _WRAPPERS and is_bare(value)]
        if len(labels) != 1 or len(boxes) != 1:
            return False
        if len(labels[0]) == len(boxes[0]):
            doubt = doubt or any(self.doubts.of_key(key) for key, _ in data)
            for label, value in zip(labels[0], boxes[0], strict=True):
                part = self.asked.part_of(label)
                if part and (said := said_of(self.asked, value, part)):
                    self._claim(part, said, doubt or self.doubts.of_text(label, part))
        return True

    def _collect_list(self, data: list[Any], neutral: bool, depth: int, doubt: bool) -> None:
        parts = self.asked.parts
        if not data or data == [[]]:
            self.claims.empty |= neutral
        elif is_bare(data):
            if not neutral:
                return
            if len(parts) == 1:
                if said := said_of(self.asked, data, parts[0]):
                    self._claim(parts[0], said, doubt)
            elif len(data) == 1:
                self._collect(data[0], neutral=neutral, depth=depth - 1, doubt=doubt)
            elif len(data) == len(parts) and _all(data, list):  # in the order of the question
                for part, value in zip(parts, data, strict=True):
                    said = said_of(self.asked, value, part) or UNREADABLE
                    self.claims.add(part, said._replace(doubtful=True))
        elif self._are_people(data):
            self.claims.doubt = True
        elif not self._collect_row(data, doubt):
            doubt = doubt or self.doubts.beside(data)
            for item in data:
                if isinstance(item, Pairs | list) and item:
                    self._collect(
                        item,
                        neutral=neutral and not (isinstance(item, list) and len(data) > 1),
                        depth=depth - 1,
                        doubt=doubt,
                    )

    def _collect_row(self, data: list[Any], doubt: bool) -> bool:
        """One entry as a list of a name and a box or its four numbers, in either order."""
        names = [
            item
            for item in data
            if isinstance(item, str) and wording.has_words(item) and not wording.says_nothing(item)
        ]
        if len(names) != 1 or not isinstance(data[0] if data[0] == names[0] else data[-1], str):
            return False
        rest = [item for item in data if item is not names[0]]
        if not (len(rest) == 1 and not isinstance(rest[0], Pairs)) and not (
            len(rest) == 4 and self.asked.numbers(rest)
        ):
            return False
        part = self.asked.part_of(names[0])
        if part and (said := said_of(self.asked, rest[0] if len(rest) == 1 else rest, part)):
            self._claim(part, said, doubt or self.doubts.within(data, part))
        return True


def _block_values(text: str, spans: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int, Any]]:
    """(start, end, value) of the blocks that can be read; of a list that cannot, its items."""
    waiting = list(reversed(spans))
    for _ in range(_TRIED_BLOCKS):
        if not waiting:
            return
        start, end = waiting.pop()
        try:
            value = read_loose(text[start:end])
        except NoValueError:
            if text[start] == "[":
                inside = blocks(text[start + 1 : end - 1])
                waiting += [(start + 1 + first, start + 1 + last) for first, last in reversed(inside)]
            continue
        yield start, end, value


def _all(values: Sequence[Any], kind: type) -> bool:
    return all(isinstance(value, kind) for value in values)


def _is_no_answer(key: str, value: Any) -> bool:
    """`"example": {...}`, and several people in one list."""
    if not isinstance(value, list | Pairs) or not value:
        return False
    several = isinstance(value, list) and any(one != value[0] for one in value[1:]) and not is_bare(value)
    return bare_key(key) in _NO_ANSWERS or wording.takes_back(key) or (several and bare_key(key) in _PEOPLE_KEYS)


def _only_labels(values: list[Any]) -> list[Any]:
    """`[{"label": "head"}, {"label": "legs"}]` as the labels alone; other lists as they are."""
    if all(isinstance(one, Pairs) and len(one) == len(labels_of(one)) == 1 for one in values):
        return [labels_of(one)[0] for one in values]
    return values


def _is_remark(value: Any) -> bool:
    """A value beside the boxes: a score, whether the part is visible."""
    return isinstance(value, int | float)


def is_bare(value: Any) -> bool:
    """Numbers in lists, or nothing: no name anywhere."""
    if isinstance(value, list):
        return all(is_bare(item) for item in value)
    return (
        value is None
        or isinstance(value, int | float)
        or (isinstance(value, str) and bool(ONE_NUMBER.fullmatch(value.strip())))
    )


def _has_box(data: Pairs) -> bool:
    keys = {bare_key(key) for key, _ in data}
    return bool(keys & BOX_KEYS) or any(keys.issuperset(names) for names in COORDINATES)


def _is_described(data: Pairs) -> bool:
    """Whether members without a known meaning may say that an entry without a label is about something else."""
    return any(
        isinstance(value, str) or (isinstance(value, bool | Pairs | list) and bool(value))
        for key, value in data
        if bare_key(key) not in _WRAPPERS | _TEXT_KEYS | VISIBLE_KEYS
    )
