"""Corrections become a label run that is whole, newest and preferred, while others go on labelling."""

from collections.abc import Callable

import pytest

from labeler.review.corrections import ConflictError, Corrections, UnansweredError, run_to_continue, version_of
from labeler.review.tables import LabelTables
from shared import labels
from shared.errors import UsageError
from shared.geometry import Box
from shared.labels import choose_label_run, label_folder, label_shards, newest_labels, read_record, write_label_shard
from shared.schemas import PARTS, LabelStatus, ManifestRow
from shared.workspace import Workspace
from tests.labeler.review.conftest import BOXES, row_of

Make = Callable[[int], tuple[Workspace, list[ManifestRow]]]
MOVED = Box(11, 3, 31, 21)


def opened(workspace: Workspace, run: str = "first", reviewer: str = "anna") -> tuple[LabelTables, Corrections]:
    tables = LabelTables(workspace, ["walkers"], run)
    return tables, Corrections(tables, reviewer)


def counts(workspace: Workspace, run: str) -> dict[tuple[str, str], dict[str, object]]:
    table = newest_labels(workspace.labels, run, "walkers")
    return {(row["image_id"], row["part"]): row for row in table.to_pylist()}


def test_a_correction_is_a_run_that_takes_the_place_of_the_old_one(make_workspace: Make) -> None:
    workspace, images = make_workspace(3)
    _, corrections = opened(workspace)
    assert corrections.decide(images[0].image_id, {"head": MOVED, "legs": None}) == 2
    assert choose_label_run(None, ["walkers"], workspace.labels) == "first.corrected"
    rows = counts(workspace, "first.corrected")
    assert len(rows) == 18, "whole: every row of the old run is there"
    head, legs = rows[images[0].image_id, "head"], rows[images[0].image_id, "legs"]
    assert [head[name] for name in ("x_min", "y_min", "x_max", "y_max")] == list(MOVED)
    assert (legs["status"], legs["x_min"]) == ("absent", None)
    assert (head["engine"], head["model"], head["flags"], head["raw_box"]) == (
        "review", "anna", ["corrected"], list(BOXES["head"]),
    )  # fmt: skip
    assert counts(workspace, "first")[images[0].image_id, "head"]["x_min"] == 10, "the old run is as it was"


def test_many_corrections_make_few_shards(make_workspace: Make) -> None:
    workspace, images = make_workspace(4)
    tables, corrections = opened(workspace)
    for step in range(12):
        corrections.decide(images[step % 8].image_id, {"head": Box(10 + step, 3, 31, 21)})
    assert len(label_shards(workspace.labels, label_run="first.corrected")) == 2
    rows = counts(workspace, "first.corrected")
    assert [rows[images[i].image_id, "head"]["x_min"] for i in range(8)] == [18, 19, 20, 21, 14, 15, 16, 17]
    shown = tables.label_rows(images[0].image_id)["head"]
    assert shown.x_min == 18, "the page shows what is on disk"


def test_another_reviewer_and_another_session_continue_the_same_run(make_workspace: Make) -> None:
    workspace, images = make_workspace(2)
    opened(workspace)[1].decide(images[0].image_id, {"head": MOVED})
    run = run_to_continue(workspace.labels, "first", ["walkers"])
    assert run == "first.corrected"
    opened(workspace, run, "ben")[1].decide(images[1].image_id, {"head": MOVED})
    assert labels.label_runs(workspace.labels) == ["first", "first.corrected"]
    models = {row["model"] for row in counts(workspace, run).values() if row["engine"] == "review"}
    assert models == {"anna", "ben"}


def test_accepting_says_who_looked_and_changes_no_box(make_workspace: Make) -> None:
    workspace, images = make_workspace(2)
    _, corrections = opened(workspace)
    assert corrections.decide(images[0].image_id, {"head": MOVED}, accept=True) == 3
    rows = counts(workspace, "first.corrected")
    flags = {part: rows[images[0].image_id, part]["flags"] for part in PARTS}
    assert flags == {"head": ["corrected"], "upper_body": ["accepted"], "legs": ["accepted"]}
    assert rows[images[0].image_id, "legs"]["x_min"] == BOXES["legs"][0]
    assert corrections.decide(images[0].image_id, {}, accept=True) == 0, "accepted already"


def test_an_image_with_a_failed_part_is_not_accepted(make_workspace: Make) -> None:
    workspace, images = make_workspace(2)
    failed = row_of(images[0], "legs", status=LabelStatus.UNPARSEABLE, raw_text="legs?")
    write_label_shard([failed], label_folder(workspace.labels, "first", "walkers", "train"))
    _, corrections = opened(workspace)
    with pytest.raises(UnansweredError, match="legs has no answer"):
        corrections.decide(images[0].image_id, {}, accept=True)
    everyone = [image.image_id for image in images]
    assert corrections.decide_many(everyone) == (3, [images[0].image_id])
    assert corrections.decide(images[0].image_id, {"legs": None}, accept=True) == 3


def test_undo_lets_the_rows_before_count_again(make_workspace: Make) -> None:
    workspace, images = make_workspace(2)
    tables, corrections = opened(workspace)
    image = images[0].image_id
    corrections.decide(image, {"head": MOVED})
    corrections.decide(image, {"head": None})
    assert corrections.undoable(image) == 2
    assert corrections.undo([image]) == 1
    assert tables.label_rows(image)["head"].x_min == MOVED.x_min
    assert corrections.undo([image]) == 1
    restored = counts(workspace, "first.corrected")[image, "head"]
    assert (restored["x_min"], restored["engine"], restored["flags"]) == (10, "local", [])
    assert corrections.undo([image]) == 0


def test_a_decision_on_rows_that_have_changed_is_refused(make_workspace: Make) -> None:
    workspace, images = make_workspace(2)
    tables, corrections = opened(workspace)
    image = images[0].image_id
    seen = version_of(tables.label_rows(image))
    corrections.decide(image, {"head": MOVED}, version=seen)
    with pytest.raises(ConflictError):
        corrections.decide(image, {"head": None}, version=seen)
    assert counts(workspace, "first.corrected")[image, "head"]["x_min"] == MOVED.x_min


@pytest.mark.parametrize(
    ("part", "box", "words"),
    [
        ("wing", MOVED, "unknown part"),
        ("head", Box(1, 1, 1.5, 1.5), "too_small"),
        ("head", Box(float("nan"), 1, 30, 30), "not_finite"),
        ("head", Box(200, 200, 300, 300), "outside"),
    ],
)
def test_what_cannot_be_a_box_is_refused_and_nothing_is_written(
    make_workspace: Make, part: str, box: Box, words: str
) -> None:
    workspace, images = make_workspace(1)
    with pytest.raises(UsageError, match=words):
        opened(workspace)[1].decide(images[0].image_id, {part: box})
    assert labels.label_runs(workspace.labels) == ["first"]


def test_what_is_labelled_meanwhile_is_taken_over(make_workspace: Make) -> None:
    workspace, images = make_workspace(3)
    tables, corrections = opened(workspace)
    corrections.decide(images[0].image_id, {"head": MOVED})
    # the labeller goes on: a retry of the corrected part, and one of another image
    later = [row_of(image, "head", score=0.5) for image in images[:2]]
    write_label_shard(later, label_folder(workspace.labels, "first", "walkers", "train"))
    corrections.decide(images[2].image_id, {"head": None})
    rows = counts(workspace, "first.corrected")
    assert rows[images[0].image_id, "head"]["x_min"] == MOVED.x_min, "what a person decided stays"
    assert rows[images[1].image_id, "head"]["score"] == 0.5
    assert rows[images[2].image_id, "head"]["status"] == "absent"
    assert tables.label_rows(images[1].image_id)["head"].score == 0.5
    before = label_shards(workspace.labels, label_run="first.corrected")
    corrections.decide(images[3].image_id, {"head": None})
    assert label_shards(workspace.labels, label_run="first.corrected") == before, "it is taken over once"
    record = read_record(workspace.labels, "first.corrected")
    assert record and record["corrects"] == "first" and record["model"] == "anna"
