"""Corrected boxes come back: a new label run that holds everything of the old one, the corrected parts replaced.

A part counts as corrected when its box moved by more than TOLERANCE_PX, is new, or was taken away (then it is absent).
What the file does not mention, and failures that nobody mended, stay as they were.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath

from labeler.exchange.images import PartBoxes
from labeler.exchange.label_files import box_of, images_with_boxes, newest_rows
from labeler.grounding.rows import part_row
from shared.errors import DataError
from shared.geometry import Box
from shared.labels import run_folder, write_correction
from shared.schemas import LabelRow, LabelStatus, ManifestRow

ENGINE, PROMPT_VERSION, FLAG = "import", "corrected", "corrected"
TOLERANCE_PX = 0.1  # tools round: percentages with few digits are no corrections


@dataclass(frozen=True)
class Corrections:
    """What came of a file. moved, added, removed: parts. unknown: images that the data set does not have."""

    label_run: str
    images: int
    moved: int
    added: int
    removed: int
    unknown: tuple[str, ...]


def import_corrections(
    images: Sequence[PartBoxes],
    manifest: Path,
    labels_root: Path,
    *,
    corrects: str,
    dataset: str,
    form: str,
    label_run: str | None = None,
) -> Corrections:
    """Write the corrected run.

    Args:
        images: as read from the file.
        manifest: of the data set.
        corrects: the run that the file was exported from.
        form: name of the format, recorded as the model of the corrected rows.
        label_run: name of the new run; default: `<corrects>.corrected`, with a number when that is taken.

    Raises DataError when the old run has no labels of the data set, for parts that it does not know, images of another
    size and a path that fits several images, ConfigError when the new run exists or has no plain name, DgreidError
    when it cannot be written.
    """
    old = newest_rows(labels_root, corrects, dataset)
    known, parts = images_with_boxes(manifest, old)
    name = label_run or _free_name(labels_root, corrects)
    rows: list[LabelRow] = []
    unknown: list[str] = []
    counts = {"moved": 0, "added": 0, "removed": 0}
    by_path, by_name = _indexed(known)
    for given in images:
        image = by_path.get(given.path) or _by_name(given.path, by_name)
        if image is None:
            unknown.append(given.path)
            continue
        _check(given, image, parts)
        for part in parts:
            before, box = known[image].boxes.get(part), given.boxes.get(part)
            if kind := _change(before, box):
                counts[kind] += 1
                rows.append(_row(image, part, box, name, form, old.get((image.image_id, part))))
    record: dict[str, object] = {
        "engine": ENGINE,
        "model": form,
        "prompt_version": PROMPT_VERSION,
        "parts": list(parts),
    }
    record |= {"started": datetime.now(UTC).isoformat(timespec="seconds"), "corrected_rows": len(rows)}
    write_correction(labels_root, corrects, name, rows, record)
    return Corrections(name, len(images) - len(unknown), **counts, unknown=tuple(unknown))


def _indexed(known: dict[ManifestRow, PartBoxes]) -> tuple[dict[str, ManifestRow], dict[str, list[ManifestRow]]]:
    by_name: dict[str, list[ManifestRow]] = {}
    for image in known:
        by_name.setdefault(PurePosixPath(image.path).name, []).append(image)
    return {image.path: image for image in known}, by_name


def _by_name(path: str, by_name: dict[str, list[ManifestRow]]) -> ManifestRow | None:
    """Tools store whole paths, or names only: the image whose own path the given one ends in, or the only one so named.

    Raises DataError when several images have the name.
    """
    pure = PurePosixPath(path.replace("\\", "/"))
    named = by_name.get(pure.name, [])
    ending = [
        image
        for image in named
        if pure.parts[-len(PurePosixPath(image.path).parts) :] == PurePosixPath(image.path).parts
    ]
    found = ending or named
    if len(found) > 1:
        raise DataError(
            f"{path!r} could be {found[0].path} or {found[1].path}",
            fix="keep the paths relative to the data set's folder, as they were exported",
        )
    return found[0] if found else None


def _check(given: PartBoxes, image: ManifestRow, parts: Sequence[str]) -> None:
    if strangers := sorted(given.boxes.keys() - set(parts)):
        raise DataError(
            f"{given.path}: unknown part {strangers[0]!r}", fix=f"the parts of this run are {', '.join(parts)}"
        )
    if (given.width, given.height) not in {(image.width, image.height), (0, 0)}:
        raise DataError(
            f"{given.path} is {given.width} x {given.height} in the file, the image is {image.width} x {image.height}",
            fix="correct the boxes on the original images",
        )


def _change(before: Box | None, now: Box | None) -> str | None:
    if before is None or now is None:
        return "added" if now else "removed" if before else None
    return "moved" if max(abs(a - b) for a, b in zip(before, now, strict=True)) > TOLERANCE_PX else None


def _row(image: ManifestRow, part: str, box: Box | None, run: str, form: str, old: LabelRow | None) -> LabelRow:
    return part_row(
        image,
        part,
        box,
        label_run=run,
        status=LabelStatus.OK if box else LabelStatus.ABSENT,
        flags=(FLAG,),
        raw_box=(old and tuple(box_of(old) or ())) or None,  # what was there before
        space="original_pixels",
        engine=ENGINE,
        model=form,
        prompt_version=PROMPT_VERSION,
        attempts=old.attempts if old else 0,
    )


def _free_name(labels_root: Path, corrects: str) -> str:
    name, number = f"{corrects}.corrected", 2
    while run_folder(labels_root, name).exists():
        name, number = f"{corrects}.corrected-{number}", number + 1
    return name
