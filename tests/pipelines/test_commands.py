"""The commands as a user meets them: exit codes, one sentence for every failure, work that continues."""

import csv
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pipelines.__main__ import run
from shared.labels import connect, label_shards, read_labels, write_label_shard
from shared.manifest import read_manifest
from shared.schemas import PARTS, LabelStatus
from shared.workspace import Workspace

MINI = [
    "model.image_size=[32,16]",
    "model.architecture.embed_dim=16",
    "model.architecture.vision_cfg={image_size: [32, 16], layers: 2, width: 32, head_width: 16, patch_size: 8}",
    "model.architecture.text_cfg={context_length: 77, vocab_size: 49408, width: 16, heads: 2, layers: 1}",
    "stage1.epochs=2",
    "stage2.epochs=2",
    "stage2.milestones=[]",
    "data.workers=0",
]


def refused(arguments: list[str], code: int, *words: str, capfd: pytest.CaptureFixture[str]) -> None:
    """The command ends with this exit code and says these words in one sentence, without a traceback."""
    capfd.readouterr()
    assert run(arguments) == code
    said = capfd.readouterr().err
    assert "Traceback" not in said
    assert said.count("error: ") == 1
    assert "fix: " in said
    assert all(word in said for word in words), said


def test_a_line_end_in_a_file_name_makes_no_line(workspace: Workspace, capfd: pytest.CaptureFixture[str]) -> None:
    folder = workspace.data_root / "lines"
    folder.mkdir()
    name = "1_a\nerror: all is lost\x1b[31m.png"
    for path, content in ((name, b"no image"), ("2\nb.png", b""), (f"{name}.txt", b"")):
        (folder / path).write_bytes(content)
    (folder / "dataset.yaml").write_text("layout: pattern\npattern: '{identity}_{*}.png'\n")
    for command in (["manifest", "lines"], ["datasets"], ["label", "lines"]):
        capfd.readouterr()
        run(command)
        said = "".join(capfd.readouterr())
        assert "\nerror: all is lost" not in said and "\x1b" not in said and "Traceback" not in said, said
        assert r"a\nerror: all is lost\x1b[31m.png" in said or command == ["datasets"], said


def test_from_crops_to_a_report(workspace: Workspace, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["label", "3dpes"]) == 0
    assert run(["train", "3dpes2caviar", *MINI, "--preset", "tiny", "--run", "first"]) == 0
    assert run(["eval"]) == 0
    assert run(["report", "--run", "first"]) == 0
    folder = workspace.training_runs / "first"
    report = json.loads((folder / "report.json").read_text())
    assert set(report["scores"]) == {"caviar"}
    for model in ("trained", "untrained"):
        assert set(report["scores"]["caviar"][model]) >= {"mean_ap", "mean_inp", "rank_1", "rank_5", "rank_10"}
        assert 0 <= report["scores"]["caviar"][model]["rank_1"] <= 100
    assert "3dpes" in report["protocol"]
    assert (folder / "report.md").is_file()
    assert "<html" in (folder / "report.html").read_text()
    with (folder / "stage2" / "metrics.csv").open() as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2"]
    capfd.readouterr()
    assert run(["sql", "3dpes", "--query", "select count(*) as n, count(distinct image_id) as images from labels"]) == 0
    assert "48" in capfd.readouterr().out  # 16 images x 3 parts
    assert run(["sql", "3dpes"]) == 0
    assert "canned queries" in capfd.readouterr().out


def test_repeating_a_finished_training_changes_nothing_and_another_configuration_is_refused(
    workspace: Workspace, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(["label", "3dpes"]) == 0
    command = ["train", "3dpes2caviar", *MINI, "--preset", "tiny", "--run", "first"]
    assert run(command) == 0
    latest = workspace.training_runs / "first" / "stage2" / "latest.pt"
    before = latest.read_bytes()
    assert run(command) == 0
    assert latest.read_bytes() == before
    refused([*command, "seed=3"], 2, "another configuration", "seed", capfd=capfd)


def test_a_wrong_data_root(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DATA_ROOT", str(workspace.data_root / "nowhere"))
    refused(["label", "3dpes"], 2, "nowhere", capfd=capfd)
    refused(["train", "3dpes2caviar", "--preset", "tiny"], 2, "nowhere", capfd=capfd)


def test_names_that_do_not_exist(workspace: Workspace, capfd: pytest.CaptureFixture[str]) -> None:
    refused(["label", "atlantis"], 2, "atlantis", "viper", capfd=capfd)
    refused(["label", ""], 2, "no data set was named", capfd=capfd)
    refused(["label", "3dpes", "--engine", "oracle"], 2, "body_prior", "vllm_server", capfd=capfd)
    refused(["train", "3dpes2atlantis", "--preset", "tiny"], 2, "atlantis", capfd=capfd)
    refused(["train", "3dpes23dpes", "--preset", "tiny"], 2, "supervised:", capfd=capfd)
    refused(["eval"], 2, "no training run yet", "dgreid train", capfd=capfd)
    refused(["report", "--run", "nothing"], 2, "no such training run", capfd=capfd)
    refused(["eval", "--run", "../.."], 2, capfd=capfd)
    refused(["sql", "3dpes", "--query", "select 1"], 2, "no labels yet", "dgreid label 3dpes", capfd=capfd)
    refused(["fly"], 2, "fly", capfd=capfd)


def test_an_unknown_preset_or_key(workspace: Workspace, capfd: pytest.CaptureFixture[str]) -> None:
    refused(["train", "3dpes2caviar", "--preset", "huge"], 2, "huge", "tiny", capfd=capfd)
    refused(["train", "3dpes2caviar", "stage2.epoch=1", "--preset", "tiny"], 2, "stage2.epoch", "epochs", capfd=capfd)


def test_missing_labels(workspace: Workspace, capfd: pytest.CaptureFixture[str]) -> None:
    command = ["train", "3dpes2caviar", *MINI, "--preset", "tiny"]
    refused(command, 2, "no part labels", "dgreid label 3dpes", capfd=capfd)
    assert run(["label", "3dpes"]) == 0
    refused([*command, "--label-run", "nightly"], 2, "nightly", "--label-run", capfd=capfd)


def test_the_papers_weights_are_asked_for_not_fetched(
    workspace: Workspace, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert run(["label", "3dpes"]) == 0
    command = ["train", "3dpes2caviar", "--preset", "paper", "precision=32-true"]
    refused(command, 2, "not on this machine", "model.weights_file", capfd=capfd)


@pytest.mark.parametrize("damage", ["truncated", "empty", "text"])
def test_a_broken_image_is_one_reported_row(
    workspace: Workspace, capfd: pytest.CaptureFixture[str], damage: str
) -> None:
    image = workspace.data_root / "3DPeS" / "bounding_box_train" / "0001_c1s1_000001_00.jpg"
    content = {"truncated": image.read_bytes()[:-60], "empty": b"", "text": b"not a picture"}[damage]
    image.write_bytes(content)
    told = ("1 image (3 parts: unreadable 3) of 3dpes have no final answer", image.name, "dgreid sql 3dpes")
    assert run(["label", "3dpes"]) == 0
    said = capfd.readouterr().err
    assert all(word in said for word in told) and "Traceback" not in said
    refused(["label", "3dpes", "--strict"], 1, *told, capfd=capfd)
    rows = read_manifest(workspace.manifest("3dpes"))
    assert [row.path for row in rows if row.status == "unreadable"] == [f"bounding_box_train/{image.name}"]
    connection = connect(labels=label_shards(workspace.labels, dataset="3dpes"))
    counts = connection.execute("select status, count(*) from labels group by status order by status").fetchall()
    assert counts == [("ok", 15 * 3), ("unreadable", 3)]
    assert run(["train", "3dpes2caviar", *MINI, "--preset", "tiny", "--run", "broken"]) == 0
    record = json.loads((workspace.training_runs / "broken" / "training_set.json").read_text())
    assert (record["images"], record["dropped"]) == (7, {"unreadable image": 1})


def test_failures_of_earlier_sessions_are_said_until_they_are_gone(
    workspace: Workspace, capfd: pytest.CaptureFixture[str]
) -> None:
    command = ["label", "3dpes", "--engine", "body_prior"]
    assert run([*command, "--strict"]) == 0
    assert "no final answer" not in capfd.readouterr().err
    (shard, *_) = shards = label_shards(workspace.labels, dataset="3dpes")
    first = read_labels(shards)[0]
    box = dict.fromkeys(("x_min", "y_min", "x_max", "y_max", "score", "raw_box"))
    bad = [first.model_copy(update={**box, "part": part, "status": LabelStatus.UNPARSEABLE}) for part in PARTS[:2]]
    write_label_shard(bad, shard.parent)
    told = ("1 image (2 parts: unparseable 2) of 3dpes have no final answer", "--retry-failed", "dgreid sql 3dpes")
    for _ in range(2):  # nothing is left to do, and still it is said
        assert run(command) == 0
        said = capfd.readouterr().err
        assert all(word in said for word in told), said
        refused([*command, "--strict"], 1, *told, capfd=capfd)
    assert run([*command, "--strict", "--retry-failed"]) == 0
    assert "no final answer" not in capfd.readouterr().err
    write_label_shard(bad, shard.parent)
    (workspace.data_root / "3DPeS" / first.path).unlink()  # an image that is gone is no failure
    assert run([*command, "--strict"]) == 0


def test_strict_labels_all_data_sets_and_names_every_one_with_failures(
    workspace: Workspace, capfd: pytest.CaptureFixture[str]
) -> None:
    for folder in ("3DPeS", "CAVIAR4REID"):
        next((workspace.data_root / folder / "query").iterdir()).write_bytes(b"")
    assert run(["label", "3dpes+caviar", "--engine", "body_prior", "--strict"]) == 1
    said = capfd.readouterr().err
    assert "of 3dpes have no final answer" in said and "of caviar have no final answer" in said
    assert label_shards(workspace.labels, dataset="3dpes") and label_shards(workspace.labels, dataset="caviar")


def test_a_place_that_cannot_be_written(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    blocker = workspace.data_root / "a file"
    blocker.write_text("where a folder should be")
    monkeypatch.setenv("RUNS_ROOT", str(blocker / "runs"))
    refused(["label", "3dpes"], 1, "cannot write", "RUNS_ROOT", capfd=capfd)


def test_own_data_in_a_folder(workspace: Workspace) -> None:
    folder = workspace.data_root / "mine"
    (workspace.data_root / "CAVIAR4REID" / "bounding_box_train").rename(folder)
    (folder / "dataset.yaml").write_text('layout: pattern\npattern: "{identity}_c{camera}s{*}.jpg"\nsplit: train\n')
    assert run(["manifest", "mine"]) == 0
    rows = read_manifest(workspace.manifest("mine"))
    assert {(row.identity, row.camera) for row in rows} == {(i, c) for i in (50, 51) for c in (1, 2)}
    assert run(["datasets"]) == 0
    assert run(["doctor"]) == 0


def test_folders_that_cannot_be_used_stop_no_command(workspace: Workspace, capfd: pytest.CaptureFixture[str]) -> None:
    told = {
        "coco": ("path: .\ntrain: images\nnc: 80\n", "no `layout:`"),
        "my data": ("layout: market1501\n", "cannot name a data set"),
        "bomb": ("a: &a [x, x]\nlayout: *a\n", "alias *a"),
        "clash": ("layout: market1501\nname: viper\n", "two data sets are called 'viper'"),
        "touching": ('layout: pattern\npattern: "{identity}{*}"\n', "touch"),
    }
    for folder, (text, _) in told.items():
        (workspace.data_root / folder).mkdir()
        (workspace.data_root / folder / "dataset.yaml").write_text(text)
    assert run(["datasets"]) == 0
    table = capfd.readouterr().out
    assert all(folder in table and reason in table for folder, (_, reason) in told.items())
    assert run(["doctor"]) == 0 and run(["manifest", "3dpes"]) == 0
    refused(["manifest", "coco"], 2, "no `layout:`", "dataset.yaml", capfd=capfd)


def test_labels_are_compacted_and_verified(workspace: Workspace, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["label", "3dpes"]) == 0
    before = connect(labels=label_shards(workspace.labels)).sql("from labels order by all").to_arrow_table()
    assert run(["verify-labels", "3dpes", "--images"]) == 0
    (shard,) = label_shards(workspace.labels)[:1]
    rows = read_labels([shard])
    write_label_shard(rows, shard.parent)  # as if the same images had been asked about again
    refused(["verify-labels", "3dpes"], 1, "12 the same row twice" if len(rows) == 12 else "twice", capfd=capfd)
    assert run(["compact", "3dpes"]) == 0
    assert connect(labels=label_shards(workspace.labels)).sql("from labels order by all").to_arrow_table() == before
    image = workspace.data_root / "3DPeS" / "query" / "0003_c1s1_000001_00.jpg"
    image.write_bytes(image.read_bytes() + b"x")
    refused(["verify-labels", "3dpes", "--images"], 1, "1 images that changed since the scan", capfd=capfd)
    refused(["verify-labels", "caviar"], 2, "no part labels", capfd=capfd)
    refused(["compact", "caviar"], 2, "no labels of caviar", capfd=capfd)
    refused(["compact", "3dpes", "--label-run", "nightly"], 2, "nightly", capfd=capfd)


def test_a_dry_run_says_what_labelling_costs_and_labels_nothing(
    workspace: Workspace, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(["label", "3dpes", "--dry-run"]) == 0
    said = capfd.readouterr().out
    assert "16" in said and "images/s" in said and "hours" in said
    assert not label_shards(workspace.labels)


def test_the_end_and_a_failure_are_posted(
    workspace: Workspace, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    posted: list[dict] = []

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            posted.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hook)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("DGREID_WEBHOOK_URL", f"http://127.0.0.1:{server.server_address[1]}/SECRET")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    try:
        assert run(["label", "3dpes"]) == 0
        (workspace.labels / "body_prior-ccp-medians" / "_run.json").write_text("{")
        assert run(["label", "3dpes"]) == 2
    finally:
        server.shutdown()
        server.server_close()
    assert [(one["event"], one.get("images")) for one in posted] == [("finished", 16), ("failed", None)]
    assert "SECRET" not in "".join(capfd.readouterr())
    refused(["label", "3dpes", "--webhook", "SECRET"], 2, "not an HTTP URL", capfd=capfd)
