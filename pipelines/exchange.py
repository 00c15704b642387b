"""`import-masks`, `export-labels`, `import-labels`: part labels from and to other people's formats."""

import hashlib
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from labeler.exchange.coco import from_coco, to_coco
from labeler.exchange.corrections import import_corrections
from labeler.exchange.fiftyone import from_fiftyone, to_fiftyone
from labeler.exchange.foreign_json import SHOWN, Format, Problems, Reader, read_json, shortened
from labeler.exchange.label_studio import from_label_studio, to_label_studio
from labeler.exchange.part_boxes import newest_rows, part_boxes
from labeler.exchange.published_masks import import_masks as write_masks
from labeler.exchange.published_masks import read_masks
from pipelines.datasets import scan
from pipelines.terminal import say
from shared.datasets import resolve_name
from shared.errors import ConfigError, UsageError
from shared.files import write_text
from shared.labels import choose_label_run
from shared.schemas import PARTS
from shared.workspace import Workspace

FormatOption = Annotated[Format, typer.Option("--format", help="which tool's JSON")]
LabelRun = Annotated[str | None, typer.Option(help="the label run that is exported; default: the only one there is")]


def import_masks(
    file: Annotated[Path, typer.Argument(help="a .pkl of the reference implementation: file name -> [parts, 128]")],
    dataset: Annotated[str, typer.Argument(help="data set whose images the masks are of")],
    label_run: Annotated[str | None, typer.Option(help="name of the label run; default: import-<file name>")] = None,
    parts: Annotated[str, typer.Option(help="parts in the file's order")] = ",".join(PARTS),
) -> None:
    """Read published part masks (without running what a pickle may hold) into a label run."""
    workspace = Workspace.from_environment()
    name = resolve_name(dataset, workspace.data_root)
    masks = read_masks(file)
    found = write_masks(
        masks,
        list(scan(name, workspace)),
        workspace.labels,
        dataset=name,
        label_run=label_run or f"import-{file.stem}",
        parts=tuple(part.strip() for part in parts.split(",")),
        origin=file.name,
        prompt_version=hashlib.sha256(file.read_bytes()).hexdigest()[:12],
    )
    say(
        f"label run {found.label_run}: {found.images:,} images of {name}, {found.boxes:,} boxes, "
        f"{found.absent:,} parts absent, {found.invalid:,} boxes that cannot be a body part, "
        f"{found.not_rectangles:,} non-rectangular masks"
    )
    _tell(f"file names belong to several images of {name} (no labels written)", list(found.collisions))
    _tell(f"file names belong to no image of {name}", found.without_image)
    _tell("images have no mask", found.without_mask)
    say(f"next: dgreid train {name}2<target> --label-run {found.label_run}")


def export_labels(
    dataset: Annotated[str, typer.Argument(help="one data set")],
    file: Annotated[Path, typer.Argument(help="the JSON file to write")],
    form: FormatOption = "coco",
    label_run: LabelRun = None,
    image_prefix: Annotated[
        str, typer.Option(help="Label Studio only: what makes an address of a path in the data set's folder")
    ] = "/data/local-files/?d=",
) -> None:
    """Write the boxes of one label run for a tool in which people can look at and correct them."""
    if file.is_dir():  # which an empty name is, too
        raise UsageError("a folder, not the file to write", path=file, fix=f"name a file, e.g. {dataset}.json")
    workspace = Workspace.from_environment()
    name = resolve_name(dataset, workspace.data_root)
    scan(name, workspace)
    run = choose_label_run(label_run, [name], workspace.labels)
    images, parts = part_boxes(workspace.manifest(name), newest_rows(workspace.labels, run, name))
    entries = list(images.values())
    if form == "coco":
        content: Any = to_coco(entries, parts)
    elif form == "label-studio":
        content = to_label_studio(entries, parts, image_prefix=image_prefix, model=run)
    else:
        content = to_fiftyone(entries)
    write_text(file, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    say(f"wrote {file}: {len(entries):,} images of {name}, {sum(len(e.boxes) for e in entries):,} boxes of {run}")
    say(f"next: dgreid import-labels <corrected file> {name} --format {form} --corrects {run}")


def import_labels(
    file: Annotated[Path, typer.Argument(help="the corrected JSON file")],
    dataset: Annotated[str, typer.Argument(help="the data set that it was exported from")],
    form: FormatOption = "coco",
    corrects: Annotated[
        str | None, typer.Option(help="the label run that was exported; default: the only one there is")
    ] = None,
    label_run: Annotated[
        str | None, typer.Option(help="name of the new run; default: <corrected run>.corrected")
    ] = None,
    absent_means_removed: Annotated[
        bool,
        typer.Option(
            "--absent-means-removed",
            help="remove every box that an annotated image lacks in the file, even if the image has no box at all; "
            "by default a box is removed only if the image has another box and its part occurs in the file",
        ),
    ] = False,
    field: Annotated[
        str | None, typer.Option(help="FiftyOne only: the field of detections; default: the only one")
    ] = None,
) -> None:
    """Read corrected boxes into a new label run that holds everything of the old one and takes its place.

    A file in which anything is not understood is refused as a whole. When no box differs, no run is written.
    """
    if field is not None and form != "fiftyone":
        raise ConfigError("--field is for FiftyOne only", fix="leave it out, or add --format fiftyone")
    workspace = Workspace.from_environment()
    name = resolve_name(dataset, workspace.data_root)
    scan(name, workspace)
    run = choose_label_run(corrects, [name], workspace.labels)
    readers: dict[Format, Reader] = {
        "coco": from_coco,
        "label-studio": from_label_studio,
        "fiftyone": partial(from_fiftyone, field=field),
    }
    problems = Problems(file)
    labels = readers[form](read_json(file, form), problems)
    problems.raise_if_any(fix="correct these entries in your tool, or leave the images out, and export again")
    found = import_corrections(
        labels,
        file,
        workspace.manifest(name),
        workspace.labels,
        corrects=run,
        dataset=name,
        form=form,
        label_run=label_run,
        absent_means_removed=absent_means_removed,
    )
    if found.label_run is None:
        say(f"nothing changed: no box of {found.images:,} images differs from {run}; no label run was written")
    else:
        say(
            f"label run {found.label_run}: {found.images:,} images in the file, boxes moved {found.moved:,}, "
            f"added {found.added:,}, removed {found.removed:,}; training uses it when no label run is named"
        )
    if found.kept:
        say(
            f"{found.kept:,} boxes of {run} have no counterpart in the file and stay "
            f"({found.without_box:,} of its images have no box at all); to remove them: --absent-means-removed",
            err=True,
        )
    _tell(
        "entries of the file are not annotated, or marked as deleted or the like; their labels stay",
        labels.not_annotated,
    )
    _tell(f"images of the file are not in {name}", found.unknown)


def _tell(what: str, names: Sequence[str]) -> None:
    if names:
        more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
        say(f"{len(names):,} {what}: {', '.join(map(shortened, names[:SHOWN]))}{more}", err=True)
