"""COCO detection JSON: `images`, `categories`, `annotations` with `bbox` [x, y, width, height] in pixels."""

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from labeler.exchange.foreign_json import (
    Entry,
    Identifier,
    ImportedImage,
    ImportedLabels,
    NotUnderstoodError,
    Number,
    Problems,
    add_box,
    says_rotated,
)
from labeler.exchange.part_boxes import PartBoxes
from shared.geometry import Box

XYWH_MODES = (1, "XYWH_ABS", "BoxMode.XYWH_ABS")


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


class _Category(Entry):
    id: Identifier
    name: str


_Named = TypeVar("_Named", _Image, _Category)


class _Annotation(Entry):
    image_id: Identifier
    category_id: Identifier
    bbox: list[Number] | None = None
    segmentation: Any = None
    iscrowd: Any = 0
    keypoints: Any = None
    bbox_mode: Any = None  # Detectron2: 1 is x, y, width, height
    deleted: Any = None  # COCO Annotator


def from_coco(content: Any, problems: Problems) -> ImportedLabels:
    """The boxes of all listed images; an annotation that is not an upright box becomes a problem.

    `segmentation` and `area` are ignored where there is a bbox: a polygon counts with its bounding box. A width or
    height of 0 means, like null, that the size is unknown (Datumaro writes it so).
    """
    images = _by_id(_Image, "image", content["images"], problems)
    categories = _by_id(_Category, "category", content["categories"], problems)
    boxes: dict[Identifier, dict[str, Box]] = {number: {} for number in images}
    for place, raw in enumerate(content["annotations"], start=1):
        with problems.entry(_annotation_name(raw, place, images)):
            annotation = _Annotation.model_validate(raw)
            if says_rotated(raw):
                raise NotUnderstoodError("the box is rotated")
            _add(annotation, categories, boxes)
    return ImportedLabels(
        tuple(
            ImportedImage(
                f"image {image.id}", image.file_name, boxes[image.id], (image.width or None, image.height or None)
            )
            for image in images.values()
        ),
        frozenset(part for found in boxes.values() for part in found),
    )


def _add(
    annotation: _Annotation, categories: dict[Identifier, _Category], boxes: dict[Identifier, dict[str, Box]]
) -> None:
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
    if annotation.iscrowd not in (0, None):
        raise NotUnderstoodError(f"{part!r} is a crowd or a mask (`iscrowd`), not a rectangle")
    if annotation.keypoints:
        raise NotUnderstoodError(f"{part!r} has keypoints; only rectangles can be imported")
    if annotation.bbox_mode not in (None, *XYWH_MODES):
        raise NotUnderstoodError(f"`bbox_mode` says that the bbox of {part!r} is not x, y, width, height")
    if annotation.deleted:
        raise NotUnderstoodError(f"{part!r} is marked as deleted")
    x, y, width, height = annotation.bbox
    add_box(boxes[annotation.image_id], part, x, y, width, height)


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
