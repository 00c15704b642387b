"""The demo at its small size, killed twice and resumed, and what its folder is then good for."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shared.labels import connect, label_shards

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DEADLINE_S = 600


def _environment(folder: Path) -> dict[str, str]:
    roots = {"RUNS_ROOT": str(folder / "runs"), "DATA_ROOT": str(folder / "data"), "PYTHONPATH": str(ROOT)}
    return {**os.environ, **roots}


def _start(folder: Path, *command: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "pipelines", *command],
        cwd=folder,
        env=_environment(folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def _killed_when(folder: Path, pattern: str) -> bool:
    """Start the demo, kill -9 it with all its processes as soon as the pattern exists; whether it was still running."""
    process = _start(folder, "demo", "--size", "small")
    deadline = time.monotonic() + DEADLINE_S
    while process.poll() is None and not list(folder.glob(pattern)):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    running = process.poll() is None
    if running:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    return running


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the demo was started three times: killed while labelling, killed after training, run to its end."""
    folder = tmp_path_factory.mktemp("demo")
    assert _killed_when(folder, "runs/labels/*/shards/mini_plaza/*/part-*.parquet")
    assert _killed_when(folder, "runs/train/demo-small/stage2/latest.pt")
    process = _start(folder, "demo", "--size", "small")
    said, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, said
    assert "runs/train/demo-small/report.html" in said
    return folder


def test_every_image_is_labelled_once_and_the_report_is_written(folder: Path) -> None:
    manifests = list((folder / "runs" / "manifests").glob("*.parquet"))
    connection = connect(labels=label_shards(folder / "runs" / "labels"), manifests=manifests)
    rows, distinct = connection.execute(
        "select count(*), count(distinct (dataset, image_id, part)) from label_rows"
    ).fetchall()[0]
    wanted = connection.execute(
        "select 3 * count(distinct (dataset, image_id)) from manifest where dataset in (select dataset from labels)"
    ).fetchall()[0][0]
    assert rows == distinct == wanted
    run = folder / "runs" / "train" / "demo-small"
    report = json.loads((run / "report.json").read_text())
    assert report["scores"]["mini_night"].keys() == {"trained", "untrained"}
    page = (run / "report.html").read_text()
    assert "data:image/" in page
    assert "mini_night" in page


def test_other_commands_find_what_the_demo_wrote(folder: Path) -> None:
    query = "select count(*) as n from labels where part = 'head' and width > 0"
    for command in (
        ["sql", "mini_plaza", "--query", query, "--format", "csv"],
        ["eval", "--run", "demo-small"],
        ["report", "--run", "demo-small"],
        ["eval"],  # the newest run
    ):
        process = _start(folder, *command)
        said, _ = process.communicate(timeout=DEADLINE_S)
        assert process.returncode == 0, (command, said)
        if command[0] == "sql":
            assert said.split() == ["n", "32"]


@pytest.mark.parametrize("snippet", re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL))
def test_the_python_lines_of_the_readme_run_as_printed(folder: Path, snippet: str) -> None:
    for name, image in zip(("a.jpg", "b.jpg"), sorted((folder / "data").rglob("*.jpg")), strict=False):
        shutil.copy(image, folder / name)
    small = snippet.replace("runs/train/demo", "runs/train/demo-small").replace("synth_", "mini_")
    done = subprocess.run(
        [sys.executable, "-c", small], cwd=folder, env=_environment(folder), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
