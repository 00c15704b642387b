"""Generated data sets on disk: layout, truth files, independence of workers, whole or absent, never overwritten."""

import csv
import hashlib
import os
import re
import signal
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from shared.errors import ConfigError, DgreidError, UsageError
from shared.images import load_image
from shared.schemas import PARTS
from shared.synthetic import generate_dataset, render_person

ARGUMENTS: dict[str, Any] = {
    "train_identities": 6,
    "test_identities": 5,
    "cameras": 3,
    "images_per_camera": 4,
    "seed": 7,
}
NAME = re.compile(r"(-1|\d{4})_c(\d+)s(\d+)_(\d{6})_(\d{2})\.jpg")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate_dataset(tmp_path_factory.mktemp("one"), "plaza", **ARGUMENTS, workers=1)


def _contents(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _identities(folder: Path, split: str) -> dict[int, set[int]]:
    seen: dict[int, set[int]] = defaultdict(set)
    for path in (folder / split).iterdir():
        match = NAME.fullmatch(path.name)
        assert match, path.name
        seen[int(match[1])].add(int(match[2]))
    return seen


def test_bytes_do_not_depend_on_the_number_of_workers(folder: Path, tmp_path: Path) -> None:
    other = generate_dataset(tmp_path, "plaza", **ARGUMENTS, workers=3)
    assert _contents(other) == _contents(folder)


def test_layout_is_market1501(folder: Path) -> None:
    assert folder.name == "synth_plaza"
    train = _identities(folder, "bounding_box_train")
    query = _identities(folder, "query")
    gallery = _identities(folder, "bounding_box_test")
    assert set(train) == set(range(1, 7))
    assert set(query) == set(range(7, 12))
    assert set(gallery) == {-1, 0, *range(7, 12)}
    for identity, cameras in query.items():
        assert cameras == {1, 2, 3}
        for camera in cameras:
            assert gallery[identity] - {camera}  # a right answer in another camera
    assert len(list((folder / "query").iterdir())) == 5 * 3
    assert len(list((folder / "bounding_box_train").iterdir())) == 6 * 3 * 4


def test_description_names_layout_and_recipe(folder: Path) -> None:
    description = yaml.safe_load((folder / "dataset.yaml").read_text())
    assert description["layout"] == "market1501"
    assert description["synthetic"] is True
    assert description["title"]
    for key, value in ARGUMENTS.items():
        assert description["generator"][key] == value


def test_part_truth_covers_every_image_with_boxes_of_the_render(folder: Path) -> None:
    rows = list(csv.DictReader((folder / "part_truth.csv").open()))
    assert list(rows[0]) == ["path", "width", "height", "part", "x_min", "y_min", "x_max", "y_max"]
    images = {path.relative_to(folder).as_posix() for path in folder.rglob("*.jpg")}
    assert {row["path"] for row in rows} == images
    assert len(rows) == len(PARTS) * len(images)
    present = 0
    for row in rows:
        coordinates = [row[key] for key in ("x_min", "y_min", "x_max", "y_max")]
        if coordinates == ["", "", "", ""]:
            continue
        present += 1
        x_min, y_min, x_max, y_max = map(float, coordinates)
        assert 0 <= x_min < x_max <= int(row["width"]) == 64
        assert 0 <= y_min < y_max <= int(row["height"]) == 128
    assert present > 0.8 * len(rows)
    sample = render_person("plaza", 2, 3, 1, seed=7)
    told = {row["part"]: row for row in rows if row["path"] == "bounding_box_train/0002_c3s1_000002_00.jpg"}
    for part, box in sample.parts.items():
        expected = ["", "", "", ""] if box is None else [str(value) for value in box]
        assert [told[part][key] for key in ("x_min", "y_min", "x_max", "y_max")] == expected


def test_images_are_the_render_up_to_jpeg(folder: Path) -> None:
    image = load_image(folder / "bounding_box_train/0002_c3s1_000002_00.jpg")
    pixels = render_person("plaza", 2, 3, 1, seed=7).pixels
    assert image.size == (64, 128)
    assert np.abs(np.asarray(image, np.int64) - pixels).mean() < 12


def test_attributes_have_one_line_per_identity(folder: Path) -> None:
    rows = list(csv.DictReader((folder / "attributes.csv").open()))
    assert [int(row["person_id"]) for row in rows] == list(range(1, 12))
    assert {row["dataset"] for row in rows} == {"synth_plaza"}
    assert tuple(rows[3]["attributes"].split()) == render_person("plaza", 4, 1, 0, seed=7).attributes


def test_a_second_call_does_nothing(folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert generate_dataset(folder.parent, "plaza", **ARGUMENTS, workers=1) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_other_parameters_are_refused_and_named(folder: Path) -> None:
    before = _contents(folder)
    with pytest.raises(UsageError, match="seed 7 there, 8 asked"):
        generate_dataset(folder.parent, "plaza", **{**ARGUMENTS, "seed": 8})
    assert _contents(folder) == before


@pytest.mark.parametrize("content", [None, "layout: market1501\n", "- 1\n", ": : :\n"])
def test_a_folder_of_somebody_else_is_refused(tmp_path: Path, content: str | None) -> None:
    (tmp_path / "synth_mall").mkdir()
    if content is not None:
        (tmp_path / "synth_mall/dataset.yaml").write_text(content)
    with pytest.raises(UsageError, match="not made by this generator"):
        generate_dataset(tmp_path, "mall", **ARGUMENTS)


@pytest.mark.parametrize(
    "change",
    [
        {"cameras": 1},
        {"images_per_camera": 1},
        {"train_identities": 0, "test_identities": 0},
        {"train_identities": -1},
        {"seed": -1},
        {"size": (8, 8)},
        {"workers": 0},
        {"test_identities": 10_000},
    ],
)
def test_arguments_without_a_data_set_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        generate_dataset(tmp_path, "mall", **{**ARGUMENTS, **change})
    assert not list(tmp_path.iterdir())


def test_a_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: Path, content: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", broken)
    with pytest.raises(DgreidError, match="No space left"):
        generate_dataset(tmp_path, "mall", **ARGUMENTS, workers=1)
    assert not list(tmp_path.iterdir())


def test_a_killed_run_leaves_no_half_data_set_and_can_be_repeated(tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    script.write_text(
        "from pathlib import Path\n"
        "from shared.synthetic import generate_dataset\n"
        "if __name__ == '__main__':\n"
        f"    generate_dataset(Path({str(tmp_path)!r}), 'night', train_identities=900, test_identities=0, cameras=4,\n"
        "                     images_per_camera=4, seed=1, workers=2)\n"
    )
    root = Path(__file__).parents[2]
    running = subprocess.Popen(
        [sys.executable, str(script)],
        env=os.environ | {"PYTHONPATH": str(root)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    half = tmp_path / f".synth_night.{running.pid}.tmp"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not list(half.glob("bounding_box_train/*.jpg")):
        time.sleep(0.05)
    assert list(half.glob("bounding_box_train/*.jpg"))
    running.send_signal(signal.SIGKILL)
    running.communicate(timeout=30)  # ends when the last worker, who inherited the pipe, has ended too
    assert not (tmp_path / "synth_night").exists()

    folder = generate_dataset(tmp_path, "night", **ARGUMENTS, workers=1)
    assert len(list(folder.rglob("*.jpg"))) > 0
    assert not half.exists()
