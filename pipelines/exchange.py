"""`import-masks`, `export-labels`, `import-labels`: part labels from and to other people's formats."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from labeler.exchange.coco import from_coco, to_coco
from labeler.exchange.corrections import import_corrections
from labeler.exchange.fiftyone import from_fiftyone, to_fiftyone
from labeler.exchange.images import PartBoxes, read_json
from labeler.exchange.import_masks import import_masks as write_masks
from labeler.exchange.label_files import images_with_boxes, newest_rows
from labeler.exchange.label_studio import from_label_studio, to_label_studio
from labeler.exchange.pickled_masks import read_masks
from pipelines.datasets import scan
from shared.datasets import resolve_name
from shared.files import write_text
from shared.labels import choose_label_run
from shared.schemas import PARTS
from shared.workspace import Workspace

Form = Literal["coco", "label-studio", "fiftyone"]
FormOption = Annotated[Form, typer.Option("--format", help="which tool's JSON")]
LabelRun = Annotated[str | None, typer.Option(help="the label run that is shown; default: the only one there is")]
READERS: dict[Form, Callable[[Any], list[PartBoxes]]] = {
    "coco": from_coco,
    "label-studio": from_label_studio,
    "fiftyone": from_fiftyone,
}
TOLD = 5  # names shown of a long list


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
        scan(name, workspace),
        workspace.labels,
        dataset=name,
        label_run=label_run or f"import-{file.stem}",
        parts=tuple(part.strip() for part in parts.split(",")),
        origin=file.name,
        prompt_version=hashlib.sha256(file.read_bytes()).hexdigest()[:12],
    )
    typer.echo(
        f"label run {found.label_run}: {found.images:,} images of {name}, {found.boxes:,} boxes, "
        f"{found.absent:,} parts absent, {found.not_rectangles:,} masks that are no rectangles"
    )
    _tell(f"file names that several images of {name} have (no labels written)", list(found.collisions))
    _tell(f"file names that no image of {name} has", found.without_image)
    _tell("images without a mask", found.without_mask)
    typer.echo(f"next: make train PROTOCOL={name}2<target> LABELS={found.label_run}")


def export_labels(
    dataset: Annotated[str, typer.Argument(help="one data set")],
    file: Annotated[Path, typer.Argument(help="the JSON file to write")],
    form: FormOption = "coco",
    label_run: LabelRun = None,
    image_prefix: Annotated[
        str, typer.Option(help="Label Studio only: what makes an address of a path in the data set's folder")
    ] = "/data/local-files/?d=",
) -> None:
    """Write the boxes of one label run for a tool in which people can look at and correct them."""
    workspace = Workspace.from_environment()
    name = resolve_name(dataset, workspace.data_root)
    scan(name, workspace)
    run = choose_label_run(label_run, [name], workspace.labels)
    images, parts = images_with_boxes(workspace.manifest(name), newest_rows(workspace.labels, run, name))
    entries = list(images.values())
    content: dict[Form, Callable[[], Any]] = {
        "coco": lambda: to_coco(entries, parts),
        "label-studio": lambda: to_label_studio(entries, parts, image_prefix=image_prefix, model=run),
        "fiftyone": lambda: to_fiftyone(entries),
    }
    write_text(file, json.dumps(content[form](), indent=1, ensure_ascii=False) + "\n")
    typer.echo(
        f"wrote {file}: {len(entries):,} images of {name}, {sum(len(e.boxes) for e in entries):,} boxes of {run}"
    )
    typer.echo(f"next: python -m pipelines import-labels <corrected file> {name} --format {form} --corrects {run}")


def import_labels(
    file: Annotated[Path, typer.Argument(help="the corrected JSON file")],
    dataset: Annotated[str, typer.Argument(help="the data set that it was exported from")],
    form: FormOption = "coco",
    corrects: LabelRun = None,
    label_run: Annotated[
        str | None, typer.Option(help="name of the new run; default: <corrected run>.corrected")
    ] = None,
) -> None:
    """Read corrected boxes into a new label run that holds everything of the old one and takes its place."""
    workspace = Workspace.from_environment()
    name = resolve_name(dataset, workspace.data_root)
    scan(name, workspace)
    images = read_json(file, READERS[form], f"{form} export")
    found = import_corrections(
        images,
        workspace.manifest(name),
        workspace.labels,
        corrects=choose_label_run(corrects, [name], workspace.labels),
        dataset=name,
        form=form,
        label_run=label_run,
    )
    typer.echo(
        f"label run {found.label_run}: {found.images:,} images looked at, boxes moved {found.moved:,}, "
        f"added {found.added:,}, removed {found.removed:,}; training uses it when no label run is named"
    )
    _tell(f"images of the file that {name} does not have", list(found.unknown))


def _tell(what: str, names: list[str]) -> None:
    if names:
        more = f" and {len(names) - TOLD:,} more" if len(names) > TOLD else ""
        typer.echo(f"{len(names):,} {what}: {', '.join(names[:TOLD])}{more}", err=True)
