"""What `make test` leaves out is only what a command of its own runs."""

import tomllib
from fnmatch import fnmatch
from pathlib import Path

TESTS = Path(__file__).parent
ROOT = TESTS.parent


def test_no_room_is_left_out_because_of_its_name() -> None:
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    folders = {path.parent.relative_to(TESTS) for path in TESTS.rglob("test_*.py")}
    left_out = {
        str(folder)
        for folder in folders
        if any(fnmatch(part, name) for part in folder.parts for name in options["norecursedirs"])
    }
    makefile = (ROOT / "Makefile").read_text()
    assert left_out == {"images", "track", "vllm"}
    assert all(f"-m pytest tests/{folder}" in makefile for folder in left_out)
    assert {"reid/data", "shared", "gpu"} <= {str(folder) for folder in folders - {Path(name) for name in left_out}}
