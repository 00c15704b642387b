"""Published part masks: read without running anything, turned into tight boxes, matched by file name."""

import os
import pickle
from collections import OrderedDict
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from labeler.exchange.published_masks import NOT_A_RECTANGLE, import_masks, read_masks, tight_box
from shared.errors import ConfigError, DataError
from shared.geometry import Box
from shared.labels import label_shards, read_labels
from shared.schemas import PARTS, ImageStatus, LabelStatus, ManifestRow
from tests.rows import manifest_row

INF = float("-inf")


def masks_of(*areas: tuple[slice, slice]) -> np.ndarray:
    """Float masks [R, 128] that are visible in one area each."""
    found = np.full((len(areas), 16, 8), INF, np.float32)
    for place, area in enumerate(areas):
        found[(place, *area)] = 0
    return found.reshape(len(areas), 128)


AREAS = (slice(0, 3), slice(2, 6)), (slice(3, 8), slice(0, 8)), (slice(0, 0), slice(0, 0))


def image(path: str, number: int, **changes: Any) -> ManifestRow:
    return manifest_row(number, path=path, height=160, **changes)


def run(masks: Any, rows: list[ManifestRow], labels: Path, **changes: Any) -> Any:
    given = {"dataset": "toy", "label_run": "published", "parts": PARTS, "origin": "m.pkl", "prompt_version": "abc"}
    return import_masks(masks, rows, labels, **{**given, **changes})


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4"])
def test_every_pickle_protocol_and_float_is_read(protocol: int, dtype: Any, tmp_path: Path) -> None:
    path = tmp_path / "masks.pkl"
    content = {"a.jpg": masks_of(*AREAS).astype(dtype), "b.jpg": np.asfortranarray(masks_of(*AREAS)).astype(dtype)}
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    found = read_masks(path)
    assert list(found) == ["a.jpg", "b.jpg"]
    for name in found:
        assert found[name].dtype == bool and found[name].shape == (3, 16, 8)
        assert found[name][0].sum() == 12 and found[name][0, :3, 2:6].all() and not found[name][2].any()


class Attack:
    """Runs a command when it is unpickled by the ordinary reader."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("wrap", [lambda bad: bad, lambda bad: {"a.jpg": bad}, lambda bad: {"a.jpg": np.array([bad])}])
def test_nothing_in_the_file_is_run(protocol: int, wrap: Any, tmp_path: Path) -> None:
    path, trace = tmp_path / "masks.pkl", tmp_path / "trace"
    for attack in (
        Attack(os.system, f"touch {trace}"),
        Attack(eval, f"open({str(trace)!r}, 'w')"),
        Attack(trace.touch),
    ):
        path.write_bytes(pickle.dumps(wrap(attack), protocol=protocol))
        with pytest.raises(DataError, match=r"a pickle can run programs"):
            read_masks(path)
        assert not trace.exists()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ([1, 2], "not a dict of masks"),
        ({}, "not a dict of masks"),
        ({3: masks_of(*AREAS)}, "a key that is not a file name"),
        ({"a": masks_of(*AREAS)[0]}, r"'a' is float32 \[128\]"),
        ({"a": np.zeros((3, 100))}, r"\[3, 100\], not a float array \[parts, 128\]"),
        ({"a": np.zeros((3, 128), int)}, "not of floats"),
        ({"a": np.array([object] * 2)}, "not of floats|asks for"),
        ({"a": np.full((3, 128), 0.5)}, "neither 0"),
        ({"a": np.full((3, 128), np.nan)}, "neither 0"),
        ({"a": "text"}, "'a' is str"),
        (OrderedDict(a=1), r"asks for collections\.OrderedDict"),
        ({"a": Fraction(1, 2)}, r"asks for fractions\.Fraction"),
    ],
)
def test_anything_but_a_dict_of_masks_is_refused(content: Any, told: str, tmp_path: Path) -> None:
    path = tmp_path / "masks.pkl"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(DataError, match=told):
        read_masks(path)


@pytest.mark.parametrize("content", [b"", b"no pickle", b"\x80\x04", pickle.dumps({"a": masks_of(*AREAS)})[:-20]])
def test_a_damaged_file_is_one_sentence(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "masks.pkl").write_bytes(content)
    with pytest.raises(DataError, match="not a readable pickle"):
        read_masks(tmp_path / "masks.pkl")
    with pytest.raises(DataError, match="cannot be read"):
        read_masks(tmp_path / "gone.pkl")


def test_a_tight_box_covers_the_visible_patches_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        mask = rng.random((16, 8)) < 0.05
        box = tight_box(mask, 64, 160)  # a patch is 8 x 10 pixels
        places = [(8 * c, 10 * r, 8 * c + 8, 10 * r + 10) for r in range(16) for c in range(8) if mask[r, c]]
        if not places:
            assert box is None
            continue
        corners = list(zip(*places, strict=True))
        assert box == Box(min(corners[0]), min(corners[1]), max(corners[2]), max(corners[3]))


def test_masks_become_rows_of_a_run(tmp_path: Path) -> None:
    visible = masks_of(*AREAS).reshape(3, 16, 8) == 0
    holed = visible.copy()
    holed[1, 4, 4] = False
    found = run(
        {"a.jpg": visible, "b.jpg": holed, "ghost.jpg": visible}, [image("t/a.jpg", 1), image("t/b.jpg", 2)], tmp_path
    )
    assert (found.images, found.boxes, found.absent, found.not_rectangles) == (2, 4, 2, 1)
    assert (found.collisions, found.without_image, found.without_mask) == ({}, ["ghost.jpg"], [])
    rows = {(row.path, row.part): row for row in read_labels(label_shards(tmp_path, label_run="published"))}
    assert len(rows) == 6
    head = rows["t/a.jpg", "head"]
    assert (head.x_min, head.y_min, head.x_max, head.y_max) == (16, 0, 48, 30)
    assert (head.engine, head.model, head.prompt_version, head.flags) == ("import", "m.pkl", "abc", ())
    assert rows["t/a.jpg", "legs"].status == LabelStatus.ABSENT and rows["t/a.jpg", "legs"].x_min is None
    assert rows["t/b.jpg", "upper_body"].flags == (NOT_A_RECTANGLE,)


def test_a_mask_of_the_whole_image_is_no_body_part(tmp_path: Path) -> None:
    visible = masks_of(*AREAS).reshape(3, 16, 8) == 0
    visible[0] = True
    found = run({"a.jpg": visible}, [image("t/a.jpg", 1)], tmp_path)
    assert (found.boxes, found.absent, found.invalid) == (1, 1, 1)
    rows = {row.part: row for row in read_labels(label_shards(tmp_path))}
    head = rows["head"]
    assert (head.status, head.x_min, head.flags) == (LabelStatus.INVALID_BOX, None, ("whole_image",))
    assert (head.raw_box, head.space) == ((0, 0, 8, 16), "patches")


def test_a_name_of_two_images_labels_neither_and_is_reported(tmp_path: Path) -> None:
    visible = masks_of(*AREAS).reshape(3, 16, 8) == 0
    rows = [
        image("p/a.jpg", 1),
        image("q/a.jpg", 2),  # another image of that name
        image("p/b.jpg", 3),
        image("q/b.jpg", 3),  # the same bytes: no collision
        image("p/c.jpg", 4),
        image("p/broken.jpg", 5, status=ImageStatus.UNREADABLE),
    ]
    found = run({"a.jpg": visible, "b.jpg": visible, "broken.jpg": visible}, rows, tmp_path)
    assert found.collisions == {"a.jpg": ["p/a.jpg", "q/a.jpg"]}
    assert found.without_mask == ["p/c.jpg"] and found.without_image == ["broken.jpg"]
    assert {row.image_id for row in read_labels(label_shards(tmp_path))} == {f"{3:016x}"}


def test_masks_that_do_not_fit_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    visible = masks_of(*AREAS).reshape(3, 16, 8) == 0
    with pytest.raises(DataError, match="masks of 3 parts, not of 2"):
        run({"a.jpg": visible}, [image("a.jpg", 1)], tmp_path, parts=("head", "legs"))
    with pytest.raises(DataError, match="none of the 1 file names"):
        run({"z.jpg": visible}, [image("a.jpg", 1)], tmp_path)
    assert not list(tmp_path.iterdir())
    run({"a.jpg": visible}, [image("a.jpg", 1)], tmp_path)
    with pytest.raises(ConfigError, match="made with other settings"):
        run({"a.jpg": visible}, [image("a.jpg", 1)], tmp_path, prompt_version="other")
