"""embed, index, search and what follows from them, as a user meets them."""

from pathlib import Path

import numpy as np
import pytest

from pipelines.__main__ import run
from reid import PersonEncoder
from reid.inference.embeddings import EmbeddingStore
from shared.workspace import Workspace
from tests.pipelines.test_commands import refused


@pytest.fixture
def embedded(workspace: Workspace, pocket_run: Path, tmp_path: Path) -> Path:
    out = tmp_path / "people.parquet"
    assert run(["embed", "--run", str(pocket_run), "--images", "caviar", "--out", str(out)]) == 0
    return out


def test_embed_takes_folders_data_sets_and_manifests(
    workspace: Workspace, pocket_run: Path, embedded: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    store = EmbeddingStore(embedded)
    assert set(store.facts["identity"].to_pylist()) == {"50", "51", "52", "53"}
    assert set(store.facts["camera"].to_pylist()) == {"1", "2"}
    folder = workspace.data_root / "CAVIAR4REID"
    encoder = PersonEncoder.load(pocket_run, device="cpu")
    paths = [folder / path for path in store.facts["path"].to_pylist()]
    np.testing.assert_allclose(store.features()[0], encoder(paths), atol=1e-3)
    for images in (str(folder), str(workspace.manifest("caviar"))):
        out = tmp_path / "again"
        assert run(["embed", "--run", str(pocket_run), "--images", images, "--out", str(out)]) == 0
        assert len(EmbeddingStore(out)) == len(store) == 16
    (folder / "query" / "broken.jpg").write_bytes(b"no image")
    command = ["embed", "--run", str(pocket_run), "--images", str(folder), "--out", str(tmp_path / "again")]
    refused(command, 1, "1 images could not be read", "broken.jpg", "unreadable.txt", capfd=capfd)


def test_embed_refuses_what_is_not_there(
    workspace: Workspace, pocket_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path / "out"), "--run", str(pocket_run)]
    refused(["embed", "--images", "atlantis", *out], 2, "neither a folder nor a data set", capfd=capfd)
    (tmp_path / "empty").mkdir()
    refused(["embed", "--images", str(tmp_path / "empty"), *out], 2, "no images here", capfd=capfd)
    (tmp_path / "boxes.txt").write_text("1,1,0,0,5,5\n")
    video = ["embed", "--images", str(tmp_path / "gone.mp4"), "--detections", str(tmp_path / "boxes.txt"), *out]
    refused(video, 2, "no such video", capfd=capfd)
    refused(
        ["embed", "--images", "caviar", "--out", str(tmp_path / "boxes.txt"), "--run", str(pocket_run)],
        2,
        "this is a file",
        capfd=capfd,
    )
