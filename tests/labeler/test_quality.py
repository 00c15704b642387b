"""The canned queries against labels with known faults, and against the obvious computation."""

from pathlib import Path
from typing import Any

import pytest

from labeler.quality import list_queries, run_query
from shared.errors import ConfigError, UsageError
from shared.geometry import Box, iou
from shared.labels import connect, write_label_shard
from shared.manifest import write_manifest
from shared.schemas import PARTS, LabelRow, LabelStatus, ManifestRow
from tests.rows import label_row, manifest_row

FIGURE = {"head": Box(20, 5, 40, 25), "upper_body": Box(10, 25, 50, 70), "legs": Box(15, 70, 45, 120)}


def image_row(number: int, split: str) -> ManifestRow:
    return manifest_row(number, split=split, identity=number + 1)


def label(image: ManifestRow, part: str, run: str, box: Box | None, **rest: Any) -> LabelRow:
    return label_row(image, part, box, label_run=run, **rest)


@pytest.fixture
def labelled(tmp_path: Path):
    """4 images; run a: image 1 upside down and flagged, image 2 refused, image 3 without labels; run b: all, moved."""
    images = [image_row(number, "query" if number % 2 else "gallery") for number in range(4)]
    upside_down = {"head": FIGURE["legs"], "upper_body": FIGURE["upper_body"], "legs": FIGURE["head"]}
    rows = [label(images[0], part, "a", box) for part, box in FIGURE.items()]
    rows += [label(images[1], part, "a", box, flags=("order",)) for part, box in upside_down.items()]
    refused = {"status": LabelStatus.REFUSED, "raw_text": "sorry", "attempts": 4}
    rows += [label(images[2], part, "a", None, **refused) for part in PARTS]
    moved = {part: Box(*(value + 3 for value in box)) for part, box in FIGURE.items()}
    rows += [label(image, part, "b", box) for image in images for part, box in moved.items()]
    write_manifest(images, tmp_path / "toy.parquet")
    shard = write_label_shard(rows, tmp_path / "labels")
    return connect(manifests=[tmp_path / "toy.parquet"], labels=[shard]), upside_down, moved


def answer(connection, query: str) -> list[dict]:
    return run_query(connection, query).to_pylist()


def test_all_queries_say_what_they_tell_and_run_even_on_nothing(labelled) -> None:
    assert len(list_queries()) == 14
    for name, description in list_queries().items():
        assert len(description) > 20 and not description.startswith("-")
        columns = run_query(connect(), name).column_names
        assert columns[0] in ("label_run", "first_run", "first_mode")
        assert run_query(labelled[0], name).column_names == columns


def test_coverage_and_missing(labelled) -> None:
    found = {(row["label_run"], row["split"]): row for row in answer(labelled[0], "coverage")}
    gallery, query = found["a", "gallery"], found["a", "query"]
    assert [gallery[key] for key in ("images", "labelled", "finished", "missing")] == [2, 2, 1, 0]
    assert [query[key] for key in ("images", "labelled", "finished", "missing")] == [2, 1, 1, 1]
    assert found["b", "query"]["finished_percent"] == 100
    assert [(row["label_run"], row["path"]) for row in answer(labelled[0], "missing_images")] == [("a", "3.jpg")]


def test_statuses_failures_and_attempts(labelled) -> None:
    counts = {
        (row["label_run"], row["part"], row["status"]): row["labels"] for row in answer(labelled[0], "status_counts")
    }
    assert counts["a", "head", "ok"] == 2 and counts["a", "head", "refused"] == 1 and counts["b", "legs", "ok"] == 4
    (failure,) = answer(labelled[0], "failures")
    assert [failure[key] for key in ("status", "reason", "labels", "example")] == ["refused", "sorry", 3, "2.jpg"]
    attempts = {
        (row["label_run"], row["finished"], row["attempts"]): row["images"] for row in answer(labelled[0], "attempts")
    }
    assert attempts == {("a", True, 1): 2, ("a", False, 4): 1, ("b", True, 1): 4}


def test_order_flags_and_identical_boxes(labelled) -> None:
    assert [row["path"] for row in answer(labelled[0], "order_violations")] == ["1.jpg"]
    flags = answer(labelled[0], "flag_counts")
    assert {(row["part"], row["flag"], row["labels"]) for row in flags} == {(part, "order", 1) for part in PARTS}
    shares = {
        (row["label_run"], row["part"]): row["commonest_percent"] for row in answer(labelled[0], "identical_boxes")
    }
    assert shares["b", "head"] == 100 and shares["a", "head"] == 50 and shares["a", "upper_body"] == 100


def test_comparison_equals_the_slow_iou(labelled) -> None:
    connection, upside_down, moved = labelled
    for row in answer(connection, "compare_runs"):
        part = row["part"]
        expected = (iou(FIGURE[part], moved[part]) + iou(upside_down[part], moved[part])) / 2
        assert row["mean_iou"] == pytest.approx(expected, abs=1e-4)
        assert [row[key] for key in ("images", "both_boxes", "only_first", "only_second")] == [3, 2, 0, 1]


def test_prompt_modes_are_compared_with_every_change_of_status(tmp_path: Path) -> None:
    """5 images, two modes of one model, a run of another model; images 3 and 4 end otherwise in the second mode."""
    images = [image_row(number, "query") for number in range(5)]
    moved = {part: Box(*(value + number for value in box)) for number, (part, box) in enumerate(FIGURE.items())}
    rows = [label(image, part, "j", FIGURE[part], prompt_version="joint-1a") for image in images for part in PARTS]
    rows += [label(image, part, "o", FIGURE[part], prompt_version="per_part-3c", model="o") for image in images
             for part in PARTS]  # fmt: skip
    for number, image in enumerate(images):
        for part in PARTS:
            status = (LabelStatus.ABSENT if number == 3 else LabelStatus.REFUSED) if number > 2 else LabelStatus.OK
            box = moved[part] if status == LabelStatus.OK else None
            rows.append(label(image, part, "p", box, status=status, prompt_version="per_part-2b"))
    lines = answer(connect(labels=[write_label_shard(rows, tmp_path)]), "compare_prompts")
    assert {(line["first_mode"], line["second_mode"], line["first_run"], line["second_run"]) for line in lines} == {
        ("joint", "per_part", "j", "p")
    }
    for part in PARTS:
        found = {line["second_status"]: line for line in lines if line["part"] == part}
        assert {status: (line["first_status"], line["images"]) for status, line in found.items()} == {
            "ok": ("ok", 3),
            "absent": ("ok", 1),
            "refused": ("ok", 1),
        }
        assert found["ok"]["mean_iou"] == pytest.approx(iou(FIGURE[part], moved[part]), abs=1e-4)
        assert found["ok"]["percent"] == 60 and found["absent"]["mean_iou"] is None


def test_box_statistics_and_worst_images(labelled) -> None:
    head = next(
        row for row in answer(labelled[0], "box_statistics") if row["label_run"] == "b" and row["part"] == "head"
    )
    assert head["boxes"] == 4
    assert head["centre_y"][1] == pytest.approx(18 / 128, abs=1e-3) and head["aspect"][1] == 1.0
    worst = answer(labelled[0], "worst_images")
    assert [(row["label_run"], row["path"]) for row in worst[:2]] == [("a", "2.jpg"), ("a", "1.jpg")]


def test_own_sql_reads_and_nothing_else(labelled, tmp_path: Path) -> None:
    assert answer(labelled[0], "select count(*) as n from labels;") == [{"n": 21}]
    assert answer(labelled[0], "describe labels")
    target = tmp_path / "stolen.csv"
    for text in (
        f"copy labels to '{target}'",
        f"select 1; copy labels to '{target}'",
        f"explain analyze copy labels to '{target}'",
    ):
        with pytest.raises(UsageError, match="single SELECT"):
            run_query(labelled[0], text)
    assert not target.exists()
    with pytest.raises(UsageError, match="DuckDB says"):
        run_query(labelled[0], "select wing from labels")
    with pytest.raises(UsageError, match="single SELECT"):
        run_query(labelled[0], "")
    with pytest.raises(ConfigError, match="coverage"):
        run_query(labelled[0], "covrage")


def test_cameras(labelled) -> None:
    found = {(row["label_run"], row["part"]): row for row in answer(labelled[0], "cameras")}
    assert found["a", "head"]["labels"] == 3 and found["a", "head"]["ok_percent"] == pytest.approx(66.67)
    assert found["b", "head"]["mean_rel_area"] == pytest.approx(20 * 20 / (64 * 128), abs=1e-4)
