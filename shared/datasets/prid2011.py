"""PRID2011, single shot: `single_shot/cam_a/person_0001.png` and the same in `cam_b`.

Persons 1 to 200 were seen by both cameras. Higher numbers mean different people in the two folders, each seen once:
distractors.
"""

import re
from pathlib import Path

from shared.datasets.records import Labels, Scan, scan_folders
from shared.schemas import Kind, Split

FOLDERS: dict[str, Split] = {"single_shot/cam_a": "query", "single_shot/cam_b": "gallery"}
CAMERAS = {"single_shot/cam_a": 1, "single_shot/cam_b": 2}
SHARED_PERSONS = 200
NAME = re.compile(r"person_(\d+)\.\w+")


def scan(root: Path) -> Scan:
    """Read the names under `root`."""
    return scan_folders(root, FOLDERS, _read_name)


def _read_name(folder: str, name: str) -> Labels | None:
    found = NAME.fullmatch(name)
    if not found:
        return None
    person = int(found[1])
    if person > SHARED_PERSONS:
        return Labels(None, CAMERAS[folder], Kind.DISTRACTOR)
    return Labels(person, CAMERAS[folder])
