"""The commands with DATA_ROOT and RUNS_ROOT in an S3 bucket: a server that is there, goes away, is slow or fails."""

import functools
from pathlib import Path

import pytest

from labeler.annotation.annotate import AnnotateOptions
from pipelines.__main__ import run
from shared.labels import (
    add_corrections,
    choose_label_run,
    label_runs,
    label_shards,
    newest_labels,
    read,
    read_label_table,
    read_labels,
    write_correction,
)
from shared.manifest import read_manifest
from shared.schemas import ImageStatus
from shared.workspace import Workspace
from tests.object_store import BUCKET, Proxy, give_up_soon, keys, kill_after, upload
from tests.pipelines.conftest import write_people
from tests.pipelines.test_commands import MINI, refused

IMAGES = 16
COUNTS = (
    "select count(*) as n, count(distinct (image_id, part)) as pairs, count(distinct filename) as f from label_rows"
)


@pytest.fixture
def stored(tmp_path: Path, proxy: Proxy, moto: tuple[str, int], monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A workspace in the bucket with the two small data sets of `workspace`."""
    write_people(tmp_path / "data" / "3DPeS")
    write_people(tmp_path / "data" / "CAVIAR4REID", first=50, seed=1)
    upload(tmp_path / "data", "data", moto)
    monkeypatch.setenv("DATA_ROOT", f"s3://{BUCKET}/data")
    monkeypatch.setenv("RUNS_ROOT", f"s3://{BUCKET}/runs")
    monkeypatch.setenv("CACHE_ROOT", str(tmp_path / "cache"))
    return Workspace.from_environment()


def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shard every two images, a request for each image."""
    options = functools.partial(AnnotateOptions, shard_rows=6, batch_images=1, connections=1)
    monkeypatch.setattr("pipelines.label.AnnotateOptions", options)


def rows_and_pairs(workspace: Workspace) -> tuple[int, int, int]:
    """Label rows of 3dpes, distinct (image, part) among them, and shards."""
    shards = label_shards(workspace.labels, dataset="3dpes")
    rows = [(row["image_id"], row["part"]) for shard in shards for row in read_label_table(shard).to_pylist()]
    return len(rows), len(set(rows)), len(shards)


def _metrics(workspace: Workspace) -> list[str]:
    return (workspace.runs_root / "train" / "first" / "stage2" / "metrics.csv").read_text().splitlines()


def test_from_crops_to_scores_in_a_bucket(
    stored: Workspace,
    proxy: Proxy,
    moto: tuple[str, int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert run(["datasets"]) == 0
    assert f"s3://{BUCKET}/data/3DPeS" in capfd.readouterr().out
    assert run(["label", "3dpes"]) == 0
    assert run(["verify-labels", "3dpes"]) == 0
    capfd.readouterr()
    assert run(["sql", "3dpes", "--query", "select count(*) as n, count(identity) as people from parts"]) == 0
    assert str(3 * IMAGES) in capfd.readouterr().out
    for place in (f"s3://{BUCKET}/runs/labels/{label_runs(stored.labels)[0]}/_run.json", __file__):
        refused(["sql", "3dpes", f"from read_text('{place}')"], 2, capfd=capfd)
    give_up_soon(monkeypatch)
    command = ["train", "3dpes2caviar", *MINI, "--preset", "tiny", "--run", "first"]
    proxy.puts, proxy.away_after = 0, (1, b"/stage2/latest.pt")
    refused(command, 1, "the object store cannot be reached", capfd=capfd)
    proxy.away_after = None
    proxy.come_back()
    assert run(command) == 0
    assert [line[:2] for line in _metrics(stored)] == ["ep", "1,", "2,"]
    assert run(["eval"]) == 0
    assert run(["report", "--run", "first"]) == 0
    run_keys = {key.removeprefix("runs/train/first/") for key in keys("runs/train/first/", moto)}
    assert {"config.yaml", "stage2/latest.pt", "stage2/metrics.csv", "scores.json", "report.html"} <= run_keys
    assert any("events.out.tfevents" in key for key in run_keys)
    assert not [key for key in keys("", moto) if key.endswith((".tmp", ".lock")) or "/cache/" in key or ("_logs" in key
                and not key.endswith(".jsonl"))]  # fmt: skip
    assert not (Path("runs").exists() and (Path("runs") / "train" / "first").exists())

    monkeypatch.setenv("CACHE_ROOT", str(tmp_path / "another machine"))  # which continues and scores it anew
    latest = (stored.runs_root / "train" / "first" / "stage2" / "latest.pt").stat()
    assert run(command) == 0
    assert (stored.runs_root / "train" / "first" / "stage2" / "latest.pt").stat() == latest
    refused([*command, "seed=3"], 2, "another configuration", "seed", capfd=capfd)
    assert run(["eval", "--run", "first", "--target", "3dpes", "--allow-source"]) == 0
    refused(["eval", "--run", "frist"], 2, "did you mean 'first'", f"s3://{BUCKET}/runs/train/frist", capfd=capfd)

    here = Workspace(tmp_path / "data", tmp_path / "runs")  # the same, in folders
    monkeypatch.setenv("DATA_ROOT", str(here.data_root))
    monkeypatch.setenv("RUNS_ROOT", str(here.runs_root))
    assert run(["label", "3dpes"]) == 0
    assert read("3dpes", workspace=here).drop("created_at") == read("3dpes", workspace=stored).drop("created_at")
    kept = {row.path: row.model_dump(exclude={"modified_ns"}) for row in read_manifest(here.manifest("3dpes"))}
    assert kept == {
        row.path: row.model_dump(exclude={"modified_ns"}) for row in read_manifest(stored.manifest("3dpes"))
    }


def test_a_second_scan_reads_only_what_changed(stored: Workspace, proxy: Proxy, moto: tuple[str, int]) -> None:
    assert run(["manifest", "3dpes"]) == 0
    assert proxy.images == IMAGES
    assert run(["manifest", "3dpes"]) == 0
    assert proxy.images == IMAGES
    changed = Path(keys("data/3DPeS/query/", moto)[0])
    (stored.data_root / "3DPeS" / "query" / changed.name).put_bytes(b"broken")
    assert run(["manifest", "3dpes"]) == 0
    assert proxy.images == IMAGES + 1
    rows = {Path(row.path).name: row.status for row in read_manifest(stored.manifest("3dpes"))}
    assert rows.pop(changed.name) == ImageStatus.UNREADABLE
    assert set(rows.values()) == {ImageStatus.OK}


def test_a_server_that_goes_away_costs_no_row(
    stored: Workspace, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    small_shards(monkeypatch)
    give_up_soon(monkeypatch)
    proxy.away_after = (3, b"/part-")
    refused(["label", "3dpes"], 1, "the object store cannot be reached", "run the same command again", capfd=capfd)
    proxy.away_after = None
    proxy.come_back()
    rows, pairs, shards = rows_and_pairs(stored)
    assert shards == 3 and 0 < rows == pairs < 3 * IMAGES
    assert run(["label", "3dpes"]) == 0
    assert "done before" in capfd.readouterr().out
    assert rows_and_pairs(stored)[:2] == (3 * IMAGES, 3 * IMAGES)
    assert run(["verify-labels", "3dpes"]) == 0
    assert run(["compact", "3dpes"]) == 0
    assert rows_and_pairs(stored) == (3 * IMAGES, 3 * IMAGES, 3)  # one shard for each of the splits
    assert run(["verify-labels", "3dpes"]) == 0
    assert len(read("3dpes", workspace=stored)) == 3 * IMAGES


def test_images_that_cannot_be_fetched_are_not_labelled_as_unreadable(
    stored: Workspace, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(["manifest", "3dpes"]) == 0
    small_shards(monkeypatch)
    scanned = Workspace.from_environment()
    monkeypatch.setattr("pipelines.label.scan", lambda *_: read_manifest(scanned.manifest("3dpes")))
    from labeler.annotation import backlog

    read_item, calls = backlog.read_item, []

    def refuse_after_five(*given: object) -> object:
        calls.append(1)
        proxy.refusing = len(calls) > 5
        return read_item(*given)

    monkeypatch.setattr(backlog, "read_item", refuse_after_five)
    monkeypatch.setattr(backlog, "THREADS", 1)
    refused(["label", "3dpes"], 1, "refuses access", capfd=capfd)
    proxy.refusing = False
    monkeypatch.undo()


def test_a_slow_and_a_failing_server_give_the_same_rows(
    stored: Workspace, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_shards(monkeypatch)
    proxy.delay_s, proxy.failing = 0.02, 0.1
    assert run(["label", "3dpes"]) == 0
    assert proxy.failed > 5
    assert run(["sql", "3dpes", "--query", "select count(*) from parts"]) == 0
    proxy.delay_s, proxy.failing = 0.0, 0.0
    assert rows_and_pairs(stored)[:2] == (3 * IMAGES, 3 * IMAGES)
    assert run(["verify-labels", "3dpes"]) == 0


def test_a_killed_labeller_is_followed_by_another_one(
    stored: Workspace, proxy: Proxy, moto: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    small = (
        "import functools, pipelines.label as label, labeler.annotation.annotate as a\n"
        "from pipelines.__main__ import main\n"
        "label.AnnotateOptions = functools.partial(a.AnnotateOptions, shard_rows=6, batch_images=1, connections=1)\n"
        "main(['label', '3dpes'])\n"
    )
    kill_after(proxy, 3, 0.04, small)
    assert [key for key in keys("runs/labels/", moto) if key.endswith(".lock")]  # nobody took it away
    before = rows_and_pairs(stored)
    assert 0 < before[0] < 3 * IMAGES
    assert run(["label", "3dpes"]) == 0
    assert rows_and_pairs(stored)[:2] == (3 * IMAGES, 3 * IMAGES)
    assert not [key for key in keys("runs/labels/", moto) if key.endswith(".lock")]


def test_what_cannot_be_used_is_one_sentence(
    stored: Workspace, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    proxy.refusing = True
    refused(["label", "3dpes"], 1, "refuses access", "AWS_ACCESS_KEY_ID", capfd=capfd)
    proxy.refusing = False
    monkeypatch.setenv("DATA_ROOT", "s3://no-such-bucket/data")
    refused(["label", "3dpes"], 1, "the bucket does not exist", capfd=capfd)
    monkeypatch.setenv("DATA_ROOT", f"s3://{BUCKET}/nothing")
    refused(["label", "3dpes"], 2, "no such folder", f"s3://{BUCKET}/nothing", capfd=capfd)
    monkeypatch.setenv("DATA_ROOT", f"s3://{BUCKET}/data")
    give_up_soon(monkeypatch)
    proxy.leave()
    refused(["label", "3dpes"], 1, "cannot be reached", "network", capfd=capfd)


def test_corrections_appear_whole_in_a_bucket(stored: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(["label", "3dpes+caviar"]) == 0
    (name,) = label_runs(stored.labels)
    before = read_labels(label_shards(stored.labels, dataset="3dpes"))
    changed = before[0].model_copy(update={"label_run": "corrected", "x_min": 1.0, "flags": ("corrected",)})
    record = {"corrected_by": "hand"}
    with monkeypatch.context() as patch:
        patch.setattr("shared.labels.corrections.write_record", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            write_correction(stored.labels, name, "corrected", [changed], record)
    assert label_runs(stored.labels) == [name]
    write_correction(stored.labels, name, "corrected", [changed], record)
    assert label_runs(stored.labels) == sorted(["corrected", name])
    assert choose_label_run(None, ["3dpes", "caviar"], stored.labels) == "corrected"
    found = newest_labels(stored.labels, "corrected", "3dpes").to_pylist()
    assert len(found) == 3 * IMAGES
    assert [row["x_min"] for row in found if row["flags"] == ["corrected"]] == [1.0]
    add_corrections(stored.labels, "corrected", [changed.model_copy(update={"x_min": 2.0})])
    found = newest_labels(stored.labels, "corrected", "3dpes").to_pylist()
    assert [row["x_min"] for row in found if row["flags"] == ["corrected"]] == [2.0]
    assert len(newest_labels(stored.labels, "corrected", "caviar")) == 3 * IMAGES


def test_a_ray_cluster_labels_from_and_into_a_bucket(
    stored: Workspace, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("ray", reason="needs Ray: pip install 'dgreid[ray]'")
    command = ["label", "3dpes", "--engine", "body_prior", "--cluster", "local", "--strict"]
    monkeypatch.setenv("LABELER_RAY_MIN_ACTORS", "2")
    small_shards(monkeypatch)
    proxy.away_after = (2, b"/part-")
    give_up_soon(monkeypatch)
    refused(command, 1, "the object store cannot be reached", capfd=capfd)
    proxy.away_after = None
    proxy.come_back()
    rows, pairs, _ = rows_and_pairs(stored)
    assert 0 < rows == pairs < 3 * IMAGES
    assert run(command) == 0
    assert rows_and_pairs(stored)[:2] == (3 * IMAGES, 3 * IMAGES)
    assert run(["verify-labels", "3dpes"]) == 0
