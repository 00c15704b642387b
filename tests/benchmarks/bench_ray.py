"""Labelling on a Ray cluster of one, two and three nodes, against the annotator without Ray; nodes and driver killed.

    python -m tests.benchmarks.bench_ray [IMAGES]    # all three parts, about ten minutes on two cores; 20000 crops
    python -m tests.benchmarks.bench_ray --speed     # one of them alone; --faults, --pocket; several may be named
    python -m tests.benchmarks.bench_ray --anew      # not what an interrupted one left to do

speed: the nodes are Ray's own on this machine (`ray.cluster_utils`), each for one actor with the engine body_prior,
beside a head without any. faults: a node of three is killed twice, then the driver (SIGKILL), whose command is
repeated. pocket: 500 crops by the pocket grounder: the same rows as without Ray?

RUNS_ROOT/bench/ray.json is written after each part: images, parts (those in the file), images_per_s by nodes and of the
annotator, over_annotator (their ratio), rows_lost, rows_doubled, and under "pocket" images, images_per_s, rows and
rows_different. Without a named part, those are measured that the file lacks; if it lacks none, all of them.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from labeler.annotation.annotate import AnnotateOptions, annotate
from labeler.settings import load_settings
from pipelines.synthetic import generate_dataset
from shared.files import write_text
from shared.labels import connect, label_shards, newest_labels
from shared.manifest import ManifestFile, build_manifest
from shared.schemas import PARTS
from shared.workspace import Workspace
from tests.benchmarks.bench_labeler import DATASET, environment, make_dataset, rows_in

IMAGES = 20_000
POCKET_IMAGES = 500
KILLS = (0.15, 0.4)  # of the rows, by when a node is killed
DRIVER_KILLED = 0.65
MINUTES = {"speed": 4, "faults": 3, "pocket": 3}  # of each part


def main() -> None:
    if sys.argv[1:2] == ["driver"]:
        _driver(*sys.argv[2:])
        return
    images = next((int(size) for size in sys.argv[1:] if size.isdigit()), IMAGES)
    told = _told_before(images)
    named = [part for part in MINUTES if f"--{part}" in sys.argv]
    parts = named or [part for part in MINUTES if part not in told["parts"]] or list(MINUTES)
    if parts == list(MINUTES):
        told = {"images": images, "parts": []}
    minutes = sum(MINUTES[part] for part in parts)
    print(
        f"{', '.join(parts)}: about {minutes} minutes on two cores with {IMAGES:,} images", file=sys.stderr, flush=True
    )
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        if parts != ["pocket"]:
            make_dataset(place, images)
        for part in parts:
            told |= {"speed": _speed, "faults": _with_faults, "pocket": _pocket}[part](place, images)
            told["parts"] = [one for one in MINUTES if one in (*told["parts"], part)]
            write_text(_file(), json.dumps(told) + "\n")
    print(json.dumps(told))


def _file() -> Path:
    return Workspace.from_environment().runs_root / "bench" / "ray.json"


def _told_before(images: int) -> dict[str, Any]:
    """What the file has of as many images; nothing with --anew."""
    if "--anew" not in sys.argv and _file().is_file():
        told: dict[str, Any] = json.loads(_file().read_text())
        if told["images"] == images and "parts" in told:
            return told
    return {"images": images, "parts": []}


def _speed(place: Path, images: int) -> dict[str, Any]:
    alone = _labelled(place, "alone")
    rates = {}
    for nodes in (1, 2, 3):
        with _cluster(nodes) as cluster:
            rates[str(nodes)] = _labelled(place, f"nodes{nodes}", cluster)
    return {
        "images_per_s": rates,
        "annotator_images_per_s": alone,
        "over_annotator": {nodes: round(rate / alone, 2) for nodes, rate in rates.items()},
    }


def _with_faults(place: Path, images: int) -> dict[str, Any]:
    """Counts of rows after two killed nodes and a killed driver."""
    labels, rows = place / "faults", images * len(PARTS)
    events = []
    with _cluster(3) as cluster:
        process = _started(place, "faults", cluster)
        for share in KILLS:
            _wait_for(labels, share * rows, process)
            cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
            events.append({"node killed at rows": rows_in(labels)})
            cluster.add_node(num_cpus=1)
        _wait_for(labels, DRIVER_KILLED * rows, process)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        events.append({"driver killed at rows": rows_in(labels)})
        again = _ended(_started(place, "faults", cluster))
    with connect(labels=label_shards(labels)) as connection:
        counted = "select count(*), count(distinct (image_id, part)) from label_rows where status = 'ok'"
        ((found, pairs),) = connection.execute(counted).fetchall()
    assert again["images"] == images, again
    return {"rows_lost": rows - pairs, "rows_doubled": found - pairs, "faults": events, "resumed": again}


def _pocket(place: Path, images: int) -> dict[str, Any]:
    place = place / "pocket"
    place.mkdir()
    folder = generate_dataset(
        place, "night", train_identities=POCKET_IMAGES // 20, test_identities=0, cameras=4, images_per_camera=5,
        seed=7, name=DATASET,
    )  # fmt: skip
    build_manifest_of(folder, place)
    alone = _labelled(place, "alone", engine="local")
    with _cluster(2) as cluster:
        rate = _labelled(place, "nodes2", cluster, engine="local")
    first, second = (
        {(row.pop("path"), row["part"]): row | {"created_at": None} for row in table.to_pylist()}
        for table in (newest_labels(place / run, "r", DATASET) for run in ("alone", "nodes2"))
    )
    different = sum(first.get(key) != second.get(key) for key in first.keys() | second.keys())
    told = {
        "images": POCKET_IMAGES,
        "images_per_s": {"2": rate},
        "annotator_images_per_s": alone,
        "rows": len(first),
        "rows_different": different,
    }
    return {"pocket": told}


def build_manifest_of(folder: Path, place: Path) -> None:
    build_manifest(folder.name, folder.parent, place / "manifest.parquet")


def _driver(place: str, labels: str, address: str, nodes: str, engine: str) -> None:
    """What `dgreid label --cluster` runs, in a process that can be killed; prints how it ended."""
    options = AnnotateOptions(cluster=address or None, shard_rows=3_000)
    settings = load_settings(engine=engine, ray_min_actors=max(1, int(nodes)))
    manifest, root = ManifestFile(Path(place) / "manifest.parquet"), Path(place) / DATASET
    summary = annotate(manifest, root, DATASET, Path(labels), "r", settings=settings, options=options)
    assert not summary.failed, summary.failed
    told = {"images": summary.images, "done_now": summary.done_now, "images_per_s": round(summary.images_per_s, 1)}
    print(json.dumps(told))


def _started(place: Path, labels: str, cluster: Any, engine: str = "body_prior") -> subprocess.Popen[bytes]:
    address, nodes = (cluster.address, len(cluster.worker_nodes)) if cluster else ("", 0)
    words = ("driver", str(place), str(place / labels), address, str(nodes), engine)
    command = [sys.executable, "-m", "tests.benchmarks.bench_ray", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, env=environment())


def _ended(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    out, _ = process.communicate()
    assert process.returncode == 0, process.returncode
    told: dict[str, Any] = json.loads(out.splitlines()[-1])
    return told


def _labelled(place: Path, labels: str, cluster: Any = None, engine: str = "body_prior") -> float:
    """Images per second of a whole session; the start of actors is in it, that of the first worker is not."""
    return float(_ended(_started(place, labels, cluster, engine))["images_per_s"])


def _wait_for(labels: Path, rows: float, process: subprocess.Popen[bytes]) -> None:
    while rows_in(labels) < rows:
        assert process.poll() is None, "the driver ended"
        time.sleep(0.2)


@contextmanager
def _cluster(nodes: int) -> Iterator[Any]:
    """A head without actors, and nodes for one actor each."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        for _ in range(nodes):
            cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        yield cluster
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main()
