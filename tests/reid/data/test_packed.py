"""Packed images: the pixels of the files, whole or not there, made once, never over the limit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import reid.data.packing
from reid.data.augment import Augmentation
from reid.data.packed import PackedImages
from reid.data.packing import packed_images
from reid.data.part_masks import PatchGrid
from reid.data.person_images import PersonImages, in_order, load_batches
from reid.data.transforms import TRAINING
from shared.errors import DgreidError
from shared.image_cache import PackFile, pack_files, remove
from shared.manifest import build_manifest
from shared.schemas import ManifestRow
from shared.workspace import Workspace

AddDataset = Callable[..., list[ManifestRow]]
GRID = PatchGrid(48, 24, 8, 8)
SIZE = (48, 24)


@pytest.fixture
def rows(add_dataset: AddDataset) -> list[ManifestRow]:
    """Two data sets; the second one's images are asked for first."""
    first, second = add_dataset("alpha"), add_dataset("beta", test=True)
    return [*reversed(second), *first[::2], *first[1::2]]


def pack(rows: list[ManifestRow], workspace: Workspace, **options: Any) -> PackedImages | None:
    given = {"workspace": workspace, "size": SIZE, "mode": TRAINING, "limit_bytes": 2**30, **options}
    return packed_images([row.dataset for row in rows], [row.path for row in rows], **given)


def images_of(rows: list[ManifestRow], workspace: Workspace, packed: PackedImages | None) -> PersonImages:
    files = [workspace.data_root / row.dataset / row.path for row in rows]
    boxes = np.tile(np.array([[[2.0, 1.0, 9.5, 20.0], [np.nan] * 4]]), (len(rows), 1, 1))
    changes = Augmentation(flip=0.5, crop_padding=3, erasing=0.5, colour_jitter=0.2, seed=1)
    ids = [row.image_id for row in rows]
    return PersonImages(files, GRID, TRAINING, boxes=boxes, augmentation=changes, image_ids=ids, packed=packed)


def test_batches_of_packed_images_are_those_of_the_files(rows: list[ManifestRow], workspace: Workspace) -> None:
    packed = pack(rows, workspace)
    assert packed is not None and len(packed) == len(rows)
    with_pack, without = images_of(rows, workspace, packed), images_of(rows, workspace, None)
    with_pack.epoch = without.epoch = 4
    plan = [*in_order(len(rows), 5), [7, 0, 7]]
    batches = zip(load_batches(with_pack, plan, 2), load_batches(without, plan, 2), strict=True)
    equal = [all(map(torch.equal, found, expected)) for found, expected in batches]
    assert equal == [True] * len(plan)


def test_a_pack_is_made_once_and_read_by_whoever_asks_next(
    rows: list[ManifestRow], workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert pack(rows, workspace, make=False) is None and not pack_files(workspace)
    pack(rows, workspace)
    files = pack_files(workspace)
    assert sorted(file.dataset for file in files) == ["alpha", "beta"]
    monkeypatch.setattr(reid.data.packing, "load_scanned_pixels", None)
    for wanted in (rows, rows[3:], rows[::-1]):
        packed = pack(wanted, workspace, make=False)
        assert packed is not None and len(packed) == len(wanted)
    assert pack_files(workspace)[0].size_bytes == files[0].size_bytes


def test_few_images_of_a_split_are_packed_alone(rows: list[ManifestRow], workspace: Workspace) -> None:
    few = rows[-3:]
    packed = pack(few, workspace)
    assert packed is not None and [len(one) for one in packed.packs] == [3]


def test_other_bytes_at_the_same_place_make_another_pack(rows: list[ManifestRow], workspace: Workspace) -> None:
    alpha = [row for row in rows if row.dataset == "alpha"]
    pack(alpha, workspace)
    path = workspace.data_root / "alpha" / alpha[0].path
    Image.fromarray(np.full((30, 15, 3), 7, np.uint8)).save(path)
    packed = images_of(alpha, workspace, pack(alpha, workspace))  # of the scanned bytes
    assert (packed.batch([0]).images != 7).any()
    scanned = build_manifest("alpha", workspace.data_root, workspace.manifest("alpha"))
    by_path = {row.path: row for row in scanned}
    alpha = [by_path[row.path] for row in alpha]
    packed_anew = pack(alpha, workspace)
    assert packed_anew is not None
    out = torch.empty(1, 3, *SIZE, dtype=torch.uint8)
    assert packed_anew.take([0], out).tolist() == [[30, 15]] and (out == 7).all()
    assert len(pack_files(workspace)) == 2


def test_an_image_that_changed_since_the_scan_is_named_and_leaves_no_pack(
    rows: list[ManifestRow], workspace: Workspace
) -> None:
    path = workspace.data_root / rows[-1].dataset / rows[-1].path
    path.write_bytes(b"something else")
    with pytest.raises(DgreidError, match=f"changed after the data set was scanned.*{path.name}"):
        pack(rows, workspace)
    assert not [file for file in pack_files(workspace) if file.dataset == rows[-1].dataset]
    assert not list(workspace.image_cache.glob(".*"))


def test_a_damaged_pack_is_made_again(rows: list[ManifestRow], workspace: Workspace) -> None:
    pack(rows, workspace)
    for file in pack_files(workspace):
        file.path.write_bytes(file.path.read_bytes()[:1000])
    assert pack(rows, workspace, make=False) is None
    packed = pack(rows, workspace)
    assert packed is not None
    out = torch.empty(1, 3, *SIZE, dtype=torch.uint8)
    assert packed.take([0], out).tolist() == [[32, 16]]


@pytest.mark.parametrize("limit", [0, 48 * 24 * 3 * 20])
def test_what_has_no_room_is_not_packed(
    rows: list[ManifestRow], workspace: Workspace, limit: int, caplog: pytest.LogCaptureFixture
) -> None:
    assert pack(rows, workspace, limit_bytes=limit) is None  # 16 images of alpha would fit, beta's no longer
    assert bool(limit) == ("decoded in every pass" in caplog.text)
    assert sum(file.size_bytes for file in pack_files(workspace)) <= limit


def test_the_disk_keeps_room(rows: list[ManifestRow], workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reid.data.packing, "SPARE_BYTES", 2**62)
    assert pack(rows, workspace) is None and not pack_files(workspace)


def test_deleting_packs_says_what_it_freed(rows: list[ManifestRow], workspace: Workspace) -> None:
    pack(rows, workspace)
    files: list[PackFile] = pack_files(workspace)
    assert remove(files) == sum(file.size_bytes for file in files) > 0
    assert not pack_files(workspace) and not list(Path(workspace.image_cache).iterdir())
