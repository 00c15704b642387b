"""The Market-1501 layout, which most later sets took over: Market-1501, DukeMTMC-reID, CUHK03-NP, 3DPeS, CAVIAR4REID.

bounding_box_train/0002_c1s1_000451_03.jpg     identity 2, camera 1
query/  bounding_box_test/                     in the latter identity -1 is junk and 0 a distractor
"""

import re
from dataclasses import replace
from pathlib import Path

from shared.datasets.records import Scan, scan_folders
from shared.schemas import Split

FOLDERS: dict[str, Split] = {"bounding_box_train": "train", "query": "query", "bounding_box_test": "gallery"}
NAME = re.compile(r"(-1|\d+)_c(\d+)\D.*")


def scan(root: Path) -> Scan:
    """Read the names under `root`."""
    return scan_folders(root, FOLDERS, _read_name)


def scan_zero_based(root: Path) -> Scan:
    """The same for sets that number their people from 0, in train and test apart (MSMT17 in this layout).

    Identities are moved up by one, those of the test split beyond those of the training split.
    """
    scanned = scan(root)
    people = 1 + max((record.identity for record in scanned.files if record.split == "train"), default=-1)
    files = [
        replace(record, identity=record.identity + 1 + (people if record.split != "train" else 0))
        if record.identity >= 0
        else record
        for record in scanned.files
    ]
    return Scan.of(files, scanned.skipped)


def _read_name(folder: str, name: str) -> tuple[int, int] | None:
    found = NAME.fullmatch(name)
    return (int(found[1]), int(found[2])) if found else None
