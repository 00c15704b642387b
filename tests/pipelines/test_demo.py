"""The demo itself at a small size, killed on its way and continued."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from shared.labels import connect, label_shards

ROOT = Path(__file__).parents[2]
DEADLINE_S = 600


def _start(folder: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "RUNS_ROOT": str(folder), "DATA_ROOT": str(folder / "data")}
    command = [sys.executable, "-m", "pipelines", "demo", "--size", "small"]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def _kill_when(folder: Path, pattern: str) -> bool:
    """Start the demo, kill -9 it with all its processes as soon as the pattern exists; whether it was still running."""
    process = _start(folder)
    deadline = time.monotonic() + DEADLINE_S
    while process.poll() is None and not list(folder.glob(pattern)):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    running = process.poll() is None
    if running:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    return running


def test_the_demo_survives_two_kills_and_writes_its_report(tmp_path: Path) -> None:
    assert _kill_when(tmp_path, "labels/*/shards/mini_plaza/*/part-*.parquet")
    assert _kill_when(tmp_path, "train/demo-small/stage2/latest.pt")
    process = _start(tmp_path)
    said, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, said
    assert "report.html" in said

    connection = connect(labels=label_shards(tmp_path / "labels"), manifests=list(tmp_path.glob("manifests/*.parquet")))
    rows, distinct = connection.execute(
        "select count(*), count(distinct (dataset, image_id, part)) from label_rows"
    ).fetchall()[0]
    wanted = connection.execute(
        "select 3 * count(distinct (dataset, image_id)) from manifest where dataset in (select dataset from labels)"
    ).fetchall()[0][0]
    assert rows == distinct == wanted

    report = json.loads((tmp_path / "train" / "demo-small" / "report.json").read_text())
    assert report["scores"]["mini_night"].keys() == {"trained", "untrained"}
    page = (tmp_path / "train" / "demo-small" / "report.html").read_text()
    assert "data:image/" in page
    assert "mini_night" in page
