"""Labels out and in, and the lists of data sets and protocols, as commands."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from pipelines.__main__ import run
from shared.labels import label_shards, read_labels
from shared.manifest import read_manifest
from shared.workspace import Workspace


@pytest.mark.parametrize("form", ["coco", "label-studio", "fiftyone"])
def test_labels_go_out_and_corrected_ones_come_back(
    form: str, workspace: Workspace, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(["label", "3dpes"]) == 0
    file = tmp_path / "out.json"
    assert run(["export-labels", "3dpes", str(file), "--format", form]) == 0
    assert "16 images of 3dpes, 48 boxes" in capfd.readouterr().out
    content = json.loads(file.read_text())
    if form == "coco":
        content["annotations"][0]["bbox"] = [0, 0, 5, 5]
    elif form == "fiftyone":
        content["samples"][0]["parts"]["detections"][0]["bounding_box"] = [0, 0, 0.5, 0.25]
    else:
        content[0]["annotations"] = [{"id": 1, "result": content[0]["predictions"][0]["result"][1:]}]
    file.write_text(json.dumps(content))
    assert run(["import-labels", str(file), "3dpes", "--format", form]) == 0
    said = capfd.readouterr().out
    assert ("removed 1" if form == "label-studio" else "moved 1, added 0, removed 0") in said
    runs = {row.label_run for row in read_labels(label_shards(workspace.labels))}
    (corrected,) = (name for name in runs if name.endswith(".corrected"))
    assert len(runs) == 2 and f"label run {corrected}" in said
    assert run(["export-labels", "3dpes", str(file), "--format", form]) == 0
    assert f"boxes of {corrected}" in capfd.readouterr().out  # it has taken the other's place
    assert run(["sql", "3dpes", "--query", "select label_run, count(*) from labels group by 1"]) == 0
    assert f"label run {corrected.removesuffix('.corrected')} has been corrected" in capfd.readouterr().err
    assert run(["import-labels", str(file), "3dpes", "--corrects", "nothing"]) == 2
    assert run(["export-labels", "caviar", str(file)]) == 2
    assert "no part labels of caviar yet" in capfd.readouterr().err
    assert run(["export-labels", "3dpes", ""]) == 2
    assert "name a file, e.g. 3dpes.json" in capfd.readouterr().err


def test_an_import_says_what_it_left_alone_and_why(
    workspace: Workspace, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(["label", "3dpes", "--engine", "body_prior"]) == 0
    file = tmp_path / "out.json"

    def imported(content: dict, *options: str) -> tuple[int, str]:
        file.write_text(json.dumps(content))
        capfd.readouterr()
        code = run(["import-labels", str(file), "3dpes", *options])
        said = capfd.readouterr()
        return code, said.out + said.err

    assert run(["export-labels", "3dpes", str(file)]) == 0
    content = json.loads(file.read_text())
    runs = sorted(workspace.labels.iterdir())
    code, said = imported(content)
    assert code == 0 and "nothing changed: no box of 16 images differs from body_prior" in said
    code, said = imported({**content, "annotations": content["annotations"][3:]})
    assert code == 0 and "3 boxes of body_prior" in said and "(1 of its images have no box at all)" in said
    code, said = imported({**content, "images": content["images"] + [{"id": 99, "file_name": "x.png"}]})
    assert code == 0 and "1 images of the file are not in 3dpes: x.png" in said
    code, said = imported({"images": [{"id": 1, "file_name": "x.png"}], "categories": [], "annotations": []})
    assert code == 2 and "none of the 1 images of the file is an image of 3dpes" in said and "out.json" in said
    code, said = imported(content, "--field", "parts")
    assert code == 2 and "--field is for FiftyOne only" in said
    code, said = imported(content, "--format", "label-studio")
    assert code == 2 and "use --format coco" in said
    content["annotations"][4].update(bbox=None, segmentation=[[1, 1, 5, 1, 5, 5]])
    code, said = imported(content)
    assert code == 2 and "annotation 5 of image 2" in said and "a segmentation of 'upper_body' without bbox" in said
    assert sorted(workspace.labels.iterdir()) == runs
    del content["annotations"][3:6]
    code, said = imported(content, "--absent-means-removed")
    assert code == 0 and "boxes moved 0, added 0, removed 3" in said


def test_published_masks_come_in(workspace: Workspace, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["manifest", "3dpes"]) == 0
    rows = read_manifest(workspace.manifest("3dpes"))
    mask = np.full((3, 16, 8), -np.inf, np.float32)
    mask[:, 2:4, 1:5] = 0
    content = {row.path.split("/")[-1]: mask.reshape(3, 128) for row in rows[:5]} | {"ghost.jpg": mask.reshape(3, 128)}
    (tmp_path / "masks.pkl").write_bytes(pickle.dumps(content))
    capfd.readouterr()
    assert run(["import-masks", str(tmp_path / "masks.pkl"), "3dpes"]) == 0
    said = capfd.readouterr()
    assert "label run import-masks: 5 images of 3dpes, 15 boxes" in said.out
    assert "1 file names belong to no image of 3dpes: ghost.jpg" in said.err and "11 images have no mask" in said.err
    assert run(["sql", "3dpes", "--query", "coverage"]) == 0
    (tmp_path / "bad.pkl").write_bytes(pickle.dumps(eval))
    assert run(["import-masks", str(tmp_path / "bad.pkl"), "3dpes"]) == 2
    assert "asks for builtins.eval" in capfd.readouterr().err


def test_published_protocols_are_listed_with_what_is_missing(
    workspace: Workspace, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(["protocols"]) == 0
    said = capfd.readouterr().out
    assert said.count("single_source") == 12 and said.count("leave_one_out") == 4
    assert "52.0 / 72.1" in said and "missing: market1501, dukemtmc" in said and "dgreid datasets" in said
    (workspace.data_root / "Market-1501" / "query").mkdir(parents=True)
    (workspace.data_root / "DukeMTMC-reID" / "query").mkdir(parents=True)
    assert run(["protocols", "single_source"]) == 0
    assert "dgreid train market2duke" in capfd.readouterr().out
    assert run(["protocols", "all"]) == 2
    assert "choose one of single_source" in capfd.readouterr().err


def test_copies_that_are_not_as_published_are_told(workspace: Workspace, capfd: pytest.CaptureFixture[str]) -> None:
    folder = workspace.data_root / "3DPeS"
    folder.rename(workspace.data_root / "Market-1501")
    assert run(["datasets"]) == 0
    said = capfd.readouterr().out
    assert "market1501: train: 8 images instead of 12,936" in said and "differ" in said
    assert run(["manifest", "market"]) == 0
    said = capfd.readouterr().out
    assert "12,936 of 751" in said and "not as published: gallery: 4 images instead of 19,732" in said
