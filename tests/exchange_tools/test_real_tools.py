"""Label Studio's converter, Datumaro (as CVAT uses it), pycocotools and FiftyOne read our exports, and we read theirs.

FiftyOne without its database: its importers, exporters and documents, which are what it reads and writes files with.
"""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from labeler.exchange.coco import from_coco
from labeler.exchange.corrections import import_corrections
from labeler.exchange.fiftyone import from_fiftyone
from labeler.exchange.foreign_json import Problems, read_json
from labeler.exchange.label_studio import from_label_studio
from labeler.exchange.part_boxes import newest_rows, part_boxes
from pipelines.__main__ import run
from pipelines.synthetic import generate_dataset
from shared.labels import label_shards
from shared.workspace import Workspace

TOOLS = Path(__file__).with_name("tools.py")
EXPORTS = ("coco", "label-studio", "fiftyone")
READERS = {"coco": from_coco, "label-studio": from_label_studio, "fiftyone": from_fiftyone}
WRITTEN = {  # file that a tool wrote -> format
    "datumaro-coco": "coco",
    "fiftyone-coco": "coco",
    "fiftyone-samples": "fiftyone",
    "fiftyone-database": "fiftyone",
    "label-studio-tag-JSON": "label-studio",
    "label-studio-tag-JSON_MIN": "label-studio",
    "label-studio-tag-COCO": "coco",
    "label-studio-pairs-JSON": "label-studio",
    "label-studio-pairs-JSON_MIN": "label-studio",
    "label-studio-pairs-COCO": "coco",
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, tools_python: Path):
    """(workspace, folder with our exports, the images and the tools' files, the exported images)."""
    root = tmp_path_factory.mktemp("exchange")
    generate_dataset(
        root / "data", "plaza", train_identities=2, test_identities=3, cameras=2, images_per_camera=2, seed=0, workers=1
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DATA_ROOT", str(root / "data"))
        patch.setenv("RUNS_ROOT", str(root / "runs"))
        workspace = Workspace.from_environment()
        assert run(["label", "synth_plaza", "--engine", "body_prior"]) == 0
        folder = root / "files"
        folder.mkdir()
        for form in EXPORTS:
            assert run(["export-labels", "synth_plaza", str(folder / f"{form}.json"), "--format", form]) == 0
    (folder / "images").symlink_to(next((root / "data").iterdir()))
    command = [str(tools_python), str(TOOLS), "write", str(folder)]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    (label_run,) = {path.parents[3].name for path in label_shards(workspace.labels)}
    rows = newest_rows(workspace.labels, label_run, "synth_plaza")
    images, _ = part_boxes(workspace.manifest("synth_plaza"), rows)
    return workspace, folder, list(images.values()), label_run


def test_the_tools_read_our_exports(exported, tools_python: Path) -> None:
    _, folder, images, _ = exported
    command = [str(tools_python), str(TOOLS), "read", str(folder)]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, timeout=300).stdout)
    assert len(images) == 22 and sum(len(image.boxes) for image in images) == 66
    assert set(found) == {"pycocotools", "datumaro", "fiftyone", "fiftyone-coco", "label-studio"}
    for tool, seen in found.items():
        assert seen.keys() == {image.path for image in images}, tool
        for image in images:
            assert seen[image.path].keys() == image.boxes.keys(), tool
            for part, (x, y, width, height) in seen[image.path].items():
                assert (x, y, x + width, y + height) == pytest.approx(image.boxes[part], abs=0.01), tool


@pytest.mark.parametrize("name", WRITTEN)
def test_what_the_tools_write_is_what_we_exported(name: str, exported, tmp_path: Path) -> None:
    workspace, folder, images, label_run = exported
    file, form = folder / f"{name}.json", WRITTEN[name]
    labels_root = tmp_path / "labels"
    shutil.copytree(workspace.labels, labels_root)
    options = {"corrects": label_run, "dataset": "synth_plaza", "form": form}
    manifest = workspace.manifest("synth_plaza")
    problems = Problems(file)
    labels = READERS[form](read_json(file, form), problems)
    problems.raise_if_any(fix="")
    found = import_corrections(labels, file, manifest, labels_root, **options)
    assert (found.label_run, found.images, found.kept, found.unknown) == (None, len(images), 0, ())
    content = json.loads(file.read_text(encoding="utf-8"))
    move_right(content)
    found = import_corrections(READERS[form](content, problems), file, manifest, labels_root, **options)
    assert (found.moved, found.added, found.removed, found.kept) == (66, 0, 0, 0)


def move_right(content) -> None:
    """Every box of a tool's file a little to the right, wherever it stands in it."""
    if isinstance(content, dict):
        if "bbox" in content:
            content["bbox"][0] += 1
        if "bounding_box" in content:
            content["bounding_box"][0] += 0.01
        if {"x", "width", "rotation"} <= content.keys():
            content["x"] += 1
    for one in content.values() if isinstance(content, dict) else content if isinstance(content, list) else ():
        move_right(one)
