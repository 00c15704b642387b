"""FiftyOne's JSON of samples: detections with `bounding_box` [x, y, width, height] as fractions of the image.

An exported file opens in FiftyOne as `samples.json` of a folder:
`fo.Dataset.from_dir(folder, dataset_type=fo.types.LegacyFiftyOneDataset, rel_dir=<the data set's folder>)`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from labeler.exchange.foreign_json import (
    Entry,
    ImportedImage,
    ImportedLabels,
    NotUnderstoodError,
    Number,
    Problems,
    add_relative_box,
    mark_of,
    refuse_marked,
    shortened,
)
from labeler.exchange.part_boxes import PartBoxes
from shared.errors import ConfigError
from shared.geometry import Box

FIELD = "parts"


def to_fiftyone(images: Sequence[PartBoxes]) -> dict[str, Any]:
    """Samples whose field `parts` holds the detections; filepath is relative to the data set's folder."""
    return {
        "samples": [
            {
                "filepath": image.path,
                "metadata": {"_cls": "ImageMetadata", "width": image.width, "height": image.height},
                FIELD: {"_cls": "Detections", "detections": [_detection(image, part) for part in image.boxes]},
            }
            for image in images
        ]
    }


class _Metadata(Entry):
    width: Number | None = None
    height: Number | None = None


class _Sample(Entry):
    filepath: str
    metadata: _Metadata | None = None
    media_type: str | None = Field(default=None, alias="_media_type")


class _Detection(Entry):
    label: str
    bounding_box: list[Number]


def from_fiftyone(content: Any, problems: Problems, field: str | None = None) -> ImportedLabels:
    """The detections of every sample. A sample whose field is missing or null, or that is tagged as rejected or the
    like, counts as not annotated.

    Args:
        field: that holds the parts; default: the only field of detections.

    Raises ConfigError when the field is not in the file or several could be meant.
    """
    name = _chosen_field(content["samples"], field, problems.path)
    images: list[ImportedImage] = []
    not_annotated: list[str] = []
    for place, raw in enumerate(content["samples"], start=1):
        path = raw.get("filepath") if isinstance(raw, dict) else None
        with problems.entry(f"sample {place} ({path})"):
            sample = _Sample.model_validate(raw)
            if sample.media_type not in (None, "image"):
                raise NotUnderstoodError(f"it is a {sample.media_type}, not an image")
            value = raw.get(name)
            if value is None or mark_of(raw):
                not_annotated.append(f"sample {place} ({path})")
                continue
            size = sample.metadata or _Metadata()
            images.append(
                ImportedImage(
                    f"sample {place}", sample.filepath, _boxes(value, name), (size.width, size.height), relative=True
                )
            )
    parts = frozenset(part for image in images for part in image.boxes)
    return ImportedLabels(tuple(images), parts, tuple(not_annotated))


def _chosen_field(samples: Sequence[Any], asked: str | None, path: Path) -> str:
    keys: set[str] = {key for sample in samples if isinstance(sample, dict) for key in sample}
    if asked is not None:
        if asked not in keys:
            raise ConfigError(
                f"no sample has a field {asked!r}", path=path, fix="name the field of detections with --field"
            )
        return asked
    found: set[str] = {
        key
        for sample in samples
        if isinstance(sample, dict)
        for key, value in sample.items()
        if isinstance(value, dict) and "detections" in value
    }
    if FIELD in keys:
        found.add(FIELD)
    if len(found) > 1:
        raise ConfigError(
            f"there are several fields of detections: {shortened(', '.join(sorted(found)))}",
            path=path,
            fix="choose one with --field",
        )
    if not found:
        raise ConfigError(
            f"no sample has a field {FIELD!r} or any other with detections",
            path=path,
            fix="export the field that holds the parts; only Detections can be imported",
        )
    return found.pop()


def _boxes(value: Any, field: str) -> dict[str, Box]:
    kind = value.get("_cls", "Detections") if isinstance(value, dict) else type(value).__name__
    detections = value.get("detections") if isinstance(value, dict) else None
    if kind != "Detections" or not isinstance(detections, list):
        raise NotUnderstoodError(f"the field {field!r} holds {kind}; only Detections can be imported")
    boxes: dict[str, Box] = {}
    for raw in detections:
        if isinstance(raw, dict) and (kind := raw.get("_cls", "Detection")) != "Detection":
            raise NotUnderstoodError(f"the field {field!r} holds a {kind}; only Detections can be imported")
        one = _Detection.model_validate(raw)
        refuse_marked(raw, one.label)
        if len(one.bounding_box) != 4:
            raise NotUnderstoodError(f"the bounding_box of {one.label!r} has {len(one.bounding_box)} numbers, not 4")
        x, y, width, height = one.bounding_box
        add_relative_box(boxes, one.label, x, y, width, height)
    return boxes


def _detection(image: PartBoxes, part: str) -> dict[str, Any]:
    box = image.boxes[part]
    across, down = image.width, image.height
    return {
        "_cls": "Detection",
        "label": part,
        "bounding_box": [box.x_min / across, box.y_min / down, box.width / across, box.height / down],
    } | ({"confidence": image.scores[part]} if part in image.scores else {})
