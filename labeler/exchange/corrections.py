"""Import of corrected boxes: a new label run with all rows of the old one, the corrected parts replaced.

A part is corrected when its box moved by more than TOLERANCE_PX, is new, or was removed (it is then absent). It counts
as removed only if its image has another box in the file and the part occurs in the file. Any other box that the file
lacks stays, unless `absent_means_removed` is set; so do failed parts without a new box.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from labeler.exchange.foreign_json import ImportedImage, ImportedLabels, NotUnderstoodError, Problems, shortened
from labeler.exchange.image_paths import ImagePaths
from labeler.exchange.part_boxes import PartBoxes, box_of, newest_rows, part_boxes
from labeler.grounding.box_checks import check_box, relation_flags
from labeler.grounding.rows import part_row
from shared.errors import DataError
from shared.geometry import Box, scaled
from shared.labels import CORRECTED, check_free, run_folder, write_correction
from shared.manifest import read_manifest
from shared.schemas import ImageStatus, LabelRow, LabelStatus, ManifestRow

ENGINE, PROMPT_VERSION, FLAG = "import", "corrected", CORRECTED
TOLERANCE_PX = 0.1  # tools round: rounded percentages are not corrections
MAX_BEYOND = 0.2  # of the image side: people draw a little over the edge
OVERHANG_PX = 1.0  # how far a box may reach out of an image whose size the file does not say


@dataclass(frozen=True)
class Corrections:
    """Result of one import. moved, added, removed, kept: boxes; kept ones are in the old run but not in the file.

    label_run: the new run, or None when nothing was corrected. images: found in the data set. without_box: images of
    the file without any box. unknown: images that the data set does not have.
    """

    label_run: str | None
    images: int
    moved: int
    added: int
    removed: int
    kept: int
    without_box: int
    unknown: tuple[str, ...]


@dataclass(frozen=True)
class _Change:
    kind: str  # moved, added or removed
    box: Box | None
    flags: tuple[str, ...] = ()


def import_corrections(
    labels: ImportedLabels,
    file: Path,
    manifest: Path,
    labels_root: Path,
    *,
    corrects: str,
    dataset: str,
    form: str,
    label_run: str | None = None,
    absent_means_removed: bool = False,
) -> Corrections:
    """Write the corrected run; nothing is written when no box differs.

    Args:
        labels: content of the file. file: its path, for messages.
        manifest: of the data set.
        corrects: the run that the file was exported from.
        form: name of the format, recorded as the model of the corrected rows.
        label_run: name of the new run; default: `<corrects>.corrected`, with a number when that is taken.
        absent_means_removed: every box that an annotated image of the file lacks is removed, also when the image has
            no box at all.

    Raises DataError when the old run has no labels of the data set, the file has no image of it, or something in the
    file does not fit (unknown parts, another image size, an image twice, boxes that cannot be a body part), ConfigError
    when the new run exists or has no plain name, DgreidError when it cannot be written.
    """
    old = newest_rows(labels_root, corrects, dataset)
    known, parts = part_boxes(manifest, old)
    name = label_run or free_name(labels_root, corrects)
    check_free(labels_root, name)
    matched, unknown = _matched(labels, file, manifest, known, dataset)
    looked_at = set(parts) if absent_means_removed else labels.parts
    problems = Problems(file)
    rows: list[LabelRow] = []
    counts = {"moved": 0, "added": 0, "removed": 0}
    kept = 0
    for image, given in matched.items():
        with problems.entry(f"{given.entry} ({image.path})"):
            before = known[image].boxes
            changes = _changes(_in_pixels(given, image), before, image, given, parts)
            for part in before.keys() - given.boxes.keys():
                said = part in looked_at and part not in given.incomplete
                if said and (given.boxes or absent_means_removed):
                    changes[part] = _Change("removed", None)
                else:
                    kept += 1
            after = {part: box for part, box in before.items() if part not in changes}
            after |= {part: change.box for part, change in changes.items() if change.box}
            related = relation_flags(after) if changes else {}
            for part, change in changes.items():
                counts[change.kind] += 1
                flags = (FLAG, *change.flags, *related.get(part, ()))
                rows.append(_row(image, part, change.box, flags, name, form, old.get((image.image_id, part))))
    problems.raise_if_any(fix="correct these entries in your tool and export again")
    if rows:
        record = {
            "engine": ENGINE,
            "model": form,
            "prompt_version": PROMPT_VERSION,
            "parts": list(parts),
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "corrected_rows": len(rows),
        }
        write_correction(labels_root, corrects, name, rows, record)
    return Corrections(
        name if rows else None,
        images=len(matched),
        **counts,
        kept=kept,
        without_box=sum(not given.boxes for given in matched.values()),
        unknown=unknown,
    )


def _matched(
    labels: ImportedLabels, file: Path, manifest: Path, known: Mapping[ManifestRow, PartBoxes], dataset: str
) -> tuple[dict[ManifestRow, ImportedImage], tuple[str, ...]]:
    """Image of the data set -> what the file says about it; paths in the file that are none of its images."""
    every = [row for row in read_manifest(manifest) if row.status == ImageStatus.OK]
    first = {image.image_id: image for image in known}
    paths = ImagePaths(every)
    problems = Problems(file)
    matched: dict[ManifestRow, ImportedImage] = {}
    path_of: dict[ManifestRow, str] = {}  # the one of the image's paths that the file names
    unknown: list[str] = []
    for given in labels.images:
        with problems.entry(f"{given.entry} ({given.path})"):
            found = paths.find_named((given.path, *given.also_named))
            if found is None:
                unknown.append(shortened(given.path))
                continue
            image = first[found.image_id]
            earlier = matched.get(image)
            if earlier is None or (path_of[image] != found.path and not earlier.boxes):
                matched[image], path_of[image] = given, found.path
            elif path_of[image] == found.path:
                raise NotUnderstoodError(f"the image {found.path} is in the file twice, see {earlier.entry}")
            elif given.boxes and given.boxes != earlier.boxes:
                raise NotUnderstoodError(
                    f"{found.path} has the same bytes as {path_of[image]} and other boxes, see {earlier.entry}"
                )
    problems.raise_if_any(fix="export the images of this data set once each, with their paths")
    if labels.images and not matched:
        raise DataError(
            f"none of the {len(labels.images):,} images of the file is an image of {dataset}: the file says "
            f"{unknown[0]!r}, the data set has {next((row.path for row in every), 'no readable image')!r}",
            path=file,
            fix="name the data set that the labels were exported from, and keep the images' file names",
        )
    if not labels.images and not labels.not_annotated:
        raise DataError("the file has no images", path=file, fix="export the images with their boxes")
    return matched, tuple(unknown)


def _in_pixels(given: ImportedImage, image: ManifestRow) -> dict[str, Box]:
    """The file's boxes in pixels of the original image. Raises NotUnderstoodError when the sizes differ."""
    for said, own in zip(given.size, (image.width, image.height), strict=True):
        if said is not None and said != own:
            width, height = ("?" if value is None else f"{value:g}" for value in given.size)
            raise NotUnderstoodError(
                f"the image is {width} x {height} pixels in the file and {image.width} x {image.height} in the data "
                "set; correct the boxes on the original images"
            )
    if not given.relative:
        return given.boxes
    return {part: scaled(box, image.width, image.height) for part, box in given.boxes.items()}


def _changes(
    boxes: Mapping[str, Box],
    before: Mapping[str, Box],
    image: ManifestRow,
    given: ImportedImage,
    parts: Sequence[str],
) -> dict[str, _Change]:
    """Parts whose box is new or moved. Raises NotUnderstoodError for a box that cannot be the part's."""
    changes: dict[str, _Change] = {}
    for part, box in boxes.items():
        if part not in parts:
            raise NotUnderstoodError(f"unknown part {part!r}; the parts of this run are {', '.join(parts)}")
        if part in before and max(abs(a - b) for a, b in zip(before[part], box, strict=True)) <= TOLERANCE_PX:
            continue
        checked = check_box(box, image.width, image.height)
        numbers = ", ".join(f"{value:.6g}" for value in box)
        if checked.box is None:
            raise NotUnderstoodError(
                f"the box of {part!r} ({numbers}) cannot be a body part in an image of {image.width} x {image.height} "
                f"pixels: {', '.join(checked.flags)}"
            )
        overhang = max(abs(a - b) for a, b in zip(checked.box, box, strict=True))
        if not given.relative and None in given.size and overhang > OVERHANG_PX:
            raise NotUnderstoodError(
                f"the box of {part!r} ({numbers}) reaches out of the image of {image.width} x {image.height} pixels, "
                "and the file does not say the image's size; was it drawn on a resized image?"
            )
        across, down = max(-box.x_min, box.x_max - image.width), max(-box.y_min, box.y_max - image.height)
        if across > MAX_BEYOND * image.width or down > MAX_BEYOND * image.height:
            raise NotUnderstoodError(
                f"the box of {part!r} ({numbers}) reaches far out of the image of {image.width} x {image.height} "
                "pixels: are these two corners, not x, y, width, height?"
            )
        changes[part] = _Change("moved" if part in before else "added", checked.box, checked.flags)
    return changes


def _row(
    image: ManifestRow, part: str, box: Box | None, flags: tuple[str, ...], run: str, form: str, old: LabelRow | None
) -> LabelRow:
    return part_row(
        image,
        part,
        box,
        label_run=run,
        status=LabelStatus.OK if box else LabelStatus.ABSENT,
        flags=flags,
        raw_box=(old and tuple(box_of(old) or ())) or None,  # what was there before
        space="original_pixels",
        engine=ENGINE,
        model=form,
        prompt_version=PROMPT_VERSION,
        attempts=old.attempts if old else 0,
    )


def free_name(labels_root: Path, corrects: str) -> str:
    """`<corrects>.corrected`, with a number when that is taken."""
    name, number = f"{corrects}.corrected", 2
    while run_folder(labels_root, name).exists():
        name, number = f"{corrects}.corrected-{number}", number + 1
    return name
