"""From the text of an answer to one outcome per part, for every text there is: nothing here raises.

An answer is read as JSON, else as a Python literal or JSON5, whole or as blocks inside other words; a name and a box
belong together only inside one entry. What is left as plain text is read only where it leaves no doubt: each line names
one part and has one box, or each box follows directly after its name, every time. Otherwise it is unparseable.
"Not visible" and "could not be read" never look alike, and an answer that did not end by itself is never OK.

What stands before the last `</think>` is no answer. When one part is answered in several ways:

- the same box several times is one answer;
- several boxes that nearly coincide (IoU SAME_IOU or more): the first, with the flag AMBIGUOUS;
- bare boxes in the order of the question, the corners of an upright rectangle, and what follows "final answer" after
  other boxes: that box, with the flag AMBIGUOUS;
- all else that differs, and a box beside "not visible": unparseable. Where whole sets of parts contradict each other,
  or the words tell several people apart, all parts are.
"""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from labeler import wording
from labeler.answer_tables import COORDINATES, bare_key, table_rows
from labeler.loose_json import NoValueError, Pairs, ascii_brackets, blocks, read_json, read_loose
from labeler.vocabulary import SHARED, Vocabulary, places, plain
from shared.geometry import Box, iou, ordered
from shared.schemas import RAW_TEXT_LIMIT, LabelStatus

READ_LIMIT = 20_000  # characters looked at; a box answer has under 200
NESTING = 8  # objects and lists around a box that are looked through
SAME_IOU = 0.95  # from here on two boxes are one answer, said twice
AMBIGUOUS = "ambiguous"  # flag of a box that was clearly meant, though the answer can be read otherwise
_FENCED = re.compile(r"```(?:json)?\s*(.*?)\s*```", re.DOTALL)
_BRACKETS = re.compile(r"\[\[(\d{1,4}),(\d{1,4}),(\d{1,4}),(\d{1,4})\]\]")
_TRIED_MARKS = 3  # of "final answer", from the last one
_MOST_BOXES = 64  # in plain text; more belong to no answer about one person
_TRIED_BLOCKS = 64  # places in a text where a value is looked for
_BOX_KEYS = frozenset(
    (
        "bbox2d bbox box2d box boundingbox boundingbox2d coordinates coords coordinate xyxy bboxxyxy bboxes boxes rect "
        "location position points"
    ).split()
)
_LABEL_KEYS = frozenset(
    "label labels part bodypart name object category class classname description type title target ref".split()
)
_WRAPPERS = _BOX_KEYS | frozenset(
    (
        "objects result results answer answers detections detection output outputs data annotations "
        "predictions prediction response parts bodyparts items regions boundingboxes bboxes2d locations "
        "instances"
    ).split()
)
_VISIBLE_KEYS = frozenset(("visible", "isvisible", "present", "found"))
_TEXT_KEYS = frozenset(
    (
        "reasoning thought thoughts thinking explanation comment note notes unit units image file filename format "
        "status task model"
    ).split()
)
_NUMBER = r"-?\d{1,7}(?:\.\d{1,6})?"
_GAP = r"(?:[ \t,;()\[\]]{1,6}|,\s{1,40})"
_RUN = re.compile(
    rf"(?<![\w.])(?P<open>[\[(]\s{{0,4}})?(?P<first>{_NUMBER})(?P<rest>(?:{_GAP}{_NUMBER})*+)(?![\w.]*\d)"
    r"(?P<close>\s{0,4}[\])])?"
)
_SENTENCE_END = re.compile(r"[.!]\s|\n")
_ANY_BRACKET = re.compile(r"[()\[\]]")
_ONE_NUMBER = re.compile(_NUMBER)
_THOUGHTS = re.compile(r"(?:</think(?:ing)?>|</thoughts?>|</reasoning>|\[/THINK\]|◁/think▷)", re.IGNORECASE)
_THOUGHT_BEGINS = re.compile(r"(?:<think(?:ing)?>|<thoughts?>|<reasoning>|\[THINK\]|◁think▷)", re.IGNORECASE)
_FINAL = re.compile(
    r"<answer>|\b(?:final|corrected) (?:answer|result|boxes)\b[\s:*]{0,4}(?:(?:is|are)\b)?|\\boxed", re.IGNORECASE
)
_MARKUP = re.compile(r"<\|[^|<>]{1,40}\|>|</[^<>]{0,40}>|<(?:box|ref|quad|answer)>|[*`#]+|~~~")
_TABLE_TAGS = (
    (re.compile(r"</t[dh]>", re.IGNORECASE), " | "),
    (re.compile(r"</tr>", re.IGNORECASE), " \n"),
    (re.compile(r"</?(?:table|tr|td|th|tbody|thead)>", re.IGNORECASE), " "),
)
_ENUMERATION = re.compile(r"^[ \t]{0,8}\d{1,2}[.)][ \t]", re.MULTILINE)
_NAMED_COORDINATES = re.compile(
    r"\W,?\s{0,4}".join(
        rf"\b(?:{name})[ \t]{{0,3}}[:=][ \t]{{0,3}}({_NUMBER})(?![.\d])"
        for name in ("x ?min|x1|left", "y ?min|y1|top", "x ?max|x2|right", "y ?max|y2|bottom")
    ),
    re.IGNORECASE,
)
_OTHER_ORDER = re.compile(  # of the coordinates, said so
    r"c?xc?ywh|yxyx|xxyy|ltwh|[\[(]\s{0,4}y_?(?:min|1|0)\b|[\[(]\s{0,4}x\w{0,8}\W{1,4}y\w{0,8}\W{1,4}w", re.IGNORECASE
)
_NOT_ANSWERED = re.compile(
    r"\b(i'?m sorry|i am sorry|i apologi[sz]e|as an ai|(un|not )able to|i (can't|cannot|can not|won't|will not))\b",
    re.IGNORECASE,
)
_REFUSED = re.compile(
    r"\bas an ai\b|\b(?:un|not )able to\b|\b(?:can't|cannot|won't) (?:help|assist|provide|identify)", re.IGNORECASE
)
_TAKEN_OUT = "}"  # stands where a block was: no name before it belongs to a box after it


@dataclass(frozen=True)
class Parsed:
    """How one part was answered: `box` (in the model's space) only when `status` is OK; `flags`: what is doubtful."""

    status: LabelStatus
    box: Box | None = None
    flags: tuple[str, ...] = ()


_ABSENT = Parsed(LabelStatus.ABSENT)
_UNPARSEABLE = Parsed(LabelStatus.UNPARSEABLE)


def parse_answer(
    text: str | None,
    finish_reason: str | None,
    parts: Sequence[str],
    vocabulary: Vocabulary = SHARED,
    number: Callable[[str | float], float] = float,
) -> dict[str, Parsed]:
    """One outcome for each of `parts`. Never raises, whatever the text.

    Args:
        text: the model's answer.
        finish_reason: why it ended, as the server says; anything but "stop" is no usable answer.
        parts: what the question asked for.
        vocabulary: to recognise parts called in other words.
        number: the coordinate that a number of the text stands for; may raise ValueError or OverflowError.
    """
    if finish_reason == "length":
        return dict.fromkeys(parts, Parsed(LabelStatus.TRUNCATED))
    if finish_reason == "content_filter":
        return dict.fromkeys(parts, Parsed(LabelStatus.REFUSED))
    if finish_reason != "stop" or not text or not text.strip():
        return dict.fromkeys(parts, _UNPARSEABLE)
    text = _after_thoughts(text).strip()[:READ_LIMIT]
    asked = _Asked(tuple(dict.fromkeys(parts)), vocabulary, number)
    if (simple := asked.simple_brackets(text)) is not None:
        return simple
    fenced = _FENCED.fullmatch(text) if text[:1] == "`" else None
    try:
        value = read_json(fenced[1] if fenced else text)
    except NoValueError:
        pass
    else:
        if (simple := asked.simple(value)) is not None:
            return simple
        if isinstance(value, str):  # a text inside a text
            text = value[:READ_LIMIT]
    return _read(text, asked)


def kept_text(text: str | None) -> str | None:
    """The raw answer, cut to what a label row keeps."""
    return text[:RAW_TEXT_LIMIT] if text else None


def _after_thoughts(text: str) -> str:
    """What follows the last thought that ended; nothing where one did not."""
    if "think" not in text.lower() and "<" not in text:
        return text
    ends = list(_THOUGHTS.finditer(text))
    if ends:
        text = text[ends[-1].end() :]
    begins = _THOUGHT_BEGINS.search(text)
    return text[: begins.start()] if begins else text


def _read(text: str, asked: "_Asked") -> dict[str, Parsed]:
    text = ascii_brackets(text)
    if _OTHER_ORDER.search(text):
        return dict.fromkeys(asked.parts, _UNPARSEABLE)
    for final in list(_FINAL.finditer(text))[: -_TRIED_MARKS - 1 : -1]:
        after = text[final.end() :]
        if any(len(run.numbers) == 4 for run in _runs(after)):
            drafted = any(len(run.numbers) == 4 for run in _runs(text[: final.start()]))
            found = _read_all(after, asked)
            return {part: _doubted(one) if drafted else one for part, one in found.items()}
    return _read_all(text, asked)


def _read_all(text: str, asked: "_Asked") -> dict[str, Parsed]:
    findings = _Findings(asked)
    left = findings.take_values(text)
    findings.take_text(left)
    if not any(claim.said.box for claim in findings.claims) and _REFUSED.search(left):
        return dict.fromkeys(asked.parts, Parsed(LabelStatus.REFUSED))
    found = findings.settled() if wording.people_told_apart(text) < 2 else dict.fromkeys(asked.parts, _UNPARSEABLE)
    if all(one.status == LabelStatus.UNPARSEABLE for one in found.values()) and not findings.claims:
        status = LabelStatus.REFUSED if _NOT_ANSWERED.search(text) else LabelStatus.UNPARSEABLE
        return dict.fromkeys(asked.parts, Parsed(status))
    return found


def _doubted(one: Parsed) -> Parsed:
    return Parsed(one.status, one.box, (AMBIGUOUS,)) if one.box else one


class _Run(NamedTuple):
    """Numbers that follow each other in a text with nothing but brackets and commas between them."""

    start: int
    end: int
    numbers: list[str]
    bracketed: bool  # opened before the first, closed after the last
    touched: bool  # any bracket at all


def _runs(text: str) -> list[_Run]:
    return [
        _Run(
            match.start(),
            match.end(),
            [match["first"], *_ONE_NUMBER.findall(match["rest"])],
            bool(match["open"] and match["close"]),
            bool(match["open"] or match["close"] or _ANY_BRACKET.search(match["rest"])),
        )
        for match in _RUN.finditer(text)
    ]


@dataclass(frozen=True)
class _Asked:
    """What was asked for and how answers may call it."""

    parts: tuple[str, ...]
    vocabulary: Vocabulary
    number: Callable[[str | float], float]

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
        return wording.named_part(label, self.all_names, sentence=sentence) if len(label) <= 400 else None

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
                found[part] = _ABSENT
            elif isinstance(said, list) and (box := self.box(said)):
                found[part] = Parsed(LabelStatus.OK, box)
            else:
                return None
        return {part: found.get(part, _UNPARSEABLE) for part in self.parts} if found else None

    def box(self, values: Sequence[Any]) -> Box | None:
        """Four numbers, or texts of numbers, as a box."""
        numbers = self.numbers(values) if len(values) == 4 else None
        return Box(*numbers) if numbers else None

    def numbers(self, values: Sequence[Any]) -> list[float] | None:
        found = []
        for value in values:
            kind = type(value)
            if not (kind is int or kind is float or (kind is str and _ONE_NUMBER.fullmatch(value.strip()))):
                return None
            try:
                found.append(self.number(value))
            except (ValueError, OverflowError):
                return None
        return found if all(map(math.isfinite, found)) else None


class _Said(NamedTuple):
    """What a value says about a part; `doubtful` makes its box AMBIGUOUS."""

    status: LabelStatus
    box: Box | None = None
    doubtful: bool = False


_NOT_THERE = _Said(LabelStatus.ABSENT)
_UNREADABLE = _Said(LabelStatus.UNPARSEABLE)


class _Claim(NamedTuple):
    """What one entry of the answer says about a part; `source` numbers the set of parts that the entry belongs to."""

    part: str
    said: _Said
    source: int


@dataclass
class _Findings:
    """Everything an answer says, entry by entry, and what it comes to."""

    asked: _Asked
    claims: list[_Claim] = field(default_factory=list)
    empty: bool = False  # an honest empty list of detections stood there
    doubt: bool = False  # a box that could be anyone's
    sources: int = 0

    # ---- what it comes to

    def settled(self) -> dict[str, Parsed]:
        """The rule of this module's docstring."""
        parts = self.asked.parts
        if self.doubt:
            return dict.fromkeys(parts, _UNPARSEABLE)
        if self.empty and not self.claims:
            return dict.fromkeys(parts, _ABSENT)
        by_part: dict[str, list[_Claim]] = {part: [] for part in parts}
        for claim in self.claims:
            if claim.part in by_part:
                by_part[claim.part].append(claim)
        found = {part: _settle([claim.said for claim in claims]) for part, claims in by_part.items()}
        for part, claims in by_part.items():
            if found[part].status == LabelStatus.UNPARSEABLE and len({claim.source for claim in claims}) > 1:
                return dict.fromkeys(parts, _UNPARSEABLE)
        return found

    # ---- values

    def take_values(self, text: str) -> str:
        """Read the values in a text; the text that is left, as long as before."""
        spans = [(0, len(text))] if text[:1] in ("[", "{") and text[-1:] in ("]", "}") else []
        if spans:
            try:
                value = read_json(text)
            except NoValueError:
                spans = blocks(text)
            else:
                self.sources += 1
                self._collect(value, neutral=True, depth=NESTING)
                return ""
        else:
            spans = blocks(text)
        values = list(_block_values(text, spans))
        outside = _plain_words(_without(text, [(start, end) for start, end, _ in values]))
        introduced = self.asked.part_of(_bare(outside.replace(_TAKEN_OUT, " ")), sentence=True)
        neutral = wording.is_filler(outside) or (introduced,) == self.asked.parts
        alone = len(values) == 1 and wording.is_filler(outside)
        taken = []
        for start, end, value in values:
            if alone or not _is_bare(value) or value == []:
                self.sources += 1
                self._collect(value, neutral=alone or (neutral and value != []), depth=NESTING)
                self.empty |= value == [] and len(values) == 1
                taken.append((start, end))
        return _without(text, taken)

    def _collect(self, value: Any, *, neutral: bool, depth: int) -> None:
        """Take the entries of a value. `neutral`: nothing around it says that it is about something else."""
        if not depth:
            return
        if isinstance(value, Pairs):
            self._collect_object(value, neutral, depth)
        elif isinstance(value, list):
            self._collect_list(value, neutral, depth)

    def _collect_object(self, data: Pairs, neutral: bool, depth: int) -> None:
        named = [(part, value) for key, value in data if (part := self.asked.part_of(key)) and not _is_remark(value)]
        if named:
            self.sources += 1
            source = self.sources
            for part, value in named:
                said = self._said(value, part)
                if said == _NOT_THERE and any(bare_key(key) in _BOX_KEYS and box for key, box in data):
                    said = _UNREADABLE
                if said:
                    self.claims.append(_Claim(part, said, source))
            for key, value in data:
                if isinstance(value, list | Pairs) and not self.asked.part_of(key):
                    self._collect(value, neutral=False, depth=depth - 1)
            return
        labels = [value for key, value in data if bare_key(key) in _LABEL_KEYS and isinstance(value, str)]
        if labels:
            if part := self._labelled(labels):
                if said := self._said(data, part):
                    self.claims.append(_Claim(part, said, self.sources))
            else:
                for key, value in data:
                    if bare_key(key) not in _BOX_KEYS:
                        self._collect(value, neutral=False, depth=depth - 1)
            return
        if self._collect_parallel(data):
            return
        neutral = neutral and not _is_described(data)
        if len(self.asked.parts) == 1 and neutral and _has_box(data):
            said = self._said(data, self.asked.parts[0])
            if said and said.status != LabelStatus.UNPARSEABLE:
                self.claims.append(_Claim(self.asked.parts[0], said, self.sources))
                return
        for key, value in data:
            self._collect(value, neutral=neutral and bare_key(key) in _WRAPPERS, depth=depth - 1)

    def _labelled(self, labels: Sequence[str]) -> str | None:
        """The one part that the labels of an entry name; None when one of them says something else."""
        parts = {self.asked.part_of(label) for label in labels if not wording.is_generic(label)}
        return parts.pop() if len(parts) == 1 else None

    def _collect_parallel(self, data: Pairs) -> bool:
        """Names and boxes in two lists of one length: `{"labels": [...], "boxes": [...]}`."""
        lists = [(key, value) for key, value in data if isinstance(value, list) and value]
        labels = [
            value
            for key, value in lists
            if bare_key(key) in _LABEL_KEYS | {"classes", "names", "categories", "parts"} and _all(value, str)
        ]
        boxes = [value for key, value in lists if bare_key(key) in _WRAPPERS and _is_bare(value)]
        if len(labels) != 1 or len(boxes) != 1:
            return False
        if len(labels[0]) == len(boxes[0]):
            for label, value in zip(labels[0], boxes[0], strict=True):
                part = self.asked.part_of(label)
                if part and (said := self._said(value, part)):
                    self.claims.append(_Claim(part, said, self.sources))
        return True

    def _collect_list(self, data: list[Any], neutral: bool, depth: int) -> None:
        parts = self.asked.parts
        if not data or data == [[]]:
            self.empty |= neutral
        elif _is_bare(data):
            if not neutral:
                return
            if len(parts) == 1:
                if said := self._said(data, parts[0]):
                    self.claims.append(_Claim(parts[0], said, self.sources))
            elif len(data) == 1:
                self._collect(data[0], neutral=neutral, depth=depth - 1)
            elif len(data) == len(parts) and _all(data, list):  # in the order of the question
                for part, value in zip(parts, data, strict=True):
                    said = self._said(value, part) or _UNREADABLE
                    self.claims.append(_Claim(part, said._replace(doubtful=True), self.sources))
        elif not self._collect_row(data):
            for item in data:
                if isinstance(item, Pairs | list) and item:
                    self._collect(
                        item, neutral=neutral and not (isinstance(item, list) and len(data) > 1), depth=depth - 1
                    )

    def _collect_row(self, data: list[Any]) -> bool:
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
        if part and (said := self._said(rest[0] if len(rest) == 1 else rest, part)):
            self.claims.append(_Claim(part, said, self.sources))
        return True

    def _said(self, value: Any, part: str, depth: int = NESTING) -> _Said | None:
        """What a value says about a part: a box, "not there", something unreadable; None when nothing at all."""
        if value is None or value == []:
            return _NOT_THERE
        if not depth:
            return _UNREADABLE
        if isinstance(value, Pairs):
            return self._said_by_object(value, part, depth)
        if isinstance(value, list):
            return self._said_by_list(value, part, depth)
        return self._said_by_text(value, part) if isinstance(value, str) else None

    def _said_by_object(self, data: Pairs, part: str, depth: int) -> _Said | None:
        labels = [value for key, value in data if bare_key(key) in _LABEL_KEYS and isinstance(value, str)]
        if labels and self._labelled(labels) not in ({part, None} if all(map(wording.is_generic, labels)) else {part}):
            return _UNREADABLE
        visible = [value for key, value in data if bare_key(key) in _VISIBLE_KEYS]
        said = [
            one for key, value in data if bare_key(key) in _BOX_KEYS and (one := self._said(value, part, depth - 1))
        ]
        if box := self._corners(data):
            said.append(_Said(LabelStatus.OK, box))
        if False in visible and not any(one.box for one in said):
            return _NOT_THERE if all(one == _NOT_THERE for one in said) and True not in visible else _UNREADABLE
        if False in visible or (True in visible and any(one == _NOT_THERE for one in said)):
            return _UNREADABLE
        if not said:
            return None if labels or visible else _UNREADABLE
        return said[0] if all(one == said[0] for one in said) else _UNREADABLE

    def _corners(self, data: Pairs) -> Box | None:
        """Four named coordinates, or two named corners."""
        by_key = {bare_key(key): value for key, value in data}
        if len(by_key) != len(data):
            return None
        for keys in COORDINATES:
            if all(key in by_key for key in keys):
                return self.asked.box([by_key[key] for key in keys])
        first, last = by_key.get("topleft"), by_key.get("bottomright")
        if isinstance(first, list) and isinstance(last, list) and len(first) == len(last) == 2:
            return self.asked.box([*first, *last])
        return None

    def _said_by_list(self, value: list[Any], part: str, depth: int) -> _Said | None:
        if box := self.asked.box(value):
            return _Said(LabelStatus.OK, box)
        points = (
            [number for point in value for number in point]
            if _all(value, list) and all(len(p) == 2 for p in value)
            else value
        )
        if numbers := self.asked.numbers(points):
            if len(numbers) == 4:
                return _Said(LabelStatus.OK, Box(*numbers))
            return _rectangle(numbers) or _UNREADABLE
        said = [self._said(item, part, depth - 1) for item in value if isinstance(item, list | Pairs | str)]
        if len(said) != len(value) or not said or said[0] is None or any(one != said[0] for one in said):
            return _UNREADABLE
        return said[0]

    def _said_by_text(self, value: str, part: str) -> _Said | None:
        value = _MARKUP.sub(" ", value)
        runs = _runs(value)
        boxes = [self.asked.box(run.numbers) for run in runs]
        if not runs:
            unseen = any(other == part for *_, other in wording.unseen_parts(value, self.asked.all_names))
            return _NOT_THERE if unseen or wording.says_nothing(wording.without_remarks(value)) else None
        others = {other for *_, other in places(value, self.asked.all_names)} - {part}
        if len(runs) != 1 or boxes[0] is None or others or wording.says_not(value):
            return _UNREADABLE
        outside = value[: runs[0].start] + value[runs[0].end :]
        return _Said(LabelStatus.OK, boxes[0]) if runs[0].bracketed or not wording.has_words(outside) else _UNREADABLE

    # ---- plain text

    def take_text(self, text: str) -> None:
        """Read the boxes that stand in plain text, and the parts that it says are not visible."""
        if not text.strip(_TAKEN_OUT + " \n"):
            return
        for html, sign in _TABLE_TAGS:
            text = html.sub(sign, text)
        text = _ENUMERATION.sub(" ", _MARKUP.sub(" ", text).replace("_", " "))
        text = _NAMED_COORDINATES.sub(r" (\1, \2, \3, \4) ", text)
        unseen = list(wording.unseen_parts(text, self.asked.all_names))
        self.sources += 1
        self.claims += [_Claim(part, _NOT_THERE, self.sources) for *_, part in unseen]
        text = _without(text, [(start, end) for start, end, _ in unseen])
        if len(self.asked.parts) == 1 and not self.claims and wording.says_nothing(text):
            self.claims.append(_Claim(self.asked.parts[0], _NOT_THERE, self.sources))
            return
        if rows := table_rows(text, self.asked.part_of, self.asked.number):
            for part, cells in rows.claims:
                said = _Said(LabelStatus.OK, cells) if isinstance(cells, Box) else self._said(cells, part)
                if said:
                    self.claims.append(_Claim(part, said, self.sources))
            text = _without(text, rows.spans)
        runs = _runs(text)
        if any(run.touched and len(run.numbers) > 2 and not (run.bracketed and len(run.numbers) == 4) for run in runs):
            self.doubt = True  # a longer list, or brackets that do not close
            return
        runs = [run for run in runs if len(run.numbers) == 4]
        if not runs:
            return
        if len(runs) > _MOST_BOXES:
            self.doubt = True
            return
        if len(self.asked.parts) == 1 and wording.is_filler(
            _without(text, [(run.start, run.end) for run in runs]).replace(_TAKEN_OUT, " ")
        ):
            named = [(self.asked.parts[0], run) for run in runs] if all(run.bracketed for run in runs) else None
        else:
            named = self._by_line(text, runs)
            if named is None:
                named = self._after_names(text, runs)
        if named is None:
            self.doubt = True
            return
        for part, run in named:
            box = self.asked.box(run.numbers)
            self.claims.append(_Claim(part, _Said(LabelStatus.OK, box) if box else _UNREADABLE, self.sources))

    def _by_line(self, text: str, runs: Sequence[_Run]) -> list[tuple[str, _Run]] | None:
        """Boxes and names that share a line, one of each: all names before their boxes, or all boxes before."""
        lines = list(_lines(text))
        found: list[tuple[str, _Run]] = []
        orders = set()
        known = True
        used = 0
        for start, end in lines:
            inside = [run for run in runs if start <= run.start < end]
            if not inside:
                continue
            if len(inside) != 1 or inside[0].end > end:
                return None
            run = inside[0]
            used += 1
            before, after = text[start : run.start], text[run.end : end]
            name_before, name_after = wording.has_words(before), wording.has_words(wording.without_remarks(after))
            if name_before == name_after or _TAKEN_OUT in before + after:
                return None
            orders.add(name_before)
            label = _bare(before if name_before else after)
            if wording.is_filler(label):
                return None
            part = self.asked.part_of(label, sentence=True)
            known &= part is not None
            if part:
                found.append((part, run))
        if len(orders) != 1 or used != len(runs):
            return None
        if False in orders:  # boxes first: every one must be known, and no name may stand above them
            above = text[: runs[0].start]
            if not known or places(above, self.asked.all_names):
                return None
        return found

    def _after_names(self, text: str, runs: Sequence[_Run]) -> list[tuple[str, _Run]] | None:
        """Boxes that each follow directly after one name; None when that does not hold for every one.

        Names stand all beside their boxes or all on lines above, and after the last box no words may follow that could
        be its name: then the boxes might stand first, below a heading.
        """
        names = self.asked.all_names
        found = []
        above = set()
        end = 0
        for run in runs:
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
            part = self.asked.part_of(_bare(label), sentence=True) if spots else None
            if part is None or not run.bracketed or _TAKEN_OUT in label[spots[-1][1] :] + gap:
                return None
            if "\n" in gap and end and "\n" not in head:
                return None  # the name is beside the box before
            above.add("\n" in gap)
            found.append((part, run))
            end = run.end
        after = wording.without_remarks(text[end:]).strip(" \"'.,;:)]}|")
        if above != {True}:
            after = _SENTENCE_END.split(after, maxsplit=1)[0]
        if len(above) != 1 or places(text[end:], names) or not wording.is_filler(after):
            return None
        return found


def _settle(said: Sequence[_Said]) -> Parsed:
    """One outcome of all that is said about a part."""
    if not said or any(one == _UNREADABLE for one in said):
        return _UNPARSEABLE
    boxes = [one.box for one in said if one.box]
    if not boxes:
        return _ABSENT
    if len(boxes) != len(said):
        return _UNPARSEABLE
    flags = (AMBIGUOUS,) if any(one.doubtful for one in said) else ()
    for other in boxes[1:]:
        if other != boxes[0]:
            flags = (AMBIGUOUS,)
            if iou(ordered(boxes[0]), ordered(other)) < SAME_IOU:
                return _UNPARSEABLE
    return Parsed(LabelStatus.OK, boxes[0], flags)


def _rectangle(numbers: Sequence[float]) -> _Said | None:
    """The box of the four corners of an upright rectangle, in the order of its outline."""
    if len(numbers) != 8:
        return None
    xs, ys = numbers[::2], numbers[1::2]
    along = xs[0] == xs[3] and xs[1] == xs[2] and ys[0] == ys[1] and ys[2] == ys[3]
    down = xs[0] == xs[1] and xs[2] == xs[3] and ys[0] == ys[3] and ys[1] == ys[2]
    if not (along or down) or xs[0] == xs[2] or ys[0] == ys[2]:
        return None
    return _Said(LabelStatus.OK, Box(min(xs), min(ys), max(xs), max(ys)), doubtful=True)


def _labelled_box(item: Any) -> tuple[str, Any] | None:
    """Label and value of `{"bbox_2d": value, "label": label}`, in either order."""
    if not isinstance(item, Pairs) or len(item) != 2:
        return None
    (first, one), (second, other) = item
    if first == "label":
        first, one, second, other = second, other, first, one
    return (other, one) if second == "label" and first == "bbox_2d" and isinstance(other, str) else None


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


def _is_remark(value: Any) -> bool:
    """A value beside the boxes: a score, whether the part is visible."""
    return isinstance(value, int | float)


def _is_bare(value: Any) -> bool:
    """Numbers in lists, or nothing: no name anywhere."""
    if isinstance(value, list):
        return all(_is_bare(item) for item in value)
    return (
        value is None
        or isinstance(value, int | float)
        or (isinstance(value, str) and bool(_ONE_NUMBER.fullmatch(value.strip())))
    )


def _has_box(data: Pairs) -> bool:
    keys = {bare_key(key) for key, _ in data}
    return bool(keys & _BOX_KEYS) or any(keys.issuperset(names) for names in COORDINATES)


def _is_described(data: Pairs) -> bool:
    """Whether members without a known meaning may say that an entry without a label is about something else."""
    return any(
        isinstance(value, str | bool | Pairs | list) and bool(value)
        for key, value in data
        if bare_key(key) not in _WRAPPERS | _TEXT_KEYS | _VISIBLE_KEYS
    )


def _without(text: str, spans: Sequence[tuple[int, int]]) -> str:
    """The text with spans taken out, as long as before."""
    characters = list(text)
    for start, end in spans:
        characters[start:end] = _TAKEN_OUT * (end - start)
    return "".join(characters)


def _plain_words(text: str) -> str:
    return _MARKUP.sub(" ", text)


def _bare(label: str) -> str:
    """A label without what a list or a markup puts around it."""
    return label.replace("<", " ").replace(">", " ").replace('"', " ").strip()


def _lines(text: str) -> Iterator[tuple[int, int]]:
    start = 0
    for line in text.splitlines(keepends=True):
        yield start, start + len(line)
        start += len(line)
