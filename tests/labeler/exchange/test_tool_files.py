"""Files that real tools wrote, read without the tools: the boxes are those that the tools had been given.

Written by tests/exchange_tools/tools.py with Datumaro 1.13.12, FiftyOne 1.22.1 and label-studio-sdk 2.1.2 from our
exports of three images, datumaro-shapes.json from a rotated box, a mask and a polygon. The folder of the images is
called /data/toy in them.
"""

from pathlib import Path

import pytest

from labeler.exchange.coco import from_coco
from labeler.exchange.fiftyone import from_fiftyone
from labeler.exchange.foreign_json import ImportedLabels, Problems, read_json
from labeler.exchange.image_paths import ImagePaths
from labeler.exchange.label_studio import from_label_studio
from shared.errors import DataError
from tests.rows import manifest_row

FILES = Path(__file__).with_name("files")
READERS = {"coco": from_coco, "label-studio": from_label_studio, "fiftyone": from_fiftyone}
WIDTH, HEIGHT = 64, 128
PATHS = [f"query/000{number}_c1s1_00000{number}_00.jpg" for number in (1, 2, 3)]
ROWS = [manifest_row(number, split="query", path=path, width=WIDTH, height=HEIGHT) for number, path in enumerate(PATHS)]
BOXES = {
    PATHS[0]: {"head": (20.5, 5, 40, 25.25), "legs": (15, 70, 45, 120)},
    PATHS[1]: {"head": (22, 4, 41.125, 24)},
    PATHS[2]: {},
}


def read(name: str, form: str) -> ImportedLabels:
    problems = Problems(FILES / name)
    found = READERS[form](read_json(FILES / name, form), problems)
    problems.raise_if_any(fix="")
    return found


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("datumaro-coco.json", "coco"),
        ("fiftyone-coco.json", "coco"),
        ("fiftyone-samples.json", "fiftyone"),
        ("fiftyone-database.json", "fiftyone"),
        ("label-studio-tag-JSON.json", "label-studio"),
        ("label-studio-tag-JSON_MIN.json", "label-studio"),
        ("label-studio-tag-COCO.json", "coco"),
        ("label-studio-pairs-JSON.json", "label-studio"),
        ("label-studio-pairs-JSON_MIN.json", "label-studio"),
        ("label-studio-pairs-COCO.json", "coco"),
    ],
)
def test_a_tools_file_says_what_the_tool_was_given(name: str, form: str) -> None:
    paths = ImagePaths(ROWS)
    found = {}
    for image in read(name, form).images:
        sides = (WIDTH, HEIGHT) * 2 if image.relative else (1,) * 4
        row = paths.find(image.path)
        assert row is not None and image.size in {(WIDTH, HEIGHT), (None, None)}
        found[row.path] = {
            part: pytest.approx([value * side for value, side in zip(box, sides, strict=True)], abs=0.01)
            for part, box in image.boxes.items()
        }
    assert found == BOXES


def test_shapes_are_told_from_boxes() -> None:
    with pytest.raises(DataError) as caught:
        read("datumaro-shapes.json", "coco")
    said = str(caught.value)
    assert f"annotation 1 of image 1 ({PATHS[0]}): the box of 'head' is rotated" in said
    assert f"annotation 2 of image 2 ({PATHS[1]}): 'legs' is marked with `iscrowd`" in said
    assert "2 problems" in said  # a polygon has its bounding box beside it, and that is the box
