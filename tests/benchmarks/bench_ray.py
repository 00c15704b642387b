"""Labelling on a Ray cluster of one, two and three nodes, against the annotator without Ray; nodes and driver killed.

    python -m tests.benchmarks.bench_ray [IMAGES]    # 20000 generated crops
    python -m tests.benchmarks.bench_ray --speed     # one half of it alone, into ray_speed.json; --faults: the other
    python -m tests.benchmarks.bench_ray --pocket    # 500 crops by the pocket grounder: the same rows as without Ray?

The nodes are Ray's own on this machine (`ray.cluster_utils`), each for one actor with the engine body_prior, beside a
head without any. In the run with faults a node of three is killed twice, then the driver (SIGKILL), whose command is
repeated. Writes RUNS_ROOT/bench/ray.json: images_per_s by nodes and of the annotator, over_annotator (their ratio),
rows_lost, rows_doubled; with --pocket ray_pocket.json: images, images_per_s, rows, rows_different.
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


def main() -> None:
    if sys.argv[1:2] == ["driver"]:
        _driver(*sys.argv[2:])
        return
    if "--pocket" in sys.argv:
        _tell(_pocket(), "ray_pocket.json")
        return
    images = next((int(size) for size in sys.argv[1:] if size.isdigit()), IMAGES)
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        make_dataset(place, images)
        told: dict[str, Any] = {"images": images}
        if "--faults" not in sys.argv:
            told |= _speed(place)
        if "--speed" not in sys.argv:
            told |= _with_faults(place, images)
        _tell(told, next((f"ray_{word[2:]}.json" for word in sys.argv if word in ("--speed", "--faults")), "ray.json"))


def _speed(place: Path) -> dict[str, Any]:
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


def _pocket() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
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
        return {
            "images": POCKET_IMAGES,
            "images_per_s": {"2": rate},
            "annotator_images_per_s": alone,
            "rows": len(first),
            "rows_different": different,
        }


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


def _tell(result: dict[str, Any], name: str) -> None:
    write_text(Workspace.from_environment().runs_root / "bench" / name, json.dumps(result) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
