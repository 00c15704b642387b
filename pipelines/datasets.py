"""`datasets` shows what is under DATA_ROOT; `manifest` scans one data set into its manifest."""

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from shared.datasets import known_datasets, locate, resolve_name
from shared.errors import ConfigError, DataError
from shared.manifest import build_manifest, summarise
from shared.schemas import ManifestRow
from shared.workspace import Workspace

DatasetNames = Annotated[str, typer.Argument(help="data set name, or several joined by +, e.g. 3dpes+caviar")]


def datasets() -> None:
    """What is under DATA_ROOT, what is missing and where to put it."""
    workspace = Workspace.from_environment()
    table = Table("data set", "also called", "found", "manifest", title=f"data sets under {workspace.data_root}/")
    for name, spec in known_datasets(workspace.data_root).items():
        try:
            found = str(locate(name, workspace.data_root))
        except DataError as err:
            found = f"[dim]missing: {err.fix}[/dim]"
        scanned = "yes" if workspace.manifest(name).is_file() else ""
        table.add_row(name, ", ".join(spec.aliases), found, scanned)
    Console().print(table)


def manifest(dataset: DatasetNames) -> None:
    """Scan a data set's files: hash, decode, read identity and camera from the names."""
    workspace = Workspace.from_environment()
    for name in split_names(dataset, workspace):
        show_summary(name, scan(name, workspace))


def split_names(text: str, workspace: Workspace) -> list[str]:
    """Canonical names of `a+b`. Raises ConfigError for an unknown or missing name."""
    if not text.strip():
        known = ", ".join(sorted(known_datasets(workspace.data_root)))
        raise ConfigError("no data set was named", fix=f"DATASET=<name>; known: {known}")
    return [resolve_name(part.strip(), workspace.data_root) for part in text.split("+")]


def scan(name: str, workspace: Workspace) -> list[ManifestRow]:
    """Bring a manifest up to date with the folder; files that did not change are not read again."""
    return build_manifest(name, workspace.data_root, workspace.manifest(name))


def show_summary(name: str, rows: list[ManifestRow]) -> None:
    table = Table("split", "images", "identities", "cameras", "unreadable", title=name)
    for line in summarise(rows):
        table.add_row(line.split, *(f"{n:,}" for n in (line.images, line.identities, line.cameras, line.unreadable)))
    Console().print(table)
    for row in [row for row in rows if row.status != "ok"][:10]:
        typer.echo(f"unreadable: {row.path}: {row.reason}", err=True)
