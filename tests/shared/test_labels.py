import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from shared.errors import ConfigError, DataError, DgreidError
from shared.files import write_text
from shared.geometry import Box
from shared.labels import (
    CORRECTS,
    choose_label_run,
    connect,
    label_folder,
    label_runs,
    label_shards,
    newest_labels,
    read,
    read_label_table,
    read_labels,
    read_record,
    write_correction,
    write_label_shard,
    write_record,
    writer_lock,
)
from shared.manifest import read_manifest, write_manifest
from shared.parquet import to_table, write_table
from shared.schemas import LABEL_SCHEMA, MANIFEST_SCHEMA, Kind, LabelRow, LabelStatus, ManifestRow
from shared.workspace import Workspace
from tests.rows import NOON, label_row, manifest_row

FIRST = "part-00000.parquet"


def label(**changes: Any) -> LabelRow:
    return label_row(entry(), box=Box(1, 2, 3, 4), **{"label_run": "r", **changes})


def entry(**changes: Any) -> ManifestRow:
    given = {"dataset": "d", "path": "a.jpg", "image_id": "0123456789abcdef", "size_bytes": 10, "modified_ns": 20}
    return manifest_row(**{**given, **changes})


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
    with pytest.raises(DataError, match="not a row of a manifest") as caught:
        read_manifest(tmp_path / "d.parquet")
    assert caught.value.fix == "dgreid manifest d"


def test_shards_are_numbered_on_and_found_by_run_and_data_set(tmp_path: Path) -> None:
    folder = label_folder(tmp_path, "r", "d", "train")
    assert [write_label_shard([label()], folder).name for _ in range(3)] == [
        "part-00000.parquet",
        "part-00001.parquet",
        "part-00002.parquet",
    ]
    write_label_shard([label(label_run="s")], label_folder(tmp_path, "s", "d", "query"))
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
    assert "dgreid manifest d" in caught.value.fix


def read_pandas(folder: Path) -> list[dict[str, Any]]:
    return pd.read_parquet(folder).to_dict("records")


def read_polars(folder: Path) -> list[dict[str, Any]]:
    return pl.read_parquet(folder).to_dicts()


def read_pyarrow(folder: Path) -> list[dict[str, Any]]:
    return pads.dataset(folder).to_table().to_pylist()


def read_duckdb(folder: Path) -> list[dict[str, Any]]:
    return duckdb.sql(f"from '{folder}/**/*.parquet'").to_arrow_table().to_pylist()


@pytest.mark.parametrize("reader", [read_pandas, read_polars, read_pyarrow, read_duckdb])
def test_a_folder_of_shards_opens_as_it_is(tmp_path: Path, reader: Callable[[Path], list[dict[str, Any]]]) -> None:
    """While a run is being written and with what a killed writer left, at every depth."""
    write_record(tmp_path, "r", {"engine": "e"})
    for dataset, split in (("d", "train"), ("d", "query"), ("other", "all")):
        with writer_lock(tmp_path, "r", dataset):
            for part in ("head", "legs"):
                shard = label_folder(tmp_path, "r", dataset, split)
                write_label_shard([label(dataset=dataset, split=split, part=part)], shard)
            (tmp_path / "r" / "_unfinished" / dataset).mkdir(parents=True, exist_ok=True)
            write_text(tmp_path / "r" / "_unfinished" / dataset / ".part-00009.parquet.1.tmp", "half a shard")
            shards = tmp_path / "r" / "shards"
            rows = reader(shards)
    assert sorted((row["dataset"], row["split"], row["part"]) for row in rows) == [
        ("d", "query", "head"),
        ("d", "query", "legs"),
        ("d", "train", "head"),
        ("d", "train", "legs"),
        ("other", "all", "head"),
        ("other", "all", "legs"),
    ]
    assert set(rows[0]) == set(LABEL_SCHEMA.names)
    assert (rows[0]["label_run"], rows[0]["x_max"]) == ("r", 3.0)
    assert len(reader(shards / "d")) == 4
    assert len(reader(shards / "d" / "train")) == 2


def old_layout(labels_root: Path) -> Path:
    """A run as version 0.1.0 wrote it: partition folders, the record beside them, numbers per split."""
    run = labels_root / "label_run=r"
    rows = {
        ("train", 0): [label(status=LabelStatus.ENGINE_ERROR, x_min=None), label(part="legs")],
        ("train", 1): [label(x_min=2.7, created_at=NOON + timedelta(seconds=1))],
        ("query", 0): [label(split="query", path="b.jpg", image_id="b" * 16)],
    }
    for (split, number), content in rows.items():
        path = run / "dataset=d" / f"split={split}" / f"part-{number:05d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(to_table(content, LABEL_SCHEMA), path, compression="zstd")
    (run / "dataset=d" / ".lock").touch()
    (run / "dataset=d" / "split=train" / ".part-00002.parquet.77.tmp").write_text("half a shard")
    (run / "run.json").write_text(json.dumps({"label_run": "r", "engine": "e"}))
    return run


def test_a_run_of_the_old_layout_is_read_and_continued(tmp_path: Path) -> None:
    run = old_layout(tmp_path)
    assert label_runs(tmp_path) == ["r"]
    assert choose_label_run(None, ["d"], tmp_path) == "r"
    assert read_record(tmp_path, "r") == {"label_run": "r", "engine": "e"}
    found = newest_labels(tmp_path, "r", "d")
    assert list(zip(found["path"].to_pylist(), found["part"].to_pylist(), found["x_min"].to_pylist(), strict=True)) == [
        ("a.jpg", "head", 2.7),
        ("a.jpg", "legs", 1.0),
        ("b.jpg", "head", 1.0),
    ]
    with writer_lock(tmp_path, "r", "d"):
        assert not list(run.rglob("*.tmp"))
        shard = write_label_shard([label(split="query", x_min=2.9)], label_folder(tmp_path, "r", "d", "query"))
    assert shard == run / "dataset=d" / "split=query" / "part-00002.parquet"  # above the numbers of all splits
    assert newest_labels(tmp_path, "r", "d")["x_min"].to_pylist() == [2.9, 1.0, 1.0]
    assert {path.name for path in tmp_path.iterdir()} == {"label_run=r"}


def test_two_folders_of_one_name_are_refused(tmp_path: Path) -> None:
    old_layout(tmp_path)
    (tmp_path / "r").mkdir()
    with pytest.raises(DataError, match="two folders"):
        label_shards(tmp_path)


def test_a_clock_that_was_set_back_hides_no_answer(tmp_path: Path) -> None:
    write_label_shard([label(status=LabelStatus.REFUSED, x_min=None)], label_folder(tmp_path, "r", "d", "train"))
    earlier = label(split="query", created_at=NOON - timedelta(days=1))  # the image has moved to another split
    write_label_shard([earlier], label_folder(tmp_path, "r", "d", "query"))
    assert newest_labels(tmp_path, "r", "d")["status"].to_pylist() == ["ok"]


def test_other_files_beside_the_shards_cost_no_answer(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = label_folder(tmp_path, "r", "d", "train")
    write_label_shard([label()], folder).rename(folder / "part-old.parquet")
    assert write_label_shard([label(x_min=2.0)], folder).name == "part-00000.parquet"
    assert newest_labels(tmp_path, "r", "d")["x_min"].to_pylist() == [2.0]
    assert "part-old.parquet" in caplog.text


@pytest.mark.parametrize(
    ("changes", "version", "words"),
    [
        ({"dataset": "another"}, "2", "dataset 'another'"),
        ({"label_run": "another"}, "2", "label_run 'another'"),
        ({"split": "query"}, "2", "split 'query'"),
        ({"status": "splendid"}, "2", "status 'splendid'"),
        ({}, "99", "newer version"),
        ({}, "1", "schema 1"),
    ],
)
def test_foreign_shards_are_refused_by_name(tmp_path: Path, changes: dict[str, str], version: str, words: str) -> None:
    row = label().model_dump() | changes
    schema = LABEL_SCHEMA.with_metadata({**LABEL_SCHEMA.metadata, b"dgreid.version": version})
    path = label_folder(tmp_path, "r", "d", "train") / "part-00000.parquet"
    write_table(pa.Table.from_pylist([row], schema=schema), path)
    for attempt in (lambda: connect(labels=[path]), lambda: read_label_table(path)):
        with pytest.raises(DataError, match=words) as caught:
            attempt()
        assert caught.value.path == path


def test_what_a_killed_writer_left_is_removed_by_the_next(tmp_path: Path) -> None:
    write_text(tmp_path / "r" / "_unfinished" / "d" / ".part-00003.parquet.1.tmp", "half a shard")
    write_text(tmp_path / "r" / "_unfinished" / "e" / ".part-00003.parquet.1.tmp", "another writer's")
    with writer_lock(tmp_path, "r", "d"):
        assert [path.parent.name for path in tmp_path.rglob("*.tmp")] == ["e"]
        with pytest.raises(DgreidError, match="another process"), writer_lock(tmp_path, "r", "d"):
            pass


def test_a_correction_is_a_whole_run_or_none(tmp_path: Path) -> None:
    old_layout(tmp_path)
    rows = [label(label_run="r.corrected", x_min=2.5, created_at=NOON - timedelta(days=9))]
    write_correction(tmp_path, "r", "r.corrected", rows, {"engine": "import"})
    assert newest_labels(tmp_path, "r.corrected", "d")["x_min"].to_pylist() == [2.5, 1.0, 1.0]
    assert newest_labels(tmp_path, "r", "d")["x_min"].to_pylist() == [2.7, 1.0, 1.0]
    record = read_record(tmp_path, "r.corrected")
    assert record and record[CORRECTS] == "r"
    assert choose_label_run(None, ["d"], tmp_path) == "r.corrected"
    assert {path.name for path in tmp_path.iterdir()} == {"label_run=r", "r.corrected"}
    assert len(read_pandas(tmp_path / "r.corrected" / "shards")) == 5
    with pytest.raises(ConfigError, match="exists already"):
        write_correction(tmp_path, "r", "r.corrected", rows, {})


def test_which_label_run_is_meant(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no part labels of d yet") as missing:
        choose_label_run(None, ["d"], tmp_path)
    assert missing.value.fix == "dgreid label d"
    for run in ("first", "second"):
        write_label_shard([label(label_run=run)], label_folder(tmp_path, run, "d", "train"))
    with pytest.raises(ConfigError, match="several label runs: first, second"):
        choose_label_run(None, ["d"], tmp_path)
    assert choose_label_run("second", ["d"], tmp_path) == "second"
    with pytest.raises(ConfigError, match="did you mean 'second'"):
        choose_label_run("secnod", ["d"], tmp_path)


def test_labels_as_a_table(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "data", tmp_path / "runs")
    rows = [label(dataset="viper", part=part, x_min=x) for part in ("legs", "bag", "head") for x in (0.0, 1.0)]
    for row in rows:
        write_label_shard([row], label_folder(workspace.labels, "r", "viper", "train"))
    table = read("VIPeR", workspace=workspace)
    assert table.schema.equals(LABEL_SCHEMA)
    assert table["part"].to_pylist() == ["head", "legs", "bag"]
    assert table.to_pandas()["x_min"].tolist() == [1.0, 1.0, 1.0]
    with pytest.raises(ConfigError, match="did you mean 'viper'"):
        read("vipr", workspace=workspace)


def test_parts_are_labels_joined_with_their_files(tmp_path: Path) -> None:
    rows = [entry(), entry(split="query", path="copy.jpg", identity=7), entry(image_id="c" * 16, path="c.jpg")]
    write_manifest(rows, tmp_path / "d.parquet")
    folder = label_folder(tmp_path, "r", "d", "train")
    lost = label(image_id="f" * 16, path="gone.jpg", status=LabelStatus.ABSENT, x_min=None, x_max=None)
    shard = write_label_shard([label(x_max=33.0, y_max=66.0), lost], folder)
    connection = connect(manifests=[tmp_path / "d.parquet"], labels=[shard])
    found = connection.sql(
        "select split, path, identity, rel_x_min, rel_y_max, area, rel_area from parts order by path"
    ).fetchall()
    box = (1 / 64, 66 / 128, 32 * 64, 32 * 64 / (64 * 128))
    assert found == [
        ("train", "a.jpg", 1, *box),
        ("query", "copy.jpg", 7, *box),
        ("train", "gone.jpg", None, None, 4 / 128, None, None),
    ]
    names = connection.sql("from parts").columns
    assert len(names) == len(set(names))
    assert connect().sql("select count(rel_area) from parts").fetchall() == [(0,)]


def test_a_confined_connection_reads_its_own_files_only(tmp_path: Path) -> None:
    shard = write_label_shard([label()], label_folder(tmp_path / "it's", "r", "d", "train"))
    pq.write_table(read_label_table(shard), tmp_path / "other.parquet")
    connection = connect(labels=[shard], only_these_files=True)
    assert connection.sql("select count(*) from parts").fetchall() == [(1,)]
    for query in (
        f"from '{tmp_path / 'other.parquet'}'",
        "from read_text('/etc/hostname')",
        "from glob('/*')",
        "from sqlite_scan('x', 'y')",
        "set enable_external_access=true",
        "from shard",
    ):
        with pytest.raises(duckdb.Error):
            connection.execute(query).fetchall()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"x_max": 90.0}, "outside their image"),
        ({"y_min": -0.1}, "outside their image"),
        ({"x_max": 0.5}, "outside their image"),  # corner and size under the names of two corners
        ({"x_max": 1.0}, "outside their image"),  # without an area
        ({"y_max": float("nan")}, "outside their image"),
        ({"x_min": float("nan")}, "outside their image"),
        ({"y_max": float("inf")}, "outside their image"),
        ({"x_min": None}, "missing"),
        ({"x_min": 0.1, "y_min": 0.1, "x_max": 0.9, "y_max": 1.0}, "within the first pixel"),
        ({"status": LabelStatus.ABSENT}, "boxes of parts that are not ok"),
        ({"score": float("nan")}, "scores or agreements"),
        ({"score": 70.0}, "scores or agreements"),
        ({"agreement": -0.1}, "scores or agreements"),
        ({"x_min": 0.0, "y_min": 0.0, "x_max": 64.0, "y_max": 128.0, "score": 1.0}, ""),
        ({"x_max": 1.5, "x_min": 0.5}, ""),
    ],
)
def test_boxes_and_scores_that_cannot_be_are_refused(changes: dict[str, Any], told: str, tmp_path: Path) -> None:
    rows = [{**label(part=part).model_dump(), **(changes if part == "head" else {})} for part in ("head", "legs")]
    write_table(pa.Table.from_pylist(rows, schema=LABEL_SCHEMA), label_folder(tmp_path, "r", "d", "train") / FIRST)
    if not told:
        assert len(newest_labels(tmp_path, "r", "d")) == 2
        return
    with pytest.raises(DataError, match=rf"'r' has 1 rows .*a\.jpg, head: .*{told}.*\n.*dgreid verify-labels d --lab"):
        newest_labels(tmp_path, "r", "d")
    write_label_shard([label()], label_folder(tmp_path, "r", "d", "train"))  # asked again: the old row counts no more
    assert len(newest_labels(tmp_path, "r", "d")) == 2


@pytest.mark.parametrize("rows", [0, 2])
@pytest.mark.parametrize("version", [True, False])
def test_a_table_of_other_columns_is_no_shard(rows: int, version: bool, tmp_path: Path) -> None:
    table = pa.table({"a": pa.array([1] * rows, pa.int32())})
    table = table.replace_schema_metadata(LABEL_SCHEMA.metadata) if version else table
    write_table(table, label_folder(tmp_path, "r", "d", "train") / FIRST)
    with pytest.raises(DataError, match=r"label_run is nowhere, not string, and" if version else "schema unknown"):
        connect(labels=label_shards(tmp_path))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda table: table.drop_columns(["x_max"]), r"\(x_max is nowhere, not double or NULL\)"),
        (lambda table: table.append_column("mask", table["part"]), r"\(mask is string or NULL, not nowhere\)"),
        (lambda table: table.append_column("part", table["part"]), "part is there more than once"),
        (lambda table: table.select(table.column_names[::-1]), r"\(in another order\)"),
        (lambda table: table.cast(nullable(LABEL_SCHEMA)), "label_run is string or NULL, not string, and 15 more"),
    ],
)
def test_what_is_other_about_the_columns_is_said(
    change: Callable[[pa.Table], pa.Table], told: str, tmp_path: Path
) -> None:
    table = change(to_table([label()], LABEL_SCHEMA)).replace_schema_metadata(LABEL_SCHEMA.metadata)
    write_table(table, label_folder(tmp_path, "r", "d", "train") / FIRST)
    with pytest.raises(DataError, match=told) as refused:
        connect(labels=label_shards(tmp_path))
    assert "dgreid import-labels" in refused.value.fix


def nullable(schema: pa.Schema) -> pa.Schema:
    return pa.schema([field.with_nullable(True) for field in schema])


@pytest.mark.parametrize(
    "name",
    [
        "labels.parquet",
        "shards/labels.parquet",
        "shards/part-00000-3f2a.snappy.parquet",
        "shards/d/labels.pq",
        "shards/d/train/labels.parquet",
        "shards/d/train/part-00000.PARQUET",
        "shards/dataset=d/split=train/deeper/part-00000.parquet",
    ],
)
def test_tables_that_are_no_shards_are_told(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_table(to_table([label()], LABEL_SCHEMA), tmp_path / "r" / name)
    for ours in ("_unfinished/d/train/part-00000.parquet", "shards/_SUCCESS", "shards/.part-00000.parquet.crc"):
        write_text(tmp_path / "r" / ours, "")
    assert label_shards(tmp_path) == []
    assert [str(tmp_path / "r" / name) in record.message for record in caplog.records] == [True]


def test_every_connection_has_limits() -> None:
    with connect() as one, connect() as other:
        settings = "select name, value from duckdb_settings() where name in ('max_temp_directory_size', 'memory_limit')"
        assert all(value.endswith("iB") for _, value in one.execute(settings).fetchall())
        folders = [c.execute("select current_setting('temp_directory')").fetchone() for c in (one, other)]
        assert folders[0] != folders[1]  # which would write into each other's files
    sources = [path for room in ("shared", "labeler", "reid", "pipelines") for path in Path(room).rglob("*.py")]
    assert [str(path) for path in sources if "duckdb.connect(" in path.read_text()] == ["shared/duckdb_session.py"]
