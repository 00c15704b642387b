"""Labelling on a Ray cluster of nodes on this machine: the rows of the annotator, once each, though one is killed."""

import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from labeler.annotation import ray_cluster
from labeler.annotation.annotate import AnnotateOptions, annotate, client_for
from labeler.annotation.backlog import Item
from labeler.annotation.client import InProcessClient, ServiceError, ServiceUnfitError
from labeler.annotation.estimate import estimate
from labeler.annotation.ray_cluster import Asking, GroundingActor
from labeler.settings import load_settings
from shared.errors import ConfigError
from shared.images import image_id_of
from shared.labels import label_shards, newest_labels, read_labels
from shared.schemas import PARTS

pytest.importorskip("ray", reason="needs Ray: pip install 'dgreid[ray]'")

SETTINGS = load_settings(engine="body_prior", ray_min_actors=2)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head that runs nothing, and three nodes for one actor each, until one is killed."""
    patch = pytest.MonkeyPatch()
    patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    from ray.cluster_utils import Cluster

    started = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(3):
        started.add_node(num_cpus=1)
    started.wait_for_nodes()
    yield started
    started.shutdown()
    patch.undo()


def on(cluster: Any, **options: Any) -> AnnotateOptions:
    return AnnotateOptions(cluster=cluster.address, batch_images=4, shard_rows=48, **options)


def table_of(labels: Path) -> list[dict[str, Any]]:
    return newest_labels(labels, "r", "toy").drop_columns("created_at").to_pylist()


def test_the_rows_are_those_of_the_annotator_though_a_node_is_killed(cluster, make_dataset, tmp_path: Path) -> None:
    root, manifest = make_dataset(400)
    (root / manifest[5].path).write_bytes(b"changed")
    (root / manifest[6].path).unlink()
    labels = tmp_path / "on_ray"
    rows_at_kill = []

    def kill() -> None:
        while not label_shards(labels):
            time.sleep(0.01)
        cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
        rows_at_kill.append(len(read_labels(label_shards(labels))))

    killer = threading.Thread(target=kill)
    killer.start()
    summary = annotate(manifest, root, "toy", labels, "r", settings=SETTINGS, options=on(cluster))
    killer.join()
    assert 0 < rows_at_kill[0] < 3 * 400
    assert (summary.images, summary.done_now, summary.failed) == (400, 400, {"unreadable": 2})
    counts = Counter((row.image_id, row.part) for row in read_labels(label_shards(labels)))
    assert counts == {(row.image_id, part): 1 for row in manifest for part in PARTS}

    annotate(manifest, root, "toy", tmp_path / "here", "r", settings=SETTINGS)
    assert table_of(labels) == table_of(tmp_path / "here")

    again = annotate(manifest, root, "toy", labels, "r", settings=SETTINGS, options=on(cluster))
    assert (again.done_before, again.done_now) == (400, 0)
    more = [*manifest[:5], manifest[7].model_copy(update={"image_id": image_id_of(b"new"), "path": "new.png"})]
    (root / "new.png").write_bytes(b"new")
    last = annotate(more, root, "toy", labels, "r", settings=SETTINGS, options=on(cluster))
    assert (last.done_before, last.done_now, last.failed) == (5, 1, {"unreadable": 1}), "no image, said by the engine"


def test_an_actor_that_does_not_see_the_data_set_says_so_and_labels_nothing(make_dataset, tmp_path: Path) -> None:
    _, manifest = make_dataset(2)
    asking = Asking(SETTINGS, None, None, connections=1, attempts=1, batch_images=4, ready_timeout_s=10)
    info = InProcessClient(SETTINGS)._service.info()
    items = [Item(row, frozenset(PARTS)) for row in manifest]
    told = GroundingActor(asking, info, tmp_path / "elsewhere")(ray_cluster._block(items, 0)).to_pylist()
    assert [row["kind"] for row in told] == ["ConfigError"] and "is not on the machine" in told[0]["what"]


def test_an_image_that_only_an_actor_cannot_read_stops_the_run(make_dataset, tmp_path: Path) -> None:
    root, manifest = make_dataset(3)
    items = [Item(row, frozenset(PARTS), unreadable="No such file") for row in manifest]
    (root / manifest[0].path).unlink()
    (root / manifest[1].path).write_bytes(b"changed")
    ray_cluster._check_unreadable([(item, None) for item in items[:2]], root)
    with pytest.raises(ConfigError, match=r"cannot read an image that this one can \(No such file\)"):
        ray_cluster._check_unreadable([(item, None) for item in items], root)


async def test_a_dry_run_measures_the_cluster(cluster, make_dataset, tmp_path: Path) -> None:
    root, manifest = make_dataset(40)
    options = on(cluster)
    async with client_for(None, None, SETTINGS, options) as client:
        told = await estimate(client, manifest, root, "toy", tmp_path / "labels", None, options)
    assert (told.remaining, told.sample, told.failed) == (40, 40, 0) and told.images_per_s
    assert not label_shards(tmp_path / "labels")


def test_an_unfit_engine_is_told_as_without_ray(cluster, make_dataset, tmp_path: Path) -> None:
    root, manifest = make_dataset(3)
    strict = load_settings(engine="body_prior", min_calibration_iou=0.99)
    told = []
    for options in (AnnotateOptions(), on(cluster)):
        with pytest.raises(ServiceUnfitError) as caught:
            annotate(manifest, root, "toy", tmp_path, "r", settings=strict, options=options)
        told.append((caught.value.what, caught.value.fix))
    assert told[0] == told[1] and not label_shards(tmp_path)
    with pytest.raises(ConfigError, match="is not on the machine"):  # said by an actor, not by the first worker
        annotate(manifest, tmp_path / "gone", "toy", tmp_path, "r", settings=SETTINGS, options=on(cluster))


def test_a_cluster_without_room_says_what_it_was_asked_for(cluster, make_dataset, tmp_path: Path) -> None:
    root, manifest = make_dataset(3)
    wide = load_settings(engine="body_prior", ray_cpus=64)
    with pytest.raises(ServiceError, match=r"is given 64 CPUs and 0 GPUs, the cluster has [23] and 0"):
        annotate(manifest, root, "toy", tmp_path, "r", settings=wide, options=on(cluster, ready_timeout_s=2.0))


def test_what_is_no_cluster_and_what_is_not_installed_is_said_in_one_sentence(
    make_dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, manifest = make_dataset(3)
    for address, words in (("cloud", "is no Ray cluster"), ("127.0.0.1:1", "no Ray cluster at 127.0.0.1:1")):
        with pytest.raises(ConfigError, match=words):
            annotate(manifest, root, "toy", tmp_path, settings=SETTINGS, options=AnnotateOptions(cluster=address))
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install 'dgreid\[ray\]'"):
        annotate(manifest, root, "toy", tmp_path, settings=SETTINGS, options=AnnotateOptions(cluster="local"))
