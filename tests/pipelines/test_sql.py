"""`sql` as a user meets it: quotes, formats, views, other people's text, and nothing but the labels."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipelines.__main__ import run
from shared.labels import connect, label_folder, label_shards, newest_labels, write_label_shard
from shared.schemas import LabelRow, LabelStatus
from shared.workspace import Workspace

ROOT = Path(__file__).parents[2]
HOSTILE = "[/INST] [bold]no\x1b[31m | <b>\nend\u202e"


@pytest.fixture
def labelled(workspace: Workspace) -> Workspace:
    """3dpes with boxes, and one answer that holds everything a terminal or a table could trip over."""
    assert run(["label", "3dpes"]) == 0
    (name,) = {path.parents[3].name for path in label_shards(workspace.labels)}
    row = LabelRow(**newest_labels(workspace.labels, name, "3dpes").slice(0, 1).to_pylist()[0])
    refused = row.model_copy(update={"status": LabelStatus.REFUSED, "x_min": None, "raw_text": HOSTILE})
    write_label_shard([refused], label_folder(workspace.labels, name, "3dpes", row.split))
    return workspace


def asked(capfd: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> tuple[str, str]:
    capfd.readouterr()
    assert run(["sql", "3dpes", *arguments]) == code
    said = capfd.readouterr()
    assert "Traceback" not in said.err
    return said.out, said.err


def test_every_format_holds_all_rows_and_the_same_values(
    labelled: Workspace, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    query = "select path, part, x_min, flags, created_at, raw_text from parts order by path, part"
    rows = json.loads(asked(capfd, query, "--format", "json")[0])
    assert len(rows) == 48
    (refused,) = (row for row in rows if row["raw_text"])
    assert refused["raw_text"] == HOSTILE and refused["x_min"] is None
    lines = list(csv.DictReader(asked(capfd, query, "--format", "csv")[0].splitlines(keepends=True)))
    assert [line["path"] for line in lines] == [row["path"] for row in rows]
    assert next(line["raw_text"] for line in lines if line["raw_text"]) == HOSTILE
    assert json.loads(lines[5]["flags"]) == rows[5]["flags"]
    markdown = asked(capfd, query, "--format", "markdown")[0].splitlines()
    assert len(markdown) == 50
    assert all(line.replace(r"\|", "").count("|") == 7 for line in markdown)
    out = tmp_path / "rows.parquet"
    asked(capfd, query, "--format", "parquet", "--out", str(out))
    assert pq.read_table(out)["path"].to_pylist() == [row["path"] for row in rows]
    assert "--out" in asked(capfd, query, "--format", "parquet", code=2)[1]
    table = asked(capfd, query)[0]
    assert table.count(".jpg") == 48  # no limit in a pipe
    assert r"[/INST] [bold]no\x1b[31m | <b>\nend\u202e" in table
    for form in ("table", "csv"):
        asked(capfd, query, "--format", form, "--out", str(tmp_path / form))
        assert (tmp_path / form).read_text().count(".jpg") == 48


ODD_VALUES = {
    "time '24:00:00'": "24:00:00",
    "'12:00:00+02'::timetz": "12:00:00+02",
    "date '0044-03-15 (BC)'": "0044-03-15 (BC)",
    "date '2026-03-15'": "2026-03-15",
    "timestamp '2026-03-15 10:00:00'": "2026-03-15T10:00:00",
    "interval 3 days": "3 days",
    "'101'::bit": "101",
    "'a\\x01'::blob": "a\\x01",
    "union_value(x := 1)": "1",
    "12345678901234567890.123456789::decimal(38, 9)": "12345678901234567890.123456789",
}


def test_values_without_a_counterpart_in_python_are_shown_as_duckdb_writes_them(
    labelled: Workspace, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    query = "select " + ", ".join(f"{value} as c{place}" for place, value in enumerate(ODD_VALUES))
    (row,) = json.loads(asked(capfd, query, "--format", "json")[0])
    assert list(row.values()) == list(ODD_VALUES.values())
    (line,) = csv.DictReader(asked(capfd, query, "--format", "csv")[0].splitlines())
    assert list(line.values()) == list(ODD_VALUES.values())
    for form in ("markdown", "table"):
        shown = asked(capfd, query, "--format", form)[0]
        assert all(value in shown for value in ODD_VALUES.values())
    for value in ("[date '0044-03-15 (BC)']", "'infinity'::timestamp"):
        told = asked(capfd, f"select {value} as value", "--format", "json", code=2)[1]
        assert "cannot be shown" in told and "cast(<column> as varchar)" in told
    out = str(tmp_path / "rows.parquet")
    told = asked(capfd, "select union_value(x := 1) as u", "--format", "parquet", "--out", out, code=2)[1]
    assert "Parquet has no such type" in told and not Path(out).exists()


def test_a_query_without_end_is_interrupted_and_may_not_take_all_memory(labelled: Workspace) -> None:
    endless = "select sum(a.range * b.range) from range(100000000000) a, range(1000) b"
    command = [sys.executable, "-m", "pipelines", "sql", "3dpes", endless]
    started = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    with pytest.raises(subprocess.TimeoutExpired):
        started.communicate(timeout=5)
    started.send_signal(signal.SIGINT)
    told = started.communicate(timeout=30)[1]
    assert started.returncode == 130 and "interrupted" in told and "Traceback" not in told
    settings = connect(manifests=[], labels=[], only_these_files=True).sql(
        "select current_setting('temp_directory'), current_setting('max_temp_directory_size')"
    )
    [(folder, most)] = settings.fetchall()
    assert folder.startswith(str(Path(tempfile.gettempdir()) / f"dgreid-sql-{os.getpid()}-")) and most == "9.3 GiB"


@pytest.mark.parametrize("character", ["x", "\u00e4", "[", "\x1b", "a b "])
def test_a_cell_of_megabytes_is_cut_in_tables_alone(
    labelled: Workspace, capfd: pytest.CaptureFixture[str], character: str
) -> None:
    query, size = f"select repeat('{character}', 20000000) as a, 1 as b", 20_000_000 * len(character)
    for options in ((), ("--format", "markdown")):
        table = asked(capfd, query, *options)[0]
        assert f"... and {size - 10_000:,} more characters" in table and len(table) < 400_000
    assert len(asked(capfd, query, "--format", "csv")[0]) >= size


def test_all_columns_on_a_clean_install(
    labelled: Workspace, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Times need no package beside DuckDB and Arrow."""
    monkeypatch.setitem(sys.modules, "pytz", None)
    for view in ("parts", "labels", "label_rows", "manifest"):
        out, _ = asked(capfd, f"select * from {view}", "--format", "json")
        assert len(json.loads(out)) in (16, 48, 49)
    assert json.loads(asked(capfd, "from labels limit 1", "-f", "json")[0])[0]["created_at"].endswith("+00:00")


def test_an_empty_result_says_so(labelled: Workspace, capfd: pytest.CaptureFixture[str]) -> None:
    out, err = asked(capfd, "select path from labels where part = 'wing'")
    assert "path" in out and "no rows" in err
    assert asked(capfd, "select path from labels where false", "-f", "csv")[0] == "path\n"
    assert json.loads(asked(capfd, "select path from labels where false", "-f", "json")[0]) == []


@pytest.mark.parametrize(
    "query", ["from read_csv('/etc/passwd')", "from 'https://a.example/x.parquet'", "from sqlite_scan('x', 'y')"]
)
def test_a_query_reads_nothing_else_and_says_why(
    labelled: Workspace, capfd: pytest.CaptureFixture[str], query: str
) -> None:
    assert "no other file, address or extension" in asked(capfd, query, code=2)[1]


def test_a_damaged_shard_is_named(labelled: Workspace, capfd: pytest.CaptureFixture[str]) -> None:
    shard = label_shards(labelled.labels)[0]
    whole = shard.read_bytes()
    chunk = pq.read_metadata(shard).row_group(0).column(3)
    assert chunk.path_in_schema == "path"
    for damaged in (
        whole[: len(whole) // 2],
        whole[: (start := chunk.dictionary_page_offset)] + bytes(80) + whole[start + 80 :],  # only this column's page
    ):
        shard.write_bytes(damaged)
        err = asked(capfd, "select max(path) from labels", code=2)[1]
        assert str(shard) in err and "not a readable Parquet file" in err and "bug" not in err


def test_mistyped_names_are_guessed(labelled: Workspace, capfd: pytest.CaptureFixture[str]) -> None:
    assert "did you mean 'coverage'" in asked(capfd, "covrage", code=2)[1]
    assert run(["sql", "3dpse", "select 1"]) == 2
    assert "did you mean '3dpes'" in capfd.readouterr().err
    assert run(["sql"]) == 0
    assert "coverage" in capfd.readouterr().out


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize(
    ("query", "rows"),
    [
        ("select count(*) from labels where part='head'", 16),
        ("select count(*) as \"how many, really\" from labels where x_min > 1 and part <> 'legs'", None),
        ("select count(*) from labels where regexp_matches(path, 'jpg$') and path like '%;%' is false", 48),
        ("select count(*) from labels where part in ('head', 'legs') -- # $(shell) `id` & done", 32),
    ],
)
def test_make_hands_the_query_over_as_it_was_typed(
    labelled: Workspace, tmp_path: Path, query: str, rows: int | None
) -> None:
    environment = stand_in_for_venv(tmp_path)
    ended = subprocess.run(
        ["make", "--no-print-directory", "sql", f"VENV={tmp_path / 'venv'}", "DATASET=3dpes", f"Q={query}",
         "ARGS=--format csv"],
        cwd=ROOT, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    head, count = ended.stdout.splitlines()
    if rows is None:
        assert head == '"how many, really"' and 0 < int(count) < 48
    else:
        assert int(count) == rows


def stand_in_for_venv(tmp_path: Path) -> dict[str, Any]:
    """A .venv that runs this tree with this Python."""
    command = tmp_path / "venv" / "bin" / "dgreid"
    command.parent.mkdir(parents=True)
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m pipelines "$@"\n')
    command.chmod(0o755)
    (tmp_path / "venv" / ".installed").touch()
    return {**os.environ, "PYTHONPATH": str(ROOT)}
