"""The annotator in a process of its own: killed at any moment, interrupted by signals."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from labeler.annotation.annotate import AnnotateOptions, annotate
from shared.labels import label_shards, read_labels
from shared.manifest import write_manifest
from shared.schemas import PARTS

QUICK = AnnotateOptions(connections=3, batch_images=4, shard_rows=30)

CHILD = """
import asyncio, sys
from pathlib import Path
from labeler.annotation.annotate import AnnotateOptions, annotate_with
from labeler.annotation.client import HttpClient, InProcessClient
from labeler.engines.body_prior import BodyPrior
from labeler.settings import load_settings
from shared.manifest import read_manifest

class Slow(BodyPrior):
    async def ground(self, image, parts, attempt):
        await asyncio.sleep(0.02)
        return await super().ground(image, parts, attempt)

def http():
    import httpx
    from labeler.service.app import create_app
    transport = httpx.ASGITransport(create_app(load_settings(), Slow()))
    return HttpClient("http://service", connections=2, transport=transport)

async def main(manifest, root, labels):
    options = AnnotateOptions(connections=2, batch_images=2, shard_rows=12)
    client = http() if sys.argv[1] == "http" else InProcessClient(load_settings(), Slow(), connections=2)
    async with client:
        summary = await annotate_with(client, read_manifest(manifest), root, "toy", labels, "r", options)
    print("interrupted" if summary.interrupted else "finished", summary.done_now)

asyncio.run(main(*map(Path, sys.argv[2:])))
"""


def rows_of(labels: Path):
    return read_labels(label_shards(labels))


def exactly_once(labels: Path, manifest) -> bool:
    counts = Counter((row.image_id, row.part) for row in rows_of(labels))
    return counts == {(row.image_id, part): 1 for row in manifest for part in PARTS}


def start(kind: str, tmp_path: Path) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-c",
        CHILD,
        kind,
        *map(str, (tmp_path / "toy.parquet", tmp_path / "toy", tmp_path / "labels")),
    ]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def wait_for_shards(process: subprocess.Popen[str], labels: Path, count: int) -> None:
    while len(label_shards(labels)) < count:
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)


@pytest.mark.parametrize("client", ["in_process", "http"])
def test_killed_three_times_it_ends_complete_and_without_a_double(make_dataset, tmp_path: Path, client: str) -> None:
    root, manifest = make_dataset(150)
    write_manifest(manifest, tmp_path / "toy.parquet")
    labels = tmp_path / "labels"
    for round_number in range(1, 4):
        process = start(client, tmp_path)
        wait_for_shards(process, labels, 5 * round_number)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        written = Counter((row.image_id, row.part) for row in rows_of(labels))
        assert max(written.values()) == 1 and len(written) % len(PARTS) == 0 and len(written) < 450
    summary = annotate(manifest, root, "toy", labels, "r", options=QUICK)
    assert summary.done_before > 0 and summary.images == 150
    assert exactly_once(labels, manifest)


@pytest.mark.parametrize(("kind", "client"), [(signal.SIGINT, "in_process"), (signal.SIGTERM, "http")])
def test_a_signal_drains_and_writes(make_dataset, tmp_path: Path, kind: signal.Signals, client: str) -> None:
    root, manifest = make_dataset(150)
    write_manifest(manifest, tmp_path / "toy.parquet")
    process = start(client, tmp_path)
    wait_for_shards(process, tmp_path / "labels", 2)
    process.send_signal(kind)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    words = out.split()
    assert words[0] == "interrupted" and len(rows_of(tmp_path / "labels")) == 3 * int(words[1])
    annotate(manifest, root, "toy", tmp_path / "labels", "r", options=QUICK)
    assert exactly_once(tmp_path / "labels", manifest)
