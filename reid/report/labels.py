"""The part labels a run was trained with: engine and model, statuses by part, and examples."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import duckdb
import pyarrow as pa

from reid.config import read_config
from reid.evaluation.evaluate import run_protocol
from reid.protocols.protocol import training_rows
from reid.report.run_record import RunRecord
from reid.training.run_folder import read_image_ids, read_training_images
from shared import labels as shards
from shared.errors import DgreidError
from shared.geometry import Box
from shared.manifest import read_manifest
from shared.schemas import PARTS, ImageStatus, ManifestRow
from shared.workspace import Workspace

EXAMPLES = 16
INCOMPLETE_SHARE = 3  # of every three examples, up to one has an absent or failed part
WANTED_SCHEMA = pa.schema([(name, pa.string()) for name in ("dataset", "image_id", "path")])


@dataclass(frozen=True)
class LabelledImage:
    dataset: str
    path: str  # relative to the data set's folder
    width: int  # pixels of the original image, the space of the boxes
    height: int
    statuses: dict[str, str]  # part -> how the question ended
    boxes: dict[str, Box]  # only parts whose status is ok


@dataclass(frozen=True)
class LabelFacts:
    label_run: str | None
    made_by: list[dict[str, Any]] = field(default_factory=list)  # engine, model, prompt_version, rows
    statuses: dict[str, dict[str, int]] = field(default_factory=dict)  # part -> status -> images
    examples: list[LabelledImage] = field(default_factory=list)
    boxes: dict[tuple[str, str], dict[str, Box]] = field(default_factory=dict)  # (data set, path) -> part -> box
    images: int = 0  # that the counts are over
    problem: str = ""  # why there is nothing to show
    note: str = ""  # how the counts differ from what was trained on

    def as_data(self) -> dict[str, Any]:
        return {
            "label_run": self.label_run,
            "made_by": self.made_by,
            "statuses": self.statuses,
            "images": self.images,
            "note": self.note,
        }


def read_label_facts(record: RunRecord, workspace: Workspace, shown: Sequence[tuple[str, str]] = ()) -> LabelFacts:
    """Query the labels of the images that the run was trained on, after any cap on images per identity; `boxes` are
    those of the images in `shown` (data set, path).

    Never raises for missing or damaged ones: `problem` says why.
    """
    if not record.training_set:
        return LabelFacts(None, problem="The run does not record which part labels it used.")
    if record.label_run is None:
        return LabelFacts(None, problem="The run was trained without part labels.")
    paths = [
        path
        for source in record.sources
        for path in shards.label_shards(workspace.labels, label_run=record.label_run, dataset=source)
    ]
    if not paths:
        return LabelFacts(record.label_run, problem=f"The labels of run {record.label_run} are no longer there.")
    try:
        for path in paths:
            shards.read_label_table(path)
        rows, note = _trained_on(record, workspace)
    except DgreidError as err:
        return LabelFacts(
            record.label_run, problem=f"The labels could not be shown: {err.what} ({err.path}). To fix: {err.fix}."
        )
    with shards.connect(labels=paths) as connection:
        wanted = pa.table({name: [getattr(row, name) for row in rows] for name in ("dataset", "image_id", "path")})
        connection.register("wanted", wanted.cast(WANTED_SCHEMA))
        connection.execute(
            "create view training_labels as select labels.* exclude (path), wanted.path "
            "from labels join wanted using (dataset, image_id)"
        )
        return LabelFacts(
            record.label_run,
            made_by=_made_by(connection),
            statuses=_statuses(connection),
            examples=_examples(connection, record.sources),
            boxes={image: found for image in shown if (found := _boxes(connection, *image))},
            images=len(rows),
            note=note,
        )


def _trained_on(record: RunRecord, workspace: Workspace) -> tuple[list[ManifestRow], str]:
    """The manifest rows of the training images; and a sentence where they are not exactly those."""
    protocol = run_protocol(read_config(record.folder), workspace)
    files, ids = read_training_images(record.folder), read_image_ids(record.folder)
    rows = [
        row
        for source in record.sources
        for row in training_rows(protocol, source, read_manifest(workspace.manifest(source)))
        if row.status == ImageStatus.OK
        and ((source, row.path) in files if files is not None else ids is None or row.image_id in ids)
    ]
    count = record.training_set.get("images", len(rows))
    if count == len(rows):
        return rows, ""
    told = f"Part labels are counted over {len(rows):,} images, but {count:,} were trained on"
    if files is None:
        return rows, f"{told}: the run, of an earlier version, does not record which."
    return rows, f"{told}: the manifests have changed."


def _made_by(connection: duckdb.DuckDBPyConnection) -> list[dict[str, Any]]:
    found = connection.execute(
        "select engine, model, prompt_version, count(*) from training_labels group by all order by 4 desc, 1, 2, 3"
    ).fetchall()
    return [dict(zip(("engine", "model", "prompt_version", "rows"), row, strict=True)) for row in found]


def _statuses(connection: duckdb.DuckDBPyConnection) -> dict[str, dict[str, int]]:
    found = connection.execute(
        "select part, status, count(*) from training_labels group by all order by 1, 2"
    ).fetchall()
    parts = sorted({part for part, _, _ in found}, key=lambda part: (PARTS.index(part) if part in PARTS else 99, part))
    return {part: {status: images for name, status, images in found if name == part} for part in parts}


def _examples(connection: duckdb.DuckDBPyConnection, sources: list[str]) -> list[LabelledImage]:
    """EXAMPLES images spread evenly over the sources, the same ones every time, with the odd incomplete one."""
    chosen = []
    for place, source in enumerate(sources):
        wanted = EXAMPLES // len(sources) + (place < EXAMPLES % len(sources))
        incomplete = _pick(connection, source, wanted // INCOMPLETE_SHARE, complete=False)
        complete = _pick(connection, source, wanted - len(incomplete), complete=True)
        chosen += complete + incomplete
    return chosen


def _boxes(connection: duckdb.DuckDBPyConnection, dataset: str, path: str) -> dict[str, Box]:
    found = connection.execute(
        "select part, x_min, y_min, x_max, y_max from training_labels where dataset = ? and path = ? and status = 'ok'",
        [dataset, path],
    ).fetchall()
    return {part: Box(*corners) for part, *corners in found}


def _pick(connection: duckdb.DuckDBPyConnection, source: str, wanted: int, *, complete: bool) -> list[LabelledImage]:
    found = connection.execute(
        "select path, any_value(width), any_value(height), "
        "list({part: part, status: status, box: [x_min, y_min, x_max, y_max]}) "
        "from training_labels where dataset = ? group by image_id, path having bool_and(status = 'ok') = ? "
        "order by md5(image_id) limit ?",  # a fixed shuffle: neighbours in a folder are near-duplicates
        [source, complete, wanted],
    ).fetchall()
    return [
        LabelledImage(
            source,
            path,
            width,
            height,
            {part["part"]: part["status"] for part in parts},
            {part["part"]: Box(*part["box"]) for part in parts if part["status"] == "ok"},
        )
        for path, width, height, parts in found
    ]
