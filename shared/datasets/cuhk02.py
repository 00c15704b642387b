"""CUHK02: `Dataset/P1/cam1/001_1.png`, five pairs of cameras P1..P5 whose people are numbered from 1 in each pair.

Identities become 10,000 times the pair plus the number, cameras 1 to 10, so that no two people or cameras share one.
"""

import re
from pathlib import Path

from shared.datasets.records import Labels, Scan, scan_folders
from shared.schemas import Split

PAIRS = ("P1", "P2", "P3", "P4", "P5")
FOLDERS: dict[str, Split] = {f"{pair}/cam{side}": "all" for pair in PAIRS for side in (1, 2)}
PEOPLE_PER_PAIR = 10_000
NAME = re.compile(r"(\d{1,4})_.*")


def scan(root: Path) -> Scan:
    """Read the names under `root`, the folder that holds P1 to P5."""
    return scan_folders(root, FOLDERS, _read_name)


def _read_name(folder: str, name: str) -> Labels | None:
    found = NAME.fullmatch(name)
    pair, side = int(folder[1]), int(folder[-1])
    return Labels(pair * PEOPLE_PER_PAIR + int(found[1]), 2 * (pair - 1) + side) if found else None
