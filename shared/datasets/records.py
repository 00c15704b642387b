"""What a reader gives: one record per image of the layout, and every other file with the reason it was left out."""

import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from shared.schemas import DISTRACTOR_IDENTITY, JUNK_IDENTITY, Split

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm"})
DESCRIPTION_FILE = "dataset.yaml"
FOLDS_FILE = "folds.json"  # published train/test folds, see reid.protocols.published_folds
GRID_PARTITIONS = "features_and_partitions.mat"  # the same in GRID's own archive

# Ours or published beside the images: nothing that a user would miss in the manifest.
COMPANIONS = frozenset({DESCRIPTION_FILE, FOLDS_FILE, GRID_PARTITIONS, "attributes.csv", "part_truth.csv"})

NOT_AN_IMAGE = "not an image file"
HIDDEN = "hidden file"
ELSEWHERE = "in a folder that the layout does not use"
FOREIGN_NAME = "file name that does not fit the layout"
NOT_LISTED = "image that no list names"
NOT_THERE = "listed file that is not there"


@dataclass(frozen=True)
class FileRecord:
    """One image as its name describes it; see shared.schemas.ManifestRow for the fields."""

    path: str
    split: Split
    identity: int
    camera: int


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


def scan_folders(
    root: Path, splits: Mapping[str, Split], read_name: Callable[[str, str], tuple[int, int] | None]
) -> Scan:
    """Scan a layout whose folders decide the split and whose names decide the rest.

    Args:
        splits: folder -> split.
        read_name: (folder, path inside it) -> (identity, camera), or None for a name that does not fit.
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


def number_identities(labels: Iterable[str]) -> dict[str, int]:
    """Identity words to numbers, the same whatever the order of the files.

    "0" (distractor) and "-1" (junk) always keep their meaning. When all words are whole numbers they are kept as
    they are (below -1: junk); otherwise the sorted different words become 1, 2, ...
    """
    special = {label: max(int(label), JUNK_IDENTITY) for label in labels if _is_special(label)}
    people = sorted(set(labels) - special.keys())
    if all(label.isdecimal() for label in people):
        return special | {label: int(label) for label in people}
    return special | {label: number for number, label in enumerate(people, start=1)}


def number_cameras(labels: Iterable[str]) -> dict[str, int]:
    """Camera words to numbers from 1; "" is 0, not labelled. Whole numbers from 1 are kept, all else is sorted."""
    cameras = set(labels) - {""}
    if all(label.isdecimal() for label in cameras):
        values = {label: int(label) for label in cameras}
        if min(values.values(), default=1) >= 1:
            return values | {"": 0}
        places = {value: place for place, value in enumerate(sorted(set(values.values())), start=1)}
        return {label: places[value] for label, value in values.items()} | {"": 0}
    return {label: place for place, label in enumerate(sorted(cameras), start=1)} | {"": 0}


def is_safe(path: str) -> bool:
    """Whether a path from a user's table stays inside the data set's folder."""
    pure = PurePosixPath(path)
    drive = re.match(r"[A-Za-z]:", path)
    return bool(path) and not (pure.is_absolute() or ".." in pure.parts or "\\" in path or "\0" in path or drive)


def _is_special(label: str) -> bool:
    return bool(re.fullmatch(r"-\d+|0+", label)) and int(label) <= DISTRACTOR_IDENTITY
