"""People of a run's sources from whose images nothing was learned."""

import json
from collections.abc import Sequence
from pathlib import Path

from reid.config import RunConfig
from reid.data.training_set import build_training_set
from reid.protocols.protocol import Protocol
from reid.training.run_folder import read_image_ids
from reid.training.validation import hold_out
from shared.errors import DataError
from shared.manifest import read_manifest
from shared.schemas import ImageStatus, ManifestRow
from shared.workspace import Workspace


def held_out_people(
    run_folder: Path, config: RunConfig, protocol: Protocol, workspace: Workspace
) -> dict[str, list[ManifestRow]]:
    """Source -> readable images of its held-out people: those of `data.validation_share` (the best epoch was chosen on
    them), and those of its test images where only its training images were used.

    Raises DataError when the run does not say what it was trained on, or its training set is no longer the same.
    """
    seen = read_image_ids(run_folder)
    if seen is None:
        raise DataError("this run does not say which images it was trained on", path=run_folder, fix="train it again")
    chosen = _validation_images(run_folder, config, protocol, workspace) if config.data.validation_share else {}
    found = {}
    for source in protocol.sources:
        rows, held_out = read_manifest(workspace.manifest(source)), chosen.get(source, frozenset())
        found[source] = unseen_people(rows, seen) + [row for row in rows if row.path in held_out]
    return found


def unseen_people(rows: Sequence[ManifestRow], trained_on: frozenset[str]) -> list[ManifestRow]:
    """Readable images of people none of whose images is among these ids."""
    seen = {row.identity for row in rows if row.image_id in trained_on}
    return [
        row for row in rows if row.identity is not None and row.identity not in seen and row.status == ImageStatus.OK
    ]


def _validation_images(
    run_folder: Path, config: RunConfig, protocol: Protocol, workspace: Workspace
) -> dict[str, frozenset[str]]:
    """Source -> paths of the images of the identities that training held out, drawn again as training drew them."""
    data = build_training_set(protocol, config.data, config.model.parts, workspace)
    learned, held_out = hold_out(data, config.data.validation_share, config.seed)
    recorded = json.loads((run_folder / "training_set.json").read_text(encoding="utf-8"))
    if recorded.get("sha256") != learned.sha256:
        raise DataError(
            "the training set is not what it was when this run was trained, so its held-out people are not known",
            path=run_folder / "training_set.json",
            fix="restore data and labels, or name a data set with --data",
        )
    pairs = list(zip(held_out.data.datasets, held_out.data.paths, strict=True))
    return {source: frozenset(path for name, path in pairs if name == source) for source in protocol.sources}
