"""The annotator under signals: what was answered is written at the first one, and no moment loses or doubles a row."""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import httpx
import pytest

from shared.labels import label_shards, read_labels
from shared.manifest import write_manifest
from shared.schemas import PARTS

CHILD = """
import asyncio, json, sys
from pathlib import Path
from labeler.annotation.annotate import AnnotateOptions, annotate_with
from labeler.annotation.client import HttpClient, InProcessClient
from labeler.engines.body_prior import BodyPrior
from labeler.settings import load_settings
from shared.manifest import iter_manifest

manifest, root, labels, hangs_after, batch, url = sys.argv[1:]


class Engine(BodyPrior):
    asked = 0

    async def ground(self, image, parts, attempt):
        self.asked += 1
        if self.asked > int(hangs_after):
            print("hangs", flush=True)
            await asyncio.Event().wait()
        await asyncio.sleep(0.005)
        return await super().ground(image, parts, attempt)


async def main():
    options = AnnotateOptions(connections=2, batch_images=int(batch), shard_rows=60, shard_seconds=600)
    here = InProcessClient(load_settings(), Engine(), connections=2)
    async with HttpClient(url, connections=2) if url else here as client:
        print("starts", flush=True)
        rows = iter_manifest(Path(manifest))
        summary = await annotate_with(client, rows, Path(root), "toy", Path(labels), "r", options)
        print(json.dumps({"images": summary.images, "interrupted": summary.interrupted}))


asyncio.run(main())
"""


class Annotator:
    def __init__(self, place: Path, root: Path) -> None:
        self._arguments = [str(place / "toy.parquet"), str(root), str(place / "labels")]
        self.labels = place / "labels"

    def start(self, hangs_after: int = 10**9, batch: int = 2, url: str = "") -> subprocess.Popen[str]:
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
        command = [sys.executable, "-c", CHILD, *self._arguments, str(hangs_after), str(batch), url]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        assert child.stdout is not None and child.stdout.readline() == "starts\n"
        return child

    def rows(self) -> Counter[tuple[str, str]]:
        return Counter((row.image_id, row.part) for row in read_labels(label_shards(self.labels)))


def interrupt_twice(child: subprocess.Popen[str]) -> None:
    child.send_signal(signal.SIGTERM)
    assert child.stderr is not None
    while "a second signal ends this at once" not in child.stderr.readline():
        assert child.poll() is None
    child.send_signal(signal.SIGTERM)
    child.communicate()
    assert child.returncode == -signal.SIGTERM


@pytest.mark.parametrize("batch", [2, 16])
def test_the_first_signal_writes_what_was_answered_while_the_engine_hangs(
    make_dataset, tmp_path: Path, batch: int
) -> None:
    root, manifest = make_dataset(20)
    write_manifest(manifest, tmp_path / "toy.parquet")
    annotator = Annotator(tmp_path, root)
    child = annotator.start(hangs_after=9, batch=batch)  # the calibration image and eight others
    assert child.stdout is not None and child.stdout.readline() == "hangs\n"
    time.sleep(0.5)
    assert not label_shards(annotator.labels), "the rows are in memory only"
    interrupt_twice(child)
    rows = annotator.rows()
    assert len(rows) == 8 * len(PARTS) and set(rows.values()) == {1}


def test_of_a_request_to_a_service_too(make_dataset, tmp_path: Path, start_service, start_stand_in) -> None:
    """One request about 16 images, every fourth of which the model server never answers."""
    root, manifest = make_dataset(16)
    write_manifest(manifest, tmp_path / "toy.parquet")
    annotator, stand_in = Annotator(tmp_path, root), start_stand_in()
    service = start_service(engine="vllm_server", upstream_url=stand_in.url)
    assert httpx.get(f"{service.url}/readyz", timeout=60).status_code == 200
    before = httpx.get(f"{stand_in.url}/count").json()
    httpx.post(f"{stand_in.url}/control", json={"faults": ["hang"], "every": 4}).raise_for_status()
    child = annotator.start(batch=16, url=service.url)
    while httpx.get(f"{stand_in.url}/count").json() < before + 16:
        time.sleep(0.05)
    time.sleep(1)
    assert not label_shards(annotator.labels), "the rows are in memory only"
    interrupt_twice(child)
    rows = annotator.rows()
    assert len(rows) == 12 * len(PARTS) and set(rows.values()) == {1}
    httpx.post(f"{stand_in.url}/control", json={"faults": []}).raise_for_status()
    before = httpx.get(f"{stand_in.url}/count").json()
    child = annotator.start(batch=16, url=service.url)
    child.communicate()
    assert child.returncode == 0 and annotator.rows() == {(row.image_id, part): 1 for row in manifest for part in PARTS}
    assert httpx.get(f"{stand_in.url}/count").json() == before + 4, "what was answered is not asked again"


def test_signals_at_random_moments_lose_and_double_nothing(make_dataset, tmp_path: Path) -> None:
    root, manifest = make_dataset(150)
    write_manifest(manifest, tmp_path / "toy.parquet")
    annotator = Annotator(tmp_path, root)
    chance = random.Random(5)
    before = 0
    for number in range(10):
        child = annotator.start()
        time.sleep(chance.uniform(0.0, 0.5))
        kind = (signal.SIGTERM, signal.SIGKILL, signal.SIGINT)[number % 3]
        child.send_signal(kind)
        child.communicate()
        rows = annotator.rows()
        assert len(rows) >= before and set(rows.values()) <= {1}
        before = len(rows)
    child = annotator.start()
    out, err = child.communicate()
    assert child.returncode == 0, err
    assert '"images": 150, "interrupted": false' in out
    assert annotator.rows() == {(row.image_id, part): 1 for row in manifest for part in PARTS}
