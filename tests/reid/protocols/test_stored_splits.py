import json
from pathlib import Path
from typing import Any

import pytest

from reid.protocols.splits import make_splits, store_splits, stored_splits
from shared.errors import DataError
from shared.schemas import ImageStatus, ManifestRow
from tests.rows import manifest_row


def row(split: str, identity: int, number: int, **changes: Any) -> ManifestRow:
    path = f"{split}/{identity}_{number}.jpg"
    return manifest_row(split=split, path=path, identity=identity, camera=None, **changes)


LOOSE = [row("all", identity, number) for identity in range(1, 9) for number in range(3)]
PAIRS = [row(split, identity, 0) for split in ("query", "gallery") for identity in range(1, 9)]


@pytest.mark.parametrize(("target", "rows"), [("ilids", LOOSE), ("viper", PAIRS)])
def test_stored_splits_win_over_other_draws(target: str, rows: list[ManifestRow], tmp_path: Path) -> None:
    drawn = make_splits(target, rows, folds=(), count=4, seed=1)
    assert stored_splits(tmp_path, target, rows, drawn) == drawn
    store_splits(tmp_path, target, drawn, seed=1)
    others = make_splits(target, rows, folds=(), count=4, seed=2)
    assert others != drawn
    assert stored_splits(tmp_path, target, rows, others) == drawn
    content = json.loads((tmp_path / "splits" / f"{target}.json").read_text())
    assert content["seed"] == 1 and "seed 1" in content["rule"]
    assert content["splits"][2]["query"] == [asked.path for asked in drawn[2].query]


def test_a_fixed_split_is_what_the_manifest_says_and_only_counted(tmp_path: Path) -> None:
    drawn = make_splits("market1501", PAIRS, folds=(), count=4, seed=1)
    store_splits(tmp_path, "market1501", drawn, seed=1)
    content = json.loads((tmp_path / "splits" / "market1501.json").read_text())
    assert content["splits"] == [{"query_images": 8, "gallery_images": 8}]
    fewer = make_splits("market1501", PAIRS[:-1], folds=(), count=4, seed=1)
    assert stored_splits(tmp_path, "market1501", PAIRS[:-1], fewer) == fewer


def test_images_that_are_gone_and_damaged_files_are_told(tmp_path: Path) -> None:
    drawn = make_splits("viper", PAIRS, folds=(), count=2, seed=1)
    store_splits(tmp_path, "viper", drawn, seed=1)
    asked = drawn[0].query[0]
    broken = [r.model_copy(update={"status": ImageStatus.UNREADABLE}) if r == asked else r for r in PAIRS]
    with pytest.raises(DataError, match=r"is not in the manifest[\s\S]*delete this file"):
        stored_splits(tmp_path, "viper", broken, drawn)
    for damaged in ("{", "[]", '{"rule": "r", "splits": [3]}'):
        (tmp_path / "splits" / "viper.json").write_text(damaged)
        with pytest.raises(DataError, match="damaged list of splits"):
            stored_splits(tmp_path, "viper", PAIRS, drawn)
