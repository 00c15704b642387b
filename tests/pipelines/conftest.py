from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from reid.config import load_config
from reid.model.checkpoint import save_checkpoint
from reid.model.muva import build_model
from shared.workspace import Workspace


def write_people(folder: Path, *, identities: int = 4, first: int = 1, seed: int = 0) -> None:
    """A data set in Market-1501's layout: coloured blocks that differ by identity, two cameras, two frames."""
    rng = np.random.default_rng(seed)
    for person in range(first, first + identities):
        colour = rng.integers(0, 255, 3)
        for camera in (1, 2):
            for frame in (1, 2):
                split = "bounding_box_train" if person < first + identities // 2 else "bounding_box_test"
                if split == "bounding_box_test" and frame == 1:
                    split = "query"
                pixels = np.clip(colour + rng.normal(0, 20, (32, 16, 3)), 0, 255).astype(np.uint8)
                path = folder / split / f"{person:04d}_c{camera}s1_{frame:06d}_00.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(path), pixels)


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A workspace of its own with two small data sets, 3dpes and caviar."""
    monkeypatch.setenv("DATA_ROOT", str(tmp_path / "data"))
    monkeypatch.setenv("RUNS_ROOT", str(tmp_path / "runs"))
    write_people(tmp_path / "data" / "3DPeS")
    write_people(tmp_path / "data" / "CAVIAR4REID", first=50, seed=1)
    return Workspace.from_environment()


@pytest.fixture(scope="session")
def pocket_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder whose model is the shipped CLIP with untrained part tokens: features that tell people apart."""
    folder = tmp_path_factory.mktemp("runs") / "pocket"
    config = load_config("pocket", ["device=cpu"], protocol="3dpes2caviar")
    model = build_model(config.model, 4, seed=0)
    save_checkpoint(folder / "stage2" / "latest.pt", {"model": model.state_dict()}, {"epoch": 1, "num_identities": 4})
    (folder / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    return folder
