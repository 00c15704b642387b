import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from reid.config import DataConfig
from reid.data.training_set import TrainingSet, build_training_set
from reid.protocols.protocol import parse_protocol
from shared.body_prior import PROPORTIONS
from shared.errors import ConfigError, DataError
from shared.labels import label_shards, read_label_table
from shared.manifest import write_manifest
from shared.parquet import write_table
from shared.schemas import LABEL_SCHEMA, PARTS, Kind, LabelStatus, ManifestRow
from shared.workspace import Workspace


@pytest.fixture
def build(workspace: Workspace) -> Callable[..., TrainingSet]:
    def make(parts: tuple[str, ...] = PARTS, **data: Any) -> TrainingSet:
        protocol = parse_protocol("alpha+beta2gamma", workspace.data_root)
        return build_training_set(protocol, DataConfig(**data), parts, workspace)

    return make


@pytest.fixture
def sources(add_dataset: Callable[..., Any], add_labels: Callable[..., None]) -> None:
    add_dataset("beta", identities=2, first=1)
    add_dataset("alpha", identities=3, first=5)
    add_dataset("gamma", identities=2, test=True)


@pytest.mark.usefixtures("sources")
def test_identities_are_numbered_over_all_sources_and_boxes_belong_to_their_image(
    build: Callable[..., TrainingSet], add_labels: Callable[..., None]
) -> None:
    absent = ("bounding_box_train/0006_c1s1_000000_00.png", "legs")
    add_labels("alpha", answers={absent: LabelStatus.ABSENT})
    add_labels("beta")
    data = build()
    assert data.identities == (("alpha", 5), ("alpha", 6), ("alpha", 7), ("beta", 1), ("beta", 2))
    for index, (name, path) in enumerate(zip(data.datasets, data.paths, strict=True)):
        identity, camera = int(path.split("/")[1][:4]), int(path.split("_c")[1][0])
        assert data.identities[data.labels[index]] == (name, identity)
        assert data.cameras[index] == camera
        assert np.isnan(data.boxes[index, 2]).all() == ((name, path) == ("alpha", absent[0]))
    assert data.boxes.shape == (20, 3, 4)
    assert data.boxes[0].tolist() == [[4, 0, 12, 8], [0, 8, 16, 20], [0, 20, 16, 32]]
    assert data.label_run == "first" and data.dropped == {}
    record = data.record()
    assert (record["images"], record["identities"], record["cameras"]) == (20, 5, 4)


def test_person_0_is_trained_on_and_images_without_a_camera_count_none(
    add_dataset: Callable[..., list[ManifestRow]], build: Callable[..., TrainingSet], workspace: Workspace
) -> None:
    add_dataset("alpha", identities=2, first=0)
    add_dataset("gamma", identities=2, test=True)
    found = add_dataset("beta", identities=1)
    person = [row.model_copy(update={"identity": -1, "camera": 0}) for row in found]
    junk = [row.model_copy(update={"identity": None, "kind": Kind.JUNK}) for row in found]
    write_manifest([*person, *junk], workspace.manifest("beta"))
    data = build(parts=())
    assert data.identities == (("alpha", 0), ("alpha", 1), ("beta", -1)) and len(data) == 12
    assert data.record()["cameras"] == 3 and data.cameras.count(0) == 4
    write_manifest([row.model_copy(update={"camera": None}) for row in person], workspace.manifest("beta"))
    assert build(parts=()).record()["cameras"] == 2


@pytest.mark.usefixtures("sources")
def test_parts_are_in_the_order_asked_for(build: Callable[..., TrainingSet], add_labels: Callable[..., None]) -> None:
    add_labels("alpha")
    add_labels("beta")
    assert build(parts=("legs", "head")).boxes[0].tolist() == [[0, 20, 16, 32], [4, 0, 12, 8]]


@pytest.mark.usefixtures("sources")
def test_missing_labels_stop_with_counts_and_the_command_or_are_dropped_and_counted(
    build: Callable[..., TrainingSet], add_labels: Callable[..., None]
) -> None:
    truncated = ("bounding_box_train/0001_c1s1_000000_00.png", "head")
    unasked = [(f"bounding_box_train/0002_c1s1_{number:06d}_00.png", "legs") for number in (0, 2)]
    add_labels("alpha")
    add_labels("beta", answers={truncated: LabelStatus.TRUNCATED, **dict.fromkeys(unasked)})
    with pytest.raises(DataError, match="beta: 2 of 8 images not labelled; beta: 1 of 8 images truncated") as caught:
        build()
    assert "dgreid label beta --label-run first" in caught.value.fix
    data = build(missing_labels="drop")
    assert len(data) == 17 and data.dropped == {"not labelled": 2, "truncated": 1}
    assert truncated[0] not in data.paths


@pytest.mark.usefixtures("sources")
def test_a_part_labelled_again_counts_once(build: Callable[..., TrainingSet], add_labels: Callable[..., None]) -> None:
    add_labels("alpha")
    add_labels("alpha")
    add_labels("beta")
    assert len(build()) == 20


@pytest.mark.usefixtures("sources")
def test_the_label_run_must_be_clear(build: Callable[..., TrainingSet], add_labels: Callable[..., None]) -> None:
    with pytest.raises(DataError, match="no part labels of alpha, beta yet") as nothing:
        build()
    assert "dgreid label alpha; dgreid label beta" in nothing.value.fix
    for run in ("first", "second"):
        add_labels("alpha", run)
        add_labels("beta", run)
    with pytest.raises(ConfigError, match="several label runs: first, second") as several:
        build()
    assert "--label-run <run>" in several.value.fix
    assert build(label_run="second").label_run == "second"
    with pytest.raises(ConfigError, match="no label run 'third'"):
        build(label_run="third")


@pytest.mark.usefixtures("sources")
def test_without_parts_no_labels_are_needed(build: Callable[..., TrainingSet]) -> None:
    data = build(parts=())
    assert data.boxes.shape == (20, 0, 4) and data.label_run is None


def test_unreadable_images_are_left_out_and_counted(
    build: Callable[..., TrainingSet],
    add_dataset: Callable[..., Any],
    add_labels: Callable[..., None],
    workspace: Workspace,
) -> None:
    broken = workspace.data_root / "alpha" / "bounding_box_train" / "0001_c1s1_000009_00.png"
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"no image")
    for name in ("alpha", "beta"):
        add_dataset(name)
        add_labels(name)
    add_dataset("gamma", test=True)
    data = build()
    assert data.dropped == {"unreadable image": 1} and len(data) == 32


def test_one_identity_is_too_few(
    build: Callable[..., TrainingSet], add_dataset: Callable[..., Any], add_labels: Callable[..., None]
) -> None:
    add_dataset("alpha", identities=1)
    add_dataset("beta", identities=1)
    add_dataset("gamma", test=True)
    add_labels(
        "alpha", answers={(f"bounding_box_train/0001_c{n % 2 + 1}s1_{n:06d}_00.png", "head"): None for n in range(4)}
    )
    add_labels("beta")
    with pytest.raises(DataError, match=r"1 identities in 4 training images of alpha, beta \(4 not labelled\)"):
        build(missing_labels="drop")


@pytest.mark.usefixtures("sources")
def test_the_digest_notices_boxes_and_identities(
    build: Callable[..., TrainingSet], add_labels: Callable[..., None]
) -> None:
    add_labels("alpha")
    add_labels("beta")
    add_labels("alpha", "second", {("bounding_box_train/0005_c1s1_000000_00.png", "head"): LabelStatus.ABSENT})
    add_labels("beta", "second")
    first, second = build(label_run="first"), build(label_run="second")
    assert first.sha256 == build(label_run="first").sha256 != second.sha256
    assert first.identities_sha256 == second.identities_sha256


@pytest.mark.usefixtures("sources")
def test_missing_parts_are_filled_from_the_body_prior(
    build: Callable[..., TrainingSet], add_labels: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    truncated = ("bounding_box_train/0001_c1s1_000000_00.png", "head")
    absent = ("bounding_box_train/0001_c1s1_000000_00.png", "legs")
    add_labels("alpha")
    add_labels("beta", answers={truncated: LabelStatus.TRUNCATED, absent: LabelStatus.ABSENT})
    data = build(missing_labels="prior")
    assert "beta: 1 of 8 images truncated (data.missing_labels=prior; to label them: dgreid label" in caplog.text
    assert len(data) == 20 and data.dropped == {} and data.filled == {"beta": 1}
    assert data.record()["filled"] == {"beta": 1}
    index = data.paths.index(truncated[0])
    x_min, y_min, x_max, y_max = PROPORTIONS["head"]
    np.testing.assert_allclose(data.boxes[index, 0], [16 * x_min, 32 * y_min, 16 * x_max, 32 * y_max])
    assert data.boxes[index, 1].tolist() == [0, 8, 16, 20]
    assert np.isnan(data.boxes[index, 2]).all()  # an answer: not visible
    with pytest.raises(ConfigError, match=r"the body prior has no part 'tail'[\s\S]*head, upper_body, legs"):
        build(parts=("head", "tail"), missing_labels="prior")


@pytest.mark.usefixtures("sources")
def test_without_any_labels_all_boxes_are_the_body_priors(build: Callable[..., TrainingSet]) -> None:
    data = build(missing_labels="prior")
    assert data.label_run is None and data.filled == {"alpha": 36, "beta": 24}
    assert not np.isnan(data.boxes).any() and (data.boxes == data.boxes[0]).all()
    with pytest.raises(DataError, match="no part labels"):
        build(label_run="asked", missing_labels="prior")


@pytest.mark.usefixtures("sources")
def test_a_corrected_run_takes_the_place_of_the_one_it_corrects(
    build: Callable[..., TrainingSet], add_labels: Callable[..., None], workspace: Workspace
) -> None:
    for run in ("first", "first.corrected"):
        add_labels("alpha", run)
        add_labels("beta", run)
    record = workspace.labels / "first.corrected" / "_run.json"
    record.write_text('{"corrects": "first"}')
    assert build().label_run == "first.corrected"
    assert build(label_run="first").label_run == "first"
    record.write_text("damaged")
    with pytest.raises(ConfigError, match="several label runs"):
        build()


def test_of_every_identity_at_most_so_many_images_spread_over_all_it_has(
    build: Callable[..., TrainingSet], add_dataset: Callable[..., Any], add_labels: Callable[..., None]
) -> None:
    add_dataset("alpha", identities=2, images=9)
    add_dataset("beta", identities=1, images=3, first=7)
    add_dataset("gamma", identities=2, test=True)
    for name in ("alpha", "beta"):
        add_labels(name)
    data = build(max_images_per_identity=5)
    numbers = [int(path.split("_")[4]) for path in data.paths]  # the first camera's come first
    assert numbers == [0, 4, 8, 3, 7] * 2 + [0, 2, 1]
    assert data.dropped == {"beyond data.max_images_per_identity": 8}
    assert build(max_images_per_identity=9).dropped == {} and len(build()) == 21


def test_nothing_is_told_to_have_leaked_when_training_has_ended() -> None:
    """DuckDB lists on stderr what outlives the interpreter; people take it for an error."""
    script = "import reid.training.train, reid.evaluation.evaluate, labeler.grounder, shared.labels"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "leaked" not in ended.stderr


@pytest.mark.usefixtures("sources")
@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"x_max": float("inf")}, "outside their image"),
        ({"x_min": None}, "missing"),
        ({"x_min": 0.1, "y_min": 0.1, "x_max": 0.9, "y_max": 0.9}, "within the first pixel"),
        ({"width": 160, "height": 320}, "images of another size in the manifest"),
    ],
)
@pytest.mark.parametrize("missing_labels", ["require", "drop", "prior"])
def test_boxes_that_cannot_be_are_no_labels_and_no_missing_ones(
    change: dict[str, Any],
    told: str,
    missing_labels: str,
    build: Callable[..., TrainingSet],
    add_labels: Callable[..., None],
    workspace: Workspace,
) -> None:
    add_labels("alpha")
    add_labels("beta")
    [shard] = label_shards(workspace.labels, dataset="beta")
    table = read_label_table(shard).to_pylist()
    table[4] |= change
    write_table(pa.Table.from_pylist(table, schema=LABEL_SCHEMA), shard)
    with pytest.raises(DataError, match=rf"'first' has 1 rows .*{table[4]['path']}, {table[4]['part']}: .*{told}"):
        build(missing_labels=missing_labels)
