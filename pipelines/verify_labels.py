"""`verify-labels`: whether a label run is whole and undamaged."""

from typing import Annotated

import typer

from pipelines.datasets import DatasetNames, split_names
from pipelines.terminal import print_table
from shared.datasets import locate
from shared.errors import DataError, DgreidError
from shared.labels import choose_label_run
from shared.manifest import ManifestFile
from shared.progress import Progress
from shared.workspace import Workspace


def verify_labels(
    dataset: DatasetNames,
    label_run: Annotated[
        str | None, typer.Option(help="name of the label run; default: the only one of the data set")
    ] = None,
    images: Annotated[bool, typer.Option(help="read every image, too: is it still the one that was labelled?")] = False,
) -> None:
    """Check a label run: every image has its rows, once, in undamaged shards, with boxes inside it. Only reads.

    Exits with 1 when a check fails.
    """
    from labeler.annotation.label_checks import check_images, check_labels

    workspace = Workspace.from_environment()
    failed = []
    for name in split_names(dataset, workspace):
        run = choose_label_run(label_run, [name], workspace.labels)
        rows = ManifestFile(workspace.manifest(name))
        if not rows.path.is_file():
            raise DataError(f"{name} has no manifest", path=rows.path, fix=f"dgreid manifest {name}")
        findings = check_labels(workspace.labels, run, name, rows.path)
        if images:
            with Progress(f"read {name}", None) as progress:
                findings.append(check_images(rows, locate(name, workspace.data_root), progress.advance))
        print_table(
            ("check", "", "count", "example"),
            [
                (one.check, "ok" if not one.count else "note" if one.known else "no",
                 f"{one.count:,}" if one.count else "", one.example)
                for one in findings
            ],
            title=f"labels of {name}, run {run}",
        )  # fmt: skip
        failed += [(name, one) for one in findings if one.count and not one.known]
    if failed:
        told = "; ".join(f"{one.count:,} {one.check} ({name})" for name, one in failed)
        raise DgreidError(
            f"the label run is incomplete or damaged: {told}",
            fix="; ".join(dict.fromkeys(one.fix for _, one in failed)),
        )
