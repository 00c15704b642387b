"""MSMT17 as published: lists of `<path> <identity>` lines; identities start at 0 in train and in test.

    list_train.txt  list_val.txt     -> train, under train/ (V2: mask_train_v2/)
    list_query.txt  list_gallery.txt -> under test/ (V2: mask_test_v2/)
    0000/0000_000_01_0303morning_0015_0.jpg 0      the third field of the name is the camera

Both train lists are training images, which is how papers count 32,621. Identities are moved up by one, those of the
test split beyond those of the training split, so that no two people share a number and none is called 0.
"""

from collections import defaultdict
from pathlib import Path, PurePosixPath

from shared.datasets.records import NOT_AN_IMAGE, NOT_LISTED, NOT_THERE, FileRecord, Scan, images_in, is_safe
from shared.errors import DataError
from shared.schemas import Split

LISTS: dict[str, Split] = {
    "list_train.txt": "train",
    "list_val.txt": "train",
    "list_query.txt": "query",
    "list_gallery.txt": "gallery",
}
TRAIN_FOLDERS, TEST_FOLDERS = ("train", "mask_train_v2"), ("test", "mask_test_v2")


def scan(root: Path) -> Scan:
    """Read the lists under `root`. Raises DataError for a line that is not `<path> <identity>` or a foreign name."""
    images, skipped = images_in(root, (*TRAIN_FOLDERS, *TEST_FOLDERS))
    present = {f"{folder}/{name}" for folder, name in images}
    listed: set[str] = set()
    missing: dict[str, list[str]] = defaultdict(list)
    files: list[FileRecord] = []
    first_test_identity = 1
    for list_name, split in LISTS.items():
        folder = _folder(root, TRAIN_FOLDERS if split == "train" else TEST_FOLDERS)
        start = 1 if split == "train" else first_test_identity
        for path, identity, camera in _read_list(root / list_name, folder):
            listed.add(path)
            if split == "train":
                first_test_identity = max(first_test_identity, identity + 2)
            if path in present:
                files.append(FileRecord(path, split, start + identity, camera))
            else:
                missing[NOT_THERE].append(path)
    unlisted = sorted(present - listed)
    skipped[NOT_AN_IMAGE] = [path for path in skipped.get(NOT_AN_IMAGE, []) if path not in LISTS]
    reasons = {**skipped, **missing, NOT_LISTED: unlisted}
    return Scan.of(files, {reason: paths for reason, paths in reasons.items() if paths})


def _folder(root: Path, choices: tuple[str, ...]) -> str:
    return next((name for name in choices if (root / name).is_dir()), choices[0])


def _read_list(path: Path, folder: str) -> list[tuple[str, int, int]]:
    """(path below the data set, identity from 0, camera) per line; nothing when the list is not there."""
    if not path.is_file():
        return []
    entries = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        name, _, identity = line.strip().rpartition(" ")
        fields = PurePosixPath(name).name.split("_")
        if not (is_safe(name) and identity.isdecimal() and len(fields) > 3 and fields[2].isdecimal()):
            raise DataError(
                f"line {number} is not `<folder>/<id>_<n>_<camera>_....jpg <identity>`: {line[:80]!r}",
                path=path,
                fix="use the list files that came with MSMT17",
            )
        entries.append((f"{folder}/{name}", int(identity), int(fields[2])))
    return entries
