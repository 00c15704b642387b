"""Patch masks become label rows: the tight box of each part's visible patches, in pixels of the original image."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from labeler.annotation.label_run import open_label_run
from labeler.grounding.answers import ServiceInfo
from labeler.grounding.rows import part_row
from shared.errors import DataError
from shared.geometry import Box
from shared.labels import label_folder, write_label_shard, writer_lock
from shared.schemas import ImageStatus, LabelRow, LabelStatus, ManifestRow

ENGINE = "import"
NOT_A_RECTANGLE = "not_a_rectangle"  # the box covers patches that the mask hides
Masks = Mapping[str, NDArray[np.bool_]]


@dataclass(frozen=True)
class ImportedMasks:
    """What came of a file; names are cut nowhere, so that each can be looked at."""

    label_run: str
    images: int
    boxes: int
    absent: int
    not_rectangles: int
    collisions: dict[str, list[str]]  # file name -> different images that have it: none of them got a mask
    without_image: list[str]  # file names of the file that no image has
    without_mask: list[str]  # paths of images that the file does not know


def import_masks(
    masks: Masks,
    rows: Iterable[ManifestRow],
    labels_root: Path,
    *,
    dataset: str,
    label_run: str,
    parts: Sequence[str],
    origin: str,
    prompt_version: str,
) -> ImportedMasks:
    """Write one label run of a data set from masks by file name.

    Args:
        masks: file name -> bool [R, h, w].
        rows: the data set's manifest.
        parts: names of the R parts, in the masks' order.
        origin: recorded as the rows' model, e.g. the file's name.
        prompt_version: recorded too, e.g. the file's hash.

    Raises DataError when a mask has another number of parts or no image gets one, ConfigError when the run was made
    otherwise, DgreidError when another process writes to it or it cannot be written.
    """
    wrong = next((name for name, mask in masks.items() if len(mask) != len(parts)), None)
    if wrong is not None:
        raise DataError(
            f"{wrong!r} has masks of {len(masks[wrong])} parts, not of {len(parts)}: {', '.join(parts)}",
            fix="name the file's parts in their order with --parts",
        )
    images, collisions, without_mask = _matched(masks, rows)
    if not images:
        raise DataError(
            f"none of the {len(masks)} file names is an image of {dataset}", fix="name the data set of these masks"
        )
    known = {PurePosixPath(image.path).name for image in images} | collisions.keys()
    labels = [
        _row(image, part, mask, label_run, origin, prompt_version)
        for image in images
        for part, mask in zip(parts, masks[PurePosixPath(image.path).name], strict=True)
    ]
    info = ServiceInfo(
        engine=ENGINE,
        model=origin,
        prompt_version=prompt_version,
        parts=tuple(parts),
        max_images=0,
        max_body_bytes=0,
        max_requests=0,
    )
    open_label_run(labels_root, label_run, info)
    with writer_lock(labels_root, label_run, dataset):
        for split in sorted({row.split for row in labels}):
            write_label_shard(
                [row for row in labels if row.split == split], label_folder(labels_root, label_run, dataset, split)
            )
    return ImportedMasks(
        label_run,
        images=len(images),
        boxes=sum(row.status == LabelStatus.OK for row in labels),
        absent=sum(row.status == LabelStatus.ABSENT for row in labels),
        not_rectangles=sum(NOT_A_RECTANGLE in row.flags for row in labels),
        collisions=collisions,
        without_image=sorted(masks.keys() - known),
        without_mask=without_mask,
    )


def tight_box(mask: NDArray[np.bool_], width: int, height: int) -> Box | None:
    """The smallest box around the visible patches of a mask [h, w] over an image of width x height; None: hidden."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        return None
    across, down = width / mask.shape[1], height / mask.shape[0]
    return Box(
        float(columns[0] * across),
        float(rows[0] * down),
        float((columns[-1] + 1) * across),
        float((rows[-1] + 1) * down),
    )


def _matched(masks: Masks, rows: Iterable[ManifestRow]) -> tuple[list[ManifestRow], dict[str, list[str]], list[str]]:
    """Images with a mask of their own (each content once), file names of several images, paths without a mask."""
    by_name: dict[str, dict[str, ManifestRow]] = defaultdict(dict)
    for row in rows:
        if row.status == ImageStatus.OK:
            by_name[PurePosixPath(row.path).name].setdefault(row.image_id, row)
    images: list[ManifestRow] = []
    collisions: dict[str, list[str]] = {}
    without: list[str] = []
    for name, found in sorted(by_name.items()):
        if name not in masks:
            without += [row.path for row in found.values()]
        elif len(found) > 1:
            collisions[name] = sorted(row.path for row in found.values())
        else:
            images += found.values()
    return images, collisions, without


def _row(
    image: ManifestRow, part: str, mask: NDArray[np.bool_], run: str, origin: str, prompt_version: str
) -> LabelRow:
    box = tight_box(mask, image.width, image.height)
    patches = float(mask.sum()) * image.width * image.height / mask.size
    return part_row(
        image,
        part,
        box,
        label_run=run,
        status=LabelStatus.OK if box else LabelStatus.ABSENT,
        flags=(NOT_A_RECTANGLE,) if box and box.area > patches * (1 + 1e-9) else (),
        space="patches",
        engine=ENGINE,
        model=origin,
        prompt_version=prompt_version,
        attempts=0,
    )
