"""A manifest is read in pieces, and a label shard is gathered as columns: memory must not grow with the data set."""

from itertools import islice
from pathlib import Path

import pyarrow as pa
import pytest

from labeler.annotation import writer as label_writer
from labeler.annotation.writer import LabelWriter
from shared import parquet
from shared.errors import DataError
from shared.geometry import Box
from shared.labels import label_shards, read_labels
from shared.manifest import ManifestFile, iter_manifest, read_manifest, write_manifest
from shared.parquet import write_table
from shared.schemas import MANIFEST_SCHEMA, LabelRow, ManifestRow
from tests.rows import label_row, manifest_row


def entry(number: int) -> ManifestRow:
    return manifest_row(number, dataset="d", identity=number)


def label(number: int) -> LabelRow:
    split = "query" if number % 3 else "gallery"
    flags = ("clipped",) * (number % 2)
    return label_row(
        entry(number), box=Box(number, 0, number + 1, 1), label_run="r", split=split, flags=flags, space="none"
    )


def test_streamed_rows_are_the_rows_any_number_of_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "ROWS_AT_ONCE", 4)
    rows = [entry(number) for number in range(11)]
    write_manifest(rows, tmp_path / "d.parquet")
    manifest = ManifestFile(tmp_path / "d.parquet")
    assert list(manifest) == list(manifest) == rows == read_manifest(manifest.path)


def test_a_row_is_read_when_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "ROWS_AT_ONCE", 4)
    rows = [entry(number).model_dump() for number in range(9)]
    rows[8]["image_id"] = "short"
    write_table(pa.Table.from_pylist(rows, schema=MANIFEST_SCHEMA), tmp_path / "d.parquet")
    stream = iter_manifest(tmp_path / "d.parquet")
    assert [row.identity for row in islice(stream, 8)] == list(range(8))
    with pytest.raises(DataError, match="at least 16"):
        next(stream)


def test_a_missing_manifest_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="dgreid manifest d"):
        next(iter(ManifestFile(tmp_path / "d.parquet")))


@pytest.mark.parametrize("as_objects", [1, 4, 1000])
def test_rows_gathered_as_columns_are_the_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_objects: int
) -> None:
    monkeypatch.setattr(label_writer, "ROWS_AS_OBJECTS", as_objects)
    rows = [label(number) for number in range(25)]
    writer = LabelWriter(tmp_path, "r", "d", shard_rows=10, shard_seconds=1e9)
    for first in range(0, 25, 3):
        writer.add(rows[first : first + 3])
    assert writer.shards == 4 and len(read_labels(label_shards(tmp_path))) == 24, "shards of 12 rows, in two splits"
    writer.flush()
    written = read_labels(label_shards(tmp_path))
    assert sorted(written, key=lambda row: row.x_min or 0) == rows
    assert {len({row.split for row in read_labels([path])}) for path in label_shards(tmp_path)} == {1}
