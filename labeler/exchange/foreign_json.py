"""JSON files of annotation tools, read safely.

The readers of the formats turn such a file into `ImportedLabels`. Entries that they do not understand are collected in
`Problems`, and the file is refused as a whole: a skipped shape would look like a deleted box.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shared.errors import DataError
from shared.geometry import Box

Format = Literal["coco", "label-studio", "fiftyone"]
MAX_FILE_BYTES = 2 * 2**30
SHOWN = 5  # problems, or names, in one message
SHOWN_CHARACTERS = 160  # of a foreign text in a message
NO_OVERSIZE = 1.001  # a side may be this much longer than the image's: rounding
_ARCHIVES = {b"\x1f\x8b": "gzip", b"PK": "zip", b"\x28\xb5\x2f\xfd": "zstd", b"BZ": "bzip2", b"\xfd7zXZ": "xz"}

Number = Annotated[float, Field(allow_inf_nan=False)]
Identifier = int | float | str


class Entry(BaseModel):
    """Base of what is read from one entry of a file: exact types (no text as a number), unknown keys ignored."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)


@dataclass(frozen=True)
class ImportedImage:
    """One image of a file.

    entry: where that stands in the file, e.g. "task 7". path: as the file names the image. size: its width and height
    in pixels, None where the file does not say. relative: boxes are fractions of width and height, else pixels.
    also_named: other names that the entry has for the image. incomplete: parts of which the file says that not every
    box is there.
    """

    entry: str
    path: str
    boxes: dict[str, Box]
    size: tuple[float | None, float | None] = (None, None)
    relative: bool = False
    also_named: tuple[str, ...] = ()
    incomplete: frozenset[str] = frozenset()


@dataclass(frozen=True)
class ImportedLabels:
    """Content of one file. parts: names that occur in it. not_annotated: entries that nobody has annotated yet, or that
    are marked as deleted, skipped, rejected or the like: none of their boxes is in `images`."""

    images: tuple[ImportedImage, ...]
    parts: frozenset[str]
    not_annotated: tuple[str, ...] = ()


class NotUnderstoodError(Exception):
    """An entry that cannot be read as boxes of parts; the message says why."""


class Problems:
    """Collects the entries of a file that were not understood, so that one message names them all."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._found: list[str] = []

    @contextmanager
    def entry(self, name: str) -> Iterator[None]:
        """Within it NotUnderstoodError and pydantic's ValidationError become a problem of the entry `name`."""
        try:
            yield
        except NotUnderstoodError as err:
            self._found.append(f"{shortened(name)}: {_printable(str(err))}")
        except ValidationError as err:
            self._found.append(f"{shortened(name)}: {_printable(_first_fault(err))}")

    def __bool__(self) -> bool:
        return bool(self._found)

    def raise_if_any(self, fix: str) -> None:
        """Raises DataError naming the first SHOWN problems and the count of the others."""
        if self._found:
            more = len(self._found) - SHOWN
            told = "".join(f"\n  {one}" for one in self._found[:SHOWN]) + (f"\n  and {more:,} more" if more > 0 else "")
            count = "1 problem" if len(self._found) == 1 else f"{len(self._found):,} problems"
            raise DataError(f"nothing was imported, {count}:{told}\n ", path=self.path, fix=fix)


Reader = Callable[[Any, Problems], ImportedLabels]


def read_json(path: Path, form: Format) -> Any:
    """The content of one export. Raises DataError when it is missing, too large, not JSON or another format."""
    fix = f"export the labels from your tool as {form} JSON again"
    try:
        if not path.is_file():
            raise DataError(
                "there is no such file (or it is a folder or a pipe)",
                path=path,
                fix="name the JSON file that your tool exported",
            )
        if path.stat().st_size > MAX_FILE_BYTES:
            raise DataError(f"more than {MAX_FILE_BYTES:,} bytes", path=path, fix="export fewer images at a time")
        data = path.read_bytes()
    except OSError as err:
        raise DataError(f"cannot be read ({err.strerror or err})", path=path, fix=fix) from err
    if not data.strip():
        raise DataError("the file is empty", path=path, fix=fix)
    for start, name in _ARCHIVES.items():
        if data.startswith(start):
            raise DataError(f"this is a {name} archive", path=path, fix="unpack it and name the JSON file in it")
    try:
        content = json.loads(data, object_pairs_hook=_without_duplicates)
    except json.JSONDecodeError as err:
        lines = "one JSON value per line (NDJSON)" if err.msg == "Extra data" and err.lineno > 1 else "not JSON"
        told = f"{err.msg} in line {err.lineno}, column {err.colno}"
        raise DataError(f"{lines}: {told}", path=path, fix=fix) from err
    except UnicodeDecodeError as err:
        raise DataError("not a text file in UTF-8 or UTF-16", path=path, fix=fix) from err
    except RecursionError as err:
        raise DataError("JSON that is nested too deeply", path=path, fix=fix) from err
    except ValueError as err:  # a key twice, or an integer of thousands of digits
        raise DataError(shortened(str(err)), path=path, fix=fix) from err
    found = _format_of(content)
    if found != form:
        other = f"it looks like {found}" if found else f"its top level is {_described(content)}"
        remedy = f"use --format {found}" if found in ("coco", "label-studio", "fiftyone") else fix
        raise DataError(f"not a {form} file: {other}", path=path, fix=remedy)
    return content


def shortened(text: str) -> str:
    """A foreign text for a message: one line, printable, at most SHOWN_CHARACTERS."""
    plain = _printable(text)
    return plain if len(plain) <= SHOWN_CHARACTERS else f"{plain[: SHOWN_CHARACTERS - 1]}…"


def _first_fault(err: ValidationError) -> str:
    """One line about the first fault that pydantic found: key, reason, value."""
    fault = err.errors(include_url=False)[0]
    key = ".".join(str(part) for part in fault["loc"] if part not in ("int", "float", "str"))
    reason = fault["msg"][0].lower() + fault["msg"][1:]
    value = "" if fault["type"] == "missing" else f", not {shortened(repr(fault['input']))}"
    return f"{f'`{key}`: ' if key else ''}{reason}{value}"


def add_box(boxes: dict[str, Box], part: str, x: float, y: float, width: float, height: float) -> None:
    """Add the box of a part by its corner and size. Raises NotUnderstoodError for a second box and an empty one."""
    if width <= 0 or height <= 0:
        raise NotUnderstoodError(f"the box of {part!r} is {width:g} wide and {height:g} high")
    if part in boxes:
        raise NotUnderstoodError(f"two boxes of {part!r}; keep one")
    boxes[part] = Box(x, y, x + width, y + height)


def add_relative_box(boxes: dict[str, Box], part: str, x: float, y: float, width: float, height: float) -> None:
    """`add_box` for fractions of the image, which must be smaller than the image."""
    if max(width, height) > NO_OVERSIZE:
        raise NotUnderstoodError(f"the box of {part!r} is larger than the image: are these pixels?")
    add_box(boxes, part, x, y, width, height)


_FALSE = (0, "0", "false", "False")
ANGLE_KEYS = frozenset({"rotation", "angle", "theta"})
# marks of what is of a group, or what its tool does not show or count
MARKS = frozenset(
    "iscrowd isgroupof ignore ignored ignoreflag isignored deleted isdeleted outside rejected skipped isskipped "
    "hidden ishidden cancelled canceled wascancelled discarded".split()
)
SHOWN_KEYS = frozenset({"visible", "isvisible", "visibility"})  # of what is shown unless they are false
WORD_KEYS = frozenset({"tags", "tag", "status", "state", "reviewstatus"})  # may hold one of these words
DROPPED = MARKS | frozenset({"delete", "reject", "skip", "hide", "exclude", "excluded", "discard", "invalid"})


def refuse_marked(entry: Any, part: str) -> None:
    """Raises NotUnderstoodError where an entry or its attributes say that its box is not an upright box that counts."""
    for key, value in _attributes(entry):
        if key in ANGLE_KEYS and is_rotated(value):
            raise NotUnderstoodError(f"the box of {part!r} is rotated")
    if mark := mark_of(entry):
        raise NotUnderstoodError(f"{part!r} is marked with `{mark}`: it is no box of one part, or does not count")


def mark_of(entry: Any) -> str | None:
    """What in an entry or its attributes says that its tool does not show or count it; None: nothing does."""
    for key, value in _attributes(entry):
        if key in MARKS and value not in (None, "", *_FALSE):
            return key
        if key in SHOWN_KEYS and value in _FALSE:
            return f"{key}: {value}"
        if key in WORD_KEYS:
            for word in value if isinstance(value, list) else [value]:
                if isinstance(word, str) and _folded(word) in DROPPED:
                    return f"{key}: {shortened(word)}"
    return None


def _attributes(entry: Any) -> Iterator[tuple[str, Any]]:
    """Names, in small letters only, and values of an entry and its attributes, in any of the forms of the tools.

    Forms: {"rotation": 30}, {"rotation": {"value": 30}}, [{"name": "rotation", "value": 30}], [{"rotation": 30}].
    """
    if isinstance(entry, list):
        for one in entry:
            yield from _attributes(one)
    if not isinstance(entry, dict):
        return
    named = [(key, value) for key, value in entry.items() if key != "attributes"]
    named.append((str(entry.get("name")), entry.get("value")))
    for key, value in named:
        yield _folded(key), value.get("value") if isinstance(value, dict) else value
    yield from _attributes(entry.get("attributes"))


def _folded(word: str) -> str:
    return "".join(letter for letter in word.casefold() if letter.isalnum())


def is_rotated(angle: Any) -> bool:
    """Whether an angle (any JSON value) is anything but absent or zero."""
    try:
        return angle not in (None, "") and float(angle) != 0
    except (TypeError, ValueError, OverflowError):
        return True


def _printable(text: str) -> str:
    """The text without line breaks, terminal escapes and lone surrogates."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"JSON with the key {twice!r} twice in one object")
    return found


def _format_of(content: Any) -> str | None:
    """The format that has this top level, or a description of a known one that cannot be read."""
    if isinstance(content, dict):
        lists = {key for key, value in content.items() if isinstance(value, list)}
        if {"images", "annotations", "categories"} <= lists:
            return "coco"
        if "samples" in lists:
            return "fiftyone"
        return "Datumaro's own format; export COCO instead" if "dm_format_version" in content else None
    if isinstance(content, list) and all(isinstance(one, dict) for one in content):
        if any("bbox" in one and "image_id" in one for one in content):
            return "COCO results, a list of boxes without images"
        return "label-studio"
    return None


def _described(content: Any) -> str:
    if isinstance(content, dict):
        return f"an object with the keys {shortened(', '.join(map(repr, content)) or 'none')}"
    return "a list of other things than objects" if isinstance(content, list) else f"a {type(content).__name__}"
