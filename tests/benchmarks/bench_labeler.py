"""Images per second and memory of annotator and service in front of a model server that answers immediately.

    python tests/benchmarks/bench_labeler.py [IMAGES]          # 5000
    python tests/benchmarks/bench_labeler.py 1000 50000        # growth of memory between two sizes
    python tests/benchmarks/bench_labeler.py --prior 1000 50000  # the same, faster: the service's engine is body_prior
    python tests/benchmarks/bench_labeler.py --embedded 1000000  # body_prior in the annotator's process, killed once

Annotator, service and model server are three processes on at most two cores. The images are the crops of the data sets
in REID_SHARED, or generated ones; if there are too few, copies get trailing bytes, so that every image has its own id.
Writes RUNS_ROOT/bench/labeler.json: images, images_per_s, peak_rss_mb.client, peak_rss_mb.service, cpu_ms_per_image of
both (independent of other load on the machine), seconds, and with two sizes the same under "sizes". With --prior the
file is labeler_prior.json.

With --embedded it is one process on one core, killed (SIGKILL) when eight tenths have rows, and repeated:
labeler_embedded.json has images, rows_per_s, rss_mb (resident at each tenth of the way), peak_rss_mb of both sessions,
resume_s (from the start of the second process to its first question), rows_lost and rows_doubled.
"""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, count, islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from labeler.annotation.annotate import AnnotateOptions, annotate
from labeler.settings import load_settings
from pipelines.synthetic import generate_dataset
from shared.files import write_text
from shared.images import image_id_of
from shared.labels import connect, label_shards
from shared.manifest import ManifestFile
from shared.parquet import write_table
from shared.schemas import MANIFEST_SCHEMA, PARTS
from shared.workspace import Workspace

CORES = 2
IMAGES = 5000
SETS = ("VIPeR", "PRID2011", "GRID", "i-LIDS", "3DPeS", "CAVIAR4REID", "TownCentre")
SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp"}
HERE = Path(__file__).parent
DATASET = "bench"


def main() -> None:
    if sys.argv[1:2] == ["client"]:
        _client(sys.argv[2], Path(sys.argv[3]))
        return
    if "--embedded" in sys.argv:
        sizes = [int(size) for size in sys.argv[1:] if size.isdigit()] or [IMAGES]
        results = [_measure_embedded(size) for size in sizes]
        result = results[0] | ({"sizes": results} if len(sizes) > 1 else {})
        _tell(result, "labeler_embedded.json")
        return
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    prior = "--prior" in sys.argv
    sizes = [int(size) for size in sys.argv[1:] if size.isdigit()] or [IMAGES]
    figures = {size: _measure(size, "body_prior" if prior else "vllm_server") for size in sizes}
    result = figures[sizes[0]] | ({"sizes": list(figures.values())} if len(sizes) > 1 else {})
    _tell(result, "labeler_prior.json" if prior else "labeler.json")


def _tell(result: dict[str, object], name: str) -> None:
    write_text(Workspace.from_environment().runs_root / "bench" / name, json.dumps(result) + "\n")
    print(json.dumps(result))


def _measure(images: int, engine: str) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        make_dataset(place, images)
        with (
            _server(place / "upstream.log", str(HERE / "instant_upstream.py")) as (_, upstream),
            _server(
                place / "service.log",
                *("-m", "labeler", "serve"),
                LABELER_PORT="0",
                LABELER_ENGINE=engine,
                LABELER_UPSTREAM_URL=upstream,
            ) as (service, url),
        ):
            before = _cpu_s(service)
            command = [sys.executable, __file__, "client", url, name]
            told = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment())
            client = json.loads(told.stdout)
            return {
                "images": images,
                "images_per_s": round(images / client["seconds"], 1),
                "peak_rss_mb": {"client": client["peak_rss_mb"], "service": peak_rss_mb(service)},
                "cpu_ms_per_image": {
                    "client": round(client["cpu_s"] / images * 1000, 2),
                    "service": round((_cpu_s(service) - before) / images * 1000, 2),
                },
                "seconds": round(client["seconds"], 1),
            }


def _measure_embedded(images: int) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        make_dataset(place, images)
        labels, command = place / "labels", [sys.executable, __file__, "client", "", name]
        resident: list[float] = []
        process = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE)
        started = time.monotonic()
        while len(resident) < 8:
            assert process.poll() is None, "ended before it could be killed: label more images"
            if rows_in(labels) >= (len(resident) + 1) * images * len(PARTS) / 10:
                resident.append(_rss_mb(process.pid))
            time.sleep(1)
        seconds, first_peak = time.monotonic() - started, peak_rss_mb(process.pid)
        process.send_signal(signal.SIGKILL)
        process.wait()
        before = rows_in(labels)
        started = time.monotonic()
        again = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment()).stdout)
        whole = time.monotonic() - started
        with connect(labels=label_shards(labels)) as connection:
            counted = "select count(*), count(distinct (image_id, part)) from label_rows"
            ((rows, pairs),) = connection.execute(counted).fetchall()
        return {
            "images": images,
            "rows_per_s": round(before / seconds, 1),
            "rss_mb": resident,
            "peak_rss_mb": [first_peak, again["peak_rss_mb"]],
            "rows_before_kill": before,
            "resume_s": round(whole - again["seconds"], 1),
            "rows_lost": images * len(PARTS) - pairs,
            "rows_doubled": rows - pairs,
        }


def rows_in(labels: Path) -> int:
    return sum(pq.read_metadata(path).num_rows for path in label_shards(labels))


def _client(url: str, place: Path) -> None:
    """The annotator's process, without a URL the engine's too: prints its seconds, processor time and peak memory."""
    manifest = ManifestFile(place / "manifest.parquet")
    options = AnnotateOptions()
    before = time.process_time()
    settings = None if url else load_settings(engine="body_prior")
    summary = annotate(
        manifest, place / DATASET, DATASET, place / "labels", url=url or None, settings=settings, options=options
    )
    assert not summary.failed, summary.failed
    figures = {"seconds": summary.seconds, "cpu_s": time.process_time() - before}
    print(json.dumps(figures | {"peak_rss_mb": peak_rss_mb(os.getpid())}))


def make_dataset(place: Path, images: int) -> None:
    root = place / DATASET
    root.mkdir()
    ids, sizes = [], []
    for number, content in enumerate(islice(_contents(place), images)):
        (root / f"{number:06d}").write_bytes(content)
        ids.append(image_id_of(content))
        sizes.append(len(content))
    same = {
        **{"dataset": DATASET, "split": "train", "width": 1, "height": 1, "kind": "person", "identity": 1, "camera": 1},
        **{"identity_name": None, "camera_name": None, "status": "ok", "reason": "", "modified_ns": 0},
    }
    columns = {
        name: pa.repeat(pa.scalar(value, MANIFEST_SCHEMA.field(name).type), images) for name, value in same.items()
    }
    columns |= {"path": [f"{number:06d}" for number in range(images)], "image_id": ids, "size_bytes": sizes}
    table = pa.table([columns[name] for name in MANIFEST_SCHEMA.names], schema=MANIFEST_SCHEMA)
    write_table(table, place / "manifest.parquet")


def _contents(place: Path) -> Iterator[bytes]:
    """An endless stream of different files: all crops, then the same with a trailing number."""
    shared = Path(os.environ.get("REID_SHARED", "../shared")) / "datasets"
    folders = [shared / name for name in SETS if (shared / name).is_dir()]
    if not folders:
        folders = [_generated(place)]
    crops: dict[str, Path] = {}  # by id: some sets hold the same file twice
    for path in chain.from_iterable(sorted(folder.rglob("*")) for folder in folders):
        if path.suffix.lower() in SUFFIXES and _is_crop(path):
            content = path.read_bytes()
            if crops.setdefault(image_id_of(content), path) == path:
                yield content
    for copy in count(1):
        for path in crops.values():
            yield path.read_bytes() + copy.to_bytes(4, "big")


def _generated(place: Path) -> Path:
    return generate_dataset(
        place, "plaza", train_identities=40, test_identities=0, cameras=4, images_per_camera=4, seed=0
    )


def _is_crop(path: Path) -> bool:
    with Image.open(path) as image:
        return image.height > image.width and image.width * image.height < 500_000


@contextmanager
def _server(log: Path, *command: str, **settings: str) -> Iterator[tuple[int, str]]:
    """(process id, URL) of a server that logs its address."""
    with log.open("wb") as file:
        process = subprocess.Popen([sys.executable, *command], stdout=file, stderr=file, env=environment() | settings)
    try:
        while not (listening := re.search(r"running on (http://[\d.]+:\d+)", log.read_text())):
            assert process.poll() is None, log.read_text()
            time.sleep(0.05)
        yield process.pid, listening[1]
    finally:
        process.terminate()
        process.wait()


def environment() -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("LABELER_")}
    return inherited | {"PYTHONPATH": str(HERE.parents[1])}


def _cpu_s(process: int) -> float:
    """Seconds of processor time so far, all threads, as Linux keeps it."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def peak_rss_mb(process: int) -> float:
    """Highest resident memory so far, in MiB, as Linux keeps it."""
    return _status_mb(process, "VmHWM")


def _rss_mb(process: int) -> float:
    return _status_mb(process, "VmRSS")


def _status_mb(process: int, name: str) -> float:
    kib = re.search(rf"{name}:\s+(\d+)", Path(f"/proc/{process}/status").read_text())
    assert kib
    return round(int(kib[1]) / 1024, 1)


if __name__ == "__main__":
    main()
