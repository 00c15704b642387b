"""i-LIDS: `Persons/0001002.jpg`, four digits of identity and three of the image; cameras are not labelled."""

import re
from pathlib import Path

from shared.datasets.records import Labels, Scan, scan_folders
from shared.schemas import Split

FOLDERS: dict[str, Split] = {"Persons": "all"}
NAME = re.compile(r"(\d{4})\d{3}\.\w+")


def scan(root: Path) -> Scan:
    """Read the names under `root`."""
    return scan_folders(root, FOLDERS, _read_name)


def _read_name(folder: str, name: str) -> Labels | None:
    found = NAME.fullmatch(name)
    return Labels(int(found[1]), camera=None) if found else None
