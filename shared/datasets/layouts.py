"""The folder trees in which public data sets are published, and what their file names say.

| layout | files | split | identity | camera |
|---|---|---|---|---|
| market1501 | `bounding_box_train/0002_c1s1_000451_03.jpg`, `query/`, `bounding_box_test/` | folder | 2; -1 is junk, 0 in the gallery a distractor unless a query is called 0 | 1 |
| market1501_zero_based | the same | folder | one more than the name says, in the test folders beyond those of training | 1 |
| msmt17 | `train/0000/0000_000_01_0303morning_0015_0.jpg` (V2: `mask_train_v2/`), `test/` (`mask_test_v2/`) | `list_train.txt` and `list_val.txt`: train; `list_query.txt`, `list_gallery.txt` | one more than the list says, in test beyond those of train | 1, third field |
| cuhk02 | `P1/cam1/001_1.png`, five pairs of cameras P1 to P5 | all | 10,001: the pair times 10,000 plus the number | 1 to 10 |
| cuhksysu | `cropped_images/p11422_s16929_1.jpg` | all | 11422 | not labelled |
| viper | `cam_a/000_45.bmp`, `cam_b/000_0.bmp` | a: query, b: gallery | 1, one more than the name says | a: 1, b: 2 |
| prid2011 | `single_shot/cam_a/person_0001.png`, `cam_b/` | a: query, b: gallery | 1; above 200 seen by one camera only: a distractor | a: 1, b: 2 |
| grid | `probe/0001_1_25004_107_32_106_221.jpeg`, `gallery/` | query, gallery | 1; 0 is a distractor | 1 |
| ilids | `Persons/0119002.jpg` | all | 119, the first four of seven digits | not labelled |
"""  # noqa: E501  (a table)

import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from shared.datasets.records import (
    DAMAGED_LINE,
    NOT_AN_IMAGE,
    NOT_LISTED,
    NOT_THERE,
    OUT_OF_RANGE,
    FileRecord,
    Files,
    Labels,
    Scan,
    images_in,
    is_safe,
    scan_folders,
)
from shared.errors import DataError
from shared.files import read_limited
from shared.schemas import Kind, Split

MAX_LIST_BYTES = 256 * 2**20  # MSMT17's longest list has 6 MB
_MAX_FROM_ZERO = 10**9  # of identities that are moved up, so that one odd number does not move all others out of range


@dataclass(frozen=True)
class Layout:
    """marks: any of these below a folder shows that the layout is there."""

    marks: tuple[str, ...]
    scan: Callable[[Path], Scan]


_MARKET1501: Mapping[str, Split] = {"bounding_box_train": "train", "query": "query", "bounding_box_test": "gallery"}
_MARKET1501_NAME = re.compile(r"(0*-1|\d+)_c(\d+)\D.*", re.ASCII)


def scan_market1501(root: Path) -> Scan:
    """The layout that most later sets took over: DukeMTMC-reID, CUHK03-NP, 3DPeS, CAVIAR4REID and others."""
    scanned = scan_folders(root, _MARKET1501, _market1501_name)
    asked = sum(record.identity == 0 and record.split == "query" for record in scanned.files)
    if asked:
        note = f"{asked:,} query images show identity 0, so it is a person in the gallery too, and no distractor"
        return replace(scanned, notes=(note,))
    files = (
        record._replace(identity=None, kind=Kind.DISTRACTOR)
        if record.split == "gallery" and record.identity == 0
        else record
        for record in scanned.files
    )
    return replace(scanned, files=Files(files))


def scan_market1501_zero_based(root: Path) -> Scan:
    """The same for sets that number their people from 0, in train and test apart (MSMT17 in this layout)."""

    def read_name(folder: str, name: str) -> Labels | str | None:
        labels = _market1501_name(folder, name)
        return OUT_OF_RANGE if labels and (labels.identity or 0) >= _MAX_FROM_ZERO else labels

    scanned = scan_folders(root, _MARKET1501, read_name)
    train = (record.identity for record in scanned.files if record.split == "train" and record.identity is not None)
    people = 1 + max(train, default=-1)
    files = (
        record._replace(identity=record.identity + 1 + (people if record.split != "train" else 0))
        if record.identity is not None
        else record
        for record in scanned.files
    )
    return replace(scanned, files=Files(files))


def _market1501_name(folder: str, name: str) -> Labels | None:
    if not (found := _MARKET1501_NAME.fullmatch(name)):
        return None
    camera = int(found[2])
    return Labels(None, camera, Kind.JUNK) if "-" in found[1] else Labels(int(found[1]), camera)


_MSMT17_LISTS: Mapping[str, Split] = {
    "list_train.txt": "train",
    "list_val.txt": "train",  # training images too, which is how papers count 32,621
    "list_query.txt": "query",
    "list_gallery.txt": "gallery",
}
_MSMT17_TRAIN, _MSMT17_TEST = ("train", "mask_train_v2"), ("test", "mask_test_v2")
_MSMT17_LINE = re.compile(r"(\S.*) (\d+)", re.ASCII)
_MSMT17_NAME = re.compile(r"[^_/]*_[^_/]*_(\d+)_[^/]*", re.ASCII)


def scan_msmt17(root: Path) -> Scan:
    """MSMT17 as published. A line of a list that is no `<path> <identity>` is skipped and counted.

    Raises DataError for a list that cannot be read, or whose identities are not those of the folders and file names.
    """
    images, skipped = images_in(root, (*_MSMT17_TRAIN, *_MSMT17_TEST))
    present = {image.path for image in images}
    skipped[NOT_AN_IMAGE] = [path for path in skipped.get(NOT_AN_IMAGE, []) if path not in _MSMT17_LISTS]
    listed: set[str] = set()
    given: set[tuple[str, Split]] = set()
    agreed: dict[tuple[str, str, str], str] = {}
    files: list[FileRecord] = []
    first_test_identity = 1
    for list_name, split in _MSMT17_LISTS.items():
        choices = _MSMT17_TRAIN if split == "train" else _MSMT17_TEST
        folder = next((name for name in choices if (root / name).is_dir()), choices[0])
        entries, unread = _msmt17_list(root / list_name)
        for reason, lines in unread.items():
            skipped[reason] += lines
        start = 1 if split == "train" else first_test_identity
        for name, identity, camera in entries:
            path = f"{folder}/{name}"
            _agree(agreed, folder, name, str(identity), root / list_name)
            if (path, split) in given:
                continue
            given.add((path, split))
            listed.add(path)
            if split == "train":
                first_test_identity = max(first_test_identity, identity + 2)
            if path in present:
                files.append(FileRecord(path, split, start + identity, camera))
            else:
                skipped[NOT_THERE].append(path)
    skipped[NOT_LISTED] = sorted(present - listed)
    return Scan.of(Files(files), skipped)


def _agree(agreed: dict[tuple[str, str, str], str], side: str, name: str, identity: str, path: Path) -> None:
    """Raises DataError when the folder of an image, or the beginning of its name, is that of another identity's images.

    Identities that were numbered anew are as good, as long as each is one folder and one beginning.
    """
    pure = PurePosixPath(name)
    for what, word in (("folder", pure.parent.name), ("name", pure.name.partition("_")[0])):
        if not word:
            continue
        other_identity = agreed.setdefault((side, what, word), identity)
        other_word = agreed.setdefault((side, f"{what} of", identity), word)
        if (other_identity, other_word) != (identity, word):
            other = f"has {what} {other_word!r}" if other_word != word else f"is identity {other_identity}"
            raise DataError(
                f"identity {identity}, {what} {word!r} ({name}) {other} in another line",
                path=path,
                fix="use the list files that came with MSMT17",
            )


def _msmt17_list(path: Path) -> tuple[list[tuple[str, int, int]], Mapping[str, list[str]]]:
    """(path below the split's folder, identity from 0, camera) per line, and other lines by reason.

    Nothing when the list is not there.
    """
    entries: list[tuple[str, int, int]] = []
    unread: dict[str, list[str]] = defaultdict(list)
    try:
        text = read_limited(path, MAX_LIST_BYTES).decode("utf-8-sig")
    except FileNotFoundError:
        return entries, unread
    except (OSError, UnicodeDecodeError) as err:
        reason = err.strerror if isinstance(err, OSError) else "not UTF-8"
        raise DataError(
            f"the list cannot be read: {reason}", path=path, fix="use the list files that came with MSMT17"
        ) from err
    for number, line in enumerate(text.splitlines(), start=1):
        found = _MSMT17_LINE.fullmatch(line.strip().replace("\\", "/"))
        named = _MSMT17_NAME.fullmatch(PurePosixPath(found[1]).name) if found else None
        if found and named and is_safe(found[1]):
            if len(found[2]) < 10 and len(named[1]) < 10:
                entries.append((found[1], int(found[2]), int(named[1])))
            else:
                unread[OUT_OF_RANGE].append(f"{path.name}:{number}")
        elif line.strip():
            unread[DAMAGED_LINE].append(f"{path.name}:{number}")
    return entries, unread


_CUHK02_PAIRS = ("P1", "P2", "P3", "P4", "P5")
_CUHK02: Mapping[str, Split] = {f"{pair}/cam{side}": "all" for pair in _CUHK02_PAIRS for side in (1, 2)}
_CUHK02_NAME = re.compile(r"(\d{1,4})_.*", re.ASCII)
_CUHK02_PEOPLE_PER_PAIR = 10_000  # people are numbered from 1 in each pair


def scan_cuhk02(root: Path) -> Scan:
    """CUHK02; `root` is the folder that holds P1 to P5."""

    def read_name(folder: str, name: str) -> Labels | None:
        found = _CUHK02_NAME.fullmatch(name)
        pair, side = int(folder[1]), int(folder[-1])
        return Labels(pair * _CUHK02_PEOPLE_PER_PAIR + int(found[1]), 2 * (pair - 1) + side) if found else None

    return scan_folders(root, _CUHK02, read_name)


_CUHKSYSU: Mapping[str, Split] = {"cropped_images": "all"}
_CUHKSYSU_NAME = re.compile(r"p(\d+)_s\d+_\d+\.\w+", re.ASCII)


def scan_cuhksysu(root: Path) -> Scan:
    """CUHK-SYSU as person crops, identity and scene."""

    def read_name(folder: str, name: str) -> Labels | None:
        found = _CUHKSYSU_NAME.fullmatch(name)
        return Labels(int(found[1]), camera=None) if found and int(found[1]) else None  # published from p1 on

    return scan_folders(root, _CUHKSYSU, read_name)


_VIPER: Mapping[str, Split] = {"cam_a": "query", "cam_b": "gallery"}
_VIPER_NAME = re.compile(r"(\d+)_\d+\.\w+", re.ASCII)


def scan_viper(root: Path) -> Scan:
    """VIPeR, identity and viewing angle; identities from 0."""

    def read_name(folder: str, name: str) -> Labels | None:
        found = _VIPER_NAME.fullmatch(name)
        return Labels(int(found[1]) + 1, 1 if folder == "cam_a" else 2) if found else None

    return scan_folders(root, _VIPER, read_name)


_PRID2011: Mapping[str, Split] = {"single_shot/cam_a": "query", "single_shot/cam_b": "gallery"}
_PRID2011_NAME = re.compile(r"person_(\d+)\.\w+", re.ASCII)
_PRID2011_SHARED = 200  # higher numbers mean different people in the two folders


def scan_prid2011(root: Path) -> Scan:
    """PRID2011, single shot."""

    def read_name(folder: str, name: str) -> Labels | None:
        if not (found := _PRID2011_NAME.fullmatch(name)):
            return None
        person, camera = int(found[1]), 1 if folder.endswith("a") else 2
        return Labels(person, camera) if person <= _PRID2011_SHARED else Labels(None, camera, Kind.DISTRACTOR)

    return scan_folders(root, _PRID2011, read_name)


_GRID: Mapping[str, Split] = {"probe": "query", "gallery": "gallery"}
_GRID_NAME = re.compile(r"(\d{4})_(\d+)_.*", re.ASCII)


def scan_grid(root: Path) -> Scan:
    """GRID (QMUL underground), identity and camera."""

    def read_name(folder: str, name: str) -> Labels | None:
        if not (found := _GRID_NAME.fullmatch(name)):
            return None
        person, camera = int(found[1]), int(found[2])
        return Labels(person, camera) if person else Labels(None, camera, Kind.DISTRACTOR)

    return scan_folders(root, _GRID, read_name)


_ILIDS: Mapping[str, Split] = {"Persons": "all"}
_ILIDS_NAME = re.compile(r"(\d{4})\d{3}\.\w+", re.ASCII)


def scan_ilids(root: Path) -> Scan:
    """i-LIDS, four digits of identity and three of the image."""

    def read_name(folder: str, name: str) -> Labels | None:
        found = _ILIDS_NAME.fullmatch(name)
        return Labels(int(found[1]), camera=None) if found else None

    return scan_folders(root, _ILIDS, read_name)


LAYOUTS: Mapping[str, Layout] = {
    "market1501": Layout(tuple(_MARKET1501), scan_market1501),
    "market1501_zero_based": Layout(tuple(_MARKET1501), scan_market1501_zero_based),
    "msmt17": Layout(tuple(_MSMT17_LISTS), scan_msmt17),
    "cuhk02": Layout(_CUHK02_PAIRS, scan_cuhk02),
    "cuhksysu": Layout(tuple(_CUHKSYSU), scan_cuhksysu),
    "viper": Layout(tuple(_VIPER), scan_viper),
    "prid2011": Layout(tuple(_PRID2011), scan_prid2011),
    "grid": Layout(tuple(_GRID), scan_grid),
    "ilids": Layout(tuple(_ILIDS), scan_ilids),
}
