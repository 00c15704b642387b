"""What a reader gives: one record per image of the layout, and every other file with the reason it was left out."""

import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from shared.schemas import Kind, Split

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm"})
DESCRIPTION_FILE = "dataset.yaml"
FOLDS_FILE = "folds.json"  # published train/test folds, see reid.protocols.splits
GRID_PARTITIONS = "features_and_partitions.mat"  # the same in GRID's own archive

# Ours or published beside the images: nothing that a user would miss in the manifest.
COMPANIONS = frozenset({DESCRIPTION_FILE, FOLDS_FILE, GRID_PARTITIONS, "attributes.csv", "part_truth.csv"})

NOT_AN_IMAGE = "not an image file"
HIDDEN = "hidden file"
ELSEWHERE = "in a folder that the layout does not use"
FOREIGN_NAME = "file name that does not fit the layout"
NOT_LISTED = "image that no list names"
NOT_THERE = "listed file that is not there"


class Labels(NamedTuple):
    """What a file name says; see shared.schemas.ManifestRow for the fields."""

    identity: int | None
    camera: int | None
    kind: Kind = Kind.PERSON


@dataclass(frozen=True)
class FileRecord:
    """One image as its name describes it; see shared.schemas.ManifestRow for the fields."""

    path: str
    split: Split
    identity: int | None
    camera: int | None
    kind: Kind = Kind.PERSON


@dataclass(frozen=True)
class Scan:
    """files: sorted by path and split. skipped: reason -> sorted paths."""

    files: tuple[FileRecord, ...]
    skipped: dict[str, list[str]]

    @classmethod
    def of(cls, files: Iterable[FileRecord], skipped: Mapping[str, list[str]]) -> "Scan":
        ordered = sorted(files, key=lambda record: (record.path, record.split))
        return cls(tuple(ordered), {reason: sorted(paths) for reason, paths in sorted(skipped.items())})


def walk_files(root: Path) -> list[str]:
    """Paths of all files under `root`, relative and POSIX, sorted. Linked folders are followed, each once."""
    found: list[str] = []
    seen: set[tuple[int, int]] = set()
    for folder, names, files in os.walk(root, followlinks=True):
        status = Path(folder).stat()
        if (status.st_dev, status.st_ino) in seen:  # a link back up the tree
            names.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        names[:] = sorted(name for name in names if not name.startswith("."))
        relative = Path(folder).relative_to(root)
        found += [(relative / name).as_posix() for name in files]
    return sorted(found)


def images_in(root: Path, folders: Iterable[str]) -> tuple[list[tuple[str, str]], dict[str, list[str]]]:
    """All images as (folder of the layout, path inside it), and the other files by reason.

    Args:
        folders: POSIX paths relative to `root`; "" is the root itself. The longest one that fits a file counts.
    """
    by_length = sorted(folders, key=len, reverse=True)
    images: list[tuple[str, str]] = []
    skipped: dict[str, list[str]] = defaultdict(list)
    for path in walk_files(root):
        if path in COMPANIONS:
            continue
        folder = next((name for name in by_length if not name or path.startswith(f"{name}/")), None)
        pure = PurePosixPath(path)
        if pure.name.startswith("."):
            skipped[HIDDEN].append(path)
        elif pure.suffix.lower() not in IMAGE_SUFFIXES:
            skipped[NOT_AN_IMAGE].append(path)
        elif folder is None:
            skipped[ELSEWHERE].append(path)
        else:
            images.append((folder, path.removeprefix(folder).lstrip("/")))
    return images, skipped


def scan_folders(root: Path, splits: Mapping[str, Split], read_name: Callable[[str, str], Labels | None]) -> Scan:
    """Scan a layout whose folders decide the split and whose names decide the rest.

    Args:
        splits: folder -> split.
        read_name: (folder, path inside it) -> what the name says, or None for a name that does not fit.
    """
    images, skipped = images_in(root, splits)
    files = []
    for folder, name in images:
        path = f"{folder}/{name}" if folder else name
        if (labels := read_name(folder, name)) is None:
            skipped.setdefault(FOREIGN_NAME, []).append(path)
        else:
            files.append(FileRecord(path, splits[folder], *labels))
    return Scan.of(files, skipped)


def number_identities(words: Iterable[str], kinds: Mapping[str, Kind]) -> dict[str, tuple[int | None, Kind]]:
    """Identity word -> number and kind, the same whatever the order of the files.

    When all words of people are whole numbers they are kept as they are; otherwise the sorted different words become
    1, 2, ...

    Args:
        kinds: the words that stand for no person, and what they stand for; whole numbers are compared as numbers.
    """
    special = {_key(word): kind for word, kind in kinds.items()}
    found = set(words)
    people = number_words(word for word in found if _key(word) not in special)
    return {
        word: (people[word], Kind.PERSON) if word in people else (None, special[_key(word)]) for word in sorted(found)
    }


def number_cameras(words: Iterable[str]) -> dict[str, int | None]:
    """Camera word -> number, as for people; "" is None, not labelled."""
    return {**number_words(set(words) - {""}), "": None}


def number_words(words: Iterable[str]) -> dict[str, int]:
    """Whole numbers as they are when all words are such, otherwise the places of the sorted words from 1."""
    found = sorted(set(words))
    if all(_is_whole(word) for word in found):
        return {word: int(word) for word in found}
    return {word: place for place, word in enumerate(found, start=1)}


def is_safe(path: str) -> bool:
    """Whether a path from a user's table stays inside the data set's folder."""
    pure = PurePosixPath(path)
    drive = re.match(r"[A-Za-z]:", path)
    return bool(path) and not (pure.is_absolute() or ".." in pure.parts or "\\" in path or "\0" in path or drive)


def _is_whole(word: str) -> bool:
    return re.fullmatch(r"-?\d+", word) is not None


def _key(word: str) -> str:
    return str(int(word)) if _is_whole(word) else word
