"""From the text of an answer to one outcome per part, for every text there is: nothing here raises.

Accepted forms: JSON, fenced or inside other words, keyed by part, or a list of labelled boxes as Qwen-VL likes to give,
nested lists, and boxes written in plain text. "Not visible" and "could not be read" never look alike, and an answer
that did not end by itself is never OK, however complete its beginning looks.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from labeler.grounding.vocabulary import SHARED, Vocabulary, any_of, places, plain
from shared.geometry import Box
from shared.schemas import RAW_TEXT_LIMIT, LabelStatus

READ_LIMIT = 20_000  # characters looked at; a box answer has under 200
NESTING = 5  # brackets around a box that are looked through
_JSON_STARTS = 32  # places in a text where JSON is looked for
_BOX_KEYS = ("bbox_2d", "bbox", "box_2d", "box", "bounding_box", "coordinates")
_LABEL_KEYS = ("label", "part", "name", "object")
_NUMBER = r"(-?\d{1,7}(?:\.\d{1,6})?)"
_GAP = r"[\s,;()\[\]]{1,6}"
_PLAIN_BOX = re.compile(rf"[\[(]\s{{0,4}}{_NUMBER}{_GAP}{_NUMBER}{_GAP}{_NUMBER}{_GAP}{_NUMBER}\s{{0,4}}[\]);]")
_FENCE = re.compile(r"```(?:json)?(.*?)(?:```|\Z)", re.DOTALL | re.IGNORECASE)
_NOT_VISIBLE = re.compile(
    r"\b(not|isn't|aren't)\s+(clearly\s+)?(visible|shown|present|seen|in the (image|picture|frame))\b"
    r"|\b(cannot|can't|can not)\s+see\b"
    r"|\b(out of (the )?frame|occluded|absent)\b",
    re.IGNORECASE,
)
_NOTHING = re.compile(r"\s*(no|none|null|n/a)\b", re.IGNORECASE)  # begins the value of one part
_REFUSAL = re.compile(
    r"\b(i'?m sorry|i am sorry|i apologi[sz]e|as an ai|(un|not )able to"
    r"|i (can't|cannot|can not|won't|will not))\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Parsed:
    """How one part was answered: `box` (in the model's space) only when `status` is OK."""

    status: LabelStatus
    box: Box | None = None


def parse_answer(
    text: str | None, finish_reason: str | None, parts: Sequence[str], vocabulary: Vocabulary = SHARED
) -> dict[str, Parsed]:
    """One outcome for each of `parts`. Never raises, whatever the text.

    Args:
        text: the model's answer.
        finish_reason: why it ended, as the server says; anything but "stop" is no usable answer.
        parts: what the question asked for.
        vocabulary: to recognise parts called in other words.
    """
    if finish_reason == "length":
        return dict.fromkeys(parts, Parsed(LabelStatus.TRUNCATED))
    if finish_reason == "content_filter":
        return dict.fromkeys(parts, Parsed(LabelStatus.REFUSED))
    if finish_reason != "stop" or not text or not text.strip():
        return dict.fromkeys(parts, Parsed(LabelStatus.UNPARSEABLE))
    text = text.strip()[:READ_LIMIT]
    names = vocabulary.names(parts)
    found = _from_json(text, names) or _from_plain_text(text, names)
    missing = _without_box(text, names) if not found else Parsed(LabelStatus.UNPARSEABLE)
    return {part: found.get(part, missing) for part in parts}


def kept_text(text: str | None) -> str | None:
    """The raw answer, cut to what a label row keeps."""
    return text[:RAW_TEXT_LIMIT] if text else None


def _from_json(text: str, names: Mapping[str, str]) -> dict[str, Parsed]:
    for data in _json_values(text):
        if found := _by_part(data, names):
            return found
    return {}


def _json_values(text: str) -> Iterator[Any]:
    """JSON values of a text, likeliest first: the whole of it, its fenced blocks, whatever starts at a bracket."""
    decoder = json.JSONDecoder()
    for body in (text, *_FENCE.findall(text)):
        try:
            yield decoder.decode(body.strip())
        except (ValueError, RecursionError):
            continue
    end = 0
    for number, start in enumerate(re.finditer(r"[\[{]", text)):
        if number >= _JSON_STARTS:
            return
        if start.start() < end:  # inside a value that was already given
            continue
        try:
            data, end = decoder.raw_decode(text, start.start())
        except (ValueError, RecursionError):
            continue
        yield data


def _by_part(data: Any, names: Mapping[str, str], depth: int = NESTING) -> dict[str, Parsed]:
    """Outcomes by part of one JSON value; empty when it says nothing about any part."""
    if not depth:
        return {}
    if isinstance(data, dict):
        named = {names[plain(key)]: _outcome(value) for key, value in data.items() if plain(key) in names}
        if named:
            return named
        if label := _label(data):
            return {names[label]: _outcome(data)} if label in names else {}
        if len(names_parts := _parts(names)) == 1 and any(key in data for key in _BOX_KEYS):
            return {names_parts[0]: _outcome(data)}
        if len(data) == 1:  # {"boxes": ...}
            return _by_part(next(iter(data.values())), names, depth - 1)
        return {}
    return _by_part_of_list(data, names, depth - 1) if isinstance(data, list) else {}


def _by_part_of_list(data: list[Any], names: Mapping[str, str], depth: int) -> dict[str, Parsed]:
    parts = _parts(names)
    if not data:  # an honest empty list of detections
        return dict.fromkeys(parts, Parsed(LabelStatus.ABSENT))
    if any(isinstance(item, dict) for item in data):
        found: dict[str, Parsed] = {}
        for item in data:
            for part, outcome in (_by_part(item, names, depth) if isinstance(item, dict) else {}).items():
                found.setdefault(part, outcome)  # a repeated answer counts once
        return found
    if len(parts) == 1:
        return {parts[0]: _outcome(data)}
    if len(data) == 1:
        return _by_part(data[0], names, depth)
    if len(data) == len(parts) and all(isinstance(item, list) for item in data):  # in the order of the question
        return dict(zip(parts, map(_outcome, data), strict=True))
    return {}


def _parts(names: Mapping[str, str]) -> list[str]:
    return list(dict.fromkeys(names.values()))


def _label(data: Mapping[str, Any]) -> str | None:
    return next((plain(data[key]) for key in _LABEL_KEYS if isinstance(data.get(key), str)), None)


def _outcome(value: Any) -> Parsed:
    """What a value says about one part: a box, "not there" (null, an empty list, in words), or nothing readable."""
    for _ in range(NESTING):  # [[[1, 2, 3, 4]]] and {"bbox": [[...]]}
        if value is None or value == [] or (isinstance(value, str) and _says_nothing(value)):
            return Parsed(LabelStatus.ABSENT)
        if box := _box(value):
            return Parsed(LabelStatus.OK, box)
        if isinstance(value, dict) and (key := next((key for key in _BOX_KEYS if key in value), None)):
            value = value[key]
        elif isinstance(value, list) and isinstance(value[0], list | dict):
            value = value[0]
        else:
            break
    return Parsed(LabelStatus.UNPARSEABLE)


def _box(value: Any) -> Box | None:
    if isinstance(value, dict):
        for keys in (("x_min", "y_min", "x_max", "y_max"), ("xmin", "ymin", "xmax", "ymax"), ("x1", "y1", "x2", "y2")):
            if all(key in value for key in keys):
                value = [value[key] for key in keys]
                break
    if isinstance(value, str) and (match := _PLAIN_BOX.fullmatch(value.strip())):
        value = [float(number) for number in match.groups()]
    if not isinstance(value, list):
        return None
    if len(value) == 2 and all(isinstance(corner, list) and len(corner) == 2 for corner in value):
        value = [*value[0], *value[1]]  # two corners
    if len(value) != 4 or not all(isinstance(number, int | float) and not isinstance(number, bool) for number in value):
        return None
    try:
        numbers = [float(number) for number in value]
    except OverflowError:
        return None
    return Box(*numbers) if all(map(math.isfinite, numbers)) else None


def _from_plain_text(text: str, names: Mapping[str, str]) -> dict[str, Parsed]:
    """Boxes written as `head: (10, 20), (30, 40)`; with a single part its name may be missing."""
    parts = _parts(names)
    if len(parts) == 1:
        match = _PLAIN_BOX.search(text)
        return {parts[0]: Parsed(LabelStatus.OK, Box(*map(float, match.groups())))} if match else {}
    named = places(text, names)
    found: dict[str, Parsed] = {}
    for index, (start, _, part) in enumerate(named):
        stop = next((place for place, _, other in named[index + 1 :] if other != part), len(text))
        if match := _PLAIN_BOX.search(text, start, stop):
            found.setdefault(part, Parsed(LabelStatus.OK, Box(*map(float, match.groups()))))
    return found


def _says_nothing(value: str) -> bool:
    return bool(_NOTHING.match(value) or _NOT_VISIBLE.search(value[:READ_LIMIT]))


def _without_box(text: str, names: Mapping[str, str]) -> Parsed:
    """An answer without any box: not visible (only believed when one part was asked for), a refusal, or noise."""
    no_such = rf"\bno\s+(visible\s+)?({any_of([*names, 'box', 'part'])})"
    if len(_parts(names)) == 1 and (_NOT_VISIBLE.search(text) or re.search(no_such, text, re.IGNORECASE)):
        return Parsed(LabelStatus.ABSENT)
    return Parsed(LabelStatus.REFUSED if _REFUSAL.search(text) else LabelStatus.UNPARSEABLE)
