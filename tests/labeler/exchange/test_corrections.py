"""Corrected boxes come back: what counts as a correction, what stays, what is refused, what the new run holds."""

import dataclasses
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from labeler.exchange.corrections import Corrections, import_corrections
from labeler.exchange.foreign_json import ImportedImage, ImportedLabels
from labeler.exchange.part_boxes import PartBoxes, newest_rows, part_boxes
from shared.errors import ConfigError, DataError
from shared.geometry import Box, scaled
from shared.labels import connect, corrected_runs, label_folder, label_shards, read_labels, write_label_shard
from shared.manifest import write_manifest
from shared.schemas import PARTS, LabelRow, LabelStatus, ManifestRow
from tests.rows import label_row, manifest_row

HEAD, LEGS = Box(20.5, 5, 40, 25.25), Box(15, 70, 45, 120)
EARLY = datetime(2026, 1, 1, tzinfo=UTC)


def image(number: int, folder: str = "query") -> ManifestRow:
    return manifest_row(number, split="query", path=f"{folder}/{number} é.png")


def label(row: ManifestRow, part: str, status: LabelStatus, box: Box | None = None, later: int = 0) -> LabelRow:
    score = 0.5 if box else None
    return label_row(row, part, box, status=status, score=score, created_at=EARLY + timedelta(seconds=later))


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
    """The labels as they are exported, to be changed by the tests."""
    images, parts = part_boxes(place[0], newest_rows(place[1], "first", "toy"))
    assert parts == PARTS
    return list(images.values())


def labels_of(images: Sequence[PartBoxes], *, relative: bool = False, sized: bool = True) -> ImportedLabels:
    """What a file with these images says."""
    found = []
    for number, one in enumerate(images, start=1):
        boxes = {p: scaled(box, 1 / one.width, 1 / one.height) if relative else box for p, box in one.boxes.items()}
        size = (one.width, one.height) if sized else (None, None)
        found.append(ImportedImage(f"image {number}", one.path, boxes, size, relative=relative))
    return ImportedLabels(tuple(found), frozenset(part for one in images for part in one.boxes))


def corrected(images: Sequence[PartBoxes] | ImportedLabels, place: tuple[Path, Path], **options: Any) -> Corrections:
    labels = images if isinstance(images, ImportedLabels) else labels_of(images)
    given = {"corrects": "first", "dataset": "toy", "form": "coco"} | options
    return import_corrections(labels, Path("file.json"), *place, **given)


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("sized", [False, True])
def test_unchanged_boxes_make_no_new_run(relative: bool, sized: bool, place: tuple[Path, Path]) -> None:
    images = exported(place)
    assert [one.path for one in images] == ["query/1 é.png", "query/2 é.png", "query/3 é.png"]
    assert images[0].boxes == {"head": HEAD, "legs": LEGS}  # the newest row of a part
    images[0].boxes["head"] = Box(HEAD.x_min + 0.09, *HEAD[1:])  # a tool's rounding
    before = sorted(place[1].rglob("*"))
    found = corrected(labels_of(images, relative=relative, sized=sized), place)
    assert found == Corrections(None, images=3, moved=0, added=0, removed=0, kept=0, without_box=1, unknown=())
    assert sorted(place[1].rglob("*")) == before


def test_corrections_make_a_whole_new_run_that_takes_the_old_ones_place(place: tuple[Path, Path]) -> None:
    _, labels = place
    given = exported(place)
    given[0].boxes["head"] = Box(21, 5, 41, 25)  # moved
    del given[0].boxes["legs"]  # removed: the image has another box, and others have legs
    given[1].boxes["upper_body"] = Box(10, 20, 40, 60)  # new, in place of a failure
    given[2].boxes["head"] = Box(5, 6, 17, 18)  # of an image without labels
    given.append(PartBoxes("nowhere.png", 64, 128))
    found = corrected(given, place)
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


def test_what_the_file_does_not_show_stays_unless_a_switch_says_otherwise(place: tuple[Path, Path]) -> None:
    images = exported(place)
    images[0].boxes.clear()  # nobody may have looked at it
    found = corrected(images, place)
    assert (found.label_run, found.removed, found.kept, found.without_box) == (None, 0, 2, 2)
    found = corrected(images, place, absent_means_removed=True)
    assert (found.removed, found.kept) == (2, 0)
    heads = [PartBoxes(images[0].path, 64, 128, {"head": HEAD})]  # a file about heads alone
    found = corrected(heads, place)
    assert (found.label_run, found.removed, found.kept) == (None, 0, 1)
    shown = dataclasses.replace(labels_of(heads), parts=frozenset({"head", "legs"}))
    assert corrected(shown, place, label_run="shown").removed == 1
    assert corrected(heads, place, label_run="switched", absent_means_removed=True).removed == 1
    one_of_some = dataclasses.replace(shown.images[0], incomplete=frozenset({"legs"}))
    some = dataclasses.replace(shown, images=(one_of_some,))
    assert corrected(some, place, label_run="some", absent_means_removed=True).kept == 1
    one = f"{1:016x}"
    assert newest_rows(place[1], "shown", "toy")[one, "legs"].status == LabelStatus.ABSENT
    assert newest_rows(place[1], "shown", "toy")[f"{2:016x}", "legs"].status == LabelStatus.OK  # not in the file


def test_entries_that_nobody_annotated_change_nothing(place: tuple[Path, Path]) -> None:
    labels = ImportedLabels((), frozenset(PARTS), ("task 1",))
    found = corrected(labels, place, absent_means_removed=True)
    assert (found.label_run, found.images, found.removed) == (None, 0, 0)


def test_corrections_of_corrections_get_a_name_of_their_own(place: tuple[Path, Path]) -> None:
    given = exported(place)
    given[0].boxes["head"] = Box(21, 5, 41, 25)
    assert corrected(given, place).label_run == "first.corrected"
    assert corrected(given, place).label_run == "first.corrected-2"
    assert corrected(given, place, corrects="first.corrected").label_run is None
    given[0].boxes["head"] = HEAD
    third = corrected(given, place, corrects="first.corrected", label_run="mine")
    assert third.label_run == "mine" and third.moved == 1
    assert corrected_runs(place[1], ["first", "first.corrected", "mine"]) == {"first", "first.corrected"}
    with pytest.raises(ConfigError, match="exists already"):
        corrected(given, place, label_run="mine")
    with pytest.raises(ConfigError, match="not a plain name"):
        corrected(given, place, label_run="../out")
    assert not list(place[1].glob(".*"))


WHOLE = Box(0, 0, 64, 128)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (PartBoxes("query/1 é.png", 64, 128, {"hat": HEAD}), "unknown part 'hat'; the parts of this run are head"),
        (PartBoxes("query/1 é.png", 128, 256), "is 128 x 256 pixels in the file and 64 x 128 in the data set"),
        (PartBoxes("query/1 é.png", 64, 128, {"head": Box(20, 20, 20.3, 20.3)}), "cannot be a body part .*: too_small"),
        (PartBoxes("query/1 é.png", 64, 128, {"head": WHOLE}), "cannot be a body part .*: whole_image"),
        (
            PartBoxes("query/1 é.png", 64, 128, {"legs": Box(15, 70, 60, 190)}),
            "out of the image of 64 x 128 .* corners",
        ),
        (PartBoxes("query/1 é.png", 64, 128, {"head": Box(-20, 5, 30, 30)}), "reaches far out of the image"),
        (PartBoxes("query/1 é.png", 64, 128, {"head": Box(70, 20, 90, 40)}), "cannot be .*: clipped, outside"),
        (PartBoxes("query/1 é.png", 64, 128, {"head": Box(-30, -30, 0, 0)}), "cannot be .*: clipped, outside"),
    ],
)
def test_what_does_not_fit_the_data_set_is_refused(given: PartBoxes, told: str, place: tuple[Path, Path]) -> None:
    for relative in (False, True):
        with pytest.raises(DataError, match=rf"image 1 \(query/1 é.png\): .*{told}") as caught:
            corrected(labels_of([given], relative=relative), place)
        assert "file.json" in str(caught.value)
    assert not list(place[1].glob("*corrected*"))
    with pytest.raises(DataError, match="has no labels of toy"):
        corrected([given], place, corrects="second")


def test_boxes_go_through_the_checks_of_an_answer_and_get_their_flags(place: tuple[Path, Path]) -> None:
    images = exported(place)[:1]
    images[0].boxes.update(head=Box(-3, 5, 40, 25), upper_body=Box(15, 100, 45, 126), legs=Box(15, 70, 45, 120))
    found = corrected(images, place)
    rows = newest_rows(place[1], found.label_run or "", "toy")
    one = f"{1:016x}"
    assert rows[one, "head"].x_min == 0 and rows[one, "head"].flags == ("corrected", "clipped")
    assert rows[one, "upper_body"].flags == ("corrected", "order")
    assert rows[one, "legs"].flags == ()  # an old row stays what it was


def test_a_box_that_was_wrong_before_and_is_unchanged_is_nobodys_mistake(tmp_path: Path) -> None:
    write_manifest([image(1)], tmp_path / "m.parquet")
    old = label(image(1), "head", LabelStatus.OK, WHOLE)
    write_label_shard([old], label_folder(tmp_path / "labels", "first", "toy", "query"))
    place = tmp_path / "m.parquet", tmp_path / "labels"
    assert corrected([PartBoxes("query/1 é.png", 64, 128, {"head": WHOLE})], place).label_run is None


def test_boxes_of_a_resized_image_are_not_taken_for_the_original(place: tuple[Path, Path]) -> None:
    images = exported(place)[:1]
    images[0].boxes["head"] = Box(41, 10, 80, 50.5)  # drawn at twice the size, of which the file says nothing
    with pytest.raises(DataError, match="was it drawn on a resized image"):
        corrected(labels_of(images, sized=False), place)


def test_an_image_twice_is_refused_and_copies_may_not_differ(place: tuple[Path, Path]) -> None:
    first, second, _ = exported(place)
    with pytest.raises(
        DataError, match=r"image 3 \(1 é.png\): the image query/1 é.png is in the file twice, see image 1"
    ):
        corrected([first, second, dataclasses.replace(first, path="1 é.png")], place)
    copy = image(1).model_copy(update={"path": "gallery/copy.png"})
    write_manifest([image(1), image(2), image(3), copy], place[0])
    twin = dataclasses.replace(first, path="gallery/copy.png", boxes=dict(first.boxes))
    for given in (
        [first, twin],
        [first, dataclasses.replace(twin, boxes={})],
        [dataclasses.replace(first, boxes={}), twin],
    ):
        assert corrected(given, place).kept == 0
    twin.boxes["head"] = Box(1, 1, 20, 20)
    with pytest.raises(DataError, match=r"gallery/copy.png has the same bytes as query/1 é.png and other boxes"):
        corrected([first, twin], place)
    assert corrected([twin], place).moved == 1  # a file may know an image by its second path alone


def test_a_file_of_other_images_is_an_error(place: tuple[Path, Path]) -> None:
    with pytest.raises(DataError, match=r"none of the 1 images .* of toy: the file says 'x/9.png', .* 'query/1 é.png'"):
        corrected([PartBoxes("x/9.png", 64, 128)], place)
    with pytest.raises(DataError, match="the file has no images"):
        corrected([], place)
    write_manifest([image(1), image(4, "gallery").model_copy(update={"path": "gallery/1 é.png"})], place[0])
    with pytest.raises(DataError, match=r"ambiguous path: query/1 é.png or gallery/1 é.png"):
        corrected([PartBoxes("1 é.png", 64, 128)], place)
