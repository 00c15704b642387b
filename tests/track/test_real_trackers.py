"""An exported model in the real trackers: features equal ours on the same crops, and people keep their ids better.

The model is the shipped CLIP with untrained part tokens; the crops have its input size, because the tools resize in
other ways than training does.
"""

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.__main__ import run
from pipelines.synthetic.clip import render_clip
from reid import PersonEncoder
from reid.inference.tracking import FrameEncoder
from shared.workspace import Workspace

TOOLS = Path(__file__).parent / "tools.py"
PREPROCESS = {
    "boxmot": "imagenet",
    "boxmot-botsort": "imagenet",
    "boxmot-strongsort": "imagenet",
    "ultralytics": "unit",
}


@pytest.fixture
def encoder(pocket_run: Path) -> FrameEncoder:
    return FrameEncoder(PersonEncoder.load(pocket_run, device="cpu"))


@pytest.fixture
def exported(workspace: Workspace, pocket_run: Path, tmp_path: Path) -> dict[str, Path]:
    found = {}
    for preprocess in ("imagenet", "unit"):
        out = tmp_path / preprocess
        assert run(["export", "--run", str(pocket_run), "--preprocess", preprocess, "--out", str(out)]) == 0
        found[preprocess] = out / f"person_{preprocess}.onnx"
    return found


def used(python: Path, *arguments: object) -> None:
    ended = subprocess.run([python, TOOLS, *map(str, arguments)], capture_output=True, text=True, cwd=TOOLS.parent)
    assert ended.returncode == 0, ended.stderr[-3000:]


@pytest.mark.parametrize("tool", ["boxmot", "ultralytics"])
def test_features_equal_ours(
    tool: str, tools_python: Path, exported: dict[str, Path], encoder: FrameEncoder, tmp_path: Path
) -> None:
    frame = next(iter(render_clip("plaza", 1, identities=6, frames=12, seed=1))).pixels[..., ::-1].copy()
    boxes = np.array([[x, y, x + 64, y + 128] for x in range(0, 400, 50) for y in (0, 60, 111)], np.float64)
    np.savez(tmp_path / "in.npz", frame=frame, boxes=boxes)
    used(tools_python, "features", tool, exported[PREPROCESS[tool]], tmp_path / "in.npz", tmp_path / "out.npy")
    theirs = np.load(tmp_path / "out.npy")
    theirs /= np.linalg.norm(theirs, axis=1, keepdims=True)
    np.testing.assert_allclose(theirs, encoder.get_features(boxes, frame), atol=1e-3)


def test_roboflows_package_runs_the_torch_program(
    reid_python: Path,
    workspace: Workspace,
    pocket_run: Path,
    encoder: FrameEncoder,
    tmp_path: Path,
) -> None:
    """In an environment without ours, whose import name it has."""
    out = tmp_path / "torch"
    assert run(["export", "--run", str(pocket_run), "--format", "torch", "--out", str(out)]) == 0
    frame = next(iter(render_clip("plaza", 1, identities=6, frames=12, seed=1))).pixels[..., ::-1].copy()
    boxes = np.array([[x, y, x + 64, y + 128] for x in range(0, 400, 50) for y in (0, 60)], np.float64)
    np.savez(tmp_path / "in.npz", frame=frame, boxes=boxes)
    used(reid_python, "features", "roboflow", out / "person_imagenet.pt2", tmp_path / "in.npz", tmp_path / "out.npy")
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), encoder.get_features(boxes, frame), atol=1e-3)


@pytest.fixture
def clip(encoder: FrameEncoder, tmp_path: Path) -> Path:
    """People who cross, leave and come back; boxes off by some pixels, one in twenty missing."""
    rng = np.random.default_rng(0)
    frames, detections, truth, features = [], [], [], []
    for frame in render_clip("plaza", 1, identities=6, frames=140, seed=3):
        frames.append(frame.pixels[..., ::-1].copy())
        here = []
        for identity, box in sorted(frame.boxes.items()):
            truth.append((frame.number, identity, *box))
            if rng.random() > 0.05:
                here.append(np.array(box) + rng.normal(0, 0.015, 4) * np.array([box.width, box.height] * 2))
        if here:
            detections += [(frame.number, -1, *box) for box in here]
            features.append(encoder.get_features(np.array(here), frames[-1]))
    path = tmp_path / "clip.npz"
    np.savez(
        path, frames=np.stack(frames), detections=np.array(detections), truth=np.array(truth),
        features=np.concatenate(features),
    )  # fmt: skip
    return path


@pytest.mark.parametrize("tool", ["boxmot-botsort", "boxmot-strongsort", "ultralytics", "deep-sort-realtime"])
def test_tracks_with_and_without_the_model(
    tool: str, tools_python: Path, exported: dict[str, Path], clip: Path, tmp_path: Path, capsys: Any
) -> None:
    found = {}
    for model in ("none", exported[PREPROCESS.get(tool, "unit")]):
        if tool == "boxmot-strongsort" and model == "none":
            continue  # it has no motion-only mode
        used(tools_python, "track", tool, model, clip, tmp_path / "out.json")
        found["without" if model == "none" else "with"] = json.loads((tmp_path / "out.json").read_text())
    with capsys.disabled():
        print(f"\n{tool}: {found}")
    assert found["with"]["idf1"] == pytest.approx(found["with"]["idf1_trackeval"], abs=0.02), "two implementations"
    assert found["with"]["hota"] > 0.4
