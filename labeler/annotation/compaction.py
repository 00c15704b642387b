"""Many small shards of a label run become few large ones, with the same rows."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from shared.errors import ConfigError, DataError, DgreidError
from shared.labels import (
    corrected_runs,
    label_runs,
    label_shards,
    read_label_table,
    replace_shards,
    staged_shard,
    superseded_rows,
    writer_lock,
)
from shared.parquet import row_count, write_table

SHARD_ROWS = 200_000  # about 15 MB on disk and 100 MB in memory


@dataclass(frozen=True)
class Compacted:
    """What a compaction did; `after` equals `before` when there was nothing to do."""

    before: int  # shards
    after: int
    rows: int
    superseded: int  # of them, rows of earlier attempts
    bytes_before: int
    bytes_after: int


def compact(labels_root: Path, label_run: str, dataset: str, *, shard_rows: int = SHARD_ROWS) -> Compacted:
    """Rewrite the shards of one label run and data set into shards of `shard_rows` rows.

    Every row is kept and in every split the order stays. Rows that a newer one has taken the place of go into shards
    of their own with lower numbers, so that what counts does not change, whatever the clock said. It may be killed at
    any moment and takes as much disk as the shards again.

    Raises ConfigError for a run that another one corrects, whose record names the shards that it took over; DataError
    for a damaged shard or when there is none, DgreidError when somebody writes labels of this run.
    """
    if label_run in corrected_runs(labels_root, label_runs(labels_root)):
        raise ConfigError(
            f"label run {label_run} is corrected by another run, which still takes over its new shards",
            path=labels_root,
            fix="compact the run that corrects it",
        )
    with writer_lock(labels_root, label_run, dataset):
        shards = label_shards(labels_root, label_run=label_run, dataset=dataset)
        if not shards:
            raise DataError(f"label run {label_run} has no labels of {dataset}", path=labels_root,
                            fix=f"dgreid label {dataset}")  # fmt: skip
        superseded = superseded_rows(shards)
        rows = {shard: row_count(shard) for shard in shards}
        of_split: dict[str, list[Path]] = {}
        for shard in shards:
            of_split.setdefault(shard.parent.name.removeprefix("split="), []).append(shard)
        old_counts = {shard: len(superseded.get(shard, ())) for shard in shards}
        groups = [(split, newest) for newest in (False, True) for split in sorted(of_split)]
        sizes = {
            (split, newest): sum((rows[s] - old_counts[s]) if newest else old_counts[s] for s in of_split[split])
            for split, newest in groups
        }
        planned = {group: -(-size // shard_rows) for group, size in sizes.items()}
        size_before = sum(shard.stat().st_size for shard in shards)
        total, old = sum(rows.values()), sum(old_counts.values())
        if len(shards) <= sum(planned.values()):
            return Compacted(len(shards), len(shards), total, old, size_before, size_before)
        number = max(_number(shard) for shard in shards)
        staged: list[tuple[str, int]] = []
        written = size_after = 0
        for split, newest in groups:
            for table in _portions(_tables(of_split[split], superseded, newest=newest), shard_rows):
                number += 1
                path = staged_shard(labels_root, label_run, dataset, split, number)
                write_table(table, path)
                staged.append((split, number))
                written, size_after = written + len(table), size_after + path.stat().st_size
        if written != total:
            raise DgreidError(f"{total} rows were read and {written} written; nothing was changed", path=labels_root,
                              fix="this is a bug")  # fmt: skip
        replace_shards(labels_root, label_run, dataset, staged[::-1], shards)
        return Compacted(len(shards), len(staged), total, old, size_before, size_after)


def _tables(shards: Iterable[Path], superseded: Mapping[Path, list[int]], *, newest: bool) -> Iterator[pa.Table]:
    for shard in shards:
        positions = superseded.get(shard, [])
        if newest or positions:
            table = read_label_table(shard)
            chosen = set(positions)
            yield (
                table.filter(pa.array([(row not in chosen) == newest for row in range(len(table))]))
                if chosen
                else table
            )


def _portions(tables: Iterator[pa.Table], rows: int) -> Iterator[pa.Table]:
    """The same rows in tables of `rows` rows; the last one may have fewer."""
    waiting: list[pa.Table] = []
    count = 0
    for table in tables:
        while count + len(table) >= rows:
            yield pa.concat_tables([*waiting, table.slice(0, rows - count)])
            table, waiting, count = table.slice(rows - count), [], 0
        if len(table):
            waiting.append(table)
            count += len(table)
    if waiting:
        yield pa.concat_tables(waiting)


def _number(shard: Path) -> int:
    return int(shard.stem.removeprefix("part-"))
