"""`dgreid cache`: lists packed images and deletes them."""

import os
import time

import pytest

from pipelines.__main__ import run
from shared.image_cache import pack_name
from shared.workspace import Workspace


@pytest.fixture
def packs(workspace: Workspace) -> list[str]:
    workspace.image_cache.mkdir(parents=True)
    names = [pack_name(name, 100, (256, 128), "bicubic", "0" * 16) for name in ("alpha", "be-ta")]
    for age, name in zip((10, 1), names, strict=True):
        path = workspace.image_cache / name
        path.write_bytes(bytes(3 * 2**20))
        os.utime(path, (time.time() - age * 86_400,) * 2)
    return names


def test_packs_are_listed_with_their_size_and_age(packs: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["cache"]) == 0
    told = capfd.readouterr().out
    assert told.index(packs[0]) < told.index(packs[1])  # the longest unused first
    assert "3.0 MiB" in told and "10.0" in told and "6.0 MiB in" in told


def test_only_what_is_asked_for_is_deleted(
    workspace: Workspace, packs: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(["cache", "--clear", "--unused-days", "5"]) == 0
    assert "deleted 1 files, 3.0 MiB" in capfd.readouterr().out
    assert [path.name for path in workspace.image_cache.iterdir()] == packs[1:]
    assert run(["cache", "--clear", "--dataset", "alpha"]) == 0
    assert "no packed images" in capfd.readouterr().out
    assert run(["cache", "--clear", "--dataset", "be-ta"]) == 0
    assert not list(workspace.image_cache.iterdir())
