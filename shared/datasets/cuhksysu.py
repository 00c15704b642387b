"""CUHK-SYSU as person crops: `cropped_images/p11422_s16929_1.jpg`, identity and scene; cameras are not labelled."""

import re
from pathlib import Path

from shared.datasets.records import Labels, Scan, scan_folders
from shared.schemas import Split

FOLDERS: dict[str, Split] = {"cropped_images": "all"}
NAME = re.compile(r"p(\d+)_s\d+_\d+\.\w+")


def scan(root: Path) -> Scan:
    """Read the names under `root`."""
    return scan_folders(root, FOLDERS, _read_name)


def _read_name(folder: str, name: str) -> Labels | None:
    found = NAME.fullmatch(name)
    return Labels(int(found[1]), camera=None) if found and int(found[1]) else None  # published from p1 on
