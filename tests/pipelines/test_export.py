"""An exported file gives the model's features, whatever normalisation a tool applies, or is not written."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

import reid.inference.export
from pipelines.__main__ import run
from reid import PersonEncoder
from reid.config import load_config
from reid.inference.export import checked, export_onnx, run_onnx, tool_input
from reid.inference.hub import PersonModel, load_pretrained
from reid.inference.trained import model_hash
from reid.model.muva import build_model
from shared.errors import DataError, DgreidError
from shared.workspace import Workspace
from tests.pipelines.test_commands import refused

pytest.importorskip("onnxruntime")


@pytest.fixture
def crops(pocket_run: Path) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    coarse = torch.randint(0, 255, (9, 3, 8, 4), generator=generator, dtype=torch.uint8)
    return torch.nn.functional.interpolate(coarse.float(), (128, 64), mode="bilinear").byte()


@pytest.mark.parametrize("preprocess", ["raw", "unit", "imagenet"])
def test_onnx_equals_the_model_for_any_number_of_images(
    workspace: Workspace, pocket_run: Path, tmp_path: Path, crops: torch.Tensor, preprocess: str
) -> None:
    out = tmp_path / "out"
    command = ["export", "--run", str(pocket_run), "--out", str(out), "--preprocess", preprocess]
    assert run(command) == 0
    path = out / f"person_{preprocess}.onnx"
    encoder = PersonEncoder.load(pocket_run, device="cpu")
    expected = encoder.encode(crops)[0]
    images = tool_input(crops, preprocess)  # type: ignore[arg-type]
    for count in (1, 2, 9):
        np.testing.assert_allclose(run_onnx(path, images[:count]), expected[:count], atol=1e-4)
    assert str(Path(reid.__file__).parent).encode() not in path.read_bytes(), "no file name of this machine"
    sidecar = json.loads((out / f"{path.name}.metadata.json").read_text())
    assert sidecar["schema_version"] == 1 and sidecar["model_kwargs"] == {"img_size": [128, 64]}
    record = json.loads((out / "export.json").read_text())
    assert record["check"]["max_difference"] <= 1e-4 and record["model_hash"] == encoder.model_hash
    card = (out / "README.md").read_text()
    assert "3dpes" in card and "128 x 64" in card and encoder.model_hash in card and str(tmp_path) not in card


@pytest.mark.parametrize("options", [[], ["model.soft_gate=2.0"], ["model.parts=[]"]])
def test_every_kind_of_mask_is_exported_without_scatters(options: list[str], tmp_path: Path) -> None:
    config = load_config("tiny", options).model
    model = build_model(config, 4, seed=0).eval()
    encoder = PersonEncoder(model, config.parts)
    images = torch.randint(0, 256, (9, 3, *config.image_size), dtype=torch.uint8)
    export_onnx(encoder, tmp_path / "tiny.onnx", images, preprocess="raw")
    kinds = {node.op_type for node in onnx.load(tmp_path / "tiny.onnx").graph.node}
    assert "Softmax" in kinds and not kinds & {"ScatterND", "ScatterElements", "IsNaN"}


def test_a_run_is_exported_without_its_data_sets(
    workspace: Workspace, pocket_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "moved"
    shutil.copytree(pocket_run, folder)
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("3dpes2caviar", "gone2caviar"))
    (folder / "training_set.json").write_text('{"sources": ["gone"]}')
    command = ["export", "--run", str(folder), "--out", str(tmp_path / "out"), "--precision", "float16"]
    refused(command, 2, "sources are not on this machine", "--images FOLDER", capfd=capfd)
    assert run([*command, "--images", "3dpes", "--score-on", "caviar"]) == 0
    assert "Trained on: gone." in (tmp_path / "out" / "README.md").read_text()


def test_a_fixed_batch_and_a_folder_that_is_replaced(
    workspace: Workspace, pocket_run: Path, tmp_path: Path, crops: torch.Tensor
) -> None:
    out, encoder = tmp_path / "out", PersonEncoder.load(pocket_run, device="cpu")
    out.mkdir()
    (out / "export.json").write_text("{}")
    (out / "left over").touch()
    assert run(["export", "--run", str(pocket_run), "--out", str(out), "--batch", "4"]) == 0
    assert not (out / "left over").exists()
    found = run_onnx(out / "person_imagenet.onnx", tool_input(crops, "imagenet"), 4)
    np.testing.assert_allclose(found, encoder.encode(crops)[0], atol=1e-4)


def test_the_hubs_form_needs_no_run(
    workspace: Workspace, pocket_run: Path, tmp_path: Path, crops: torch.Tensor
) -> None:
    out = tmp_path / "out"
    assert run(["export", "--run", str(pocket_run), "--out", str(out), "--format", "hf"]) == 0
    assert {"config.json", "model.safetensors", "README.md"} <= {path.name for path in out.iterdir()}
    encoder = PersonEncoder.load(pocket_run, device="cpu")
    model = PersonModel.from_pretrained(str(out)).eval()
    with torch.inference_mode():
        np.testing.assert_allclose(model(crops / 255).numpy(), encoder.encode(crops)[0], atol=1e-5)
    assert model.encoder().model_hash == model_hash(load_pretrained(out)) == encoder.model_hash
    assert not any("text" in name or "classifier" in name for name in model.state_dict())
    (out / "config.json").write_text("{}")
    with pytest.raises(DgreidError, match="not readable"):
        load_pretrained(out)
    with pytest.raises(DataError, match="no model in the hub's form"):
        load_pretrained(tmp_path)


def test_a_torch_program_runs_without_this_project(
    workspace: Workspace, pocket_run: Path, tmp_path: Path, crops: torch.Tensor
) -> None:
    out = tmp_path / "out"
    assert (
        run(["export", "--run", str(pocket_run), "--out", str(out), "--format", "torch", "--preprocess", "unit"]) == 0
    )
    assert str(Path(reid.__file__).parent).encode() not in (out / "person_unit.pt2").read_bytes()
    np.save(tmp_path / "in.npy", crops.numpy() / np.float32(255))
    script = (
        "import sys, numpy as np, torch\n"
        f"model = torch.export.load({str(out / 'person_unit.pt2')!r}).module()\n"
        f"images = torch.from_numpy(np.load({str(tmp_path / 'in.npy')!r}))\n"
        f"np.save({str(tmp_path / 'out.npy')!r}, model(images).detach())\n"
        "assert 'reid' not in sys.modules\n"
    )
    import subprocess

    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)
    expected = PersonEncoder.load(pocket_run, device="cpu").encode(crops)[0]
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), expected, atol=1e-4)


@pytest.mark.parametrize("precision", ["float16", "int8"])
def test_fewer_bits_are_told_with_their_map(
    workspace: Workspace, pocket_run: Path, tmp_path: Path, precision: str
) -> None:
    out = tmp_path / "out"
    assert run(["export", "--run", str(pocket_run), "--out", str(out), "--precision", precision]) == 0
    record = json.loads((out / "export.json").read_text())
    assert record["mean_ap"]["data_set"] == "caviar"
    assert abs(record["mean_ap"]["before"] - record["mean_ap"]["after"]) < 25
    assert record["check"]["max_difference"] > 0
    sizes = [path.stat().st_size for path in out.glob("*.onnx")]
    assert len(sizes) == 1 and sizes[0] < 14e6
    if precision == "int8":
        graph = onnx.load(next(out.glob("*.onnx"))).graph
        products = [node for node in graph.node if node.op_type in ("MatMul", "Gemm")]
        quantised = [node for node in products if any("DequantizeLinear" in name for name in node.input)]
        assert 20 < len(quantised) < len(products), "the mask predictors stay in float32"


def test_an_export_that_differs_is_not_written(
    workspace: Workspace,
    pocket_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(reid.inference.export, "IMAGENET", ((0.4, 0.4, 0.4), (0.3, 0.3, 0.3)))
    tool = reid.inference.export.tool_input

    def of_a_tool(crops: torch.Tensor, preprocess: str) -> np.ndarray:
        with monkeypatch.context() as patch:
            patch.setattr(reid.inference.export, "IMAGENET", ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
            return tool(crops, preprocess)  # type: ignore[arg-type]

    monkeypatch.setattr(reid.inference.export, "tool_input", of_a_tool)
    out = tmp_path / "out"
    refused(["export", "--run", str(pocket_run), "--out", str(out)], 1, "not written", capfd=capfd)
    assert not out.exists() and not list(tmp_path.glob(".out*"))


def test_checks_see_a_changed_order_and_bad_numbers(tmp_path: Path) -> None:
    features = np.eye(8, dtype=np.float32)
    assert checked(features, features + 1e-5, "float32", tmp_path).crops == 8
    for other in (features[:, :7], np.full_like(features, np.nan), features[::-1].copy()):
        with pytest.raises(DgreidError, match="not written"):
            checked(features, other, "float32", tmp_path)


def test_what_cannot_be_exported_is_told(
    workspace: Workspace, pocket_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    command = ["export", "--run", str(pocket_run), "--out", str(tmp_path / "out")]
    refused([*command, "--batch", "many"], 2, "neither dynamic nor a number", capfd=capfd)
    refused([*command, "--format", "hf", "--precision", "int8"], 2, "--format onnx", capfd=capfd)
    refused([*command, "--push-to", "me/model"], 2, "--format hf", capfd=capfd)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").touch()
    refused(command, 2, "not the folder of an earlier export", capfd=capfd)
