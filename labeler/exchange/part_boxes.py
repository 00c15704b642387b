"""From label rows to the images with part boxes that an export is made of."""

from dataclasses import dataclass, field
from pathlib import Path

from shared.errors import DataError
from shared.geometry import Box
from shared.labels import label_shards, newest_labels
from shared.manifest import read_manifest
from shared.schemas import PARTS, ImageStatus, LabelRow, LabelStatus, ManifestRow


@dataclass(frozen=True)
class PartBoxes:
    """The labels of one image. path: relative to the data set's folder. boxes: pixels. scores: part -> 0..1."""

    path: str
    width: int  # pixels of the original image, the space of the boxes
    height: int
    boxes: dict[str, Box] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict)


def newest_rows(labels_root: Path, label_run: str, dataset: str) -> dict[tuple[str, str], LabelRow]:
    """(image_id, part) -> row that counts, of one run and data set. Raises DataError when there are none."""
    shards = label_shards(labels_root, label_run=label_run, dataset=dataset)
    if not shards:
        raise DataError(
            f"label run {label_run!r} has no labels of {dataset}", path=labels_root, fix=f"dgreid label {dataset}"
        )
    rows = [LabelRow(**row) for row in newest_labels(labels_root, label_run, dataset).to_pylist()]
    return {(row.image_id, row.part): row for row in rows}


def part_boxes(
    manifest: Path, rows: dict[tuple[str, str], LabelRow]
) -> tuple[dict[ManifestRow, PartBoxes], tuple[str, ...]]:
    """Every readable image of the manifest once, with the boxes of the rows; and the parts that have rows.

    Images whose bytes appear twice are listed at their first path. Raises DataError as `read_manifest`.
    """
    labelled = {part for _, part in rows}
    parts = tuple(part for part in PARTS if part in labelled) + tuple(sorted(labelled - set(PARTS)))
    found: dict[ManifestRow, PartBoxes] = {}
    seen: set[str] = set()
    for image in read_manifest(manifest):
        if image.status != ImageStatus.OK or image.image_id in seen:
            continue
        seen.add(image.image_id)
        boxes, scores = {}, {}
        for part in parts:
            row = rows.get((image.image_id, part))
            if row and (box := box_of(row)):
                boxes[part] = box
                if row.score is not None:
                    scores[part] = row.score
        found[image] = PartBoxes(image.path, image.width, image.height, boxes, scores)
    return found, parts


def box_of(row: LabelRow) -> Box | None:
    """The row's box in pixels of the original image; None when its status is not OK."""
    corners = (row.x_min, row.y_min, row.x_max, row.y_max)
    if row.status != LabelStatus.OK or None in corners:
        return None
    return Box(*(float(corner) for corner in corners if corner is not None))
