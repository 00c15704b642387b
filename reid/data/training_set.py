"""The training images of a protocol's sources: manifests joined with part labels, identities numbered 0..K-1."""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from reid.config import DataConfig
from reid.protocols.protocol import Protocol, training_rows
from shared.body_prior import PROPORTIONS, prior_box
from shared.datasets import locate
from shared.errors import ConfigError, DataError
from shared.geometry import Box
from shared.labels import choose_label_run, connect, label_runs, label_shards
from shared.manifest import read_manifest
from shared.parquet import to_table
from shared.schemas import FINAL_STATUSES, MANIFEST_SCHEMA, ImageStatus, ManifestRow
from shared.workspace import Workspace

log = logging.getLogger(__name__)

UNREADABLE = "unreadable image"
NOT_LABELLED = "not labelled"
OVER_THE_CAP = "beyond data.max_images_per_identity"


@dataclass(frozen=True)
class TrainingSet:
    """N training images of K identities, ordered by data set and path.

    boxes: float64 [N, R, 4] in pixels of the original images, XYXY, maxima exclusive; NaN where a part has no box.
    labels: int64 [N] in 0..K-1; label k is identities[k], a (data set, identity) pair.
    cameras: [N], None where not labelled.
    dropped: how many images were left out, by reason. label_run: None when no labels were needed. filled: how many
    boxes are the body prior's because the part has no label, by data set.
    """

    datasets: tuple[str, ...]
    paths: tuple[str, ...]  # relative to the data set's folder
    image_ids: tuple[str, ...]
    labels: np.ndarray
    cameras: tuple[int | None, ...]
    boxes: np.ndarray
    identities: tuple[tuple[str, int], ...]
    sources: tuple[str, ...]
    label_run: str | None
    dropped: dict[str, int]
    filled: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.paths)

    def files(self, data_root: Path) -> list[Path]:
        """Absolute or relative path of every image. Raises DataError when a data set is gone."""
        folders = {name: locate(name, data_root) for name in self.sources}
        return [folders[name] / path for name, path in zip(self.datasets, self.paths, strict=True)]

    @property
    def identities_sha256(self) -> str:
        """What prompts are made for: the ordered identities."""
        return hashlib.sha256(json.dumps(self.identities).encode()).hexdigest()

    @property
    def sha256(self) -> str:
        """Of everything training reads from this table."""
        table = [self.identities, self.datasets, self.paths, self.labels.tolist()]
        return hashlib.sha256(json.dumps(table).encode() + self.boxes.tobytes()).hexdigest()

    def record(self) -> dict[str, Any]:
        """The run folder's training_set.json."""
        pairs = {pair for pair in zip(self.datasets, self.cameras, strict=True) if pair[1] is not None}
        return {
            "sources": list(self.sources),
            "label_run": self.label_run,
            "images": len(self),
            "identities": len(self.identities),
            "cameras": len(pairs),
            "dropped": self.dropped,
            "filled": self.filled,
            "sha256": self.sha256,
        }


def build_training_set(
    protocol: Protocol, config: DataConfig, parts: Sequence[str], workspace: Workspace
) -> TrainingSet:
    """Gather the training images of the protocol's sources and their part boxes.

    Args:
        parts: the R parts the model has, in order; without parts no labels are read.
    Raises:
        DataError: no manifest or no labels yet (with the command that makes them), labels missing while
            `missing_labels` is "require", or fewer than two identities left.
        ConfigError: several label runs to choose from, or not the one asked for; a part that the body prior lacks.
    """
    chosen = [row for name in protocol.sources for row in _source_rows(protocol, name, workspace)]
    dropped = Counter({UNREADABLE: sum(row.status == ImageStatus.UNREADABLE for row in chosen)})
    rows = sorted(
        (row for row in chosen if row.status == ImageStatus.OK),
        key=lambda row: (row.dataset, row.path),
    )
    if config.max_images_per_identity is not None:
        spaced = _evenly_spaced(rows, config.max_images_per_identity)
        dropped[OVER_THE_CAP], rows = len(rows) - len(spaced), spaced
    fill = config.missing_labels == "prior"
    asked, sources = config.label_run, protocol.sources
    needed = bool(parts) and (not fill or asked is not None or bool(label_runs(workspace.labels, sources)))
    label_run = choose_label_run(asked, sources, workspace.labels) if needed else None
    boxes, reasons = _boxes(rows, parts, label_run, workspace)
    missing = np.array([[bool(reason) for reason in row] for row in reasons], dtype=bool).reshape(len(rows), len(parts))
    why = [next(filter(None, row), "") for row in reasons]
    if any(why):
        message = coverage(rows, why, label_run)
        command = _fill_command(rows, why, label_run)
        if config.missing_labels == "require":
            raise _missing(message, command)
        log.warning("%s (data.missing_labels=%s; to label them: %s)", message, config.missing_labels, command)
    if fill:
        boxes[missing] = [_prior_box(rows[row], parts[part]) for row, part in np.argwhere(missing)]
        filled = Counter(rows[row].dataset for row, _ in np.argwhere(missing))
        return _numbered(rows, boxes, protocol, label_run, dropped, dict(sorted(filled.items())))
    dropped.update(filter(None, why))
    complete = [index for index, reason in enumerate(why) if not reason]
    return _numbered([rows[index] for index in complete], boxes[complete], protocol, label_run, dropped, {})


def _evenly_spaced(rows: Sequence[ManifestRow], most: int) -> list[ManifestRow]:
    """At most `most` images of every identity, spread over all of its images in their order: the neighbours in a
    tracklet are near-duplicates."""
    own: dict[tuple[str, int], list[int]] = {}
    for place, row in enumerate(rows):
        own.setdefault((row.dataset, row.person), []).append(place)
    chosen = {places[round(step)] for places in own.values() for step in np.linspace(0, len(places) - 1, most)}
    return [row for place, row in enumerate(rows) if place in chosen]


def _source_rows(protocol: Protocol, name: str, workspace: Workspace) -> list[ManifestRow]:
    return training_rows(protocol, name, read_manifest(workspace.manifest(name)))


def _boxes(
    rows: Sequence[ManifestRow], parts: Sequence[str], label_run: str | None, workspace: Workspace
) -> tuple[np.ndarray, list[list[str]]]:
    """Boxes [N, R, 4] of the rows, and why a part has no final label, [N][R] ("" where it has one)."""
    boxes = np.full((len(rows), len(parts), 4), np.nan)
    reasons = [[NOT_LABELLED] * len(parts) for _ in rows]
    if label_run is None:
        return boxes, reasons
    with connect(labels=label_shards(workspace.labels, label_run=label_run)) as connection:
        connection.register("wanted", _numbered_rows(rows))
        connection.register("parts", pa.table({"part": list(parts), "place": list(range(len(parts)))}))
        answers = connection.execute(
            "select number, place, coalesce(status, ?), x_min, y_min, x_max, y_max from wanted cross join parts "
            "left join (select * from labels where label_run = ?) using (dataset, image_id, part) "
            "order by number, place",
            [NOT_LABELLED, label_run],
        ).fetchall()
    for number, place, status, *box in answers:
        reasons[number][place] = "" if status in FINAL_STATUSES else status
        if status in FINAL_STATUSES and None not in box:
            boxes[number, place] = box
    return boxes, reasons


def _numbered_rows(rows: Sequence[ManifestRow]) -> pa.Table:
    table = to_table(rows, MANIFEST_SCHEMA).select(["dataset", "image_id"])
    return table.append_column("number", pa.array(range(len(rows)), pa.int64()))


def coverage(rows: Sequence[ManifestRow], why: Sequence[str], label_run: str | None) -> str:
    """How many images of which data set lack a part's label, and why. why: [N], "" for complete images."""
    total = Counter(row.dataset for row in rows)
    counts = Counter((row.dataset, reason) for row, reason in zip(rows, why, strict=True) if reason)
    counted = "; ".join(
        f"{name}: {count} of {total[name]} images {reason}" for (name, reason), count in sorted(counts.items())
    )
    return f"training images without part boxes in label run {label_run!r}: {counted}"


def _fill_command(rows: Sequence[ManifestRow], why: Sequence[str], label_run: str | None) -> str:
    names = sorted({row.dataset for row, reason in zip(rows, why, strict=True) if reason})
    return "; ".join(f"dgreid label {name}" + (f" --label-run {label_run}" if label_run else "") for name in names)


def _missing(message: str, command: str) -> DataError:
    return DataError(
        message,
        fix=f"{command} (only the missing ones are labelled), leave these images out with data.missing_labels=drop, or "
        "take the body prior's boxes with data.missing_labels=prior",
    )


def _prior_box(row: ManifestRow, part: str) -> Box:
    box = prior_box(part, row.width, row.height)
    if box is None:
        raise ConfigError(
            f"data.missing_labels=prior: the body prior has no part {part!r}", fix=f"it has {', '.join(PROPORTIONS)}"
        )
    return box


def _numbered(
    rows: Sequence[ManifestRow],
    boxes: np.ndarray,
    protocol: Protocol,
    label_run: str | None,
    dropped: Counter[str],
    filled: dict[str, int],
) -> TrainingSet:
    identities = tuple(sorted({(row.dataset, row.person) for row in rows}))
    if len(identities) < 2:
        left_out = ", ".join(f"{count} {reason}" for reason, count in dropped.items() if count) or "none left out"
        raise DataError(
            f"{len(identities)} identities in {len(rows)} training images of {', '.join(protocol.sources)} "
            f"({left_out}); training needs at least 2",
            fix="add sources to the protocol, or label the images that were left out",
        )
    label_of = {identity: label for label, identity in enumerate(identities)}
    return TrainingSet(
        datasets=tuple(row.dataset for row in rows),
        paths=tuple(row.path for row in rows),
        image_ids=tuple(row.image_id for row in rows),
        labels=np.array([label_of[row.dataset, row.person] for row in rows], dtype=np.int64),
        cameras=tuple(row.camera for row in rows),
        boxes=boxes,
        identities=identities,
        sources=tuple(protocol.sources),
        label_run=label_run,
        dropped={reason: count for reason, count in sorted(dropped.items()) if count},
        filled=filled,
    )
