"""Few large shards instead of many small ones: the same rows, the same ones count, at every moment of it."""

import random
from datetime import timedelta
from pathlib import Path

import pytest

from labeler.annotation.compaction import compact
from shared.errors import ConfigError, DataError, DgreidError
from shared.geometry import Box
from shared.labels import (
    add_corrections,
    is_being_replaced,
    label_folder,
    label_shards,
    newest_labels,
    read_label_table,
    read_labels,
    store,
    write_correction,
    write_label_shard,
    writer_lock,
)
from shared.schemas import PARTS, LabelStatus
from tests.rows import NOON, label_row, manifest_row

IMAGES = 40


def fill(root: Path, *, count: int = 60, old: bool = False) -> None:
    """`count` shards: images change their split, clocks run backwards, answers are given up to five times."""
    if old:
        (root / "label_run=first").mkdir(parents=True)
    rng = random.Random(0)
    for number in range(count):
        split = rng.choice(["train", "query"])
        rows = []
        for image in rng.sample(range(IMAGES), 3):
            entry = manifest_row(image, split=split)
            for part in PARTS:
                failed = rng.random() < 0.3
                given = {"status": LabelStatus.REFUSED} if failed else {"box": Box(1, 2, 3 + number, 90)}
                made = NOON + timedelta(seconds=rng.randrange(-9, 9))
                rows.append(label_row(entry, part, created_at=made, raw_text=f"shard {number}", **given))
        write_label_shard(rows, label_folder(root, "first", "toy", split))


def everything(root: Path) -> list[str]:
    return sorted(row.model_dump_json() for row in read_labels(label_shards(root)))


def what_counts(root: Path) -> list[dict]:
    return sorted(newest_labels(root, "first", "toy").to_pylist(), key=lambda row: (row["image_id"], row["part"]))


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("shard_rows", [50, 100_000])
def test_no_row_changes_and_the_same_ones_count(tmp_path: Path, old: bool, shard_rows: int) -> None:
    fill(tmp_path, old=old)
    rows, counting = everything(tmp_path), what_counts(tmp_path)
    done = compact(tmp_path, "first", "toy", shard_rows=shard_rows)
    assert (done.before, done.rows, done.superseded) == (60, len(rows), len(rows) - len(counting))
    shards = label_shards(tmp_path)
    assert len(shards) == done.after == (4 if shard_rows > 50 else done.after) < 20
    assert max(len(read_label_table(shard)) for shard in shards) <= shard_rows
    assert everything(tmp_path) == rows and what_counts(tmp_path) == counting
    again = compact(tmp_path, "first", "toy", shard_rows=shard_rows)
    assert again.after == again.before == len(shards) and label_shards(tmp_path) == shards
    write_label_shard(
        [label_row(manifest_row(0), box=Box(0, 0, 9, 9))], label_folder(tmp_path, "first", "toy", "train")
    )
    newest = {(row["image_id"], row["part"]): row["x_max"] for row in what_counts(tmp_path)}
    assert newest[f"{0:016x}", "head"] == 9, "what is written later counts"


def test_a_run_that_another_one_corrects_stays_as_it_is_and_the_other_one_can_be_compacted(tmp_path: Path) -> None:
    fill(tmp_path)
    write_correction(
        tmp_path, "first", "first.corrected", [label_row(manifest_row(0), label_run="first.corrected")], {}
    )
    with pytest.raises(ConfigError, match="is corrected by another run"):
        compact(tmp_path, "first", "toy")
    rows = everything(tmp_path)
    assert compact(tmp_path, "first.corrected", "toy").after < 6
    assert everything(tmp_path) == rows
    one = label_row(manifest_row(1), label_run="first.corrected")
    assert not add_corrections(tmp_path, "first.corrected", [one]), "nothing is taken over a second time"


class KilledError(BaseException):
    pass


def test_killed_at_any_step_nothing_is_lost_and_the_next_one_finishes(tmp_path: Path, monkeypatch) -> None:
    """The store's own steps are counted; the process dies before the first, the second, ... until it gets through."""
    for step in range(200):
        root = tmp_path / str(step)
        fill(root, count=12)
        rows, counting = everything(root), what_counts(root)
        left = step

        def dies(real):
            def counted(*arguments, **named):
                nonlocal left
                if left == 0:
                    raise KilledError
                left -= 1
                return real(*arguments, **named)

            return counted

        killed = True
        with monkeypatch.context() as patched:
            patched.setattr(store, "move_file", dies(store.move_file))
            patched.setattr(store, "write_text", dies(store.write_text))
            patched.setattr(Path, "unlink", dies(Path.unlink))
            patched.setattr("shutil.rmtree", lambda *_, **__: None)  # a kill cleans nothing up
            try:
                compact(root, "first", "toy")
                killed = False
            except KilledError:
                pass
        assert what_counts(root) == counting and set(everything(root)) == set(rows)
        with writer_lock(root, "first", "toy"):
            assert everything(root) == rows and what_counts(root) == counting
            assert not is_being_replaced(root, "first", "toy")
        compact(root, "first", "toy")
        assert everything(root) == rows and len(label_shards(root)) == 4
        if not killed:
            break
    assert 12 < step < 199


def test_what_cannot_be_finished_is_said_and_nothing_is_removed(tmp_path: Path) -> None:
    fill(tmp_path)
    rows, record = everything(tmp_path), tmp_path / "first" / "_toy.replacing.json"
    for text in ('{"new": [["train", 99]], "old": [["train", 0]]}', '{"new": [], "old": [["../../x", 0]]}', "[", "{}"):
        record.write_text(text)
        with pytest.raises(DataError, match="compaction"):
            compact(tmp_path, "first", "toy")
        assert everything(tmp_path) == rows
    record.unlink()
    with pytest.raises(DataError, match="no labels of nothing"):
        compact(tmp_path, "first", "nothing")
    with writer_lock(tmp_path, "first", "toy"), pytest.raises(DgreidError, match="another process"):
        compact(tmp_path, "first", "toy")


def test_a_changed_byte_is_noticed_or_changes_nothing(tmp_path: Path) -> None:
    rows = [label_row(manifest_row(image), box=Box(1, 2, 3, 4 + image)) for image in range(90)]
    shard = write_label_shard(rows, label_folder(tmp_path, "first", "toy", "train"))
    content, table = shard.read_bytes(), read_label_table(shard)
    pages = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    noticed = 0
    for place in range(4, pages, 61):
        shard.write_bytes(content[:place] + bytes([content[place] ^ 0x10]) + content[place + 1 :])
        try:
            assert read_label_table(shard).equals(table)
        except DataError:
            noticed += 1
    assert noticed > pages / 61 / 2
