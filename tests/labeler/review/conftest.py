"""A small data set with labels of two runs, to be looked at."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from labeler.grounding.rows import part_row
from shared.labels import label_folder, write_label_shard, write_record
from shared.manifest import build_manifest
from shared.schemas import PARTS, LabelRow, LabelStatus, ManifestRow
from shared.workspace import Workspace

SIZE = 40, 100
BOXES = {"head": (10.0, 2.0, 30.0, 20.0), "upper_body": (5.0, 20.0, 35.0, 55.0), "legs": (8.0, 52.0, 32.0, 98.0)}


def row_of(image: ManifestRow, part: str, run: str = "first", **changes: object) -> LabelRow:
    values: dict[str, object] = {
        "status": LabelStatus.OK,
        "space": "original_pixels",
        "engine": "local",
        "model": "m",
        "prompt_version": "p",
        "attempts": 1,
    }
    values |= changes
    box = BOXES[part] if values["status"] == LabelStatus.OK else None
    return part_row(image, part, box, label_run=run, **values)


def write_labels(workspace: Workspace, rows: list[LabelRow]) -> None:
    run, dataset = rows[0].label_run, rows[0].dataset
    write_record(workspace.labels, run, {"engine": rows[0].engine, "parts": list(PARTS)})
    for split in {row.split for row in rows}:
        chosen = [row for row in rows if row.split == split]
        write_label_shard(chosen, label_folder(workspace.labels, run, dataset, split))


@pytest.fixture
def make_workspace(tmp_path: Path) -> Callable[[int], tuple[Workspace, list[ManifestRow]]]:
    """Images of `count` people, each by two cameras, with the labels of run `first`."""

    def make(people: int) -> tuple[Workspace, list[ManifestRow]]:
        workspace = Workspace(tmp_path / "data", tmp_path / "runs")
        folder = workspace.data_root / "walkers"
        folder.mkdir(parents=True)
        (folder / "dataset.yaml").write_text('layout: pattern\npattern: "{identity}_c{camera}.jpg"\nsplit: train\n')
        rng = np.random.default_rng(0)
        for person in range(people):
            for camera in (1, 2):
                pixels = rng.integers(0, 255, (SIZE[1], SIZE[0], 3), np.uint8)
                Image.fromarray(pixels).save(folder / f"{person:03d}_c{camera}.jpg")
        rows = build_manifest("walkers", workspace.data_root, workspace.manifest("walkers"))
        write_labels(workspace, [row_of(image, part) for image in rows for part in PARTS])
        return workspace, rows

    return make


@pytest.fixture
def noon() -> datetime:
    return datetime(2030, 1, 1, 12, tzinfo=UTC)
