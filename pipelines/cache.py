"""`cache`: the packed images on this machine."""

from typing import Annotated

import typer

from pipelines.terminal import print_table, say
from shared.workspace import Workspace


def cache(
    clear: Annotated[bool, typer.Option("--clear", help="delete them; they are rebuilt when needed")] = False,
    dataset: Annotated[str | None, typer.Option(help="only those of one data set")] = None,
    unused_days: Annotated[float, typer.Option(min=0, help="only those that no job has opened for so many days")] = 0,
) -> None:
    """List the packed images under RUNS_ROOT/cache, or delete them with --clear."""
    from shared.image_cache import age_days, pack_files, remove, size_told

    workspace = Workspace.from_environment()
    packs = [
        pack for pack in pack_files(workspace) if age_days(pack) >= unused_days and dataset in (None, pack.dataset)
    ]
    if not packs:
        say(f"no packed images in {workspace.image_cache}")
        return
    if not clear:
        rows = [(pack.path.name, size_told(pack.size_bytes), f"{age_days(pack):.1f}") for pack in packs]
        print_table(["packed images", "size", "days unused"], rows)
    total = size_told(remove(packs) if clear else sum(pack.size_bytes for pack in packs))
    say(f"deleted {len(packs)} files, {total}" if clear else f"{total} in {workspace.image_cache}")
