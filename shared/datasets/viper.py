"""VIPeR: `cam_a/000_45.bmp` and `cam_b/000_0.bmp`, identity and viewing angle; identities from 0, moved up by one."""

import re
from pathlib import Path

from shared.datasets.records import Labels, Scan, scan_folders
from shared.schemas import Split

FOLDERS: dict[str, Split] = {"cam_a": "query", "cam_b": "gallery"}
CAMERAS = {"cam_a": 1, "cam_b": 2}
NAME = re.compile(r"(\d+)_\d+\.\w+")


def scan(root: Path) -> Scan:
    """Read the names under `root`."""
    return scan_folders(root, FOLDERS, _read_name)


def _read_name(folder: str, name: str) -> Labels | None:
    found = NAME.fullmatch(name)
    return Labels(int(found[1]) + 1, CAMERAS[folder]) if found else None
