"""What a reader gives: one record per image of the layout, and every other file with the reason it was left out."""

import itertools
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from shared.errors import DataError
from shared.object_storage import remote
from shared.schemas import Kind, Split
from shared.terminal import printable

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm")
DESCRIPTION_FILE = "dataset.yaml"
FOLDS_FILE = "folds.json"  # published train/test folds, see reid.protocols.splits
GRID_PARTITIONS = "features_and_partitions.mat"  # the same in GRID's own archive

# Ours or published beside the images: nothing that a user would miss in the manifest.
COMPANIONS = frozenset({DESCRIPTION_FILE, FOLDS_FILE, GRID_PARTITIONS, "attributes.csv", "part_truth.csv"})

NOT_AN_IMAGE = "not an image file"
HIDDEN = "hidden file"
ELSEWHERE = "in a folder that the layout does not use"
FOREIGN_NAME = "file name that does not fit the layout"
NOT_UTF8 = "file name that is not UTF-8"
OUT_OF_RANGE = "identity beyond 64 bits or camera beyond 32 bits"
UNREADABLE_FOLDER = "folder that cannot be read"
LINKED_FOLDER = "folder that a link shows a second time, left out here"
NOT_LISTED = "image that no list names"
NOT_THERE = "listed file that is not there"
DAMAGED_LINE = "list line that is not a path and an identity"

_MAX_IDENTITY, _MAX_CAMERA = 2**63 - 1, 2**31 - 1


class Labels(NamedTuple):
    """What a file name says; see shared.schemas.ManifestRow for the fields."""

    identity: int | None
    camera: int | None
    kind: Kind = Kind.PERSON
    identity_name: str | None = None
    camera_name: str | None = None


class FileRecord(NamedTuple):
    """One image as its name describes it; see shared.schemas.ManifestRow for the fields."""

    path: str
    split: Split
    identity: int | None
    camera: int | None
    kind: Kind = Kind.PERSON
    identity_name: str | None = None
    camera_name: str | None = None


_WORD = pa.dictionary(pa.int32(), pa.string())
_COLUMNS = pa.schema(
    {
        "path": pa.large_string(),
        **{"split": _WORD, "identity": pa.int64(), "camera": pa.int32(), "kind": _WORD},
        **{"identity_name": _WORD, "camera_name": _WORD},
    }
)
_RECORDS_AT_ONCE = 4_000  # not a power of two: an offset more would double a buffer


class Files:
    """Records, sorted by path and split. They are kept as columns, in a fifth of the memory: a data set has millions.

    Args:
        records: in any order; taken one by one.
    """

    def __init__(self, records: Iterable[FileRecord]) -> None:
        rest = iter(records)
        chunks = []
        while some := list(itertools.islice(rest, _RECORDS_AT_ONCE)):
            arrays = map(pa.array, zip(*some, strict=True), _COLUMNS.types)
            chunks.append(pa.record_batch(list(arrays), schema=_COLUMNS))
        table = pa.Table.from_batches(chunks, _COLUMNS).unify_dictionaries()
        keys = pa.table({"path": table["path"], "split": table["split"].cast(pa.string())})
        order = pc.sort_indices(keys, [("path", "ascending"), ("split", "ascending")]).to_numpy()
        sorted_already = bool((order[1:] > order[:-1]).all())  # as folders are walked through
        self._table = table if sorted_already else table.take(order)

    def __len__(self) -> int:
        return len(self._table)

    def __iter__(self) -> Iterator[FileRecord]:
        for batch in self._table.to_batches(_RECORDS_AT_ONCE):
            path, split, identity, camera, kind, *names = (column.to_pylist() for column in batch.columns)
            yield from map(FileRecord, path, split, identity, camera, map(Kind, kind), *names)

    def numbered(self, kinds: Mapping[str, Kind]) -> tuple["Files", tuple[str, ...]]:
        """The same with numbers for the words in identity_name and camera_name, which remain only where the numbers do
        not say them; and the notes about both, see `number_identities`."""
        who, where = (self._table[column].combine_chunks() for column in ("identity_name", "camera_name"))
        names, places = who.dictionary.to_pylist(), where.dictionary.to_pylist()
        people, cameras = number_identities(names, kinds), number_cameras(places)
        of_names = {
            "identity": [people.of[word][0] for word in names],
            "kind": [people.of[word][1] for word in names],
            "identity_name": list(map(people.name, names)),
        }
        of_places = {
            "camera": [cameras.of[word][0] for word in places],
            "camera_name": list(map(cameras.name, places)),
        }
        table = self._table
        for words, values in ((who, of_names), (where, of_places)):
            for column, of_word in values.items():
                kind = _COLUMNS.field(column).type
                plain = pa.array(of_word, pa.string() if kind == _WORD else kind).take(words.indices)
                place = _COLUMNS.get_field_index(column)
                table = table.set_column(place, column, plain.dictionary_encode() if kind == _WORD else plain)
        found = Files(())
        found._table = table
        return found, (people.note, cameras.note, people.doubt, cameras.doubt, people.unused)


@dataclass(frozen=True)
class Scan:
    """files: sorted by path and split. skipped: reason -> sorted paths. notes: sentences that the user must read."""

    files: Files
    skipped: Mapping[str, list[str]]
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, files: Files, skipped: Mapping[str, list[str]], notes: Iterable[str] = ()) -> "Scan":
        kept = {reason: sorted(paths) for reason, paths in sorted(skipped.items()) if paths}
        return cls(files, kept, tuple(note for note in notes if note))

    def told(self) -> list[str]:
        """A sentence for every reason for which files were left out, with their number, and the notes."""
        left_out = [
            f"left out {len(paths):,} x {reason}, e.g. {printable(paths[0])}" for reason, paths in self.skipped.items()
        ]
        return [*left_out, *self.notes]


@dataclass(frozen=True)
class Tree:
    """files: relative POSIX paths, sorted. unreadable: folder -> why it could not be listed.

    repeated: folders whose files are listed at another place already.
    """

    files: list[str]
    unreadable: Mapping[str, str] = field(default_factory=dict)
    repeated: Collection[str] = ()


class Image(NamedTuple):
    path: str  # relative to the data set's folder, as it is spelled on disk
    folder: str  # of the layout, as the layout spells it
    inside: str  # the path inside it


def walk_files(root: Path) -> Tree:
    """All files under `root`. Linked folders are followed, each once; hidden folders are left out."""
    if there := remote(root):
        names = list(there.files())
        unsafe = {name: "a name that leaves the folder" for name in names if not is_safe(name)}
        kept = [name for name in names if not any(part.startswith(".") for part in name.split("/")[:-1])]
        return Tree([name for name in kept if name not in unsafe], unsafe)
    found: list[str] = []
    repeated: list[str] = []
    seen: set[tuple[int, int]] = set()
    unreadable: dict[str, str] = {}

    def report(err: OSError) -> None:
        unreadable[_relative(Path(err.filename), root)] = err.strerror or str(err)

    for folder, names, files in os.walk(root, onerror=report, followlinks=True):
        try:
            status = Path(folder).stat()
        except OSError as err:
            report(err)
            continue
        if (status.st_dev, status.st_ino) in seen:
            names.clear()
            if not Path(folder).parent.resolve().is_relative_to(Path(folder).resolve()):  # else a link back up
                repeated.append(_relative(Path(folder), root))
            continue
        seen.add((status.st_dev, status.st_ino))
        names[:] = sorted(name for name in names if not name.startswith("."))
        inside = f"{place}/" if (place := _relative(Path(folder), root)) else ""
        found += [inside + name for name in files]  # not by pathlib, which keeps every name of a million
    return Tree(sorted(found), unreadable, repeated)


def images_in(root: Path, folders: Collection[str]) -> tuple[Iterator[Image], defaultdict[str, list[str]]]:
    """All images in the folders of a layout, and the other files by reason, which are there when it was walked through.

    Args:
        folders: POSIX paths relative to `root`; "" is the root itself. The longest one that fits a file counts.

    Raises DataError when one of these folders cannot be read whole: half a data set is not a data set.
    """
    tree = walk_files(root)
    by_length = sorted(((same_spelling(name), name) for name in folders), key=lambda pair: len(pair[0]), reverse=True)
    skipped: defaultdict[str, list[str]] = defaultdict(list)
    if lost := {at: why for at, why in tree.unreadable.items() if any(_overlap(at, name) for name in folders)}:
        told = "; ".join(f"{at or 'the folder itself'}: {why}" for at, why in sorted(lost.items())[:5])
        raise DataError(
            f"{len(lost)} {'folder' if len(lost) == 1 else 'folders'} of the data set cannot be read ({told})",
            path=root,
            fix="make them readable for your user (chmod -R u+rX), or unpack the data set again",
        )
    skipped[UNREADABLE_FOLDER] = list(tree.unreadable)
    skipped[LINKED_FOLDER] = list(tree.repeated)
    return _images(tree.files, by_length, skipped), skipped


def _images(
    files: Iterable[str], folders: Sequence[tuple[str, str]], skipped: defaultdict[str, list[str]]
) -> Iterator[Image]:
    """The images among the files; the others go to `skipped`.

    Args:
        folders: of the layout, as (compared spelling, spelling of the layout), the longest first.
    """
    for path in files:
        if path in COMPANIONS:
            continue
        spelled = same_spelling(path)
        folder = next((raw for name, raw in folders if not name or spelled.startswith(f"{name}/")), None)
        name = path.rpartition("/")[2]
        if name.startswith("."):
            skipped[HIDDEN].append(path)
        elif not name.lower().endswith(IMAGE_SUFFIXES):
            skipped[NOT_AN_IMAGE].append(path)
        elif folder is None:
            skipped[ELSEWHERE].append(path)
        elif not _is_utf8(path):
            skipped[NOT_UTF8].append(path)
        else:
            inside = path.split("/", folder.count("/") + 1)[-1] if folder else path
            yield Image(path, folder, inside)


def scan_folders(root: Path, splits: Mapping[str, Split], read_name: Callable[[str, str], Labels | str | None]) -> Scan:
    """Scan a layout whose folders decide the split and whose names decide the rest.

    Args:
        splits: folder -> split.
        read_name: (folder, path inside it) -> what the name says, None for a name that does not fit, or another reason
            to leave the image out.
    """
    images, skipped = images_in(root, splits)

    def records() -> Iterator[FileRecord]:
        for image in images:
            labels = read_name(image.folder, image.inside)
            if labels is None:
                skipped[FOREIGN_NAME].append(image.path)
            elif isinstance(labels, str):
                skipped[labels].append(image.path)
            elif (labels.identity or 0) > _MAX_IDENTITY or (labels.camera or 0) > _MAX_CAMERA:
                skipped[OUT_OF_RANGE].append(image.path)
            else:
                yield FileRecord(image.path, splits[image.folder], *labels)

    return Scan.of(Files(records()), skipped)  # which adds to `skipped`


USUAL_JUNK = "-1"  # of a data set that does not say which identities are junk


class Numbers(NamedTuple):
    """of: word -> number, and what it stands for. note: a sentence when words were renumbered, else "". unused: a
    sentence about words for junk and distractors that none of the words is, else "". doubt: one about words that may
    not mean what they count as, else ""."""

    of: Mapping[str, tuple[int | None, Kind]]
    note: str = ""
    unused: str = ""
    doubt: str = ""

    def name(self, word: str) -> str | None:
        """The word to keep beside its number, where the number does not say it."""
        return word if self.note and word else None


def number_identities(words: Iterable[str], kinds: Mapping[str, Kind]) -> Numbers:
    """Numbers for identity words, the same whatever the order of the files.

    When all words of people are whole numbers of 64 bits they are kept as they are (`7`, `0007`, `+7`, `-2`, and `7.0`
    and `7,0` as spreadsheets write them); otherwise the sorted different words become 1, 2, ...; words that are the
    same whole number remain one person.

    Args:
        kinds: the words that stand for no person, and what they stand for; whole numbers are compared as numbers.
    """
    found = {word: _same_word(word) for word in words}
    read = whole_numbers(set(found.values()))
    by_word = {_same_word(word): kind for word, kind in kinds.items()}
    by_number = {number: kinds[word] for word, number in whole_numbers(kinds).items()}
    nobody = {
        word: kind
        for word in found.values()
        if (kind := by_word.get(word) or by_number.get(read.get(word)))  # type: ignore[arg-type]
    }
    somebody = {*found.values()} - nobody.keys()
    people, note = _number_words(somebody, read, "identities", _MAX_IDENTITY)
    used = {*nobody, *(read[word] for word in nobody if word in read)}
    numbers = whole_numbers(kinds)
    unused = sorted(word for word in kinds if not {_same_word(word), numbers.get(word)} & used and word != USUAL_JUNK)
    return Numbers(
        {
            word: (None, nobody[spelled]) if spelled in nobody else (people[spelled], Kind.PERSON)
            for word, spelled in found.items()
        },
        note,
        f"no image has the identity of junk or distractors {', '.join(map(repr, unused[:5]))}" if unused else "",
        _doubt(somebody, read, "person", "list it under `junk:` or `distractors:` in dataset.yaml where it is nobody"),
    )


def number_cameras(words: Iterable[str]) -> Numbers:
    """Numbers for camera words, as for people but of 32 bits; "" has None, not labelled."""
    found = {word: _same_word(word) for word in words}
    spelled = {*found.values()} - {""}
    read = whole_numbers(spelled)
    cameras, note = _number_words(spelled, read, "cameras", _MAX_CAMERA)
    doubt = _doubt(spelled, read, "camera", "use a table with an empty camera where it is not known")
    return Numbers({word: (cameras.get(found[word]), Kind.PERSON) for word in found}, note, doubt=doubt)


_NOTHING = frozenset(
    {"?", "-", "--", "_", "unknown", "unlabeled", "unlabelled", "undefined", "missing", "empty", "ignore", "other"}
    | {"others", "junk", "distractor", "distractors", "background", "nobody", "nocam"}
)


def _doubt(words: Collection[str], read: Mapping[str, int], one: str, otherwise: str) -> str:
    """Words that often mean nobody, or no camera, and numbers that are spelled in two ways; or ""."""
    told = []
    if odd := sorted(word for word in words if read.get(word, 0) < 0 or word.casefold() in _NOTHING):
        more = f" (and {len(odd) - 1:,} more such words)" if len(odd) > 1 else ""
        told.append(f"{odd[0]!r}{more} counts as a {one}: {otherwise}")
    spelled: defaultdict[int, dict[str, str]] = defaultdict(dict)
    for word in sorted(words):
        if word in read and (digits := _WHOLE.fullmatch(word)):
            spelled[read[word]].setdefault(digits[1].lstrip("+-"), word)
    if twice := [[*ways.values()][:2] for ways in spelled.values() if len(ways) > 1]:
        more = f", and so do {len(twice) - 1:,} more such pairs" if len(twice) > 1 else ""
        told.append(f"{twice[0][0]!r} and {twice[0][1]!r} count as one {one}{more}")
    return "; ".join(told)


def same_spelling(text: str) -> str:
    """One spelling for texts that look the same: umlauts are one character or two, depending on the system."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def _same_word(word: str) -> str:
    """One spelling for words that look the same, with or without signs that take no room."""
    return word if word.isascii() else same_spelling(word.translate(_UNSEEN).strip()) or word


_UNSEEN = dict.fromkeys(map(ord, "\u200b\u2060\ufeff\u200e\u200f\u00ad"))


def is_safe(path: str) -> bool:
    """Whether a path from a user's table stays inside the data set's folder."""
    pure = PurePosixPath(path)
    drive = re.match(r"[A-Za-z]:", path)
    return bool(path) and not (pure.is_absolute() or ".." in pure.parts or "\\" in path or "\0" in path or drive)


THOUSANDS = re.compile(r"-?[1-9]\d{0,2}[.,]000", re.ASCII)  # 1.000 is one thousand or one, depending on the country
_WHOLE = re.compile(rf"(?!{THOUSANDS.pattern}$)([+-]?\d+)(?:[.,]0*)?", re.ASCII)
_PADDED_NEGATIVE = re.compile(r"0+(-\d+)", re.ASCII)  # what zero-padding to a width makes of -1
_COMPOSITE = re.compile(r"0*[1-9]\d*-\d+", re.ASCII)


def whole_numbers(words: Collection[str]) -> dict[str, int]:
    """The words that are whole numbers. 00-1 is -1 among whole numbers, but a word among words like 01-1."""
    plain = {word: word.replace("\N{MINUS SIGN}", "-") for word in words if len(word) < 100}
    read = {word: int(match[1]) for word, text in plain.items() if (match := _WHOLE.fullmatch(text))}
    padded = {word: int(match[1]) for word in words if len(word) < 100 and (match := _PADDED_NEGATIVE.fullmatch(word))}
    if padded and any("-" not in word for word in read) and not any(map(_COMPOSITE.fullmatch, words)):
        return read | padded
    return read


def _number_words(words: Collection[str], read: Mapping[str, int], what: str, limit: int) -> tuple[dict[str, int], str]:
    """Word -> number, and a sentence when they are not the words' own numbers."""
    odd = {word for word in words if abs(read.get(word, limit + 1)) > limit}
    if not odd:
        return {word: read[word] for word in words}, ""
    ordered = sorted(words, key=lambda word: (word in odd, 0 if word in odd else read[word], word))
    same: dict[int | str, int] = {}
    numbers = {word: same.setdefault(word if word in odd else read[word], len(same) + 1) for word in ordered}
    reason = (
        "they are words"
        if len(odd) == len(words)
        else f"{len(odd):,} of these are not whole numbers of {limit.bit_length() + 1} bits"
    )
    note = (
        f"{len(same):,} {what} were numbered from 1, because {reason} (e.g. {min(odd)[:40]!r}); "
        f"their own names are in the manifest's column {'identity' if what == 'identities' else 'camera'}_name"
        f"{_doubts(numbers)}"
    )
    return numbers, note


def _doubts(numbers: Mapping[str, int]) -> str:
    """Words that count as different though they may be one, and those that a spreadsheet may have made; or ""."""
    alike: defaultdict[str, dict[int, str]] = defaultdict(dict)
    for word in sorted(numbers):
        plain = "".join(str(unicodedata.decimal(sign, sign)) for sign in unicodedata.normalize("NFKC", word))
        plain = " ".join(_AS_TEXT.sub(r"\1", plain).casefold().split())
        alike[_SEPARATOR.sub("", plain) if _GROUPED.fullmatch(plain) else plain][numbers[word]] = word
    pairs = [[*words.values()][:2] for words in alike.values() if len(words) > 1]
    dates = [word for word in numbers if _DATE.fullmatch(word)]
    told = ""
    if pairs:
        one, other = pairs[0]
        more = f", and so do {len(pairs) - 1:,} more such pairs" if len(pairs) > 1 else ""
        told += f"; {one[:40]!r} and {other[:40]!r} count as different{more}"
    if 0 < len(dates) < len(numbers):
        told += (
            f"; {min(dates)!r} looks like a date that a spreadsheet made of another word ({len(dates):,} such words)"
        )
    return told


_AS_TEXT = re.compile(r"""^(?:'|=")(.*?)"?$""", re.DOTALL)  # 'word and ="word", with which spreadsheets keep text
_GROUPED, _SEPARATOR = re.compile(r"[+-]?\d{1,3}(?:[,. ']\d{3})+"), re.compile("[,. ']")
_DATE = re.compile(r"\d{1,2}[-. /][A-Za-z]{3,9}(?:[-. /]\d{2,4})?|\d{4}-\d\d-\d\d(?: 00:00:00)?", re.ASCII)


def _relative(path: Path, root: Path) -> str:
    return "" if path == root else path.relative_to(root).as_posix()


def _overlap(unreadable: str, folder: str) -> bool:
    """Whether a folder of the layout is, holds or lies in an unreadable one."""
    one, other = PurePosixPath(unreadable).parts, PurePosixPath(folder).parts
    shorter = min(len(one), len(other))
    return one[:shorter] == other[:shorter]


def _is_utf8(path: str) -> bool:
    return path.isascii() or not any("\ud800" <= character <= "\udfff" for character in path)
