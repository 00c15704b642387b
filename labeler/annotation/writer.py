"""Writes label rows into shards: buffered per split, rotated by rows or by age, each file complete."""

import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from shared.labels import label_folder, write_label_table
from shared.parquet import to_table
from shared.schemas import LABEL_SCHEMA, LabelRow, Split

ROWS_AS_OBJECTS = 512  # beyond these, rows are kept as columns in a fifth of the memory


class LabelWriter:
    """Writes the rows of one label run and data set.

    Args:
        shard_rows: rows after which a shard is written; fewer when a flush comes earlier.
        shard_seconds: age of the oldest unwritten row at which `flush_if_due` writes.
    """

    def __init__(
        self, labels_root: Path, label_run: str, dataset: str, *, shard_rows: int, shard_seconds: float
    ) -> None:
        self._root, self._label_run, self._dataset = labels_root, label_run, dataset
        self._shard_rows, self._shard_seconds = shard_rows, shard_seconds
        self._rows: dict[Split, list[LabelRow]] = defaultdict(list)
        self._tables: dict[Split, list[pa.Table]] = defaultdict(list)
        self.buffered = 0  # rows in both
        self._oldest: float | None = None
        self.shards = 0

    def add(self, rows: Sequence[LabelRow]) -> None:
        """Buffer all rows of one image (they share a split, so a shard never holds half an image)."""
        for row in rows:
            self._rows[row.split].append(row)
            if len(self._rows[row.split]) >= ROWS_AS_OBJECTS:
                self._to_columns(row.split)
        self.buffered += len(rows)
        if self._oldest is None and rows:
            self._oldest = time.monotonic()
        self.flush_if_due()

    def flush_if_due(self) -> None:
        if self._oldest is None:
            return
        if self.buffered >= self._shard_rows or time.monotonic() - self._oldest >= self._shard_seconds:
            self.flush()

    def flush(self) -> None:
        """Write everything that is buffered. Raises DgreidError when the folder cannot be written."""
        for split in list(self._rows):
            self._to_columns(split)
        for split in list(self._tables):
            table = pa.concat_tables(self._tables[split])
            write_label_table(table, label_folder(self._root, self._label_run, self._dataset, split))
            self.buffered -= len(table)
            del self._tables[split]
            self.shards += 1
        self._oldest = None

    def _to_columns(self, split: Split) -> None:
        if rows := self._rows.pop(split, None):
            self._tables[split].append(to_table(rows, LABEL_SCHEMA))
