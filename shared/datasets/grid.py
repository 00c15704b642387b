"""GRID (QMUL underground): `probe/0001_1_25004_107_32_106_221.jpeg`, identity and camera; 0000 is a distractor."""

import re
from pathlib import Path

from shared.datasets.records import Labels, Scan, scan_folders
from shared.schemas import Kind, Split

FOLDERS: dict[str, Split] = {"probe": "query", "gallery": "gallery"}
NAME = re.compile(r"(\d{4})_(\d+)_.*")


def scan(root: Path) -> Scan:
    """Read the names under `root`."""
    return scan_folders(root, FOLDERS, _read_name)


def _read_name(folder: str, name: str) -> Labels | None:
    found = NAME.fullmatch(name)
    if not found:
        return None
    person, camera = int(found[1]), int(found[2])
    return Labels(person, camera) if person else Labels(None, camera, Kind.DISTRACTOR)
