"""Any folder whose file names carry the identity, declared in its dataset.yaml as `layout: pattern`.

    pattern: "{identity}_c{camera}_{*}.jpg"

`{identity}` is needed once, `{camera}` at most once; `{*}` is anything, or nothing, within one folder name. A pattern
may name folders: "{identity}/{*}.jpg" reads one folder per person. A camera's name has no `_` and no `.`.

`{identity}` and `{camera}` end at the first place from which the rest fits, `{*}` reaches as far as the rest allows:
"{identity}_{*}.jpg" reads `0001` in `0001_c1s1_03.jpg`. Fields that touch need a width, in characters:
"{identity:4}{*}" reads `0001` in `0001001.png`. Without a `{*}`, a name that fits in two ways is left out.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from shared.datasets.records import (
    FOREIGN_NAME,
    FileRecord,
    Files,
    Scan,
    images_in,
    same_spelling,
)
from shared.errors import DataError
from shared.schemas import Kind, Split

AMBIGUOUS = "file name that fits the pattern in more than one way"
FIELDS = ("identity", "camera", "*")
MAX_CHARACTERS, MAX_WIDTH = 500, 255  # of a pattern, and of a field: as long as file systems let a name be
_PIECE = re.compile(r"\{([^{}:]*)(?::([^{}]*))?\}")
_ALLOWED = {"camera": re.compile(r"[^_.]*")}


@dataclass(frozen=True)
class Piece:
    """A literal text, or a field: of `width` characters, or of any number when that is 0."""

    text: str = ""
    field: str = ""
    width: int = 0

    @property
    def is_open(self) -> bool:
        return bool(self.field) and not self.width


@dataclass(frozen=True)
class Pattern:
    """A pattern, cut where the path is cut: no field reaches over a `/`."""

    segments: tuple[tuple[Piece, ...], ...]

    @cached_property
    def _unsaid(self) -> tuple[bool, ...]:
        """Of each segment: whether two fields share it without a {*}, so that a name may fit in two ways."""
        return tuple(
            sum(piece.is_open for piece in pieces) > 1 and all(piece.field != "*" for piece in pieces)
            for pieces in self.segments
        )

    def read(self, path: str) -> dict[str, str] | str:
        """The fields in a POSIX path, or the reason why there are none. Linear in the length of the path."""
        names = same_spelling(path).split("/")
        if len(names) != len(self.segments):
            return FOREIGN_NAME
        fields: dict[str, str] = {}
        for pieces, name, unsaid in zip(self.segments, names, self._unsaid, strict=True):
            found = match_name(pieces, name)
            if found is None:
                return FOREIGN_NAME
            if unsaid and match_name(pieces, name, longest=True) != found:
                return AMBIGUOUS
            fields |= {field: text.strip() for field, text in found.items()}
        return fields if fields["identity"] else FOREIGN_NAME


def parse_pattern(pattern: str) -> Pattern:
    """Read a pattern.

    Raises DataError for unknown fields, a field given twice, one without {identity}, and fields without a width that
    touch: where one ends and the next begins is then not said.
    """
    fix = 'fields: {identity}, {camera}, {*}, each with a width where needed, e.g. "{identity:4}"'
    if len(pattern) > MAX_CHARACTERS:
        raise DataError(f"the pattern has more than {MAX_CHARACTERS} characters", fix=fix)
    segments = tuple(_segment(text, pattern, fix) for text in same_spelling(pattern).split("/"))
    fields = [piece.field for pieces in segments for piece in pieces if piece.field]
    if fields.count("identity") != 1 or fields.count("camera") > 1:
        raise DataError(f"pattern {pattern!r} needs {{identity}} once and {{camera}} at most once", fix=fix)
    for pieces in segments:
        before: Piece | None = None  # the open field that no literal has ended yet
        for piece in pieces:
            if before and piece.is_open:
                raise DataError(
                    f"pattern {pattern!r}: {{{before.field}}} and {{{piece.field}}} touch: where does one end?",
                    fix=f'put text between them, or give a width in characters, e.g. "{{{before.field}:4}}"',
                )
            before = piece if piece.is_open else None if piece.text else before
    return Pattern(segments)


def _segment(text: str, pattern: str, fix: str) -> tuple[Piece, ...]:
    pieces: list[Piece] = []
    place = 0
    for found in _PIECE.finditer(text):
        name, width = found[1], found[2]
        if name not in FIELDS:
            raise DataError(f"pattern {pattern!r}: unknown field {{{name}}}", fix=fix)
        if width is not None and not (width.isascii() and width.isdecimal() and 1 <= int(width[:4]) <= MAX_WIDTH):
            raise DataError(f"pattern {pattern!r}: {{{name}:{width}}} has no width from 1 to {MAX_WIDTH}", fix=fix)
        pieces += [Piece(text[place : found.start()]), Piece(field=name, width=int(width or 0))]
        place = found.end()
    pieces.append(Piece(text[place:]))
    if any("{" in piece.text or "}" in piece.text for piece in pieces):
        raise DataError(f"pattern {pattern!r} has a brace without its other", fix=fix)
    return tuple(piece for piece in pieces if piece.text or piece.field)


def match_name(pieces: tuple[Piece, ...], name: str, *, longest: bool = False) -> dict[str, str] | None:
    """The fields in one folder or file name, or None. identity and camera are as short as they can be, or as long.

    An open field that began at one place and failed has failed with every later end, so nobody tries these again:
    no piece looks at one place of the name twice.
    """
    tried: dict[tuple[int, int], int] = {}  # (piece, end of its run of allowed characters) -> first end that failed
    fields: dict[str, str] = {}

    def fits(index: int, at: int) -> bool:
        if index == len(pieces):
            return at == len(name)
        piece = pieces[index]
        if piece.text:
            return name.startswith(piece.text, at) and fits(index + 1, at + len(piece.text))
        allowed = _ALLOWED.get(piece.field)
        stop = run.end() if allowed and (run := allowed.match(name, at)) else len(name)
        if piece.width:
            first, last = at + piece.width, min(stop, at + piece.width)
        else:
            first = at + (piece.field != "*")
            last = min(stop, tried.get((index, stop), stop + 1) - 1)
            tried[index, stop] = min(first, last + 1)
        following = pieces[index + 1].text if index + 1 < len(pieces) else ""
        for end in _ends(name, first, last, following, downwards=longest or piece.field == "*"):
            if fits(index + 1, end):
                if piece.field != "*":
                    fields[piece.field] = name[at:end]
                return True
        return False

    return fields if fits(0, 0) else None


def _ends(name: str, first: int, last: int, following: str, *, downwards: bool) -> Iterator[int]:
    """The places from `first` to `last` at which `following` stands."""
    find = name.rfind if downwards else name.find
    while first <= last and (end := find(following, first, last + len(following))) >= 0:
        yield end
        if downwards:
            last = end - 1
        else:
            first = end + 1


def scan(root: Path, pattern: str, splits: Mapping[str, Split], kinds: Mapping[str, Kind]) -> Scan:
    """Read the names under `root`. Raises DataError for a malformed pattern or a folder that cannot be read.

    Args:
        pattern: as described above.
        splits: folder -> split; {"": split} when all images are of one split.
        kinds: identities that stand for no person.
    """
    parsed = parse_pattern(pattern)
    images, skipped = images_in(root, splits)

    def records() -> Iterator[FileRecord]:
        for image in images:
            fields = parsed.read(image.inside)
            if isinstance(fields, str):
                skipped[fields].append(image.path)
            else:
                names = (fields["identity"], fields.get("camera", ""))
                yield FileRecord(image.path, splits[image.folder], None, None, Kind.PERSON, *names)

    files, notes = Files(records()).numbered(kinds)
    return Scan.of(files, skipped, notes)
