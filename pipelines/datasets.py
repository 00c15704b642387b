"""`datasets` shows what is under DATA_ROOT; `manifest` scans one data set into its manifest."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.terminal import print_table, say
from shared.datasets import EXPECTED, count_splits, differences, known_datasets, locate, resolve_name, scan_dataset
from shared.errors import ConfigError, UsageError
from shared.schemas import ManifestRow
from shared.terminal import printable
from shared.workspace import Workspace

if TYPE_CHECKING:
    from shared.manifest import ManifestFile

DatasetNames = Annotated[str, typer.Argument(help="data set name, or several joined by +, e.g. 3dpes+caviar")]


def datasets() -> None:
    """What is under DATA_ROOT, what is missing and where to put it."""
    workspace = Workspace.from_environment()
    rows, told = [], []
    for name, spec in known_datasets(workspace.data_root).items():
        scanned, counts = None, ""
        try:
            found = str(locate(name, workspace.data_root))
        except UsageError as err:
            found = f"cannot be used: {err.what}" if spec.problem else f"missing: {err.fix}"
            if err.path != workspace.data_root:  # a folder is there, and it is not as expected
                told.append(f"{name}: {err}")
        else:
            try:
                scanned = scan_dataset(name, workspace.data_root)
            except UsageError as err:
                counts = "cannot be used"
                told.append(f"{name}: {err}")
        if scanned:
            unlike = differences(name, count_splits(scanned.files))
            counts = "" if name not in EXPECTED else "differ" if unlike else "as published"
            told += [f"{name}: {sentence}" for sentence in [*unlike, *scanned.told()]]
        has_manifest = not spec.problem and workspace.manifest(name).is_file()
        rows.append((name, ", ".join(spec.aliases), found, counts, "yes" if has_manifest else ""))
    columns = ("data set", "also called", "found", "counts", "manifest")
    print_table(columns, rows, title=f"data sets under {workspace.data_root}/")
    for sentence in told:
        say(sentence)


def manifest(dataset: DatasetNames) -> None:
    """Scan a data set's files: hash, decode, read identity and camera from the names."""
    workspace = Workspace.from_environment()
    for name in split_names(dataset, workspace):
        show_summary(name, scan(name, workspace))


def split_names(text: str, workspace: Workspace) -> list[str]:
    """Canonical names of `a+b`. Raises ConfigError for an unknown or missing name."""
    if not text.strip():
        known = ", ".join(sorted(known_datasets(workspace.data_root)))
        raise ConfigError("no data set was named", fix=f"name one of: {known}")
    return [resolve_name(part.strip(), workspace.data_root) for part in text.split("+")]


def scan(name: str, workspace: Workspace) -> "ManifestFile":
    """Bring a manifest up to date with the folder; files that did not change are not read again."""
    from shared.manifest import update_manifest

    return update_manifest(name, workspace.data_root, workspace.manifest(name))


def show_summary(name: str, rows: Iterable[ManifestRow]) -> None:
    """The data set's table, with the published numbers beside it where there are any, and why they differ."""
    from shared.manifest import summarise

    published = EXPECTED.get(name, {})
    columns = ["split", "images", "identities", "cameras", "distractors", "junk", "unreadable"]
    lines = []
    found = summarise(rows)
    for line in found:
        numbers = (line.images, line.identities, line.cameras, line.distractors, line.junk, line.unreadable)
        wanted = published.get(line.split)
        told = [f"{wanted.images:,} of {wanted.identities:,}" if wanted else "none"] if published else []
        lines.append((line.split, *(f"{number:,}" for number in numbers), *told))
    print_table([*columns, *(["published"] if published else [])], lines, title=name)
    for sentence in differences(name, {line.split: line.counts for line in found}):
        say(f"not as published: {sentence}")
    unreadable: dict[str, list[str]] = {}
    for row in rows if any(line.unreadable for line in found) else ():
        if row.status != "ok":
            unreadable.setdefault(row.reason, []).append(row.path)
    for reason, paths in unreadable.items():
        named = ", ".join(map(printable, paths[:3])) + (", ..." if len(paths) > 3 else "")
        say(f"unreadable: {len(paths):,} x {printable(reason)}: {named}", err=True)
