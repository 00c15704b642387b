"""Embeddings on disk: what was computed comes back, a second pass reads nothing, damage is refused."""

import os
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow.parquet as pq
import pytest
from PIL import Image

import reid.inference.embed_files
from reid.inference.embed_files import UNREADABLE_FILE, ImageFile, embed_files, files_in
from reid.inference.embeddings import EmbeddingStore, Kind, merged, shard_files, writing
from reid.inference.encoder import PersonEncoder
from reid.model.muva import build_model
from shared.errors import DataError, DgreidError, UsageError


def write_images(folder: Path, count: int = 10, seed: int = 0) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in range(count):
        pixels = np.random.default_rng((seed, number)).integers(0, 255, (20 + number, 12, 3)).astype(np.uint8)
        paths.append(folder / f"{number:03d}.png")
        Image.fromarray(pixels).save(paths[-1])
    return paths


def test_features_come_back_as_they_were_computed(small_encoder: PersonEncoder, tmp_path: Path) -> None:
    paths = write_images(tmp_path / "images")
    files = [
        ImageFile(tmp_path / "images", path.name, "d", "query", f"who{n}", f"c{n % 2}") for n, path in enumerate(paths)
    ]
    expected = small_encoder.embed(paths)
    for dtype, tolerance in (("float16", 1e-3), ("float32", 1e-6)):
        out = tmp_path / dtype
        assert embed_files(files, small_encoder, out, dtype=dtype, batch_size=3).embedded == 10  # type: ignore[arg-type]
        store = EmbeddingStore(out)
        features, visibility = store.features()
        np.testing.assert_allclose(features, expected.features, atol=tolerance)
        np.testing.assert_allclose(visibility, expected.visibility, atol=1e-6)
        order = np.array([7, 0, 7, 3])
        np.testing.assert_array_equal(store.features(order)[0], features[order])
        np.testing.assert_array_equal(np.concatenate([block.features for block in store.blocks(4)]), features)
        assert store.facts["identity"].to_pylist() == [f"who{n}" for n in range(10)]
        assert store.kind == Kind(small_encoder.model_hash, small_encoder.parts, 48, dtype)  # type: ignore[arg-type]
        assert store.where("camera = 'c1' and identity != 'who3'").nonzero()[0].tolist() == [1, 5, 7, 9]


def test_the_shards_open_in_other_tools(small_encoder: PersonEncoder, tmp_path: Path) -> None:
    write_images(tmp_path / "images")
    out = tmp_path / "embeddings.parquet"
    embed_files(files_in(tmp_path / "images"), small_encoder, out)
    (shard,) = shard_files(out)
    expected = EmbeddingStore(out).features()[0]
    for features in (
        np.stack(pd.read_parquet(shard)["feature"].to_numpy()),
        pl.read_parquet(shard)["feature"].to_numpy(),
        np.array(duckdb.sql(f"select feature from '{shard}'").fetchall())[:, 0],
    ):
        np.testing.assert_array_equal(np.asarray(features, np.float32), expected)


def test_a_second_pass_reads_only_what_changed(
    small_encoder: PersonEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = write_images(tmp_path / "images")
    out, files = tmp_path / "out", files_in(tmp_path / "images")
    embed_files(files, small_encoder, out)
    read: list[Path] = []
    original = reid.inference.embed_files.read_file
    monkeypatch.setattr(reid.inference.embed_files, "read_file", lambda path: (read.append(path), original(path))[1])
    assert embed_files(files, small_encoder, out).unchanged == 10 and not read
    Image.new("RGB", (9, 9), "red").save(paths[4])
    write_images(tmp_path / "images", 11)[10]  # rewrites all with the same content, and one more
    Image.new("RGB", (9, 9), "red").save(paths[4])
    for path in paths:
        if path != paths[4]:
            os.utime(path, ns=(0, 0))
    summary = embed_files(files_in(tmp_path / "images"), small_encoder, out)
    assert (summary.embedded, summary.replaced) == (11, 10)
    store = EmbeddingStore(out)
    assert len(store) == 11
    np.testing.assert_allclose(
        store.features()[0],
        small_encoder([tmp_path / "images" / p for p in store.facts["path"].to_pylist()]),
        atol=1e-3,
    )


def test_a_killed_pass_is_continued(
    small_encoder: PersonEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_images(tmp_path / "images")
    out, files = tmp_path / "out", files_in(tmp_path / "images")
    monkeypatch.setattr(reid.inference.embed_files, "SHARD_ROWS", 4)
    calls = []

    def die(self: PersonEncoder, images: object) -> object:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return original(self, images)  # type: ignore[arg-type]

    original = PersonEncoder.encode
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(PersonEncoder, "encode", die)
        embed_files(files, small_encoder, out, batch_size=2)
    assert len(EmbeddingStore(out)) == 4
    summary = embed_files(files, small_encoder, out, batch_size=2)
    assert (summary.embedded, summary.unchanged) == (6, 4)
    assert len(shard_files(out)) == 3 and len(EmbeddingStore(out)) == 10


def test_of_a_row_that_is_there_twice_the_last_counts(small_encoder: PersonEncoder, tmp_path: Path) -> None:
    """As a process leaves it that is killed between adding the new row and removing the old one."""
    paths = write_images(tmp_path / "images", 3)
    out = tmp_path / "out"
    embed_files(files_in(tmp_path / "images"), small_encoder, out)
    (first,) = shard_files(out)
    before = first.read_bytes()
    Image.new("RGB", (9, 9), "red").save(paths[1])
    embed_files(files_in(tmp_path / "images"), small_encoder, out)
    first.write_bytes(before)
    store = EmbeddingStore(out)
    assert store.facts["path"].to_pylist() == ["000.png", "002.png", "001.png"]
    expected = small_encoder([paths[0], paths[2], paths[1]])
    np.testing.assert_allclose(store.features()[0], expected, atol=1e-3)
    np.testing.assert_allclose(store.features(np.array([2, 1]))[0], expected[[2, 1]], atol=1e-3)


def test_broken_images_cost_only_themselves(small_encoder: PersonEncoder, tmp_path: Path) -> None:
    folder, out = tmp_path / "images", tmp_path / "out"
    paths = write_images(folder, 4)
    (folder / "cut.png").write_bytes(paths[0].read_bytes()[:40])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "notes.txt").write_text("no image")
    os.mkfifo(folder / "pipe.jpg")
    (folder / "line\nend.png").write_bytes(b"text")
    summary = embed_files(files_in(folder), small_encoder, out)
    assert summary.embedded == 4
    assert sorted(Path(key).name for key in summary.unreadable) == [
        "cut.png",
        "empty.jpg",
        "line\\nend.png",
        "pipe.jpg",
    ]
    assert len((out / UNREADABLE_FILE).read_text().splitlines()) == 4
    for name in ("cut.png", "empty.jpg", "pipe.jpg", "line\nend.png"):
        (folder / name).unlink()
    assert not embed_files(files_in(folder), small_encoder, out).unreadable
    assert not (out / UNREADABLE_FILE).exists()


def test_another_model_or_a_damaged_shard_is_refused(
    small_encoder: PersonEncoder, tmp_path: Path, model_config: object
) -> None:
    write_images(tmp_path / "images", 4)
    out, files = tmp_path / "out", files_in(tmp_path / "images")
    with pytest.raises(DataError, match="no embeddings"):
        EmbeddingStore(out)
    embed_files(files, small_encoder, out)
    other = PersonEncoder(build_model(model_config(), 3, seed=1), small_encoder.parts)  # type: ignore[operator]
    assert other.model_hash != small_encoder.model_hash
    with pytest.raises(DataError, match="another model"):
        embed_files(files, other, out)
    with pytest.raises(DataError, match="another model"):
        EmbeddingStore(out).require(other.model_hash)
    with pytest.raises(UsageError, match="different models"):
        merged([EmbeddingStore(out).kind, Kind(other.model_hash, other.parts, 48)])
    with pytest.raises(DataError, match="float16, not float32"):
        embed_files(files, small_encoder, out, dtype="float32")
    (shard,) = shard_files(out)
    pq.write_table(pq.read_table(shard).drop_columns(["visibility"]), out / "part-000002.parquet")
    with pytest.raises(DataError, match="part-000002"):
        EmbeddingStore(out)
    for content in (b"", b"PAR1", shard.read_bytes()[:-50]):
        (out / "part-000002.parquet").write_bytes(content)
        with pytest.raises(DataError, match="part-000002"):
            EmbeddingStore(out)


def test_rows_are_removed_and_one_process_writes(small_encoder: PersonEncoder, tmp_path: Path) -> None:
    write_images(tmp_path / "images", 5)
    out = tmp_path / "out"
    embed_files(files_in(tmp_path / "images"), small_encoder, out)
    store = EmbeddingStore(out)
    keys = store.facts["key"].to_pylist()
    expected = store.features()[0]
    with writing(out, store.kind) as writer:
        assert writer.remove([keys[1], keys[3], "no such key"]) == 2
        with pytest.raises(DataError, match="another process"), writing(out, store.kind):
            pass
        with pytest.raises(DgreidError, match="not finite"):
            writer.add(store.facts.slice(0, 1).to_pylist(), np.full((1, 48), np.nan), np.zeros((1, 3), np.float32))
    np.testing.assert_array_equal(EmbeddingStore(out).features()[0], expected[[0, 2, 4]])
    with writing(out, store.kind) as writer:
        writer.remove(keys)
    assert not shard_files(out)


@pytest.mark.parametrize(
    "condition",
    ["nothing = 1", "1; drop table facts", "", "true) from facts; --", "exists(select * from read_csv('/etc/passwd'))"],
)
def test_conditions_that_cannot_be_used_are_told(small_encoder: PersonEncoder, tmp_path: Path, condition: str) -> None:
    write_images(tmp_path / "images", 2)
    embed_files(files_in(tmp_path / "images"), small_encoder, tmp_path / "out")
    with pytest.raises(UsageError, match="cannot use the condition"):
        EmbeddingStore(tmp_path / "out").where(condition)
