"""Small data sets with part labels, and a configuration that trains on them in a second."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import reid.training.stage2
from reid.config import ModelConfig, RunConfig, load_config
from reid.data.training_set import build_training_set
from reid.inference.encoder import PersonEncoder
from reid.model.muva import Muva, build_model
from reid.protocols.protocol import parse_protocol
from reid.training.job import Job, make_job
from reid.training.train import train
from shared.geometry import Box
from shared.labels import label_folder, write_label_shard
from shared.manifest import build_manifest, read_manifest
from shared.schemas import PARTS, LabelRow, LabelStatus, ManifestRow
from shared.workspace import Workspace
from tests import rows

torch.set_num_threads(1)

BOXES = {"head": (4.0, 0.0, 12.0, 8.0), "upper_body": (0.0, 8.0, 16.0, 20.0), "legs": (0.0, 20.0, 16.0, 32.0)}


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "data", tmp_path / "runs")


@pytest.fixture
def add_dataset(workspace: Workspace) -> Callable[..., list[ManifestRow]]:
    """Paint a data set in the Market-1501 layout and scan it: train images, or query and gallery for `test`."""

    def add(
        name: str,
        identities: int = 4,
        images: int = 4,
        *,
        test: bool = False,
        first: int = 1,
        size: tuple[int, int] = (32, 16),
    ) -> list[ManifestRow]:
        rng = np.random.default_rng(sum(name.encode()))
        for identity in range(first, first + identities):
            shirt = rng.integers(0, 200, 3)
            for number in range(images):
                pixels = rng.integers(0, 56, (32, 16, 3)) + shirt
                split = "bounding_box_train" if not test else "query" if number == 0 else "bounding_box_test"
                path = workspace.data_root / name / split / f"{identity:04d}_c{number % 2 + 1}s1_{number:06d}_00.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels.astype(np.uint8)).save(path)
        for split in ("bounding_box_train", "query", "bounding_box_test"):
            (workspace.data_root / name / split).mkdir(parents=True, exist_ok=True)
        (workspace.data_root / name / "dataset.yaml").write_text("layout: market1501\n")
        return build_manifest(name, workspace.data_root, workspace.manifest(name))

    return add


@pytest.fixture
def add_labels(workspace: Workspace) -> Callable[..., None]:
    """Write one label run of a data set; `answers` maps (path, part) to a status, or to None for no row at all."""

    def add(name: str, run: str = "first", answers: dict[tuple[str, str], LabelStatus | None] | None = None) -> None:
        rows = [
            label_row(row, part, status, run)
            for row in read_manifest(workspace.manifest(name))
            for part in PARTS
            if (status := (answers or {}).get((row.path, part), LabelStatus.OK)) is not None
        ]
        write_label_shard(rows, label_folder(workspace.labels, run, name, "train"))

    return add


def label_row(row: ManifestRow, part: str, status: LabelStatus, run: str) -> LabelRow:
    box = Box(*BOXES[part]) if status == LabelStatus.OK else None
    return rows.label_row(row, part, box, label_run=run, status=status, engine="painted", model="painted")


@pytest.fixture
def run_config(model_config: Callable[..., ModelConfig]) -> Callable[..., RunConfig]:
    """Makes configurations: 2 epochs of each stage, batches of 3 identities x 2 images, on the CPU in this process."""

    def make(*overrides: str, protocol: str = "alpha+beta2gamma", **model: Any) -> RunConfig:
        small = (
            "device=cpu data.workers=0 stage1.epochs=2 stage1.identities_per_batch=3 stage1.images_per_identity=2 "
            "stage2.epochs=2 stage2.identities_per_batch=3 stage2.images_per_identity=2 stage2.milestones=[2]"
        )
        config = load_config("tiny", [*small.split(), *overrides], protocol=protocol)
        return config.model_copy(update={"model": model_config(**model)})

    return make


@pytest.fixture
def sources(add_dataset: Callable[..., Any], add_labels: Callable[..., None]) -> None:
    """alpha and beta with labels to train on, gamma to be tested on."""
    for name in ("alpha", "beta"):
        add_dataset(name)
        add_labels(name)
    add_dataset("gamma", test=True)


@pytest.fixture
def start(workspace: Workspace, sources: None) -> Callable[[RunConfig, Path], tuple[Muva, Job]]:
    """A fresh model and the job of training it in a folder, as `reid.training.train` makes them."""

    def make(config: RunConfig, folder: Path) -> tuple[Muva, Job]:
        protocol = parse_protocol(config.protocol, workspace.data_root)
        data = build_training_set(protocol, config.data, config.model.parts, workspace)
        model = build_model(config.model, len(data.identities), seed=config.seed)
        return model, make_job(config, data, workspace, folder, model.grid)

    return make


@pytest.fixture
def train_run(workspace: Workspace) -> Callable[[RunConfig, Path], None]:
    """Trains a configuration's protocol in a folder."""

    def make(config: RunConfig, folder: Path) -> None:
        train(parse_protocol(config.protocol, workspace.data_root), config, workspace, folder)

    return make


@pytest.fixture
def train_until(
    train_run: Callable[[RunConfig, Path], None], monkeypatch: pytest.MonkeyPatch
) -> Callable[[RunConfig, Path, int], None]:
    """Trains a run and interrupts it where this epoch of stage 2 begins."""

    def train_and_die(config: RunConfig, folder: Path, last: int) -> None:
        def die_in_the_last(*args: Any) -> dict[str, Any]:
            if args[-1] == last:
                raise KeyboardInterrupt
            return epoch(*args)

        epoch = reid.training.stage2._epoch
        with monkeypatch.context() as changed, pytest.raises(KeyboardInterrupt):
            changed.setattr(reid.training.stage2, "_epoch", die_in_the_last)
            train_run(config, folder)

    return train_and_die


@pytest.fixture
def model_config() -> Callable[..., ModelConfig]:
    """Makes configurations of a CLIP that runs in milliseconds: 3 blocks of width 32, 6 x 3 patches of 8 pixels."""

    def make(**changes: Any) -> ModelConfig:
        architecture = {
            "embed_dim": 12,
            "quick_gelu": True,
            "vision_cfg": {"image_size": [48, 24], "layers": 3, "width": 32, "head_width": 16, "patch_size": 8},
            "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
        }
        defaults = {"backbone": "small", "architecture": architecture, "pretrained": None}
        return ModelConfig(**{**defaults, "image_size": (48, 24), "stride": 8, **changes})

    return make


@pytest.fixture
def small_encoder(model_config: Callable[..., ModelConfig]) -> PersonEncoder:
    return PersonEncoder(build_model(model_config(), 3, seed=0), PARTS)
