"""COCO detection JSON: `images`, `categories`, `annotations` with `bbox` [x, y, width, height] in pixels."""

from collections.abc import Iterable, Sequence
from math import isclose
from typing import Any, TypeVar

import numpy as np
from pydantic import Field

from labeler.exchange.foreign_json import (
    Entry,
    Identifier,
    ImportedImage,
    ImportedLabels,
    NotUnderstoodError,
    Number,
    Problems,
    add_box,
    mark_of,
    refuse_marked,
)
from labeler.exchange.part_boxes import PartBoxes
from shared.geometry import Box
from shared.images import MAX_PIXELS

XYWH_MODES = (1, "XYWH_ABS", "BoxMode.XYWH_ABS")
SLACK_PX, SLACK = 2.0, 0.05  # between a bbox and its polygon, the larger: tools count the last pixel or do not


def to_coco(images: Sequence[PartBoxes], parts: Sequence[str]) -> dict[str, Any]:
    """A COCO mapping; categories are the parts in order, file_name is relative to the data set's folder."""
    number = {part: place for place, part in enumerate(parts, start=1)}
    annotations: list[dict[str, Any]] = []
    for image_number, image in enumerate(images, start=1):
        for part, box in image.boxes.items():
            annotation = {
                "id": len(annotations) + 1,
                "image_id": image_number,
                "category_id": number[part],
                "bbox": [box.x_min, box.y_min, box.width, box.height],
                "area": box.area,
                "iscrowd": 0,
            }
            annotations.append(annotation | ({"score": image.scores[part]} if part in image.scores else {}))
    return {
        "info": {"description": "body parts of persons"},
        "images": [
            {"id": place, "file_name": image.path, "width": image.width, "height": image.height}
            for place, image in enumerate(images, start=1)
        ],
        "categories": [{"id": place, "name": part, "supercategory": "person"} for part, place in number.items()],
        "annotations": annotations,
    }


class _Image(Entry):
    id: Identifier
    file_name: str
    width: Number | None = None
    height: Number | None = None
    path: str | None = None  # COCO Annotator, as the next
    annotated: bool | None = None
    not_exhaustive_category_ids: list[Identifier] = Field(default_factory=list)  # LVIS


class _Category(Entry):
    id: Identifier
    name: str


_Named = TypeVar("_Named", _Image, _Category)


class _Annotation(Entry):
    image_id: Identifier
    category_id: Identifier
    bbox: list[Number] | None = None
    segmentation: Any = None
    area: Any = None
    keypoints: Any = None
    bbox_mode: Any = None  # Detectron2: 1 is x, y, width, height


def from_coco(content: Any, problems: Problems) -> ImportedLabels:
    """The boxes of all listed images; an annotation that is not an upright box becomes a problem.

    A polygon or a mask in run lengths counts with the bbox beside it, from which it must not differ. A width or height
    of 0 means, like null, that the size is unknown (Datumaro writes it so). Images that are marked as deleted, skipped
    or the like count as not annotated; those that COCO Annotator calls not annotated when they have no box.
    """
    images = _by_id(_Image, "image", content["images"], problems)
    categories = _by_id(_Category, "category", content["categories"], problems)
    boxes: dict[Identifier, dict[str, Box]] = {number: {} for number in images}
    if problems:  # annotations would only be called without image or category
        return ImportedLabels((), frozenset())
    for place, raw in enumerate(content["annotations"], start=1):
        with problems.entry(_annotation_name(raw, place, images)):
            annotation = _Annotation.model_validate(raw)
            refuse_marked(raw, _add(annotation, images, categories, boxes))
    marked = {raw["id"] for raw in content["images"] if mark_of(raw)}
    untouched = {
        image.id: f"image {image.id} ({image.file_name})"
        for image in images.values()
        if image.id in marked or (image.annotated is False and not boxes[image.id])
    }
    return ImportedLabels(
        tuple(
            ImportedImage(
                f"image {image.id}",
                image.file_name,
                boxes[image.id],
                (image.width or None, image.height or None),
                also_named=(image.path,) if image.path else (),
                incomplete=frozenset(
                    categories[number].name for number in image.not_exhaustive_category_ids if number in categories
                ),
            )
            for image in images.values()
            if image.id not in untouched
        ),
        frozenset(part for number, found in boxes.items() if number not in untouched for part in found),
        tuple(untouched.values()),
    )


def _add(
    annotation: _Annotation,
    images: dict[Identifier, _Image],
    categories: dict[Identifier, _Category],
    boxes: dict[Identifier, dict[str, Box]],
) -> str:
    """Add the annotation's box to those of its image; its part."""
    if annotation.image_id not in boxes:
        raise NotUnderstoodError(f"there is no image {annotation.image_id!r} in `images`")
    if annotation.category_id not in categories:
        raise NotUnderstoodError(f"there is no category {annotation.category_id!r} in `categories`")
    part = categories[annotation.category_id].name
    if not annotation.bbox:
        shape = "a segmentation" if annotation.segmentation else "an annotation"
        raise NotUnderstoodError(f"{shape} of {part!r} without bbox; draw rectangles")
    if len(annotation.bbox) != 4:
        raise NotUnderstoodError(f"the bbox of {part!r} has {len(annotation.bbox)} numbers, not x, y, width, height")
    if annotation.keypoints:
        raise NotUnderstoodError(f"{part!r} has keypoints; only rectangles can be imported")
    if annotation.bbox_mode not in (None, *XYWH_MODES):
        raise NotUnderstoodError(f"`bbox_mode` says that the bbox of {part!r} is not x, y, width, height")
    x, y, width, height = annotation.bbox
    add_box(boxes[annotation.image_id], part, x, y, width, height)
    if not _agrees(boxes[annotation.image_id][part], annotation, images[annotation.image_id]):
        raise NotUnderstoodError(
            f"the bbox of {part!r} is not that of its segmentation or area: is it an old one, or two corners, not x, "
            "y, width, height?"
        )
    return part


def _agrees(box: Box, annotation: _Annotation, image: _Image) -> bool:
    """Whether a box is what the polygons or mask beside it span; where there is none, not two corners by its area."""
    shape = annotation.segmentation
    spanned = _spanned_by_mask(shape, image) if isinstance(shape, dict) and shape else _spanned_by_polygons(shape)
    if spanned:
        allowed = (max(SLACK_PX, SLACK * box.width), max(SLACK_PX, SLACK * box.height)) * 2
        return all(abs(a - b) <= most for a, b, most in zip(box, spanned, allowed, strict=True))
    if shape or not _is_length(annotation.area):
        return True
    across, down = box.width - box.x_min, box.height - box.y_min  # if the bbox were two corners
    corners = across > 0 and down > 0 and isclose(across * down, annotation.area, rel_tol=SLACK)
    return not corners or isclose(box.area, annotation.area, rel_tol=SLACK)


def _spanned_by_polygons(shape: Any) -> Box | None:
    polygons = shape if isinstance(shape, list) else []
    if polygons and all(map(_is_length, polygons)):
        polygons = [polygons]  # VIA writes one polygon without the list of polygons
    polygons = [one for one in polygons if isinstance(one, list) and len(one) >= 6]  # 4 numbers are a bbox
    across, down = ([value for polygon in polygons for value in polygon[first::2]] for first in (0, 1))
    if not across or not down or not all(map(_is_length, (*across, *down))):
        return None
    return Box(min(across), min(down), max(across), max(down))


def _spanned_by_mask(mask: dict[str, Any], image: _Image) -> Box:
    """The box of a mask in run lengths, column by column, first of what is outside; counts as a list or as COCO's text.

    Raises NotUnderstoodError for a mask that is empty, of another size than its image, or cannot be read.
    """
    size, counts = mask.get("size"), mask.get("counts")
    if not isinstance(size, list) or len(size) != 2 or not all(isinstance(side, int) and side > 0 for side in size):
        raise NotUnderstoodError("its segmentation is neither polygons nor a mask with `size` and `counts`")
    height, width = size
    if any(said and said != own for said, own in zip((image.height, image.width), size, strict=True)):
        raise NotUnderstoodError(f"its mask is of {width} x {height} pixels, not of the image's size")
    runs = _runs_of_text(counts) if isinstance(counts, str) else counts
    if (
        not isinstance(runs, list)
        or not all(isinstance(run, int) and 0 <= run <= MAX_PIXELS for run in runs)
        or sum(runs) != height * width
    ):
        raise NotUnderstoodError(f"the run lengths of its mask do not make {width} x {height} pixels")
    ends = np.cumsum(runs)
    first, last = (ends - runs)[1::2], ends[1::2] - 1  # pixels of the runs inside
    first, last = first[last >= first], last[last >= first]
    if not first.size:
        raise NotUnderstoodError("its mask is empty")
    whole = bool((first // height != last // height).any())  # a run that goes on in the next column touches both edges
    top, bottom = (0, height) if whole else (int((first % height).min()), int((last % height).max()) + 1)
    return Box(int(first[0]) // height, top, int(last[-1]) // height + 1, bottom)


def _runs_of_text(text: str) -> list[int]:
    """COCO's text of run lengths: 5 bits a letter from "0" on, 32 says that more follow; from the fourth on each is
    the difference to the last but one."""
    runs: list[int] = []
    value = shift = 0
    for letter in text:
        bits = ord(letter) - 48
        if not 0 <= bits < 64 or shift > 60:
            raise NotUnderstoodError("the run lengths of its mask cannot be read")
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (bits & 16 and 1) << shift  # the sign
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    return runs


def _is_length(value: Any) -> bool:
    """Whether a value can be a number of pixels; not an integer of hundreds of digits, or NaN."""
    return isinstance(value, (int, float)) and abs(value) < MAX_PIXELS


def _by_id(kind: type[_Named], word: str, entries: Iterable[Any], problems: Problems) -> dict[Identifier, _Named]:
    found: dict[Identifier, _Named] = {}
    for place, raw in enumerate(entries, start=1):
        with problems.entry(f"{word} {_id_or_place(raw, place)}"):
            entry = kind.model_validate(raw)
            if entry.id in found:
                raise NotUnderstoodError(f"this {word} id is there twice")
            found[entry.id] = entry
    return found


def _id_or_place(raw: Any, place: int) -> str:
    return str(raw["id"]) if isinstance(raw, dict) and "id" in raw else f"no. {place}"


def _annotation_name(raw: Any, place: int, images: dict[Identifier, _Image]) -> str:
    name = f"annotation {_id_or_place(raw, place)}"
    number = raw.get("image_id") if isinstance(raw, dict) else None
    image = images.get(number) if isinstance(number, (int, float, str)) else None
    return f"{name} of image {image.id} ({image.file_name})" if image else name
