"""`PersonEncoder` gives what the evaluation computed, whatever form the images have, and names what it cannot read."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import reid
from reid.config import RunConfig
from reid.evaluation.evaluate import evaluate_run
from reid.inference.encoder import PersonEncoder
from reid.model.muva import build_model
from shared.errors import ConfigError, DataError, DgreidError, UsageError
from shared.images import UnreadableImageError
from shared.workspace import Workspace

Config = Callable[..., RunConfig]


@pytest.fixture
def run(train_run: Callable[[RunConfig, Path], None], workspace: Workspace, sources: None, run_config: Config) -> Path:
    folder = workspace.training_runs / "run"
    train_run(run_config(), folder)
    return folder


def test_features_are_those_of_the_evaluation(run: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluate_run(run, workspace)
    with np.load(run / "embeddings" / "gamma.trained.npz") as stored:
        expected, paths = stored["features"], [workspace.data_root / "gamma" / str(path) for path in stored["paths"]]
    monkeypatch.setenv("RUNS_ROOT", str(workspace.runs_root))
    encoder = reid.PersonEncoder.load("run", device="cpu")  # a name under RUNS_ROOT
    np.testing.assert_allclose(encoder(paths, batch_size=3), expected, atol=1e-5)
    found = encoder.embed(paths)
    assert found.features.dtype == found.part_features.dtype == found.visibility.dtype == np.float32
    assert found.features.shape == (len(paths), 48) and found.part_features.shape == (len(paths), 4, 12)
    assert found.parts == ("head", "upper_body", "legs")
    blocks = found.features.reshape(-1, 4, 12)
    np.testing.assert_allclose(blocks / np.linalg.norm(blocks, axis=2, keepdims=True), found.part_features, atol=1e-6)
    with np.load(run / "masks" / "gamma.npz") as stored:
        np.testing.assert_allclose(found.visibility, stored["masks"].mean(axis=(2, 3)), atol=1e-6)


def test_every_form_of_an_image_gives_the_same_features(run: Path, workspace: Workspace) -> None:
    encoder = reid.PersonEncoder.load(run)
    paths = sorted((workspace.data_root / "gamma").rglob("*.png"))[:3]
    pictures = [Image.open(path) for path in paths]
    arrays = [np.array(picture) for picture in pictures]
    tensors = [torch.from_numpy(array).permute(2, 0, 1) for array in arrays]
    expected = encoder(paths)
    forms = [list(map(str, paths)), pictures, arrays, tensors, np.stack(arrays), torch.stack(tensors), tuple(paths)]
    for form in forms:
        np.testing.assert_array_equal(encoder(form), expected)
    for single in (paths[0], str(paths[0]), pictures[0], arrays[0], tensors[0], [paths[0]]):
        np.testing.assert_allclose(encoder(single), expected[:1], atol=1e-6)
    assert encoder([]).shape == (0, encoder.feature_dim)
    assert encoder.embed([]).part_features.shape == (0, 4, 12)


def test_similarity_is_the_cosine(run: Path, workspace: Workspace) -> None:
    encoder = reid.PersonEncoder.load(run, device="cpu")
    paths = sorted((workspace.data_root / "gamma").rglob("*.png"))[:4]
    features = encoder(paths)
    expected = features.astype(np.float64) @ features.astype(np.float64).T
    np.testing.assert_allclose(encoder.similarity(paths, paths), expected, atol=1e-6)
    np.testing.assert_allclose(encoder.similarity(3 * features, paths[:2]), expected[:, :2], atol=1e-6)
    assert encoder.compare(paths[0], paths[1]) == pytest.approx(expected[0, 1], abs=1e-6)
    assert encoder.compare(paths[0], paths[0]) == pytest.approx(1, abs=1e-6) and encoder.compare(*paths[:2]) <= 1
    with pytest.raises(UsageError, match="features of length 3"):
        encoder.similarity(features[:, :3].copy(), paths)
    with pytest.raises(UsageError, match="two images, not 2 and 1"):
        encoder.compare(paths[:2], paths[0])  # type: ignore[arg-type]


def test_a_model_without_parts_sees_none(model_config: Callable[..., object]) -> None:
    encoder = PersonEncoder(build_model(model_config(parts=()), 3, seed=0), ())  # type: ignore[arg-type]
    found = encoder.embed(np.zeros((2, 40, 20, 3), np.uint8))
    assert found.features.shape == (2, 12) and found.part_features.shape == (2, 1, 12)
    assert found.visibility.shape == (2, 0)


@pytest.mark.parametrize(
    "content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n" + b"\0" * 40, b"\xff\xd8\xff\xe0" + b"\0" * 40]
)
def test_an_unreadable_file_is_named(content: bytes, small_encoder: PersonEncoder, tmp_path: Path) -> None:
    path = tmp_path / "odd.jpg"
    path.write_bytes(content)
    with pytest.raises(UnreadableImageError, match=r"odd\.jpg"):
        small_encoder([path])
    with pytest.raises(UnreadableImageError, match=r"gone\.jpg"):
        small_encoder(tmp_path / "gone.jpg")
    with pytest.raises(UnreadableImageError):
        small_encoder(tmp_path)


def test_a_truncated_pil_image_is_unreadable(small_encoder: PersonEncoder, tmp_path: Path) -> None:
    path = tmp_path / "cut.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 32, 3)).astype(np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(UnreadableImageError, match=r"cut\.png"):
        small_encoder(Image.open(path))


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((8, 4, 3), np.float32),
        np.zeros((8, 4), np.uint8),
        np.zeros((8, 4, 4), np.uint8),
        np.zeros((3, 8, 4), np.uint8),  # channels first is for tensors
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((2, 2, 8, 4, 3), np.uint8),
        torch.zeros(8, 4, 3, dtype=torch.uint8),
        torch.zeros(3, 8, 4),
        torch.zeros(1, 3, 8, 4, dtype=torch.int64),
        Image.new("I;16", (4, 8)),
        Image.new("F", (4, 8)),
        None,
        7,
        [None],
        {"a.jpg": 1},
        b"bytes",
    ],
)
def test_other_types_shapes_and_dtypes_are_refused(wrong: object, small_encoder: PersonEncoder) -> None:
    with pytest.raises(UsageError):
        small_encoder(wrong)  # type: ignore[arg-type]


def test_odd_but_valid_images(small_encoder: PersonEncoder) -> None:
    images = [Image.new(mode, (1, 1)) for mode in ("L", "RGBA", "P", "1", "CMYK")] + [Image.new("RGB", (3, 900))]
    found = small_encoder(images)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    hidden = Image.new("RGBA", (4, 8), (200, 100, 50, 0))  # black, as in a file
    assert np.array_equal(small_encoder(hidden), small_encoder(Image.new("RGB", (4, 8))))
    backwards = np.zeros((8, 4, 3), np.uint8)[:, ::-1]  # negative strides
    assert np.isfinite(small_encoder(backwards)).all()
    with pytest.raises(UsageError, match="batch_size=0"):
        small_encoder(backwards, batch_size=0)


def test_gradients_modes_and_the_global_state_are_left_alone(small_encoder: PersonEncoder) -> None:
    before = torch.get_rng_state()
    small_encoder(np.zeros((8, 4, 3), np.uint8))
    assert torch.equal(before, torch.get_rng_state()) and torch.is_grad_enabled()
    assert not any(p.requires_grad for p in small_encoder.model.parameters())


def test_runs_that_cannot_be_loaded_are_told(tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNS_ROOT", str(tmp_path / "nothing"))
    for name in ("absent", tmp_path, tmp_path / "nothing" / "deeper"):
        with pytest.raises(DataError, match="no such run"):
            PersonEncoder.load(name)
    with pytest.raises(ConfigError, match="device=cuda"):
        if torch.cuda.is_available():
            pytest.skip("this machine has a GPU")
        PersonEncoder.load(run, device="cuda")
    (run / "stage2" / "latest.pt").write_bytes(b"damaged")
    with pytest.raises(DgreidError, match=r"latest\.pt"):
        PersonEncoder.load(run)
    (run / "stage2" / "latest.pt").unlink()
    with pytest.raises(DataError, match="no trained model yet"):
        PersonEncoder.load(run)


def test_importing_reid_is_light() -> None:
    script = "import sys, reid; assert 'PersonEncoder' in dir(reid); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0
    with pytest.raises(AttributeError, match="nonsense"):
        _ = reid.nonsense


def test_the_lines_of_the_readme_run(run: Path, workspace: Workspace, tmp_path: Path) -> None:
    text = (Path(reid.__file__).parent / "README.md").read_text()
    (lines,) = [block.split("```")[0] for block in text.split("```python\n")[1:]]
    assert len([line for line in lines.splitlines() if line]) <= 5
    (tmp_path / "runs" / "train").mkdir(parents=True, exist_ok=True)
    run.rename(tmp_path / "runs" / "train" / "demo")
    for name, path in zip(("a.jpg", "b.jpg"), (workspace.data_root / "gamma").rglob("*.png"), strict=False):
        Image.open(path).save(tmp_path / name)
    root = Path(reid.__file__).parents[1]
    ended = subprocess.run(
        [sys.executable, "-c", lines], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True
    )
    assert ended.returncode == 0, ended.stderr
    assert -1 <= float(ended.stdout) <= 1
