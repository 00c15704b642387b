"""The annotator under signals: what was answered is written at the first one, and no moment loses or doubles a row."""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from shared.labels import label_shards, read_labels
from shared.manifest import write_manifest
from shared.schemas import PARTS

CHILD = """
import asyncio, json, sys
from pathlib import Path
from labeler.annotation.annotate import AnnotateOptions, annotate_with
from labeler.annotation.client import InProcessClient
from labeler.engines.body_prior import BodyPrior
from labeler.settings import load_settings
from shared.manifest import iter_manifest

manifest, root, labels, hangs_after = sys.argv[1:]


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
    options = AnnotateOptions(connections=2, batch_images=2, shard_rows=30, shard_seconds=600)
    async with InProcessClient(load_settings(), Engine(), connections=2) as client:
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

    def start(self, hangs_after: int = 10**9) -> subprocess.Popen[str]:
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
        command = [sys.executable, "-c", CHILD, *self._arguments, str(hangs_after)]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        assert child.stdout is not None and child.stdout.readline() == "starts\n"
        return child

    def rows(self) -> Counter[tuple[str, str]]:
        return Counter((row.image_id, row.part) for row in read_labels(label_shards(self.labels)))


def test_the_first_signal_writes_what_was_answered_while_the_engine_hangs(make_dataset, tmp_path: Path) -> None:
    root, manifest = make_dataset(20)
    write_manifest(manifest, tmp_path / "toy.parquet")
    annotator = Annotator(tmp_path, root)
    child = annotator.start(hangs_after=9)  # the calibration image and four batches
    assert child.stdout is not None and child.stdout.readline() == "hangs\n"
    time.sleep(0.5)
    assert not label_shards(annotator.labels), "the rows are in memory only"
    child.send_signal(signal.SIGTERM)
    assert child.stderr is not None
    while "a second signal ends this at once" not in child.stderr.readline():
        assert child.poll() is None
    child.send_signal(signal.SIGTERM)
    child.communicate()
    assert child.returncode == -signal.SIGTERM
    rows = annotator.rows()
    assert len(rows) >= 6 * len(PARTS) and set(rows.values()) == {1}


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
