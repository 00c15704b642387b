"""What each format's reader understands, and that everything else is refused by name instead of being skipped."""

import copy
import gzip
import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from labeler.exchange.coco import from_coco, to_coco
from labeler.exchange.fiftyone import from_fiftyone, to_fiftyone
from labeler.exchange.foreign_json import SHOWN, ImportedLabels, Problems, read_json
from labeler.exchange.label_studio import from_label_studio, to_label_studio
from labeler.exchange.part_boxes import PartBoxes
from shared.errors import ConfigError, DataError, DgreidError
from shared.geometry import Box
from shared.schemas import PARTS

IMAGES = [
    PartBoxes("q/1.png", 64, 128, {"head": Box(16, 32, 48, 64), "legs": Box(8, 64, 40, 120)}, {"head": 0.5}),
    PartBoxes("q/2.png", 64, 128, {"head": Box(8, 0, 40, 32)}),
]
READERS = {"coco": from_coco, "label-studio": from_label_studio, "fiftyone": from_fiftyone}


def read(form: str, content: Any, folder: Path, **options: Any) -> ImportedLabels:
    """The way of `import-labels`: a file, the reader, the problems."""
    file = folder / "file.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    problems = Problems(file)
    found = partial(READERS[form], **options)(read_json(file, form), problems)
    problems.raise_if_any(fix="")
    return found


def coco() -> dict[str, Any]:
    return to_coco(IMAGES, PARTS)


def tasks() -> list[Any]:
    """As Label Studio exports when every prediction was submitted as it is."""
    found = to_label_studio(IMAGES, PARTS, image_prefix="/data/local-files/?d=", model="m")
    for number, task in enumerate(found, start=7):
        result = copy.deepcopy(task["predictions"][0]["result"])
        task["id"] = number
        task["annotations"] = [{"id": number, "completed_by": 1, "was_cancelled": False, "result": result}]
    return found


def samples() -> dict[str, Any]:
    return to_fiftyone(IMAGES)


def in_pixels(labels: ImportedLabels, width: int = 64, height: int = 128) -> list[dict[str, tuple[float, ...]]]:
    factors = (width, height, width, height)
    return [
        {
            part: tuple(value * (factor if image.relative else 1) for value, factor in zip(box, factors, strict=True))
            for part, box in image.boxes.items()
        }
        for image in labels.images
    ]


@pytest.mark.parametrize(("form", "make"), [("coco", coco), ("label-studio", tasks), ("fiftyone", samples)])
def test_every_format_gives_its_own_boxes_back(form: str, make: Callable[[], Any], tmp_path: Path) -> None:
    found = read(form, make(), tmp_path)
    assert [image.path for image in found.images] == ["q/1.png", "q/2.png"]
    assert [image.size for image in found.images] == [(64, 128), (64, 128)]
    assert found.parts == {"head", "legs"} and not found.not_annotated
    for boxes, image in zip(in_pixels(found), IMAGES, strict=True):
        assert boxes.keys() == image.boxes.keys()
        for part, box in boxes.items():
            assert box == pytest.approx(image.boxes[part], abs=1e-9)


def test_the_numbers_of_the_formats_are_what_their_tools_read() -> None:
    one = PartBoxes("a b.png", 64, 128, {"head": Box(16, 32, 48, 64)}, {"head": 0.5})
    content = to_coco([one], PARTS)
    assert content["annotations"][0]["bbox"] == [16, 32, 32, 32] and content["annotations"][0]["category_id"] == 1
    task = to_label_studio([one], PARTS, image_prefix="/x/?d=", model="m")[0]
    value = task["predictions"][0]["result"][0]["value"]
    assert (value["x"], value["y"], value["width"], value["height"]) == (25, 25, 50, 25)
    assert task["data"] == {"image": "/x/?d=a%20b.png", "path": "a b.png"}
    sample = to_fiftyone([one])["samples"][0]
    assert sample["metadata"]["_cls"] == "ImageMetadata"  # without it FiftyOne reads a plain dict
    detection = sample["parts"]["detections"][0]
    assert detection["bounding_box"] == [0.25, 0.25, 0.5, 0.25] and detection["confidence"] == 0.5


# ---- files


def test_any_unicode_encoding_is_read(tmp_path: Path) -> None:
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"):
        (tmp_path / "a.json").write_bytes(json.dumps(coco()).encode(encoding))
        assert read_json(tmp_path / "a.json", "coco") == coco()


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "the file is empty"),
        (b" \n", "the file is empty"),
        (b"{", "not JSON: .* in line 1"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": 1}\n{"a": 2}\n', r"one JSON value per line \(NDJSON\)"),
        (gzip.compress(b"{}"), "this is a gzip archive.*fix: unpack it"),
        (b"PK\x03\x04", "this is a zip archive"),
        (b"\xff\xfea\x00\xdc", "not a text file"),
        (b"\x89PNG\r\n", "not a text file"),
        (b'{"a": 1, "a": 2}', "the key 'a' twice"),
        (b"1" * 5000, "Exceeds the limit"),
        (b"<annotations/>", "not JSON"),
        (b"null", "its top level is a NoneType"),
        (b'"text"', "its top level is a str"),
        (b"[1]", "a list of other things than objects"),
        (b"{}", "an object with the keys none"),
        (b'{"images": [], "annotations": {}}', "an object with the keys 'images', 'annotations'"),
        (b'{"samples": []}', "it looks like fiftyone.*fix: use --format fiftyone"),
        (b"[]", "it looks like label-studio"),
        (b'[{"image_id": 1, "bbox": [1, 2, 3, 4]}]', "COCO results, a list of boxes without images"),
        (b'{"dm_format_version": "1.0"}', "Datumaro's own format"),
    ],
)
def test_what_is_no_such_file_is_one_sentence(data: bytes, told: str, tmp_path: Path) -> None:
    (tmp_path / "file.json").write_bytes(data)
    with pytest.raises(DataError, match=f"(?s){told}"):
        read_json(tmp_path / "file.json", "coco")


def test_what_is_no_file_is_one_sentence(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, tmp_path / "gone.json", tmp_path / "fifo"):
        with pytest.raises(DataError, match="there is no such file"):
            read_json(path, "coco")


def test_many_problems_are_counted_and_the_first_are_named(tmp_path: Path) -> None:
    content = coco()
    content["annotations"] = [{**content["annotations"][0], "id": n, "bbox": [1, 1, -1, 1]} for n in range(9)]
    with pytest.raises(DataError) as caught:
        read("coco", content, tmp_path)
    assert str(caught.value).count("q/1.png") == SHOWN
    assert "9 problems" in str(caught.value) and "and 4 more" in str(caught.value)
    assert str(tmp_path / "file.json") in str(caught.value)


ODD = (None, True, 0, -1, 10**400, 1.5, 1e308, float("nan"), "", "x", "\ud800", [], [[1]], {}, {"id": 1}, [None] * 4)


def places(content: Any) -> list[tuple[Any, Any]]:
    """(container, key) of every value in a JSON document."""
    found = []
    for key, value in content.items() if isinstance(content, dict) else enumerate(content):
        found.append((content, key))
        if isinstance(value, (dict, list)):
            found += places(value)
    return found


@pytest.mark.parametrize(("form", "make"), [("coco", coco), ("label-studio", tasks), ("fiftyone", samples)])
def test_any_value_anywhere_ends_in_labels_or_in_one_sentence(
    form: str, make: Callable[[], Any], tmp_path: Path
) -> None:
    for place in range(len(places(make()))):
        for odd in ODD:
            content = make()
            container, key = places(content)[place]
            container[key] = copy.deepcopy(odd)
            try:
                read(form, content, tmp_path)
            except DgreidError as err:
                str(err).encode()  # fit to be printed


# ---- COCO


def changed(key: str, value: Any) -> Callable[[Any], None]:
    return lambda content: content["annotations"][0].__setitem__(key, value)


def runs(box: Box, width: int = 64, height: int = 128) -> dict[str, Any]:
    """A mask of a rectangle, or of all pixels in between, in run lengths down the columns."""
    inside = [
        x in range(int(box.x_min), int(box.x_max)) and y in range(int(box.y_min), int(box.y_max))
        for x in range(width)
        for y in range(height)
    ]
    counts, before = [0], False
    for one in inside:
        counts += [0] if one != before else []
        counts[-1] += 1
        before = one
    return {"size": [height, width], "counts": counts}


def as_text(mask: dict[str, Any]) -> dict[str, Any]:
    """As pycocotools compresses it."""
    counts, text = mask["counts"], ""
    for place, value in enumerate(counts):
        rest = value - (counts[place - 2] if place > 2 else 0)
        more = True
        while more:
            bits, rest = rest & 31, rest >> 5
            more = rest != (-1 if bits & 16 else 0)
            text += chr(48 + bits + 32 * more)
    return {**mask, "counts": text}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (changed("bbox", None), "an annotation of 'head' without bbox"),
        (changed("bbox", []), "an annotation of 'head' without bbox"),
        (
            lambda c: c["annotations"][0].update(bbox=None, segmentation=[[1, 2, 3, 4, 5, 6]]),
            "a segmentation of 'head'",
        ),
        (changed("bbox", [1, 2, 3]), "has 3 numbers"),
        (changed("bbox", [1, 2, 3, 4, 30]), "has 5 numbers"),
        (changed("bbox", [1, 2, float("nan"), 4]), "`bbox.2`: input should be a finite number, not nan"),
        (changed("bbox", [1, 2, float("inf"), 4]), "finite"),
        (changed("bbox", [1, 2, 10**400, 4]), "number"),
        (changed("bbox", [1, 2, "3", 4]), "valid number, not '3'"),
        (changed("bbox", [1, 2, True, 4]), "valid number, not True"),
        (changed("bbox", {"x": 1}), "valid list"),
        (changed("bbox", [1, 2, -3, 4]), "is -3 wide and 4 high"),
        (changed("bbox", [1, 2, 0, 4]), "is 0 wide"),
        (changed("iscrowd", 1), "'head' is marked with `iscrowd`"),
        (changed("iscrowd", "1"), "`iscrowd`"),
        (changed("ignore", 1), "`ignore`"),
        (changed("attributes", {"outside": True}), "`outside`"),
        (changed("attributes", {"IsGroupOf": 1}), "`isgroupof`"),
        (changed("attributes", [{"name": "ignored", "value": True}]), "`ignored`"),
        (changed("segmentation", [[5, 60, 15, 60, 15, 80]]), "not that of its segmentation"),
        (
            changed("segmentation", [[16, 32, 48, 32, 48, 64], [16, 32, 80, 64, 16, 64]]),
            "not that of its segmentation",
        ),
        (lambda c: c["annotations"][0].update(bbox=[16, 32, 48, 64], area=1024.0), "two corners"),
        (changed("bbox_mode", 0), "`bbox_mode` says that the bbox of 'head' is not x, y, width, height"),
        (changed("bbox_mode", "XYXY_ABS"), "`bbox_mode` says"),
        (changed("deleted", True), "`deleted`"),
        (changed("hidden", True), "`hidden`"),
        (changed("visible", False), "`visible: False`"),
        (changed("attributes", {"visible": "false"}), "`visible: false`"),
        (changed("visibility", 0), "`visibility: 0`"),
        (changed("status", "Rejected"), "`status: Rejected`"),
        (changed("tags", ["train", "ignore"]), "`tags: ignore`"),
        (changed("segmentation", [5, 60, 15, 60, 15, 80]), "not that of its segmentation"),
        (changed("segmentation", runs(Box(2, 60, 30, 100))), "not that of its segmentation"),
        (changed("segmentation", as_text(runs(Box(2, 60, 30, 100)))), "not that of its segmentation"),
        (changed("segmentation", runs(Box(16, 32, 48, 64), 128, 256)), "its mask is of 128 x 256 pixels"),
        (changed("segmentation", {"size": [128, 64], "counts": [128 * 64]}), "its mask is empty"),
        (changed("segmentation", {"size": [128, 64], "counts": [3, 4]}), "do not make 64 x 128 pixels"),
        (changed("segmentation", {"size": [128, 64], "counts": [128 * 64 + 1, -1]}), "do not make"),
        (changed("segmentation", {"size": [128, 64], "counts": "\u00ff"}), "cannot be read"),
        (changed("segmentation", {"size": [128, 64], "counts": "o" * 40}), "cannot be read"),
        (changed("segmentation", {"size": [0, 64], "counts": []}), "neither polygons nor a mask"),
        (changed("segmentation", {"points": [1, 2]}), "neither polygons nor a mask"),
        (changed("keypoints", [1, 2, 2]), "has keypoints"),
        (changed("attributes", {"rotation": 30.0}), "the box of 'head' is rotated"),
        (changed("attributes", {"rotation": "30"}), "is rotated"),
        (changed("attributes", [{"name": "rotation", "value": 30}]), "is rotated"),
        (changed("attributes", [{"Rotation": 30}]), "is rotated"),
        (changed("theta", 0.1), "is rotated"),
        (changed("rotation", 0.5), "is rotated"),
        (changed("image_id", 99), "there is no image 99"),
        (changed("image_id", "1"), "there is no image '1'"),
        (changed("image_id", [1]), "`image_id`"),
        (changed("category_id", 99), "there is no category 99"),
        (changed("category_id", None), "`category_id`"),
        (lambda c: c["annotations"].append(c["annotations"][0]), r"annotation 1 of image 1 \(q/1.png\): two boxes"),
        (lambda c: c["annotations"].append(5), "annotation no. 4: "),
        (lambda c: c["images"].append(dict(c["images"][0])), "image 1: this image id is there twice"),
        (lambda c: c["images"].append({"id": 9}), "image 9: `file_name`: field required"),
        (lambda c: c["images"][0].update(width="64"), "image 1: `width`"),
        (lambda c: c["images"].append(None), "image no. 3: "),
        (lambda c: c["categories"].append({"id": 1, "name": "hat"}), "category 1: this category id is there twice"),
        (lambda c: c["categories"][0].update(name=None), "`name`: input should be a valid string"),
    ],
)
def test_coco_entries_that_are_no_boxes_are_named(change: Callable[[Any], Any], told: str, tmp_path: Path) -> None:
    content = coco()
    change(content)
    with pytest.raises(DataError, match=told):
        read("coco", content, tmp_path)


def test_coco_of_other_tools_is_understood(tmp_path: Path) -> None:
    """Ids from 0 and as floats, categories in another order, unknown sizes, attributes, segmentations."""
    content = coco()
    content["categories"] = [{"id": 0.0, "name": "legs", "supercategory": None}, {"id": 1, "name": "head"}]
    content["images"] = [
        {"id": 5.0, "file_name": "q/1.png", "width": None, "height": None},
        {"id": 6, "file_name": "q/2.png", "width": 0, "height": 0},
        {"id": 7, "file_name": "q/3.png"},
    ]
    content["annotations"] = [
        {"image_id": 5, "category_id": 0, "bbox": [1, 2, 3, 4], "segmentation": [[1, 2, 4, 2, 4, 6]], "keypoints": []},
        # the bbox again as a polygon of two corners, which it is not
        {
            "image_id": 6,
            "category_id": 1,
            "bbox": [1, 2, 3, 4],
            "segmentation": [[1, 2, 3, 4]],
            "attributes": {"rotation": 0.0, "occluded": False},
        },
        {"image_id": 6, "category_id": 0, "bbox": [5.5, 2, 3, 4], "iscrowd": False, "ignore": 0, "bbox_mode": 1}
        | {"visible": True, "hidden": None, "status": "accepted", "tags": ["train"], "deleted": False},
    ]
    found = read("coco", content, tmp_path)
    assert in_pixels(found) == [{"legs": (1, 2, 4, 6)}, {"head": (1, 2, 4, 6), "legs": (5.5, 2, 8.5, 6)}, {}]
    assert {image.size for image in found.images} == {(None, None)}


def test_coco_says_what_it_does_not_say(tmp_path: Path) -> None:
    """Of COCO Annotator and LVIS: images that nobody has annotated, parts that are not all there, a second path."""
    content = coco()
    content["images"][0] |= {"file_name": "1.png", "path": "/datasets/q/1.png", "annotated": False}
    content["images"][0]["not_exhaustive_category_ids"] = [2, 99]
    content["images"] += [
        {"id": 7, "file_name": "q/3.png", "annotated": False},
        {"id": 8, "file_name": "q/4.png", "deleted": True},
        {"id": 9, "file_name": "q/5.png", "status": "skipped"},
    ]
    content["annotations"].append({"id": 99, "image_id": 9, "category_id": 3, "bbox": [1, 2, 3, 4]})
    found = read("coco", content, tmp_path)
    assert found.not_annotated == ("image 7 (q/3.png)", "image 8 (q/4.png)", "image 9 (q/5.png)")
    assert [(image.also_named, image.incomplete) for image in found.images] == [
        (("/datasets/q/1.png",), {"upper_body"}),
        ((), set()),
    ]


@pytest.mark.parametrize("box", [Box(16, 32, 48, 64), Box(0, 0, 64, 128), Box(5, 0, 6, 128), Box(63, 127, 64, 128)])
@pytest.mark.parametrize("form", [dict, as_text])
def test_a_mask_that_agrees_with_its_box_is_read(box: Box, form: Callable[..., Any], tmp_path: Path) -> None:
    content = coco()
    content["annotations"] = [
        content["annotations"][0]
        | {"bbox": [box.x_min, box.y_min, box.width, box.height], "segmentation": form(runs(box))}
    ]
    assert read("coco", content, tmp_path).images[0].boxes == {"head": box}


def test_annotations_are_not_blamed_for_an_image_that_cannot_be_read(tmp_path: Path) -> None:
    content = coco()
    content["images"][0]["width"] = "64"
    with pytest.raises(DataError, match="nothing was imported, 1 problem:"):
        read("coco", content, tmp_path)


# ---- Label Studio


def region(kind: str, value: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": kind, "from_name": "x", "to_name": "image", "value": value, **more}


RECTANGLE = {"x": 25, "y": 25, "width": 50, "height": 25, "rotation": 0}


def annotated(*regions: Any, **more: Any) -> list[Any]:
    found = tasks()[:1]
    found[0]["annotations"] = [{"id": 1, "result": list(regions), **more}]
    return found


def test_a_rectangle_and_its_labels_are_joined_by_id(tmp_path: Path) -> None:
    pairs = [
        region("rectangle", RECTANGLE, id="a"),
        region("labels", {**RECTANGLE, "labels": ["head"]}, id="a"),
        region("labels", {**RECTANGLE, "height": 50, "labels": ["legs"]}, id="b"),
        region("rectangle", {**RECTANGLE, "height": 50}, id="b"),
        region("rectangle", {**RECTANGLE, "width": 25, "labels": ["upper_body"]}, id="c"),
    ]
    boxes = {"head": (16, 32, 48, 64), "legs": (16, 32, 48, 96), "upper_body": (16, 32, 32, 64)}
    found = read("label-studio", annotated(*pairs), tmp_path)
    assert in_pixels(found) == [boxes] and found.images[0].size == (None, None)


@pytest.mark.parametrize(
    ("regions", "told"),
    [
        ([region("rectangle", RECTANGLE, id="a")], "exactly one part as its label, found none"),
        ([region("labels", {**RECTANGLE, "labels": ["head"]}, id="a")], "belong to no rectangle"),
        (
            [
                region("rectangle", RECTANGLE, id="a"),
                region("labels", {**RECTANGLE, "labels": ["head"], "x": 1}, id="a"),
            ],
            "differ in place or size",
        ),
        ([region("rectangle", RECTANGLE, id="a")] * 2, "two regions of type 'rectangle' have the id 'a'"),
        (
            [region("polygonlabels", {"points": [[1, 2]], "polygonlabels": ["head"]})],
            "'polygonlabels' is not a rectangle",
        ),
        ([region("ellipselabels", {"x": 1, "y": 1, "radiusX": 5})], "'ellipselabels' is not a rectangle"),
        ([region("ellipse", {"x": 1}, id="a"), region("labels", {"labels": ["head"]}, id="a")], "'ellipse' is not"),
        ([region("brushlabels", {"format": "rle", "rle": [1]})], "'brushlabels'"),
        ([region("keypointlabels", {"x": 1, "y": 1, "width": 1})], "'keypointlabels'"),
        ([region("choices", {"choices": ["head"]})], "'choices'"),
        ([region("textarea", {"text": ["no head"]})], "'textarea'"),
        ([{"type": "relation", "from_id": "a", "to_id": "b"}], "`value`: field required"),
        (
            [region("rectanglelabels", {**RECTANGLE, "rectanglelabels": ["head", "legs"]})],
            "exactly one part as its label, found .*legs",
        ),
        (
            [region("rectanglelabels", {**RECTANGLE, "rectanglelabels": []})],
            "exactly one part as its label, found none",
        ),
        ([region("rectanglelabels", RECTANGLE)], "exactly one part as its label, found none"),
        ([region("rectanglelabels", {**RECTANGLE, "rectanglelabels": ["head"], "rotation": 12})], "is rotated"),
        ([region("rectanglelabels", {**RECTANGLE, "rectanglelabels": ["head"]}, image_rotation=90)], "is rotated"),
        ([region("rectanglelabels", {**RECTANGLE, "rectanglelabels": ["head"]}, item_index=1)], "several images"),
        ([region("rectanglelabels", {**RECTANGLE, "rectanglelabels": ["head"]}, hidden=True)], "marked with `hidden`"),
        ([region("rectanglelabels", {**RECTANGLE, "rectanglelabels": ["head"], "deleted": True})], "`deleted`"),
        ([region("rectanglelabels", {**RECTANGLE, "rectanglelabels": ["head"], "x": "1"})], "`x`: input should be"),
        ([region("rectanglelabels", {**RECTANGLE, "rectanglelabels": ["head"], "width": 101})], "are these pixels"),
        ([region("rectanglelabels", {**RECTANGLE, "rectanglelabels": ["head"], "width": -5})], "is -0.05 wide"),
        ([region("rectanglelabels", {**RECTANGLE, "rectanglelabels": ["head"]})] * 2, "two boxes of 'head'"),
        ([{}], "`type`: field required"),
        ([5], "valid dictionary"),
        (
            [
                region("rectanglelabels", {**RECTANGLE, "rectanglelabels": ["head"]}, original_width=64),
                region("rectanglelabels", {**RECTANGLE, "rectanglelabels": ["legs"]}, original_width=128),
            ],
            "different sizes",
        ),
    ],
)
def test_label_studio_regions_that_are_no_boxes_are_named(regions: list[Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"task 7 \(q/1.png\): .*{told}"):
        read("label-studio", annotated(*regions), tmp_path)


def test_a_size_that_is_null_in_one_region_is_said_by_another(tmp_path: Path) -> None:
    kinds = (("head", None, 0), ("legs", 64, None), ("upper_body", 64, 128))
    regions = [
        region(
            "rectanglelabels", {**RECTANGLE, "rectanglelabels": [part]}, original_width=width, original_height=height
        )
        for part, width, height in kinds
    ]
    assert read("label-studio", annotated(*regions), tmp_path).images[0].size == (64, 128)
    assert read("label-studio", annotated(*regions[:2]), tmp_path).images[0].size == (64, None)


@pytest.mark.parametrize(
    ("task", "told"),
    [
        ({"annotations": []}, "task no. 1: it has no `data`"),
        ({"id": 3, "data": {"image": "a.png"}}, r"task 3 \(a.png\): it has no `annotations`"),
        ({"id": 3, "data": {"image": "a.png"}, "annotations": [12, 13]}, "it has no `annotations` with their results"),
        ({"id": 3, "data": {"image": "a.png"}, "annotations": [{"id": 1}]}, "`result`: field required"),
        ({"id": 3, "data": {"a": "a.png", "b": "b.png"}, "annotations": []}, "names no image, or several"),
    ],
)
def test_label_studio_tasks_that_are_none_are_named(task: Any, told: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=told):
        read("label-studio", [task], tmp_path)


def test_what_nobody_submitted_is_not_annotated(tmp_path: Path) -> None:
    first, second = tasks()
    first["annotations"][0]["was_cancelled"] = True
    first["drafts"] = [{"result": first["annotations"][0]["result"]}]
    del second["annotations"]  # as it was exported to Label Studio
    found = read("label-studio", [first, second], tmp_path)
    assert found.images == () and found.not_annotated == ("task 7 (q/1.png)", "task 8 (q/2.png)")
    assert found.parts == {"head", "legs"}  # of the predictions
    first["annotations"] = [{"id": 1, "result": second["predictions"][0]["result"]}]
    assert read("label-studio", [first | {"is_skipped": True}], tmp_path).not_annotated == ("task 7 (q/1.png)",)
    small = {"id": 7, "image": "q/1.png", "annotator": 1, "part": [{**RECTANGLE, "rectanglelabels": ["head"]}]}
    assert read("label-studio", [small | {"was_cancelled": True}], tmp_path).not_annotated == ("task 7 (q/1.png)",)
    assert len(read("label-studio", [small | {"was_cancelled": False}], tmp_path).images) == 1
    first["annotations"] = [{"id": 1, "result": []}]  # submitted without a box is another thing
    found = read("label-studio", [first], tmp_path)
    assert [image.boxes for image in found.images] == [{}] and not found.not_annotated


def test_of_several_annotations_the_newest_of_one_person_counts(tmp_path: Path) -> None:
    (task,) = tasks()[:1]
    result = task["annotations"][0]["result"]
    moved = copy.deepcopy(result)
    moved[0]["value"]["width"] = 60
    task["annotations"] = [
        {"id": 3, "updated_at": "2026-02-01T00:00:00Z", "result": result, "completed_by": 1},
        {"id": 1, "updated_at": "2026-03-01T00:00:00Z", "result": moved, "completed_by": 1},
        {"id": 9, "updated_at": "2026-04-01T00:00:00Z", "result": [], "was_cancelled": True, "completed_by": 2},
    ]
    (image,) = read("label-studio", [task], tmp_path).images
    assert image.boxes["head"].width == pytest.approx(0.6)
    task["annotations"][1]["updated_at"] = "2026-02-01T01:00:00+02:00"  # an hour earlier
    (image,) = read("label-studio", [task], tmp_path).images
    assert image.boxes["head"].width == pytest.approx(0.5)
    task["annotations"][0]["completed_by"] = 2
    with pytest.raises(DataError, match=r"task 7 .*the annotations of 2 annotators differ; mark one"):
        read("label-studio", [task], tmp_path)
    task["annotations"][0]["ground_truth"] = True
    (image,) = read("label-studio", [task], tmp_path).images
    assert image.boxes["head"].width == pytest.approx(0.5)
    task["annotations"][0] |= {"ground_truth": False, "result": moved}  # two people of one mind
    (image,) = read("label-studio", [task], tmp_path).images
    assert image.boxes["head"].width == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("said", "counts"),
    [
        ({"last_action": "rejected"}, False),
        ({"skipped": True}, False),
        ({"reviews": [{"accepted": False}]}, False),
        (
            {
                "reviews": [
                    {"accepted": False, "created_at": "2026-05-02"},
                    {"accepted": True, "created_at": "2026-05-01"},
                ]
            },
            False,
        ),
        (
            {
                "reviews": [
                    {"accepted": False, "created_at": "2026-05-01"},
                    {"accepted": True, "created_at": "2026-05-02"},
                ]
            },
            True,
        ),
        (
            {
                "reviews": [
                    {"accepted": False, "created_at": "2026-05-02T09:30:00Z"},
                    {"accepted": True, "created_at": "2026-05-02T10:00:00+02:00"},
                ]
            },
            False,
        ),
        ({"reviews": [{"accepted": False}], "last_action": "updated"}, True),
        ({"reviews": [{"accepted": True}], "last_action": "accepted"}, True),
        ({"reviews": [], "last_action": None}, True),
    ],
)
def test_what_a_reviewer_rejected_is_not_annotated(said: dict[str, Any], counts: bool, tmp_path: Path) -> None:
    (task,) = tasks()[:1]
    task["annotations"][0] |= said
    assert bool(read("label-studio", [task], tmp_path).images) == counts


def test_the_image_of_a_task_may_have_another_key(tmp_path: Path) -> None:
    for address in ("/data/upload/3/3f2a1b7c-1.PNG", "s3://b/1.jpg?X-Sign=a.b", "/data/local-files/?d=q%2F1.webp"):
        task = {"id": 1, "data": {"photo": address, "note": "a man"}, "annotations": [{"id": 1, "result": []}]}
        (image,) = read("label-studio", [task], tmp_path).images
        assert image.path == address


def min_entry(**more: Any) -> dict[str, Any]:
    times = {"created_at": "2026-01-01T00:00:00Z", "updated_at": "2026-01-01T00:00:00Z", "lead_time": 1.5}
    return {"image": "/data/upload/3/3f2a1b7c-1.png", "id": 1, "annotator": 1, "annotation_id": 11, **times, **more}


SIZE = {"original_width": 64, "original_height": 128}


def test_json_min_is_understood(tmp_path: Path) -> None:
    head = {**RECTANGLE, "rectanglelabels": ["head"], **SIZE}
    legs = {**RECTANGLE, "height": 50, **SIZE}
    entries = [
        min_entry(part=[head], rect=[legs], lab=[{**legs, "labels": ["legs"]}], words=["a", "b"]),
        min_entry(id=2, image="q/2.png"),
    ]
    found = read("label-studio", entries, tmp_path)
    assert in_pixels(found) == [{"head": (16, 32, 48, 64), "legs": (16, 32, 48, 96)}, {}]
    assert found.images[0].size == (64, 128) and found.images[0].entry == "task 1"
    alone = read("label-studio", [min_entry(part=head, words={"choices": ["a", "b"]})], tmp_path)
    assert in_pixels(alone) == [{"head": (16, 32, 48, 64)}]


@pytest.mark.parametrize(
    ("entries", "told"),
    [
        (
            [min_entry(part=[{"points": [[1, 2]], "polygonlabels": ["head"], **SIZE}])],
            "'polygonlabels' is not a rectangle",
        ),
        ([min_entry(e=[{"x": 1, "y": 1, "radiusX": 2, "radiusY": 3, **SIZE}])], "a region of an unsupported shape"),
        ([min_entry(lab=[{**RECTANGLE, "labels": ["head"], **SIZE}])], "belong to no rectangle"),
        ([min_entry(rect=[{**RECTANGLE, **SIZE}])], "exactly one part as its label, found none"),
        ([min_entry(part=json.dumps([{**RECTANGLE, "rectanglelabels": ["head"]}]))], "'a text of JSON' is not a rect"),
        ([min_entry(part={**RECTANGLE, "polygonlabels": ["head"]})], "'polygonlabels' is not a rectangle"),
        ([min_entry(part=[{"format": "rle", "rle": [1], "brushlabels": ["head"]}])], "'brushlabels'"),
        (
            [
                min_entry(part=[{**RECTANGLE, "rectanglelabels": ["head"]}]),
                min_entry(annotator=2, annotation_id=12, part=[{**RECTANGLE, "x": 1, "rectanglelabels": ["head"]}]),
            ],
            "2 annotators differ",
        ),
    ],
)
def test_json_min_of_other_things_is_refused(entries: list[Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"task 1 \(.*1.png\): .*{told}"):
        read("label-studio", entries, tmp_path)


# ---- FiftyOne


def test_fiftyone_samples_that_are_tagged_as_rejected_are_not_annotated(tmp_path: Path) -> None:
    content = samples()
    content["samples"][0]["tags"] = ["train", "reviewed"]
    content["samples"][1]["tags"] = ["train", "Deleted"]
    found = read("fiftyone", content, tmp_path)
    assert [image.path for image in found.images] == ["q/1.png"] and found.not_annotated == ("sample 2 (q/2.png)",)


def test_fiftyone_samples_without_a_value_are_not_annotated(tmp_path: Path) -> None:
    content = samples()
    content["samples"][0]["parts"] = None
    del content["samples"][1]["parts"]
    found = read("fiftyone", content, tmp_path)
    assert found.images == () and found.not_annotated == ("sample 1 (q/1.png)", "sample 2 (q/2.png)")
    content["samples"][0]["parts"] = {"_cls": "Detections", "detections": []}
    assert [image.boxes for image in read("fiftyone", content, tmp_path).images] == [{}]


def test_a_renamed_field_is_found_and_several_must_be_chosen_from(tmp_path: Path) -> None:
    content = samples()
    for sample in content["samples"]:
        sample["corrected"] = sample.pop("parts")
        sample |= {"ground_truth": {"_cls": "Classification", "label": "person 7"}, "tags": ["x"], "metadata": None}
    found = read("fiftyone", content, tmp_path)
    assert len(found.images[0].boxes) == 2 and found.images[0].size == (None, None)
    with pytest.raises(ConfigError, match="no sample has a field 'boxes'"):
        read("fiftyone", content, tmp_path, field="boxes")
    content["samples"][1]["parts"] = {"_cls": "Detections", "detections": []}
    with pytest.raises(ConfigError, match="several fields of detections: corrected, parts"):
        read("fiftyone", content, tmp_path)
    assert len(read("fiftyone", content, tmp_path, field="corrected").images) == 2
    for sample in content["samples"]:
        for name in ("corrected", "parts"):
            sample.pop(name, None)
    with pytest.raises(ConfigError, match="no sample has a field 'parts' or any other"):
        read("fiftyone", content, tmp_path)


def detection(**more: Any) -> dict[str, Any]:
    return {"_cls": "Detection", "label": "head", "bounding_box": [0.25, 0.25, 0.5, 0.25], **more}


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ({"_cls": "Polylines", "polylines": []}, "the field 'parts' holds Polylines"),
        ({"_cls": "Keypoints", "keypoints": []}, "holds Keypoints"),
        ({"_cls": "Segmentation", "mask": {}}, "holds Segmentation"),
        (detection(), "holds Detection; only Detections"),
        ({"_cls": "Classifications", "classifications": []}, "holds Classifications"),
        ("head", "holds str"),
        ({"_cls": "Detections", "detections": None}, "holds Detections"),
        ([detection(_cls="Polyline")], "holds a Polyline"),
        ([detection(label=None)], "`label`"),
        ([detection(bounding_box=None)], "`bounding_box`"),
        ([detection(bounding_box=[0.1, 0.2, 0.3])], "has 3 numbers, not 4"),
        ([detection(bounding_box=[0.1, 0.2, None, 0.3])], "`bounding_box.2`"),
        ([detection(bounding_box=[16, 32, 32, 32])], "larger than the image: are these pixels"),
        ([detection(bounding_box=[0.5, 0.5, -0.1, 0.1])], "is -0.1 wide"),
        ([detection(rotation=0.4)], "is rotated"),
        ([detection(iscrowd=1)], "`iscrowd`"),
        ([detection(tags=["Rejected"])], "`tags: Rejected`"),
        ([detection(visible=False)], "`visible: False`"),
        ([detection(angle=0.4)], "is rotated"),
        ([detection(attributes={"rotation": {"_cls": "NumericAttribute", "value": 3}})], "is rotated"),
        ([detection(), detection()], "two boxes of 'head'"),
        ([5], "valid dictionary"),
    ],
)
def test_fiftyone_values_that_are_no_boxes_are_named(value: Any, told: str, tmp_path: Path) -> None:
    content = samples()
    content["samples"][1]["parts"] = {"_cls": "Detections", "detections": value} if isinstance(value, list) else value
    with pytest.raises(DataError, match=rf"sample 2 \(q/2.png\): .*{told}"):
        read("fiftyone", content, tmp_path)
    content["samples"][1]["_media_type"] = "video"
    with pytest.raises(DataError, match="it is a video, not an image"):
        read("fiftyone", content, tmp_path)
    content["samples"].append({"parts": None})
    with pytest.raises(DataError, match="`filepath`: field required"):
        read("fiftyone", content, tmp_path)
