"""Label runs that correct another one: whole copies of it, in which newer rows stand where a person decided."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from shared.files import remove_tree, write_text
from shared.labels.sql import connect
from shared.labels.store import (
    COPYING,
    CORRECTS,
    SHARDS,
    STAGING,
    check_free,
    check_name,
    label_folder,
    label_shards,
    place_of,
    read_label_table,
    read_record,
    run_folder,
    write_label_table,
    write_record,
    writer_lock,
)
from shared.object_storage import remote
from shared.parquet import to_table, write_table
from shared.schemas import LABEL_SCHEMA, LabelRow

CORRECTED, ACCEPTED = "corrected", "accepted"  # flags of rows that a person decided
_TAKEN = "taken"  # key of a correction's record: the corrected run's shards whose rows it has, with their bytes
_MERGED_ROWS = 3000  # of a shard that further corrections are added to: rewriting it stays a matter of milliseconds


def write_correction(
    labels_root: Path, corrects: str, label_run: str, rows: Sequence[LabelRow], record: Mapping[str, Any]
) -> None:
    """Write a run that holds all rows of another one and, as the newest, the given rows; it appears whole or not.

    Args:
        corrects: the run whose rows are taken over under the new name.
        rows: of one data set.
        record: what made the run.

    Raises ConfigError when the run exists or has no plain name, DataError for a damaged shard, DgreidError when the
    place cannot be written.
    """
    check_name(label_run)
    run = labels_root / label_run
    if remote(run) and (run / COPYING).exists():  # left by a killed process
        remove_tree(run / SHARDS)
        remove_tree(run)
    check_free(labels_root, label_run)
    staging = labels_root if remote(run) else labels_root / f".{label_run}.tmp"
    if remote(run):
        write_text(run / COPYING, "")
    else:
        shutil.rmtree(staging, ignore_errors=True)
    taken = {}
    for shard in label_shards(labels_root, label_run=corrects):
        place = place_of(shard)
        assert place is not None
        taken.update(_named(shard))
        renamed = _with_run(read_label_table(shard), label_run)
        write_table(renamed, staging / label_run / SHARDS / place.dataset / place.split / shard.name)
    _write_by_split(staging, label_run, rows)
    write_record(staging, label_run, {**record, CORRECTS: corrects, _TAKEN: taken})
    if remote(run):
        (run / COPYING).unlink()
        return
    shutil.rmtree(staging / label_run / STAGING, ignore_errors=True)
    (staging / label_run).rename(run)
    shutil.rmtree(staging)


def add_corrections(labels_root: Path, label_run: str, rows: Sequence[LabelRow]) -> bool:
    """Add rows to a run that `write_correction` made, after whatever the corrected run got since then.

    Of that, parts that were corrected here stay as they were corrected. Small shards of corrections are merged.

    Args:
        rows: of one data set and label_run.

    Returns whether the corrected run had new rows. Raises DataError for a damaged shard, DgreidError when another
    process is writing or the place cannot be written; then no row was added.
    """
    with writer_lock(labels_root, label_run, rows[0].dataset):
        grown = _take_over(labels_root, label_run, rows[0].dataset)
        _write_by_split(labels_root, label_run, rows)
    return grown


def _take_over(labels_root: Path, label_run: str, dataset: str) -> bool:
    """Copy the newest rows of the corrected run's new shards, except of parts that a person decided here."""
    record = read_record(labels_root, label_run) or {}
    corrects = str(record.get(CORRECTS, ""))
    own = label_shards(labels_root, label_run=label_run, dataset=dataset)
    others = label_shards(labels_root, label_run=corrects, dataset=dataset) if corrects else []
    names = {path.relative_to(path.parents[2]).as_posix() for path in own}
    # of a version that kept no list: a shard was taken over under its name
    taken = record.get(_TAKEN) or {key: size for path in others for key, size in _named(path).items() if key in names}
    new = [path for path in others if taken.items().isdisjoint(_named(path).items())]
    if not new:
        return False
    with connect(labels=own) as here, connect(labels=new) as there:
        decided = here.sql(
            f"select image_id, part from labels where list_has_any(flags, ['{CORRECTED}', '{ACCEPTED}'])"
        )
        there.register("decided", decided.to_arrow_table())
        found = there.sql("from labels anti join decided using (image_id, part)").to_arrow_table().cast(LABEL_SCHEMA)
    for split in pc.unique(found["split"]).to_pylist():
        chosen = _with_run(found.filter(pc.equal(found["split"], split)), label_run)
        write_label_table(chosen, label_folder(labels_root, label_run, dataset, split))
    seen = {key: size for path in others for key, size in _named(path).items()}
    record.pop("label_run", None)
    write_record(labels_root, label_run, {**record, _TAKEN: {**taken, **seen}})
    return True


def _write_by_split(labels_root: Path, label_run: str, rows: Sequence[LabelRow]) -> None:
    """The rows, as the newest of their data set; onto its last shard where that is a small one of the same engine."""
    for split in sorted({row.split for row in rows}):
        chosen = [row for row in rows if row.split == split]
        folder = label_folder(labels_root, label_run, chosen[0].dataset, split)
        table = to_table(chosen, LABEL_SCHEMA)
        shards = label_shards(labels_root, label_run=label_run, dataset=chosen[0].dataset)
        if shards and (last := shards[-1]).parent == folder:
            before = read_label_table(last)
            engines = set(pc.unique(pa.chunked_array([*before["engine"].chunks, *table["engine"].chunks])).to_pylist())
            in_order = pc.max(before["created_at"]).as_py() <= pc.min(table["created_at"]).as_py()
            if len(before) < _MERGED_ROWS and len(engines) == 1 and in_order:
                staging = run_folder(labels_root, label_run) / STAGING / chosen[0].dataset
                write_table(pa.concat_tables([before, table]), last, staging=staging)
                continue
        write_label_table(table, folder)


def _with_run(table: pa.Table, label_run: str) -> pa.Table:
    index = table.schema.get_field_index("label_run")
    return table.set_column(index, table.schema.field(index), pa.array([label_run] * len(table), pa.string()))


def _named(shard: Path) -> dict[str, int]:
    """<data set>/<split>/<file> -> its bytes."""
    place = place_of(shard)
    assert place is not None
    return {f"{place.dataset}/{place.split}/{shard.name}": shard.stat().st_size}
