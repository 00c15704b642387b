"""Label Studio JSON: a list of tasks with rectangles in percent of the image.

Outgoing boxes are predictions, which people accept or correct; incoming are the annotations that people submitted.
The labelling interface needs `<Image name="image" value="$image"/>` and
`<RectangleLabels name="part" toName="image">` with one label per part.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote, unquote

from labeler.exchange.foreign_json import (
    Entry,
    ImportedImage,
    ImportedLabels,
    NotUnderstoodError,
    Number,
    Problems,
    add_relative_box,
    is_rotated,
    mark_of,
    refuse_marked,
)
from labeler.exchange.part_boxes import PartBoxes
from shared.geometry import Box

FROM_NAME, TO_NAME = "part", "image"
SAME_BOX = 1e-3  # of the image's side: annotators whose boxes differ by less agree
_LABEL_KEYS = ("rectanglelabels", "labels", "rectangle")  # of a region's value
_IMAGE_NAMES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm")


def to_label_studio(images: Sequence[PartBoxes], parts: Sequence[str], *, image_prefix: str, model: str) -> list[Any]:
    """Tasks to import. image_prefix: what makes an address of a path, e.g. "/data/local-files/?d=viper/"."""
    return [
        {
            "data": {TO_NAME: image_prefix + quote(image.path), "path": image.path},
            "predictions": [
                {"model_version": model, "result": [_rectangle(image, part) for part in parts if part in image.boxes]}
            ],
        }
        for image in images
    ]


class _Region(Entry):
    """One entry of an annotation's result; in JSON-MIN the value itself, with the type that its keys tell."""

    type: str
    value: dict[str, Any]
    id: Any = None
    original_width: Number | None = None
    original_height: Number | None = None
    image_rotation: Any = None
    item_index: Any = None


class _Rectangle(Entry):
    x: Number
    y: Number
    width: Number
    height: Number


class _Review(Entry):
    accepted: bool | None = None
    created_at: str | None = None


class _Annotation(Entry):
    result: list[Any]
    id: Any = None
    completed_by: Any = None
    ground_truth: bool | None = False
    updated_at: str | None = None
    last_action: str | None = None
    reviews: list[_Review] | None = None

    @property
    def counts(self) -> bool:
        """Not rejected by the last review, unless it was changed after that."""
        if self.last_action == "rejected":
            return False
        if not self.reviews or self.last_action not in (None, "deleted_review"):
            return True
        return max(self.reviews, key=lambda review: _moment(review.created_at)).accepted is not False


def from_label_studio(content: Any, problems: Problems) -> ImportedLabels:
    """The annotations that people submitted, in the JSON or the JSON-MIN export.

    Of several annotations of a task by one annotator the newest counts; those of several annotators must agree, or one
    must be marked as ground truth. Tasks with only predictions, drafts, cancelled or rejected annotations count as not
    annotated.
    """
    images: list[ImportedImage] = []
    parts: set[str] = set()
    not_annotated: list[str] = []
    for place, task in enumerate(_with_annotations(content), start=1):
        path, others = "?", []
        name = f"task {task['id']}" if "id" in task else f"task no. {place}"
        with problems.entry(name):
            path, *others = _paths(task)
        with problems.entry(f"{name} ({path})"):
            parts |= set(_predicted_parts(task))
            annotation = None if mark_of(task) else _submitted(task)
            if annotation is None:
                not_annotated.append(f"{name} ({path})")
                continue
            boxes, size = _boxes(annotation.result)
            parts |= boxes.keys()
            images.append(ImportedImage(name, path, boxes, size, relative=True, also_named=tuple(others)))
    return ImportedLabels(tuple(images), frozenset(parts), tuple(not_annotated))


def _with_annotations(content: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Tasks as in the full export; JSON-MIN has one flat entry per annotation, without ids and types of regions."""
    tasks: dict[Any, dict[str, Any]] = {}
    for place, entry in enumerate(content):
        if not {"annotation_id", "annotator"} & entry.keys():
            tasks[place] = dict(entry)
            continue
        annotation = {
            "result": [region for value in entry.values() for region in _regions_of_min(value)],
            "id": entry.get("annotation_id"),
            "completed_by": entry.get("annotator"),
            "updated_at": entry.get("updated_at"),
            "skipped": mark_of(entry) is not None,
        }
        key = repr([entry.get(name) for name in ("id", "path", TO_NAME)])
        task = tasks.setdefault(key, {"id": entry.get("id"), "data": dict(entry), "annotations": []})
        task["annotations"].append(annotation)
    return list(tasks.values())


def _regions_of_min(value: Any) -> list[dict[str, Any]]:
    """The regions of one value of an entry: a list of them, one alone, or, from a table, JSON in a text."""
    if isinstance(value, str) and value.lstrip().startswith(("[{", "{")):
        return [{"type": "a text of JSON", "value": {}}]
    if isinstance(value, dict):
        value = [value] if "x" in value else []
    return [_region_of_min(one) for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _region_of_min(value: dict[str, Any]) -> dict[str, Any]:
    """A region of JSON-MIN in the form of the full export: its geometry takes the place of the missing id."""
    rectangle = [value.get(key) for key in ("x", "y", "width", "height", "rotation")]
    labels = [key for key in value if key.endswith("labels")]
    kind = labels[0] if labels else "rectangle" if None not in rectangle[:4] else "a region of an unsupported shape"
    sizes = {key: value.get(key) for key in ("original_width", "original_height")}
    return {"type": kind, "value": value, "id": repr(rectangle), **sizes}


def _paths(task: Mapping[str, Any]) -> list[str]:
    """The names that a task has for its image, the surest first."""
    data = task.get("data")
    if not isinstance(data, dict):
        raise NotUnderstoodError("it has no `data` that names an image")
    known = [data[key] for key in ("path", TO_NAME) if isinstance(data.get(key), str)]
    if known:
        return known
    names = {
        value
        for value in data.values()
        if isinstance(value, str) and PurePosixPath(unquote(_file_of(value))).suffix.lower() in _IMAGE_NAMES
    }
    if len(names) != 1:
        raise NotUnderstoodError("its `data` names no image, or several; call the image's key `image` or `path`")
    return [*names]


def _file_of(address: str) -> str:
    """An address without its query, or the file that a local-files address names in it."""
    return address.rpartition("?d=")[2].partition("?")[0]


def _predicted_parts(task: Mapping[str, Any]) -> Iterable[str]:
    """Parts that the task's predictions have: they were shown, so an annotation without them took them away."""
    predictions = task.get("predictions")
    for prediction in predictions if isinstance(predictions, list) else []:
        result = prediction.get("result") if isinstance(prediction, dict) else None
        for region in result if isinstance(result, list) else []:
            value = region.get("value") if isinstance(region, dict) else None
            labels = [value.get(key) for key in _LABEL_KEYS] if isinstance(value, dict) else []
            for found in labels:
                yield from (label for label in found if isinstance(label, str)) if isinstance(found, list) else ()


def _submitted(task: Mapping[str, Any]) -> _Annotation | None:
    """The annotation that counts; None when nobody submitted one."""
    found = task.get("annotations", task.get("completions"))  # completions: before version 1.0
    if found is None and isinstance(task.get("predictions"), list):
        return None  # as it was exported to Label Studio
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise NotUnderstoodError("it has no `annotations` with their results; export JSON, not a task list")
    unmarked = (one for one in found if not mark_of(one))  # `was_cancelled`, before version 1.0 `skipped`
    everyone = [one for one in map(_Annotation.model_validate, unmarked) if one.counts]
    submitted = [one for one in everyone if one.ground_truth] or everyone
    newest: dict[str, _Annotation] = {}  # by annotator
    for one in sorted(submitted, key=lambda one: (_moment(one.updated_at), one.id if isinstance(one.id, int) else 0)):
        newest[repr(one.completed_by)] = one
    if len(newest) > 1 and not _agree([_boxes(one.result)[0] for one in newest.values()]):
        raise NotUnderstoodError(f"the annotations of {len(newest)} annotators differ; mark one as ground truth")
    return next(reversed(newest.values()), None)


def _moment(text: str | None) -> datetime:
    """A time of any zone, UTC where it says none; the earliest where it is no time."""
    try:
        found = datetime.fromisoformat(text or "")
    except ValueError:
        return datetime.min.replace(tzinfo=UTC)
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _agree(annotations: Sequence[Mapping[str, Box]]) -> bool:
    first = annotations[0]
    return all(
        other.keys() == first.keys()
        and all(abs(a - b) <= SAME_BOX for part in first for a, b in zip(first[part], other[part], strict=True))
        for other in annotations[1:]
    )


def _boxes(result: Sequence[Any]) -> tuple[dict[str, Box], tuple[float | None, float | None]]:
    """Boxes as fractions of the image, and its size in pixels where regions say one.

    A rectangle and its labels may be two regions with one id (the tags Rectangle and Labels).
    """
    labelled: list[tuple[_Rectangle, Any]] = []
    pairs: dict[str, dict[str, _Region]] = {}
    widths: set[float] = set()
    heights: set[float] = set()
    for raw in result:
        region = _Region.model_validate(raw)
        if region.type not in ("rectanglelabels", "rectangle", "labels"):
            raise NotUnderstoodError(f"{region.type!r} is not a rectangle; only rectangles with a part can be imported")
        if is_rotated(region.value.get("rotation")) or is_rotated(region.image_rotation):
            raise NotUnderstoodError("a rectangle, or the image under it, is rotated")
        refuse_marked([raw, region.value], "a rectangle")
        if region.item_index:
            raise NotUnderstoodError("the task has several images; make one task per image")
        widths |= {region.original_width or 0} - {0}  # null and 0 say nothing
        heights |= {region.original_height or 0} - {0}
        if region.type == "rectanglelabels":
            labelled.append((_Rectangle.model_validate(region.value), region.value.get("rectanglelabels")))
            continue
        pair = pairs.setdefault(repr(region.id), {})
        if pair.setdefault(region.type, region) is not region:
            raise NotUnderstoodError(f"two regions of type {region.type!r} have the id {region.id!r}")
    labelled += [_joined(pair) for pair in pairs.values()]
    boxes: dict[str, Box] = {}
    for one, labels in labelled:
        if not isinstance(labels, list) or len(labels) != 1 or not isinstance(labels[0], str):
            raise NotUnderstoodError(f"a rectangle needs exactly one part as its label, found {labels or 'none'}")
        add_relative_box(boxes, labels[0], one.x / 100, one.y / 100, one.width / 100, one.height / 100)
    if len(widths) > 1 or len(heights) > 1:
        raise NotUnderstoodError(
            f"its rectangles are of images of different sizes: widths {sorted(widths)}, heights {sorted(heights)}"
        )
    return boxes, (next(iter(widths), None), next(iter(heights), None))


def _joined(pair: Mapping[str, _Region]) -> tuple[_Rectangle, Any]:
    """The geometry and the labels of a rectangle whose labels are a region of their own, or lie in its value."""
    if "rectangle" not in pair:
        raise NotUnderstoodError(f"the labels {pair['labels'].value.get('labels')} belong to no rectangle")
    region = pair["rectangle"]
    rectangle = _Rectangle.model_validate(region.value)
    if "labels" not in pair:
        return rectangle, region.value.get("labels") or region.value.get("rectangle")
    if _Rectangle.model_validate(pair["labels"].value) != rectangle:
        raise NotUnderstoodError(f"the rectangle {region.id!r} and its labels differ in place or size")
    return rectangle, pair["labels"].value.get("labels")


def _rectangle(image: PartBoxes, part: str) -> dict[str, Any]:
    box = image.boxes[part]
    return {
        "id": part,
        "type": "rectanglelabels",
        "from_name": FROM_NAME,
        "to_name": TO_NAME,
        "original_width": image.width,
        "original_height": image.height,
        "image_rotation": 0,
        "value": {
            "x": 100 * box.x_min / image.width,
            "y": 100 * box.y_min / image.height,
            "width": 100 * box.width / image.width,
            "height": 100 * box.height / image.height,
            "rotation": 0,
            "rectanglelabels": [part],
        },
    } | ({"score": image.scores[part]} if part in image.scores else {})
