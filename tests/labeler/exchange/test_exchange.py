"""Labels out to tools and corrected back: every format, what counts as a correction, what is refused."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from labeler.exchange.coco import from_coco, to_coco
from labeler.exchange.corrections import import_corrections
from labeler.exchange.fiftyone import from_fiftyone, to_fiftyone
from labeler.exchange.images import PartBoxes, read_json
from labeler.exchange.label_files import images_with_boxes, newest_rows
from labeler.exchange.label_studio import from_label_studio, to_label_studio
from shared.errors import ConfigError, DataError
from shared.geometry import Box
from shared.labels import connect, corrected_runs, label_folder, label_shards, read_labels, write_label_shard
from shared.manifest import write_manifest
from shared.schemas import PARTS, LabelRow, LabelStatus, ManifestRow

HEAD, LEGS = Box(20.5, 5, 40, 25.25), Box(15, 70, 45, 120)
EARLY = datetime(2026, 1, 1, tzinfo=UTC)


def image(number: int, folder: str = "query") -> ManifestRow:
    return ManifestRow(
        dataset="toy",
        split="query",
        path=f"{folder}/{number} é.png",
        image_id=f"{number:016x}",
        width=64,
        height=128,
        identity=1,
        camera=1,
        size_bytes=1,
        modified_ns=0,
    )


def label(row: ManifestRow, part: str, status: LabelStatus, box: Box | None = None, later: int = 0) -> LabelRow:
    corners = dict(zip(("x_min", "y_min", "x_max", "y_max"), box or (None,) * 4, strict=True))
    return LabelRow(
        label_run="first",
        part=part,
        status=status,
        score=0.5 if box else None,
        space="s",
        engine="e",
        model="m",
        prompt_version="v",
        attempts=1,
        created_at=EARLY + timedelta(seconds=later),
        **corners,
        **row.model_dump(include={"dataset", "split", "path", "image_id", "width", "height"}),
    )


@pytest.fixture
def place(tmp_path: Path) -> tuple[Path, Path]:
    """Three images: 1 with head and legs, 2 with legs, an absent head and an unreadable answer, 3 without labels."""
    images = [image(1), image(2), image(3)]
    manifest, labels = tmp_path / "toy.parquet", tmp_path / "labels"
    write_manifest([*images, image(3, "gallery")], manifest)  # the same bytes at two places
    rows = [
        label(images[0], "head", LabelStatus.OK, Box(0, 0, 9, 9)),
        label(images[0], "upper_body", LabelStatus.ABSENT),
        label(images[0], "legs", LabelStatus.OK, LEGS),
        label(images[1], "head", LabelStatus.ABSENT),
        label(images[1], "upper_body", LabelStatus.UNPARSEABLE),
        label(images[1], "legs", LabelStatus.OK, LEGS),
    ]
    write_label_shard(rows, label_folder(labels, "first", "toy", "query"))
    write_label_shard(
        [label(images[0], "head", LabelStatus.OK, HEAD, 1)], label_folder(labels, "first", "toy", "query")
    )
    other = [label(image(9), "head", LabelStatus.OK, HEAD).model_copy(update={"dataset": "other"})]
    write_label_shard(other, label_folder(labels, "first", "other", "query"))
    return manifest, labels


def exported(place: tuple[Path, Path]) -> list[PartBoxes]:
    images, parts = images_with_boxes(place[0], newest_rows(place[1], "first", "toy"))
    assert parts == PARTS
    return list(images.values())


def annotated(tasks: list[Any]) -> list[Any]:
    """What Label Studio gives back when every prediction was submitted as it is."""
    return [
        {**t, "annotations": [{"id": 1, "result": t["predictions"][0]["result"]}], "predictions": []} for t in tasks
    ]


FORMATS = {
    "coco": (lambda images: to_coco(images, PARTS), from_coco),
    "label-studio": (
        lambda images: annotated(to_label_studio(images, PARTS, image_prefix="/data/local-files/?d=", model="first")),
        from_label_studio,
    ),
    "fiftyone": (to_fiftyone, from_fiftyone),
}


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_gives_the_same_boxes_back(form: str, place: tuple[Path, Path], tmp_path: Path) -> None:
    images = exported(place)
    assert [one.path for one in images] == ["query/1 é.png", "query/2 é.png", "query/3 é.png"]
    assert images[0].boxes == {"head": HEAD, "legs": LEGS}  # the newest row of a part
    write, read = FORMATS[form]
    (tmp_path / "file.json").write_text(json.dumps(write(images)), encoding="utf-8")
    found = read_json(tmp_path / "file.json", read, form)
    assert [one.path for one in found] == [one.path for one in images]
    for one, other in zip(found, images, strict=True):
        assert one.boxes.keys() == other.boxes.keys()
        for part, box in one.boxes.items():
            assert box == pytest.approx(other.boxes[part], abs=1e-9)
    unchanged = import_corrections(found, *place, corrects="first", dataset="toy", form=form)
    assert (unchanged.moved, unchanged.added, unchanged.removed) == (0, 0, 0)


def test_the_numbers_of_the_formats_are_what_their_tools_read() -> None:
    one = PartBoxes("a b.png", 64, 128, {"head": Box(16, 32, 48, 64)}, {"head": 0.5})
    coco = to_coco([one], PARTS)
    assert coco["annotations"][0]["bbox"] == [16, 32, 32, 32] and coco["annotations"][0]["category_id"] == 1
    task = to_label_studio([one], PARTS, image_prefix="/x/?d=", model="m")[0]
    value = task["predictions"][0]["result"][0]["value"]
    assert (value["x"], value["y"], value["width"], value["height"]) == (25, 25, 50, 25)
    assert task["data"] == {"image": "/x/?d=a%20b.png", "path": "a b.png"}
    detection = to_fiftyone([one])["samples"][0]["parts"]["detections"][0]
    assert detection["bounding_box"] == [0.25, 0.25, 0.5, 0.25] and detection["confidence"] == 0.5


def test_corrections_make_a_whole_new_run_that_takes_the_old_ones_place(place: tuple[Path, Path]) -> None:
    manifest, labels = place
    given = exported(place)
    given[0].boxes["head"] = Box(21, 5, 41, 25)  # moved
    del given[0].boxes["legs"]  # taken away
    given[1].boxes["upper_body"] = Box(1, 2, 3, 4)  # new, in place of a failure
    given[2].boxes["head"] = Box(5, 6, 7, 8)  # of an image without labels
    given.append(PartBoxes("nowhere.png", 64, 128))
    found = import_corrections(given, manifest, labels, corrects="first", dataset="toy", form="coco")
    assert (found.label_run, found.moved, found.added, found.removed) == ("first.corrected", 1, 2, 1)
    assert found.unknown == ("nowhere.png",) and found.images == 3
    assert corrected_runs(labels, ["first", "first.corrected"]) == {"first"}
    new = newest_rows(labels, "first.corrected", "toy")
    old = newest_rows(labels, "first", "toy")
    changed = {("1", "head"), ("1", "legs"), ("2", "upper_body"), ("3", "head")}
    for (image_id, part), row in new.items():
        assert row.label_run == "first.corrected"
        if (str(int(image_id, 16)), part) in changed:
            assert (row.engine, row.model, row.flags) == ("import", "coco", ("corrected",))
        else:
            assert row == old[image_id, part].model_copy(update={"label_run": "first.corrected"})
    one = f"{1:016x}"
    assert (new[one, "head"].x_min, new[one, "head"].raw_box) == (21, tuple(HEAD))
    assert new[one, "legs"].status == LabelStatus.ABSENT and new[one, "legs"].x_min is None
    assert new[f"{2:016x}", "head"].status == LabelStatus.ABSENT
    assert len(read_labels(label_shards(labels, label_run="first.corrected", dataset="other"))) == 1
    with connect(labels=label_shards(labels)) as connection:
        counts = dict(connection.execute("select label_run, count(*) from labels group by 1").fetchall())
    assert counts == {"first": 7, "first.corrected": 8}


def test_corrections_of_corrections_get_a_name_of_their_own(place: tuple[Path, Path]) -> None:
    given = exported(place)
    options = {"dataset": "toy", "form": "coco"}
    assert import_corrections(given, *place, corrects="first", **options).label_run == "first.corrected"
    assert import_corrections(given, *place, corrects="first", **options).label_run == "first.corrected-2"
    third = import_corrections(given, *place, corrects="first.corrected", label_run="mine", **options)
    assert corrected_runs(place[1], ["first", "first.corrected", third.label_run]) == {"first", "first.corrected"}
    with pytest.raises(ConfigError, match="exists already"):
        import_corrections(given, *place, corrects="first", label_run="mine", **options)
    with pytest.raises(ConfigError, match="not a plain name"):
        import_corrections(given, *place, corrects="first", label_run="../out", **options)
    assert not list(place[1].glob(".*"))


def test_images_are_found_by_the_end_of_their_path(place: tuple[Path, Path]) -> None:
    options: dict[str, Any] = {"corrects": "first", "dataset": "toy", "form": "coco"}
    given = [PartBoxes("/home/a/toy/query/1 é.png", 64, 128, {"head": HEAD, "legs": LEGS}), PartBoxes("2 é.png", 0, 0)]
    found = import_corrections(given, *place, **options)
    assert (found.images, found.moved, found.removed) == (2, 0, 1)
    write_manifest([image(1), image(4, "gallery").model_copy(update={"path": "gallery/1 é.png"})], place[0])
    with pytest.raises(DataError, match=r"could be query/1 é.png or gallery/1 é.png"):
        import_corrections([PartBoxes("1 é.png", 64, 128)], *place, **options)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (PartBoxes("query/1 é.png", 64, 128, {"hat": HEAD}), "unknown part 'hat'"),
        (PartBoxes("query/1 é.png", 128, 256), "is 128 x 256 in the file, the image is 64 x 128"),
    ],
)
def test_what_does_not_fit_the_data_set_is_refused(given: PartBoxes, told: str, place: tuple[Path, Path]) -> None:
    with pytest.raises(DataError, match=told):
        import_corrections([given], *place, corrects="first", dataset="toy", form="coco")
    with pytest.raises(DataError, match="has no labels of toy"):
        import_corrections([given], *place, corrects="second", dataset="toy", form="coco")
    assert corrected_runs(place[1], ["first", "first.corrected"]) == set()


def coco_with(**changes: Any) -> str:
    content = to_coco([PartBoxes("a.png", 10, 20, {"head": Box(1, 2, 3, 4)})], PARTS)
    content["annotations"][0].update(changes)
    return json.dumps(content)


@pytest.mark.parametrize(
    ("form", "text", "told"),
    [
        ("coco", "{", "not readable as JSON"),
        ("coco", "[" * 100_000, "not readable as JSON"),
        ("coco", "[]", "no coco of part boxes"),
        ("coco", coco_with(bbox=[1, 2, 3]), "no coco of part boxes"),
        ("coco", coco_with(bbox=[1, 2, float("nan"), 3]), "no box of a part"),
        ("coco", coco_with(bbox=[50, 2, 3, 3]), "empty or outside"),
        ("coco", coco_with(image_id=7), "KeyError: 7"),
        ("label-studio", "{}", "$"),
        ("label-studio", '[{"annotations": [{"result": [{}]}], "data": {}}]', "no label-studio"),
        ("fiftyone", '{"samples": [{"filepath": "a"}]}', "KeyError: 'metadata'"),
    ],
)
def test_damaged_files_are_one_sentence(form: str, text: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.write_text(text)
    if told == "$":
        assert read_json(path, FORMATS[form][1], form) == []
        return
    with pytest.raises(DataError, match=told):
        read_json(path, FORMATS[form][1], form)
    with pytest.raises(DataError, match="not readable"):
        read_json(tmp_path / "gone.json", from_coco, form)


def test_two_boxes_of_a_part_and_rotated_ones_are_refused(tmp_path: Path) -> None:
    content = json.loads(coco_with())
    content["annotations"].append({**content["annotations"][0], "id": 2})
    with pytest.raises(ValueError, match="two boxes of 'head'"):
        from_coco(content)
    tasks = annotated(
        to_label_studio([PartBoxes("a", 9, 9, {"head": Box(1, 1, 2, 2)})], PARTS, image_prefix="", model="")
    )
    tasks[0]["annotations"][0]["result"][0]["value"]["rotation"] = 12
    with pytest.raises(ValueError, match="is rotated"):
        from_label_studio(tasks)


def test_label_studio_takes_the_newest_submitted_annotation() -> None:
    tasks = to_label_studio([PartBoxes("a", 10, 10, {"head": Box(1, 1, 2, 2)})], PARTS, image_prefix="?d=", model="")
    assert from_label_studio(tasks) == []  # predictions are nobody's word
    result = tasks[0]["predictions"][0]["result"]
    moved = json.loads(json.dumps(result))
    moved[0]["value"]["width"] = 50
    tasks[0]["annotations"] = [
        {"id": 3, "updated_at": "2026-02-01T00:00:00Z", "result": result},
        {"id": 1, "updated_at": "2026-03-01T00:00:00Z", "result": moved},
        {"id": 9, "updated_at": "2026-04-01T00:00:00Z", "result": [], "was_cancelled": True},
    ]
    del tasks[0]["data"]["path"]
    (found,) = from_label_studio(tasks)
    assert found.path == "a" and found.boxes["head"] == Box(1, 1, 6, 2)
