"""Roots in an object store: as pathlib where the object is there or not, a StorageError where nobody knows."""

import json
import os
import pickle
import sys
from pathlib import Path

import pytest

from shared import lease as leases
from shared.errors import ConfigError, DgreidError
from shared.files import atomic_path, read_limited, remove_tree, write_bytes, write_text
from shared.images import UnreadableImageError, read_file
from shared.lease import lease
from shared.mirror import fetch, mirrored_at, store
from shared.object_storage import ObjectPath, StorageError, remote, root_path
from shared.workspace import Workspace
from tests.object_store import BUCKET, Proxy, give_up_soon, keys, upload


def s3(prefix: str, *, remember: bool = False) -> ObjectPath:
    found = remote(root_path(f"s3://{BUCKET}/{prefix}", remember=remember))
    assert found
    return found


@pytest.mark.parametrize("remember", [False, True])
def test_a_place_in_a_store_reads_like_a_folder(
    tmp_path: Path, proxy: Proxy, moto: tuple[str, int], remember: bool
) -> None:
    for name in ("a/1.jpg", "a/2.jpg", "a/deep/3.jpg", "b/4 ü&#.jpg", "c.txt", "empty"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"" if name == "empty" else name.encode())
    upload(tmp_path, "tree", moto)
    root = s3("tree", remember=remember)
    files = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert set(root.files()) == files
    assert [path.name for path in root.iterdir()] == sorted(path.name for path in tmp_path.iterdir())
    assert [path.name for path in root.folders()] == ["a", "b"]
    for pattern in ("*/*.jpg", "a/*", "*.txt", "*/deep/*"):
        local = {path.relative_to(tmp_path).as_posix() for path in tmp_path.glob(pattern) if path.is_file()}
        assert {path.relative_to(root).as_posix() for path in root.glob(pattern)} == local
    for name in ("a", "a/deep", "a/1.jpg", "a/1", "nowhere", "b/4 ü&#.jpg", "empty"):
        here, there = tmp_path / name, root / name
        assert (there.exists(), there.is_file(), there.is_dir()) == (here.exists(), here.is_file(), here.is_dir())
        assert (there.name, there.stem, there.suffix, there.parent.name) == (
            here.name, here.stem, here.suffix, here.parent.name if "/" in name else "tree")  # fmt: skip
    for name in files:
        assert (root / name).read_bytes() == (tmp_path / name).read_bytes() == read_limited(root / name, 100)
        assert (root / name).stat().st_size == (tmp_path / name).stat().st_size
    assert pickle.loads(pickle.dumps(root / "a" / "1.jpg")).read_bytes() == b"a/1.jpg"
    assert str(root / "a" / "1.jpg") == f"s3://{BUCKET}/tree/a/1.jpg"
    with pytest.raises(OSError, match="larger than the limit"):
        read_limited(root / "a" / "1.jpg", 3)
    with pytest.raises(OSError, match="a folder"):
        read_limited(root / "a", 3)
    with pytest.raises(FileNotFoundError):
        (root / "nowhere").read_bytes()
    with pytest.raises(FileNotFoundError):
        (root / "nowhere").stat()


def test_another_content_of_the_same_size_in_the_same_second_has_another_mark(proxy: Proxy) -> None:
    path = s3("marks") / "one"
    path.put_bytes(b"first")
    before = path.stat()
    path.put_bytes(b"other")
    after = path.stat()
    assert after.st_size == before.st_size and after.st_mtime_ns != before.st_mtime_ns
    path.put_bytes(b"first")
    assert path.stat().st_mtime_ns == before.st_mtime_ns


def test_a_store_that_cannot_be_asked_is_never_an_empty_one(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    give_up_soon(monkeypatch)
    root = s3("some")
    (root / "one").put_bytes(b"1")
    for state in ("refusing", "away"):
        if state == "away":
            proxy.leave()
        proxy.refusing = state == "refusing"
        for ask in (
            (root / "one").exists,
            (root / "one").is_file,
            root.is_dir,
            root.files,
            root.iterdir,
            root.folders,
            lambda: list(root.glob("*")),
            (root / "one").read_bytes,
            lambda: read_file(root / "one"),
            lambda: (root / "two").put_bytes(b"2"),
        ):
            with pytest.raises(StorageError) as caught:
                ask()
            assert "tests-secret-key" not in str(caught.value) and "tests-access-key" not in str(caught.value)
            assert "fix: " in str(caught.value)
    proxy.come_back()
    with pytest.raises(UnreadableImageError, match="no such object"):
        read_file(root / "gone")


def test_a_root_that_cannot_be_used_is_told_at_once(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StorageError, match="bucket does not exist"):
        root_path("s3://no-such-bucket/data")
    assert not (s3("nothing/yet")).exists()
    proxy.refusing = True
    with pytest.raises(StorageError, match=r"(?s)refuses access.*AWS_ACCESS_KEY_ID") as caught:
        root_path(f"s3://{BUCKET}/data")
    assert "tests-access-key" not in str(caught.value)
    with pytest.raises(ConfigError, match="s3://bucket"):
        root_path("nonsense://bucket/data")
    assert root_path("runs") == Path("runs")


def test_without_the_package_one_sentence_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec  # noqa: F401

    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3", raising=False)
    with pytest.raises(ConfigError, match=r"dgreid\[s3\]"):
        root_path("s3://people/data")


def test_secrets_in_a_message_of_a_client_are_blanked(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    path = s3("x")

    def info(key: str) -> None:
        raise RuntimeError("x" * 190 + " signed with tests-secret-key")

    monkeypatch.setattr(path.filesystem, "info", info)
    with pytest.raises(StorageError) as caught:
        path.exists()
    assert "tests-secret" not in str(caught.value)


def test_an_object_appears_whole_or_keeps_what_it_was(proxy: Proxy, moto: tuple[str, int]) -> None:
    path: Path = s3("out") / "one.txt"
    write_text(path, "first")
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "first"
    assert keys("out/", moto) == ["out/one.txt"]
    with pytest.raises(DgreidError, match="TMPDIR"), atomic_path(path) as temporary:
        (temporary / "not a folder").write_text("x")
    write_bytes(path, b"second")
    assert path.read_text() == "second"
    remove_tree(path.parent)
    assert keys("out/", moto) == []


def test_one_of_two_puts_an_object_that_is_not_there_also_when_its_answer_is_lost(proxy: Proxy) -> None:
    path = s3("once") / "lock"
    proxy.lose = 1
    assert path.put_new(b"mine")
    assert not path.put_new(b"theirs")
    assert path.read_bytes() == b"mine"


def test_one_writer_at_a_time(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    path = s3("locks") / "a.lock"
    with lease(path, "labelling"):
        with pytest.raises(DgreidError, match="another process is labelling"), lease(path, "labelling"):
            raise AssertionError
        holder = json.loads(path.read_bytes())
        assert holder["process"] == os.getpid()
    assert not path.exists()
    monkeypatch.setattr(leases, "SETTLED_S", 0.01)
    elsewhere = json.dumps({"mark": "x", "host": "another", "process": 1}).encode()
    path.put_bytes(elsewhere)
    with pytest.raises(DgreidError, match="another, process 1"), lease(path, "labelling"):
        raise AssertionError
    monkeypatch.setattr(leases, "LEFT_S", -10.0)
    with lease(path, "labelling"):
        assert json.loads(path.read_bytes())["process"] == os.getpid()
    path.put_bytes(json.dumps({**holder, "mark": "of an earlier process with our number"}).encode())
    monkeypatch.setattr(leases, "LEFT_S", 300.0)
    with lease(path, "labelling"):
        pass
    path.put_bytes(b"no json")
    with pytest.raises(DgreidError), lease(path, "labelling"):
        raise AssertionError


def test_a_lease_is_renewed_and_its_loss_is_told(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    path = s3("locks") / "b.lock"
    monkeypatch.setattr(leases, "RENEWED_S", 0.05)
    with pytest.raises(DgreidError, match="in the meantime"), lease(path, "labelling"):
        path.put_bytes(b"{}")
        for thread in leases.threading.enumerate():
            if thread.name == "lease":
                thread.join(10)
    assert path.read_bytes() == b"{}"  # somebody else's


def test_a_run_goes_on_where_another_machine_left_it(
    tmp_path: Path, proxy: Proxy, moto: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = s3("runs")
    one, other = (mirrored_at(place, tmp_path / name) / "train" / "first" for name in ("one", "other"))
    fetch(one)
    write_text(one / "config.yaml", "a: 1")
    write_text(one / "stage2" / "latest.pt", "epoch 1")
    (one / "events").write_text("curves")  # not by shared.files
    assert keys("runs/", moto) == ["runs/train/first/config.yaml", "runs/train/first/stage2/latest.pt"]
    store(one)
    assert keys("runs/", moto)[1] == "runs/train/first/events"
    fetch(other)
    assert (other / "stage2" / "latest.pt").read_text() == "epoch 1"
    assert (other / "events").read_text() == "curves"
    write_text(other / "stage2" / "latest.pt", "epoch 2, longer")
    (other / "not put").write_text("x")
    (one / "not put either").write_text("x")
    asked = proxy.requests
    fetch(other)
    assert proxy.requests - asked <= 2  # one listing: nothing was to be fetched
    assert not (other / "not put").exists()
    fetch(one)
    assert (one / "stage2" / "latest.pt").read_text() == "epoch 2, longer"
    assert not (one / "not put either").exists()


def test_paths_of_a_workspace_on_disk_are_as_before_and_a_cache_can_be_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = Workspace(tmp_path / "data", tmp_path / "runs")
    assert workspace.on_disk == workspace.runs_root
    assert workspace.image_cache == tmp_path / "runs" / "cache" / "images"
    assert workspace.training_run("x") == tmp_path / "runs" / "train" / "x"
    assert not (tmp_path / "runs").exists()
    monkeypatch.setenv("CACHE_ROOT", str(tmp_path / "elsewhere"))
    assert Workspace.from_environment().image_cache == tmp_path / "elsewhere" / "images"
