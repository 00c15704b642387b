"""One labelling run through all that goes wrong at night: a sick, then dead model server, and a killed client."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import httpx
from PIL import Image

from shared.images import image_id_of
from shared.labels import connect, label_shards, read_labels
from shared.manifest import write_manifest
from shared.schemas import FINAL_STATUSES, PARTS, LabelStatus, ManifestRow
from tests.rows import manifest_row

IMAGES = 240
REFUSED, WORDY = range(5, 9), range(100, 103)  # images that the model never answers
DEAD_S = 20.0
FAULTS = ["500", "hang", "cut", "html", "garbage", "endless", "trickle", "bomb", "tokens", "401", "429", "schema"]

CHILD = """
import json, sys
from pathlib import Path
from labeler.annotation.annotate import AnnotateOptions, annotate
from shared.manifest import iter_manifest
from tests.rows import manifest_row

url, manifest, root, labels, retry = sys.argv[1:]
options = AnnotateOptions(
    connections=4, batch_images=3, shard_rows=24, shard_seconds=2, failed_share_limit=1.0, retry_failed=retry == "retry"
)
summary = annotate(iter_manifest(Path(manifest)), Path(root), "night", Path(labels), "r", url=url, options=options)
print(json.dumps({"images": summary.images, "failed": summary.failed}))
"""


def dataset(root: Path) -> list[ManifestRow]:
    root.mkdir()
    rows = []
    for index in range(IMAGES):
        image = Image.new("RGB", (48 + index % 40, 128 + index // 40), (100, 120, index % 200 + 20))
        corner = 255 if index in REFUSED else 0 if index in WORDY else 110
        image.paste((corner,) * 3, (0, 0, 16, 16))
        path = root / f"{index:04d}.png"
        image.save(path)
        content = path.read_bytes()
        rows.append(
            manifest_row(
                dataset="night",
                path=path.name,
                image_id=image_id_of(content),
                width=image.width,
                height=image.height,
                identity=index + 1,
            )
        )
    return rows


class Night:
    """The annotator as a process that can be killed and started again."""

    def __init__(self, url: str, place: Path) -> None:
        self._arguments = [url, *(str(place / name) for name in ("night.parquet", "night", "labels"))]
        self.labels = place / "labels"

    def start(self, retry: str = "") -> subprocess.Popen[str]:
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
        command = [sys.executable, "-c", CHILD, *self._arguments, retry]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)

    def finish(self, retry: str = "") -> dict:
        process = self.start(retry)
        out, err = process.communicate()
        assert process.returncode == 0, err
        return json.loads(out)

    def wait_for_new_shards(self, process: subprocess.Popen[str], count: int) -> None:
        wanted = len(label_shards(self.labels)) + count
        while len(label_shards(self.labels)) < wanted:
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)

    @staticmethod
    def kill(process: subprocess.Popen[str]) -> None:
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL

    def rows(self):
        return read_labels(label_shards(self.labels))


def sick(upstream):
    httpx.post(f"{upstream.url}/control", json={"faults": FAULTS, "every": 3})
    return upstream


def test_everything_goes_wrong_and_every_image_has_its_rows_once(start_service, start_stand_in, tmp_path: Path) -> None:
    manifest = dataset(tmp_path / "night")
    write_manifest(manifest, tmp_path / "night.parquet")
    upstream = sick(start_stand_in())
    service = start_service(
        engine="vllm_server", upstream_url=upstream.url, answer_timeout_s=1, connect_timeout_s=1, probe_timeout_s=1
    )
    night = Night(service.url, tmp_path)

    child = night.start()
    night.wait_for_new_shards(child, 2)
    night.kill(child)

    child = night.start()
    night.wait_for_new_shards(child, 2)
    upstream.process.kill()
    time.sleep(DEAD_S)
    assert child.poll() is None
    upstream = sick(start_stand_in(upstream.port))
    night.wait_for_new_shards(child, 1)  # the same session has lived through it
    upstream.process.kill()
    night.kill(child)

    child = night.start()  # finds nobody to answer, and waits
    time.sleep(2)
    assert child.poll() is None
    upstream = sick(start_stand_in(upstream.port))
    night.wait_for_new_shards(child, 2)
    night.kill(child)
    before = len(night.rows())
    assert 0 < before < IMAGES * len(PARTS), "the last session must have something left to do"

    said = night.finish()
    rows = night.rows()
    assert Counter((row.image_id, row.part) for row in rows) == {
        (m.image_id, part): 1 for m in manifest for part in PARTS
    }
    kinds = {int(row.path[:4]): row.status for row in rows if row.status not in FINAL_STATUSES}
    expected = dict.fromkeys(REFUSED, LabelStatus.REFUSED) | dict.fromkeys(WORDY, LabelStatus.UNPARSEABLE)
    assert kinds == expected, "all others were answered in the end"
    assert all(row.raw_text for row in rows if row.status not in FINAL_STATUSES)
    assert said["images"] == IMAGES and set(said["failed"]) <= {"refused", "unparseable"}

    assert night.finish("retry")["failed"] == {"refused": len(REFUSED), "unparseable": len(WORDY)}
    newest = connect(labels=label_shards(night.labels)).execute("select count(*) from labels").fetchall()
    assert newest == [(IMAGES * len(PARTS),)]
