"""What a value says about one part: a box, "not there", something unreadable, or nothing at all."""

import re
from collections.abc import Sequence
from typing import Any

from labeler.grounding.parsing import wording
from labeler.grounding.parsing.claims import NOT_THERE, UNREADABLE, Said
from labeler.grounding.parsing.loose_json import Pairs
from labeler.grounding.parsing.numbers import MARKUP, runs
from labeler.grounding.parsing.question import Asked
from labeler.grounding.parsing.tables import COORDINATES, bare_key
from labeler.grounding.vocabulary import places
from shared.geometry import Box
from shared.schemas import LabelStatus

NESTING = 8  # objects and lists around a box that are looked through
BOX_KEYS = frozenset(
    (
        "bbox2d bbox box2d box boundingbox boundingbox2d coordinates coords coordinate xyxy bboxxyxy bboxes boxes rect "
        "location position points"
    ).split()
)
LABEL_KEYS = frozenset(
    "label labels part bodypart name object category class classname description type title target ref caption".split()
)
_LABEL_ENDINGS = ("label", "class", "category", "part")  # `sub_label`: it says more about the same box
VISIBLE_KEYS = frozenset(("visible", "isvisible", "present", "ispresent", "found", "detected", "exists"))
# What may be false of a box that is right; a denial by any other key makes it unreadable.
_MAY_BE_FALSE = frozenset(
    "occluded isoccluded truncated istruncated iscrowd crowd difficult partial ispartial blurred normalized".split()
)
_MAY_NOT_BE_TRUE = frozenset(
    "normalized isnormalized normalised relative invisible hidden missing absent notvisible notfound failed refused "
    "outofframe isabsent ismissing".split()
)
# Members that say with a word or a number whether a part is there, or list those that are not.
_PRESENCE_WORDS = frozenset("visible visibility status state presence present found detected exists".split())
_UNSEEN_KEYS = frozenset(
    "missing absent notvisible invisible notfound undetected hidden unseen missingparts invisibleparts notpresent "
    "notdetected outofframe error errors failure".split()
)
_OTHERS = frozenset("parent person people pedestrian human body image crop frame size color colour mask".split())
_NO_REMARK = frozenset(("none", "no", "null", "nil", "n/a", "na", "nothing", "missing", "not applicable"))
_NEGATIVE = frozenset("no false 0 none invisible hidden absent missing unknown failed error unseen".split())
_MAY_BE_FALSE_WORDS = frozenset(
    "occluded truncated crowd difficult partial blurred normalized cropped cut multiple others".split()
)


def labelled(asked: Asked, labels: Sequence[str]) -> str | None:
    """The one part that the labels of an entry name; None when one of them says something else."""
    parts = {asked.part_of(label) for label in labels if not wording.is_generic(label)}
    return parts.pop() if len(parts) == 1 else None


def labels_of(data: Pairs) -> list[str]:
    return [
        value
        for key, value in data
        if isinstance(value, str) and ((bare := bare_key(key)) in LABEL_KEYS or bare.endswith(_LABEL_ENDINGS))
    ]


def denied(asked: Asked, data: Pairs, part: str) -> bool:
    """Whether a member beside the boxes says that the part is not there, that it is something else, or that the boxes
    are wrong: `"is_head": false`, `"reason": "there is no head"`, `"note": "placeholder"`."""
    for key, value in data:
        if asked.part_of(key):
            continue
        words = {*key.lower().split("_")}
        bare = bare_key(key)
        of_this = mentions(asked, key, part) or not places(key.replace("_", " "), asked.all_names)
        if value is False and of_this and not (_MAY_BE_FALSE_WORDS & words or bare in _MAY_BE_FALSE | VISIBLE_KEYS):
            return True
        if value is True and bare in _MAY_NOT_BE_TRUE:
            return True
        presence = _PRESENCE_WORDS & {*words, bare} and "not" not in words and bare not in _UNSEEN_KEYS
        if presence and ((of_this and _is_negative(value)) or _tells_apart(asked, value, part)):
            return True
        if bare in _UNSEEN_KEYS and isinstance(value, str) and _is_failure(asked, value):
            return True
        if isinstance(value, str) and (
            wording.takes_back(value)
            or (wording.says_nothing(value) and value.strip(" .").lower() not in _NO_REMARK)
            or wording.is_other_thing(value, asked.all_names)
            or any(other == part for *_, other in wording.unseen_parts(value, asked.all_names))
        ):
            return True
    return False


def _is_negative(value: Any) -> bool:
    """`"no"`, 0, `"not visible"`; not False, which the caller knows, nor None, which says nothing."""
    if isinstance(value, str):
        return value.strip().lower() in _NEGATIVE or wording.says_nothing(value)
    return type(value) in (int, float) and value == 0


def _is_failure(asked: Asked, value: str) -> bool:
    """Whether `"error": "..."` tells of one, about all parts: it names none."""
    return bool(value.strip()) and not wording.says_nothing(value) and not _named_in(asked, value)


def _tells_apart(asked: Asked, value: Any, part: str) -> bool:
    """Whether `"visible": {"head": 1, "legs": 0}` or `"visible_parts": ["head"]` says that the part is not there."""
    if isinstance(value, Pairs):
        return any(asked.part_of(key) == part and (one is False or _is_negative(one)) for key, one in value)
    named = _named_in(asked, value) if isinstance(value, list) else set()
    return bool(named) and part not in named


def _named_in(asked: Asked, value: Any) -> set[str]:
    """The parts that a text, or a list of texts, names."""
    texts = [item for item in (value if isinstance(value, list) else [value]) if isinstance(item, str)]
    return {part for text in texts for *_, part in places(text.replace("_", " "), asked.all_names)}


def unseen_in(asked: Asked, data: Pairs) -> set[str]:
    """The parts that `"missing": ["head"]` lists."""
    return {part for key, value in data if bare_key(key) in _UNSEEN_KEYS for part in _named_in(asked, value)}


def mentions(asked: Asked, key: str, part: str) -> bool:
    return any(other == part for *_, other in places(key.replace("_", " "), asked.all_names))


def said_of(asked: Asked, value: Any, part: str, depth: int = NESTING) -> Said | None:
    """What a value says about a part: a box, "not there", something unreadable; None when nothing at all."""
    if value is None or value == []:
        return NOT_THERE
    if not depth:
        return UNREADABLE
    if isinstance(value, Pairs):
        return _said_by_object(asked, value, part, depth)
    if isinstance(value, list):
        return _said_by_list(asked, value, part, depth)
    return _said_by_text(asked, value, part) if isinstance(value, str) else None


def _said_by_object(asked: Asked, data: Pairs, part: str, depth: int) -> Said | None:
    labels = labels_of(data)
    if labels and labelled(asked, labels) not in ({part, None} if all(map(wording.is_generic, labels)) else {part}):
        return UNREADABLE
    if any(value is False and bare_key(key) not in VISIBLE_KEYS | _MAY_BE_FALSE for key, value in data):
        return UNREADABLE
    visible = [value for key, value in data if bare_key(key) in VISIBLE_KEYS]
    said = [one for key, value in data if bare_key(key) in BOX_KEYS and (one := said_of(asked, value, part, depth - 1))]
    if box := _corners(asked, data):
        said.append(Said(LabelStatus.OK, box))
    if False in visible and not any(one.box for one in said):
        return NOT_THERE if all(one == NOT_THERE for one in said) and True not in visible else UNREADABLE
    if False in visible or (True in visible and any(one == NOT_THERE for one in said)):
        return UNREADABLE
    if not said:
        return None if labels or visible else UNREADABLE
    if said[0].box and (denied(asked, data, part) or _has_another(asked, data, said[0].box)):
        return UNREADABLE
    return said[0] if all(one == said[0] for one in said) else UNREADABLE


def _has_another(asked: Asked, data: Pairs, box: Box) -> bool:
    """Whether a member beside the box is another one, not said to be of something else: `"refined": [1, 2, 3, 4]`."""
    return any(
        isinstance(value, list)
        and (other := asked.box(value)) is not None
        and other != box
        and bare_key(key) not in BOX_KEYS
        and not _OTHERS & {*re.split(r"[\W_]", key.lower())}
        for key, value in data
    )


def _corners(asked: Asked, data: Pairs) -> Box | None:
    """Four named coordinates, or two named corners."""
    by_key = {bare_key(key): value for key, value in data}
    if len(by_key) != len(data):
        return None
    for keys in COORDINATES:
        if all(key in by_key for key in keys):
            return asked.box([by_key[key] for key in keys])
    first, last = by_key.get("topleft"), by_key.get("bottomright")
    if isinstance(first, list) and isinstance(last, list) and len(first) == len(last) == 2:
        return asked.box([*first, *last])
    return None


def _said_by_list(asked: Asked, value: list[Any], part: str, depth: int) -> Said | None:
    if box := asked.box(value):
        return Said(LabelStatus.OK, box)
    points = (
        [number for point in value for number in point]
        if all(isinstance(point, list) and len(point) == 2 for point in value)
        else value
    )
    if numbers := asked.numbers(points):
        if len(numbers) == 4:
            return Said(LabelStatus.OK, Box(*numbers))
        return _rectangle(numbers) or UNREADABLE
    said = [said_of(asked, item, part, depth - 1) for item in value if isinstance(item, list | Pairs | str)]
    if len(said) != len(value) or not said or said[0] is None or any(one != said[0] for one in said):
        return UNREADABLE
    return said[0]


def _said_by_text(asked: Asked, value: str, part: str) -> Said | None:
    value = MARKUP.sub(" ", value)
    found = runs(value)
    boxes = [asked.box(run.numbers) for run in found]
    if not found:
        unseen = any(other == part for *_, other in wording.unseen_parts(value, asked.all_names))
        return NOT_THERE if unseen or wording.says_nothing(wording.without_remarks(value)) else None
    others = {other for *_, other in places(value, asked.all_names)} - {part}
    if len(found) != 1 or boxes[0] is None or others or wording.says_not(value):
        return UNREADABLE
    outside = value[: found[0].start] + value[found[0].end :]
    if re.search(r"\b(?:for|see)\b", wording.without_remarks(outside), re.IGNORECASE):
        return UNREADABLE  # it points at the box of something else
    return Said(LabelStatus.OK, boxes[0]) if found[0].bracketed or not wording.has_words(outside) else UNREADABLE


def _rectangle(numbers: Sequence[float]) -> Said | None:
    """The box of the four corners of an upright rectangle, in the order of its outline."""
    if len(numbers) != 8:
        return None
    xs, ys = numbers[::2], numbers[1::2]
    along = xs[0] == xs[3] and xs[1] == xs[2] and ys[0] == ys[1] and ys[2] == ys[3]
    down = xs[0] == xs[1] and xs[2] == xs[3] and ys[0] == ys[3] and ys[1] == ys[2]
    if not (along or down) or xs[0] == xs[2] or ys[0] == ys[2]:
        return None
    return Said(LabelStatus.OK, Box(min(xs), min(ys), max(xs), max(ys)), doubtful=True)
