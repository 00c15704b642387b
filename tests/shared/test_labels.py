from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from shared.errors import DataError
from shared.labels import (
    connect,
    label_folder,
    label_shards,
    read_labels,
    read_manifest,
    write_label_shard,
    write_manifest,
    write_table,
)
from shared.schemas import LABEL_SCHEMA, MANIFEST_SCHEMA, Kind, LabelRow, LabelStatus, ManifestRow

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def label(**changes: Any) -> LabelRow:
    given: dict[str, Any] = {
        "label_run": "r",
        "dataset": "d",
        "split": "train",
        "path": "a.jpg",
        "image_id": "0123456789abcdef",
        "width": 64,
        "height": 128,
        "part": "head",
        "x_min": 1.0,
        "y_min": 2.0,
        "x_max": 3.0,
        "y_max": 4.0,
        "status": LabelStatus.OK,
        "space": "original_pixels",
        "engine": "e",
        "model": "m",
        "prompt_version": "p",
        "attempts": 1,
        "created_at": NOON,
    }
    return LabelRow(**{**given, **changes})


def entry(**changes: Any) -> ManifestRow:
    given: dict[str, Any] = {
        "dataset": "d",
        "split": "train",
        "path": "a.jpg",
        "image_id": "0123456789abcdef",
        "width": 64,
        "height": 128,
        "identity": 1,
        "camera": 1,
        "size_bytes": 10,
        "modified_ns": 20,
    }
    return ManifestRow(**{**given, **changes})


def test_the_types_and_the_arrow_schemas_name_the_same_columns() -> None:
    assert list(LabelRow.model_fields) == LABEL_SCHEMA.names
    assert list(ManifestRow.model_fields) == MANIFEST_SCHEMA.names


def test_rows_survive_the_round_trip(tmp_path: Path) -> None:
    rows = [label(), label(part="legs", status=LabelStatus.ABSENT, x_min=None, flags=("a", "b"), raw_box=(1.0, 2.0))]
    shard = write_label_shard(rows, label_folder(tmp_path, "r", "d", "train"))
    assert read_labels([shard]) == rows
    people = [entry(identity=number, camera=number) for number in (1, 0, -1, 2**31 - 1)]
    others = [entry(kind=kind, identity=None, camera=None) for kind in (Kind.DISTRACTOR, Kind.JUNK)]
    write_manifest(people + others, tmp_path / "d.parquet")
    assert read_manifest(tmp_path / "d.parquet") == people + others


@pytest.mark.parametrize(("kind", "identity"), [("person", None), ("junk", -1), ("distractor", 0), ("stranger", 1)])
def test_people_and_nobody_else_have_an_identity(kind: str, identity: int | None, tmp_path: Path) -> None:
    with pytest.raises(ValidationError):
        entry(kind=kind, identity=identity)
    wrong = entry().model_dump() | {"kind": kind, "identity": identity}
    write_table(pa.Table.from_pylist([wrong], schema=MANIFEST_SCHEMA), tmp_path / "d.parquet")
    with pytest.raises(DataError, match="no row of a manifest") as caught:
        read_manifest(tmp_path / "d.parquet")
    assert caught.value.fix == "make manifest DATASET=d"


def test_shards_are_numbered_on_and_found_by_run_and_data_set(tmp_path: Path) -> None:
    folder = label_folder(tmp_path, "r", "d", "train")
    assert [write_label_shard([label()], folder).name for _ in range(3)] == [
        "part-00000.parquet",
        "part-00001.parquet",
        "part-00002.parquet",
    ]
    write_label_shard([label(label_run="s")], label_folder(tmp_path, "s", "d", "query"))
    (folder / ".part-00009.parquet.1.tmp").write_text("half a shard")
    assert len(label_shards(tmp_path)) == 4
    assert len(label_shards(tmp_path, label_run="r")) == 3
    assert len(label_shards(tmp_path, dataset="e")) == 0


def test_a_retried_answer_hides_the_older_one(tmp_path: Path) -> None:
    folder = label_folder(tmp_path, "r", "d", "train")
    write_label_shard([label(status=LabelStatus.ENGINE_ERROR, x_min=None), label(part="legs")], folder)
    write_label_shard([label(created_at=NOON + timedelta(seconds=1))], folder)
    connection = connect(labels=label_shards(tmp_path))
    assert connection.execute("select part, status from labels order by part").fetchall() == [
        ("head", "ok"),
        ("legs", "ok"),
    ]
    assert connection.execute("select count(*) from label_rows").fetchone() == (3,)


def test_views_without_files_are_empty_but_have_their_columns() -> None:
    connection = connect()
    assert connection.execute("select count(x_min) from labels").fetchone() == (0,)
    assert connection.execute("select count(identity) from manifest").fetchone() == (0,)


@pytest.mark.parametrize("damage", ["missing", "garbage", "columns", "version"])
def test_what_is_not_ours_is_refused_with_the_remedy(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "d.parquet"
    if damage == "garbage":
        path.write_bytes(b"PAR1 no")
    elif damage == "columns":
        write_table(pa.table({"a": [1]}), path)
    elif damage == "version":
        write_manifest([entry()], path)
        table = pq.read_table(path)
        pq.write_table(table.replace_schema_metadata({"dgreid.schema": "manifest", "dgreid.version": "0"}), path)
    with pytest.raises(DataError) as caught:
        read_manifest(path)
    assert caught.value.path == path
    assert "make manifest DATASET=d" in caught.value.fix
