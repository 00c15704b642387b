"""A gallery in an S3 bucket: embed, index, search, link, duplicates and serve, and what may go wrong with it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient

from labeler.settings import load_settings
from pipelines.__main__ import run
from pipelines.person_service import PersonService, create_app
from reid import PersonEncoder
from reid.inference.embeddings import EmbeddingStore, Kind, writing
from reid.retrieval import approximate
from reid.retrieval.search import exact_search
from shared.errors import DataError, DgreidError
from shared.mirror import mirrored_at
from shared.object_storage import root_path
from shared.workspace import Workspace
from tests.labeler.processes.test_hostile_requests import JSON, as_json
from tests.object_store import BUCKET, Proxy, give_up_soon, keys, kill_after, upload
from tests.pipelines.conftest import write_people
from tests.pipelines.test_commands import refused
from tests.reid.retrieval.test_search import facts, unit

GALLERY = f"s3://{BUCKET}/galleries/people"


@pytest.fixture
def embedded(workspace: Workspace, pocket_run: Path, proxy: Proxy) -> EmbeddingStore:
    assert run(["embed", "--run", str(pocket_run), "--images", "caviar", "--out", GALLERY]) == 0
    return EmbeddingStore(root_path(GALLERY))


def numbers(count: int, dim: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return unit(np.repeat(rng.normal(size=(count // 10, dim)), 10, axis=0) + 0.4 * rng.normal(size=(count, dim)))


def test_a_gallery_in_a_bucket_is_what_it_is_in_a_folder(
    workspace: Workspace,
    embedded: EmbeddingStore,
    pocket_run: Path,
    moto: tuple[str, int],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert keys("galleries/", moto) == ["galleries/people/part-000001.parquet"]
    assert run(["embed", "--run", str(pocket_run), "--images", "caviar", "--out", str(tmp_path / "here")]) == 0
    here = EmbeddingStore(tmp_path / "here")
    assert embedded.facts == here.facts and embedded.kind == here.kind
    np.testing.assert_array_equal(embedded.features(np.array([3, 1]))[0], here.features(np.array([3, 1]))[0])
    query = sorted((workspace.data_root / "CAVIAR4REID" / "query").iterdir())[0]
    command = ["search", "--run", str(pocket_run), "--query", str(query), "--format", "json", "--where", "camera = '2'"]
    told = []
    for gallery in (GALLERY, str(tmp_path / "here")):
        capfd.readouterr()
        assert run([*command, "--gallery", gallery]) == 0
        told.append(json.loads(capfd.readouterr().out)["queries"])
    assert told[0] == told[1] and len(told[0][0]["found"]) == 8
    assert run(["duplicates", GALLERY, "--threshold", "0.97"]) == 0
    refused(["link", GALLERY, "--out", f"s3://{BUCKET}/people.csv"], 2, "no tracked detections", capfd=capfd)
    refused([*command, "--gallery", GALLERY, "--html", f"{GALLERY}.html"], 2, "not on this machine", capfd=capfd)


def test_images_are_added_replaced_and_removed(
    workspace: Workspace,
    embedded: EmbeddingStore,
    pocket_run: Path,
    moto: tuple[str, int],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    images = sorted((workspace.data_root / "CAVIAR4REID" / "query").iterdir())
    again = ["index", GALLERY, "--run", str(pocket_run), "--images", "caviar"]
    mirrored_at(root_path(f"s3://{BUCKET}/runs"), tmp_path)  # as when the run is kept in a bucket, too
    shutil.copy(images[1], images[0])
    assert run(again) == 0
    assert "1 images embedded, 15 there already, 1 of them replaced" in capfd.readouterr().out
    assert len(EmbeddingStore(root_path(GALLERY))) == 16
    with pytest.raises(DataError, match="changed meanwhile"):
        embedded.features()
    assert run(["index", GALLERY, "--remove", "camera = '2'"]) == 0
    assert "8 images removed" in capfd.readouterr().out
    images[0].unlink()
    assert run(["index", GALLERY, "--prune"]) == 0
    assert "1 images removed" in capfd.readouterr().out
    images[0].parent.parent.rename(tmp_path / "elsewhere")
    refused(["index", GALLERY, "--prune"], 2, "which is not there", "--remove", capfd=capfd)
    assert len(EmbeddingStore(root_path(GALLERY))) == 7
    assert not [key for key in keys("galleries/", moto) if not key.endswith(".parquet")]
    with writing(root_path(GALLERY), EmbeddingStore(root_path(GALLERY)).kind):
        refused(["index", GALLERY, "--remove", "true"], 1, "another process is writing here", capfd=capfd)


def test_images_in_a_bucket_are_embedded_from_there(
    workspace: Workspace,
    pocket_run: Path,
    proxy: Proxy,
    moto: tuple[str, int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    upload(tmp_path / "data", "data", moto)
    encoder = PersonEncoder.load(pocket_run, device="cpu")
    monkeypatch.setenv("DATA_ROOT", f"s3://{BUCKET}/data")
    command = ["index", GALLERY, "--run", str(pocket_run), "--images"]
    assert run([*command, "caviar"]) == 0
    assert run([*command, f"s3://{BUCKET}/data/CAVIAR4REID", "--prune"]) == 0
    assert "16 images of 2 cameras" in capfd.readouterr().out and proxy.images == 2 * 16
    store = EmbeddingStore(root_path(GALLERY))
    place = keys("data/CAVIAR4REID/query/", moto)[0]
    assert f"s3://{BUCKET}/{place}" in store.facts["key"].to_pylist()
    paths = [tmp_path / "data" / "CAVIAR4REID" / path for path in store.facts["path"].to_pylist()]
    np.testing.assert_allclose(store.features()[0], encoder(paths), atol=1e-3)
    (root_path(f"s3://{BUCKET}/data") / place.removeprefix("data/")).unlink()  # type: ignore[attr-defined]
    assert run(["index", GALLERY, "--prune"]) == 0
    assert "1 images removed" in capfd.readouterr().out
    page = tmp_path / "page.html"
    query = f"s3://{BUCKET}/{keys('data/CAVIAR4REID/query/', moto)[0]}"
    search = ["search", "--run", str(pocket_run), "--gallery", GALLERY, "--top", "3", "--html", str(page)]
    assert run([*search, "--query", query]) == 0
    assert page.read_text().count("<image") == 4
    refused([*command, f"s3://{BUCKET}/nothing"], 2, "neither a folder nor a data set", capfd=capfd)


def test_the_approximate_index_lies_beside_the_gallery(
    workspace: Workspace,
    embedded: EmbeddingStore,
    pocket_run: Path,
    moto: tuple[str, int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("lancedb")
    monkeypatch.setattr(approximate, "MIN_ROWS", 500)
    kind = embedded.kind
    with writing(root_path(GALLERY), kind) as writer:
        seen = np.ones((1200, len(kind.parts)), np.float32)
        writer.add([facts(n) for n in range(1200)], numbers(1200, kind.feature_dim), seen)
    capfd.readouterr()
    assert run(["index", GALLERY, "--approximate"]) == 0
    out = capfd.readouterr().out
    assert f"approximate index at {GALLERY}/lancedb: recall@10" in out
    assert any("/lancedb/gallery.lance/" in key for key in keys("galleries/people/", moto))
    query = sorted((workspace.data_root / "CAVIAR4REID" / "query").iterdir())[0]
    search = ["search", "--run", str(pocket_run), "--gallery", GALLERY, "--query", str(query), "--approximate"]
    assert run([*search, "--format", "json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert "recall@10" in found["how"] and found["queries"][0]["found"][0]["path"].endswith(query.name)
    assert run(["index", GALLERY, "--remove", "path = '7.jpg'"]) == 0
    refused(search, 2, "behind the gallery", f"dgreid index {GALLERY} --approximate", capfd=capfd)
    with monkeypatch.context() as patch:  # killed before the index of the new rows is recorded
        patch.setattr(approximate, "_tuned", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert run(["index", GALLERY, "--approximate"]) == 130
    refused(search, 2, "behind the gallery", capfd=capfd)
    assert run(["index", GALLERY, "--approximate"]) == 0 and run(search) == 0
    other = ["embed", "--run", str(pocket_run), "--images", "caviar", "--out", str(tmp_path / "other")]
    assert run(other) == 0
    with writing(tmp_path / "other", kind) as writer:
        writer.add([facts(n) for n in range(600)], numbers(600, kind.feature_dim), seen[:600])
    assert run(["index", str(tmp_path / "other"), "--uri", f"{GALLERY}/lancedb"]) == 0
    refused(search, 2, "another gallery has changed", capfd=capfd)
    refused(["index", GALLERY, "--uri", "s3://no-such-bucket/x"], 1, "the bucket does not exist", capfd=capfd)


def test_a_killed_index_is_built_by_the_next_command(proxy: Proxy, moto: tuple[str, int]) -> None:
    pytest.importorskip("lancedb")
    folder, dim = root_path(GALLERY), 32
    with writing(folder, Kind("b" * 16, (), dim)) as writer:
        writer.add([facts(n) for n in range(1200)], numbers(1200, dim), np.zeros((1200, 0), np.float32))
    code = "import reid.retrieval.approximate as a\na.MIN_ROWS = 500\nfrom pipelines.__main__ import run\n"
    for place in (b"_versions/", b"_indices/"):
        command = [sys.executable, "-c", f"{code}raise SystemExit(run(['index', '{GALLERY}', '--approximate']))"]
        proxy.puts, proxy.away_after = 0, (10**6, place)
        kill_after(proxy, 1, 0.1, command[-1])
    assert not [key for key in keys("galleries/", moto) if key.endswith("approximate.json")]
    done = subprocess.run(command, env=os.environ, check=False, capture_output=True, text=True)
    assert done.returncode == 0 and "WARN" not in done.stderr, done.stderr
    store = EmbeddingStore(folder)
    record = approximate.read_record(store)
    assert record is not None and record.recall >= 0.98
    search = approximate.ApproximateSearch.open(store, record)
    assert [one.num_unindexed_rows for one in search._table.list_indices()] == [0]
    features, seen = store.features(np.arange(0, 1200, 100))
    near = search.search(features, seen, 5).rows
    exact = exact_search(store, features, seen, 5).rows
    assert (near == exact).mean() > 0.95


def test_a_killed_embedding_is_continued(
    workspace: Workspace, pocket_run: Path, proxy: Proxy, moto: tuple[str, int]
) -> None:
    write_people(workspace.data_root / "CAVIAR4REID", identities=12, first=100, seed=2)
    code = (
        "import reid.inference.embed_files as e\ne.SHARD_ROWS = 8\nfrom pipelines.__main__ import run\n"
        f"raise SystemExit(run(['embed', '--run', '{pocket_run}', '--images', 'caviar', '--out', '{GALLERY}', "
        "'--batch-size', '8']))"
    )
    kill_after(proxy, 3, 0.1, code)
    before = EmbeddingStore(root_path(GALLERY)).facts["key"].to_pylist()
    assert 0 < len(before) < 64 and "galleries/people/.lock" in keys("galleries/", moto)
    assert run(["embed", "--run", str(pocket_run), "--images", "caviar", "--out", GALLERY]) == 0
    after = EmbeddingStore(root_path(GALLERY)).facts["key"].to_pylist()
    assert len(after) == len(set(after)) == 64 and after[: len(before)] == before
    assert "galleries/people/.lock" not in keys("galleries/", moto)


def test_what_cannot_be_used_is_one_sentence_without_secrets(
    workspace: Workspace,
    embedded: EmbeddingStore,
    pocket_run: Path,
    proxy: Proxy,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    query = str(sorted((workspace.data_root / "CAVIAR4REID" / "query").iterdir())[0])

    def commands(gallery: str) -> list[list[str]]:
        return [
            ["search", "--run", str(pocket_run), "--gallery", gallery, "--query", query],
            ["index", gallery, "--run", str(pocket_run), "--images", "caviar"],
            ["embed", "--run", str(pocket_run), "--images", "caviar", "--out", gallery],
            ["duplicates", gallery, "--threshold", "1"],
            ["link", gallery, "--out", "people.csv"],
            ["serve", "--run", str(pocket_run), "--gallery", gallery],
        ]

    for command in commands("s3://no-such-bucket/people"):
        refused(command, 1, "the bucket does not exist", "s3://no-such-bucket/people", capfd=capfd)
    refused(commands(f"s3://{BUCKET}/empty")[0], 2, "there are no embeddings here", capfd=capfd)
    refused(commands("s3x://people/empty")[0], 2, "not a place that can be used", capfd=capfd)
    proxy.refusing = True
    for command in commands(GALLERY):
        capfd.readouterr()
        assert run(command) == 1
        said = "".join(capfd.readouterr())
        assert "refuses access" in said and "set AWS_ACCESS_KEY_ID" in said and said.count("\n") == 2, said
        assert "tests-access-key" not in said and "tests-secret-key" not in said
    proxy.refusing = False
    give_up_soon(monkeypatch)
    proxy.leave()
    refused(commands(GALLERY)[0], 1, "cannot be reached", capfd=capfd)
    proxy.come_back()
    kind = Kind("c" * 16, embedded.kind.parts, embedded.kind.feature_dim)
    with pytest.raises(DgreidError, match="another model"), writing(root_path(GALLERY), kind):
        pass
    other = f"s3://{BUCKET}/other"
    with writing(root_path(other), kind) as writer:
        seen = np.ones((4, len(kind.parts)), np.float32)
        writer.add([facts(n) for n in range(4)], unit(np.ones((4, kind.feature_dim))), seen)
    for command in commands(other)[:3]:
        refused(command, 2, "another model", other, capfd=capfd)


def test_the_service_searches_a_gallery_in_a_bucket(
    workspace: Workspace, embedded: EmbeddingStore, pocket_run: Path, proxy: Proxy
) -> None:
    encoder = PersonEncoder.load(pocket_run, device="cpu")
    service = PersonService(load_settings(), encoder, embedded)
    query = sorted((workspace.data_root / "CAVIAR4REID" / "query").iterdir())[0]
    with TestClient(create_app(service), base_url="http://127.0.0.1", raise_server_exceptions=False) as client:
        asked = {"content": as_json(query.read_bytes()), "headers": JSON}
        before = proxy.requests
        answer = client.post("/v1/search?top=3", **asked)
        assert answer.json()["results"][0][0]["path"].endswith(query.name)
        assert proxy.requests == before  # the features are here
        assert run(["index", GALLERY, "--remove", "camera = '2'"]) == 0
        assert client.post("/v1/search?top=3", **asked).json() == answer.json()
