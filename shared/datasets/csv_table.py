"""Any folder with a table of its images, declared in its dataset.yaml as `layout: csv` and `csv: images.csv`.

The columns are path, identity, split (train, query, gallery or all) and, where it is known, camera. Columns without a
name are ignored. Paths are relative to the data set's folder, or absolute ones that lead into it. An empty camera is
"not labelled"; a line without an identity is left out. Fields are separated by commas, semicolons or tabs; the text is
UTF-8, UTF-16 with its mark, or in the `encoding:` that dataset.yaml names.
"""

import csv
import io
import os
import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import NamedTuple, cast, get_args

from shared.datasets.records import (
    NOT_AN_IMAGE,
    NOT_LISTED,
    NOT_THERE,
    THOUSANDS,
    FileRecord,
    Files,
    Scan,
    images_in,
    is_safe,
    same_spelling,
    whole_numbers,
)
from shared.errors import DataError
from shared.files import read_limited
from shared.schemas import Kind, Split

REQUIRED, OPTIONAL = ("path", "identity", "split"), ("camera",)
SPLITS: tuple[str, ...] = get_args(Split)
MAX_TABLE_BYTES = 256 * 2**20

NO_IDENTITY = "line without an identity"
LEAVES = "listed path that leaves the data set's folder"
UNCLEAR = "listed path that fits several files"

# What pandas, R and spreadsheets write for "nothing".
_EMPTY = frozenset(
    {"", "nan", "NaN", "NAN", "-nan", "-NaN", "NaT", "<NA>", "NA", "N/A", "n/a", "#N/A", "#NA", "#N/A N/A", "#NV"}
    | {"NULL", "null", "Null", "None", "none", "NONE", "1.#IND", "-1.#IND", "1.#QNAN", "-1.#QNAN"}
)
# 1.23E+17, and whole numbers beyond 2**53 with the fraction that only floating-point columns have
_ROUNDED = re.compile(r"[+-]?(?:\d+(?:[.,]\d+)?[eE]\+\d+|\d{16,}[.,]0+)", re.ASCII)
_EXPONENT = re.compile(r"[+-]?\d+(?:[.,]\d+)?[eE]-?\d+", re.ASCII)  # a number, or a word such as 1e3
_FIX = f"columns: {', '.join(REQUIRED)}, and camera where it is known; split is one of {', '.join(SPLITS)}"


class _Line(NamedTuple):
    place: str  # file and line, for messages
    path: str
    identity: str
    split: Split
    camera: str


def scan(root: Path, table: str, kinds: Mapping[str, Kind], encoding: str | None = None) -> Scan:
    """Read `table` (a CSV file relative to `root`). kinds: identities that stand for no person.
    encoding: of a table that is neither UTF-8 nor UTF-16.

    Raises DataError for a table that cannot be read or decoded, for columns that are missing, unknown or given twice,
    and for a line with too many fields, no path, an unknown split, a number that a spreadsheet has rounded, or an image
    that the same split lists with other labels.
    """
    images, skipped = images_in(root, ("",))
    paths = [image.path for image in images]
    spellings = _Spellings(paths, root)
    alike = [path for path in skipped[NOT_AN_IMAGE] if same_spelling(path) == same_spelling(str(PurePosixPath(table)))]
    skipped[NOT_AN_IMAGE] = [path for path in skipped[NOT_AN_IMAGE] if path not in alike]
    lines: dict[tuple[str, Split], _Line] = {}
    listed: set[str] = set()
    for line in _read_lines(root / (alike[0] if len(alike) == 1 else table), kinds, encoding):
        found, reason = spellings.find(line.path)
        if not found:
            skipped[reason].append(line.path)
            continue
        listed.add(found)
        if not line.identity:
            skipped[NO_IDENTITY].append(line.path)
            continue
        before = lines.setdefault((found, line.split), line)
        if (before.identity, before.camera) != (line.identity, line.camera):
            raise DataError(
                f"{line.path!r} is listed twice in split {line.split}, with other labels",
                path=line.place,
                fix="remove one of the lines",
            )
    skipped[NOT_LISTED] = list(set(paths) - listed)
    _refuse_exponents({line.identity: line.place for line in lines.values()}, "identity")
    _refuse_exponents({line.camera: line.place for line in lines.values()}, "camera")
    files, notes = Files(
        FileRecord(path, split, None, None, Kind.PERSON, line.identity, line.camera)
        for (path, split), line in lines.items()
    ).numbered(kinds)
    return Scan.of(files, skipped, notes)


def _refuse_exponents(place_of: Mapping[str, str], column: str) -> None:
    """1e3 is a word among words; among whole numbers it is one that some program has written in its own way."""
    odd = sorted(word for word in place_of if _EXPONENT.fullmatch(word))
    whole = whole_numbers(place_of)
    if odd and whole and {*place_of} <= {*odd, *whole, ""}:
        raise DataError(
            f"{column} {odd[0]!r} is a number with an exponent, perhaps a rounded one",
            path=place_of[odd[0]],
            fix="format the column as text before the table is saved",
        )


class _Spellings:
    """The files that are there, by the ways in which tables spell their paths.

    root: the data set's folder. Absolute paths, and those that go up, are files of the set where they lead into it.
    """

    def __init__(self, paths: Collection[str], root: Path) -> None:
        self._exact = frozenset(paths)
        self._root, self._real_root = Path.cwd() / root, root.resolve()
        self._alike: dict[str, list[str]] = defaultdict(list)
        for path in paths:
            self._alike[same_spelling(path)].append(path)

    def find(self, listed: str) -> tuple[str, str]:
        """(the file's path as it is spelled on disk, ""), or ("", why there is none)."""
        if listed in self._exact:
            return listed, ""
        plain = listed.replace("\\", "/") if "\\" in listed else listed
        if not is_safe(plain) and not (plain := self._inside(plain)):
            return "", LEAVES
        plain = PurePosixPath(plain).as_posix()  # without ./ and //
        if plain in self._exact:
            return plain, ""
        alike = self._alike.get(same_spelling(plain), [])
        return (alike[0], "") if len(alike) == 1 else ("", UNCLEAR if alike else NOT_THERE)

    def _inside(self, plain: str) -> str:
        """Where in the folder an absolute path, or one that goes up, leads; "" when it leads out of it."""
        if "\0" in plain or PureWindowsPath(plain).drive:
            return ""
        as_written = Path(os.path.normpath(self._root / plain))
        for path, root in ((as_written, self._root), (as_written, self._real_root), (None, self._real_root)):
            try:
                path = path or (self._root / plain).parent.resolve() / as_written.name  # the file may be a link
                return path.relative_to(root).as_posix()
            except (ValueError, OSError, RuntimeError):  # elsewhere; or links without an end
                continue
        return ""


def _read_lines(path: Path, kinds: Mapping[str, Kind], encoding: str | None) -> Iterator[_Line]:
    text = _decoded(path, encoding)
    first, rest = [*re.split(r"\r\n|\r|\n", text, maxsplit=1), ""][:2]
    if (said := re.fullmatch(r'"?sep=(.)"?', first.strip(), re.IGNORECASE)) or first.strip().lower() == "sep=":
        separator, text, skipped_lines = said[1] if said else "\t", rest, 1
    else:
        separator, skipped_lines = _separator(first), 0
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=True)
    try:
        columns = _columns(next(reader, []), path)
        for raw in reader:
            if any(field.strip() for field in raw):
                yield _checked(raw, columns, f"{path}:{reader.line_num + skipped_lines}", kinds)
    except csv.Error as err:
        raise DataError(f"not a CSV file ({err})", path=f"{path}:{reader.line_num + skipped_lines}", fix=_FIX) from err


def _decoded(path: Path, declared: str | None) -> str:
    try:
        content = read_limited(path, MAX_TABLE_BYTES)
    except FileNotFoundError as err:
        raise DataError("the table named in dataset.yaml is not there", path=path, fix=_FIX) from err
    except OSError as err:
        raise DataError(f"the table cannot be read: {err.strerror}", path=path, fix=_FIX) from err
    marks = {b"\xff\xfe\0\0": "utf-32", b"\0\0\xfe\xff": "utf-32", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
    guessed = next((name for mark, name in marks.items() if content.startswith(mark)), "utf-8-sig")
    try:
        text = content.decode(declared or guessed)
    except UnicodeError as err:
        place = f" (byte {err.start:,})" if isinstance(err, UnicodeDecodeError) else ""
        raise DataError(
            f"the table is not {declared}{place}" if declared else f"the table is neither UTF-8 nor UTF-16{place}",
            path=path,
            fix='save it as UTF-8, in a spreadsheet as "CSV UTF-8", or name its encoding in dataset.yaml, '
            "`encoding: cp1252` where a European Windows wrote it",
        ) from err
    if "\0" in text:
        raise DataError(
            "the table holds NUL characters: UTF-16 without its mark?",
            path=path,
            fix="save it as UTF-8, or name its encoding in dataset.yaml, `encoding: utf-16-le`",
        )
    return text


def _separator(header: str) -> str:
    """The sign that cuts the header into the columns we need; the most frequent when none does."""
    header = header[:10_000]  # a single field of any length would be an error of its own
    for sign in ",;\t":
        if set(REQUIRED) <= {_column(name) for name in next(csv.reader([header], delimiter=sign), [])}:
            return sign
    return max(",;\t", key=header.count)


def _column(name: str) -> str:
    return name.strip().strip("\"'").strip().casefold()


def _columns(header: list[str], path: Path) -> list[str]:
    columns = [_column(name) for name in header]
    named = [name for name in columns if name]
    told = [f"missing columns {missing}"] if (missing := sorted({*REQUIRED} - {*named})) else []
    told += [f"unknown columns {unknown}"] if (unknown := sorted({*named} - {*REQUIRED, *OPTIONAL})) else []
    told += [f"columns given twice {twice}"] if (twice := sorted({n for n in named if named.count(n) > 1})) else []
    if told:
        raise DataError(f"{' and '.join(told)}; found {', '.join(named[:20]) or 'nothing'}", path=path, fix=_FIX)
    return columns


def _checked(raw: list[str], columns: list[str], place: str, kinds: Mapping[str, Kind]) -> _Line:
    if any(field.strip() for field in raw[len(columns) :]):
        raise DataError("a line has more fields than the header", path=place, fix=_FIX)
    line = dict.fromkeys((*REQUIRED, *OPTIONAL), "") | {
        column: field.strip() for column, field in zip(columns, raw, strict=False)
    }
    if not line["path"]:
        raise DataError("nothing in column path", path=place, fix=_FIX)
    split = line["split"].casefold()
    if split not in SPLITS:
        raise DataError(f"unknown split {line['split']!r}", path=place, fix=_FIX)
    for column in ("identity", "camera"):
        word = line[column]
        if THOUSANDS.fullmatch(word) and word not in kinds:
            raise DataError(
                f"{column} {word!r} may be {word[:-4]} or {word[:-4]}000",
                path=place,
                fix="format the column as whole numbers without a thousands separator before the table is saved",
            )
        if _ROUNDED.fullmatch(word):
            raise DataError(
                f"{column} {word!r} was rounded by a spreadsheet",
                path=place,
                fix="format the column as text before the table is saved",
            )
        if word in _EMPTY and word not in kinds:
            line[column] = ""
    return _Line(place, line["path"], line["identity"], cast(Split, split), line["camera"])
