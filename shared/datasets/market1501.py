"""The Market-1501 layout, which most later sets took over: Market-1501, DukeMTMC-reID, CUHK03-NP, 3DPeS, CAVIAR4REID.

bounding_box_train/0002_c1s1_000451_03.jpg     identity 2, camera 1
query/  bounding_box_test/                     in the latter identity 0 is a distractor; -1 is junk

In train and query 0 is a person like any other, and where it is asked for, so it is in the gallery.
"""

import logging
import re
from dataclasses import replace
from pathlib import Path

from shared.datasets.records import FileRecord, Labels, Scan, scan_folders
from shared.schemas import Kind, Split

log = logging.getLogger(__name__)

FOLDERS: dict[str, Split] = {"bounding_box_train": "train", "query": "query", "bounding_box_test": "gallery"}
NAME = re.compile(r"(-1|\d+)_c(\d+)\D.*")


def scan(root: Path) -> Scan:
    """Read the names under `root`."""
    scanned = _scan(root)
    called_zero = [record for record in scanned.files if record.identity == 0]
    asked = [record for record in called_zero if record.split == "query"]
    if asked:
        log.warning(
            "%s: identity 0 asks in %d query images, so it is a person in the gallery too, and no distractor",
            root,
            len(asked),
        )
        return scanned
    return Scan.of([_gallery_distractor(record) for record in scanned.files], scanned.skipped)


def scan_zero_based(root: Path) -> Scan:
    """The same for sets that number their people from 0, in train and test apart (MSMT17 in this layout).

    Identities are moved up by one, those of the test split beyond those of the training split.
    """
    scanned = _scan(root)
    train = [record.identity for record in scanned.files if record.split == "train" and record.identity is not None]
    people = 1 + max(train, default=-1)
    files = [
        replace(record, identity=record.identity + 1 + (people if record.split != "train" else 0))
        if record.identity is not None
        else record
        for record in scanned.files
    ]
    return Scan.of(files, scanned.skipped)


def _scan(root: Path) -> Scan:
    return scan_folders(root, FOLDERS, _read_name)


def _read_name(folder: str, name: str) -> Labels | None:
    found = NAME.fullmatch(name)
    if not found:
        return None
    identity, camera = int(found[1]), int(found[2])
    return Labels(None, camera, Kind.JUNK) if identity < 0 else Labels(identity, camera)


def _gallery_distractor(record: FileRecord) -> FileRecord:
    if record.split == "gallery" and record.identity == 0:
        return replace(record, identity=None, kind=Kind.DISTRACTOR)
    return record
