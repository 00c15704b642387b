"""A whole label run passes every check; each kind of damage is found by its own one."""

import math
from pathlib import Path

import pyarrow as pa
import pytest

from labeler.annotation.label_checks import check_images, check_labels
from shared.geometry import Box
from shared.images import image_id_of
from shared.labels import label_folder, label_shards, write_label_shard, write_label_table, write_record
from shared.manifest import write_manifest
from shared.parquet import to_table
from shared.schemas import LABEL_SCHEMA, PARTS, LabelRow, LabelStatus
from tests.rows import label_row, manifest_row

IMAGES = [manifest_row(number) for number in range(1, 6)]
RECORD = {"engine": "e", "model": "m", "prompt_version": "p", "parts": list(PARTS)}


def failing(root: Path) -> dict[str, int]:
    return {one.check: one.count for one in check_labels(root, "first", "toy", root / "toy.parquet") if one.count}


def add(root: Path, *rows: LabelRow) -> None:
    write_label_shard(rows, label_folder(root, "first", "toy", rows[0].split))


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    copy = IMAGES[0].model_copy(update={"path": "copy.jpg", "split": "query"})  # the same bytes once more
    write_manifest([*IMAGES, copy], tmp_path / "toy.parquet")
    write_record(tmp_path, "first", RECORD)
    rows = [label_row(image, part, Box(0, 0, 64, 128)) for image in IMAGES for part in PARTS]
    add(tmp_path, *rows[:-1], label_row(IMAGES[4], "legs"))
    return tmp_path


def test_a_whole_run_passes_also_after_a_retry(whole: Path) -> None:
    assert failing(whole) == {}
    failed = label_row(manifest_row(9), "head", status=LabelStatus.REFUSED)
    write_manifest([*IMAGES, manifest_row(9)], whole / "toy.parquet")
    add(whole, failed, *(label_row(manifest_row(9), part) for part in PARTS[1:]))
    assert failing(whole) == {"without a final answer": 1}
    add(whole, label_row(manifest_row(9), "head", Box(1, 1, 2, 2)))
    assert failing(whole) == {}


def test_rows_too_few_too_many_and_of_others(whole: Path) -> None:
    write_manifest([*IMAGES[1:], manifest_row(7)], whole / "toy.parquet")
    assert failing(whole) == {
        "images and parts without a row": 3,
        "rows of images that the manifest does not have": 3,
    }
    write_manifest(IMAGES, whole / "toy.parquet")
    add(whole, label_row(IMAGES[0], "head", Box(0, 0, 64, 128)), label_row(IMAGES[1], "tail"))
    assert failing(whole) == {
        "rows of parts that the run does not have": 1,
        "the same row twice": 1,
        "images and parts answered twice": 1,
    }
    write_record(whole, "first", {**RECORD, "corrects": "zeroth", "model": "another"})
    assert "images and parts answered twice" not in failing(whole), "a correction does answer again"
    write_record(whole, "first", {**RECORD, "model": "another's"})
    assert failing(whole)["rows of another engine, model or prompt than the run's"] == 17


@pytest.mark.parametrize(
    ("corners", "check"),
    [
        ((0, 0, 64.5, 128), "boxes that are missing, infinite or outside their image"),
        ((-0.5, 0, 64, 128), "boxes that are missing, infinite or outside their image"),
        ((9, 0, 9, 128), "boxes that are missing, infinite or outside their image"),
        ((0, 0, 64, math.nan), "boxes that are missing, infinite or outside their image"),
        ((0, 0, 64, math.inf), "boxes that are missing, infinite or outside their image"),
        ((0, None, 64, 128), "boxes that are missing, infinite or outside their image"),
    ],
)
def test_boxes_that_cannot_be(whole: Path, corners: tuple, check: str) -> None:
    write_manifest([*IMAGES, manifest_row(9)], whole / "toy.parquet")
    rows = [label_row(manifest_row(9), part) for part in PARTS]
    given = dict(zip(("x_min", "y_min", "x_max", "y_max"), corners, strict=True))
    add(whole, rows[0].model_copy(update={"status": LabelStatus.OK, **given}), *rows[1:])
    assert failing(whole) == {check: 1}


def test_boxes_without_ok_wrong_scores_and_sizes(whole: Path) -> None:
    write_manifest([*IMAGES, manifest_row(9)], whole / "toy.parquet")
    rows = [row.model_dump() for row in (label_row(manifest_row(9), part, width=65) for part in PARTS)]
    rows[0] |= {"x_min": 1.0}
    rows[1] |= {"score": 1.5}
    write_label_table(pa.Table.from_pylist(rows, LABEL_SCHEMA), label_folder(whole, "first", "toy", "train"))
    assert failing(whole) == {
        "boxes of parts that are not ok": 1,
        "scores or agreements outside 0 to 1": 1,
        "rows whose image has another size in the manifest": 3,
    }


def test_damaged_shards_and_interrupted_compactions(whole: Path) -> None:
    table = to_table([label_row(image, "head", Box(0, 0, 1, 1)) for image in IMAGES], LABEL_SCHEMA)
    shard = write_label_table(table, label_folder(whole, "first", "toy", "gallery"))  # not where these rows belong
    assert failing(whole) == {"damaged or foreign shards": 1}
    shard.write_bytes(label_shards(whole)[0].read_bytes()[:-40])
    (whole / "first" / "_toy.replacing.json").write_text("{}")
    assert failing(whole) == {"damaged or foreign shards": 1, "interrupted compaction": 1}


def test_images_are_compared_by_their_content(tmp_path: Path) -> None:
    rows = []
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.jpg").write_bytes(name.encode())
        rows.append(manifest_row(path=f"{name}.jpg", image_id=image_id_of(name.encode())))
    assert check_images(rows, tmp_path).count == 0
    (tmp_path / "b.jpg").write_bytes(b"x")
    (tmp_path / "c.jpg").unlink()
    found = check_images(rows, tmp_path)
    assert found.count == 2 and found.example.startswith("b.jpg: other content")
