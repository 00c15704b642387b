"""A trained model as a file for other programs: ONNX, a torch.export program, and the Hugging Face hub's form.

What is exported is the image tower: image encoder, part masks and neck, ending in L2-normalised features. Classifier,
prompts and text tower stay behind. The input's normalisation is inside the graph, undone and done again where a tool
applies another one:

    raw       pixels in 0..255                               graph: (x - 127.5) / 127.5
    unit      pixels in 0..1 (Ultralytics)                   graph: (x - 0.5) / 0.5
    imagenet  (pixels in 0..1 - mean) / deviation (BoxMOT)   graph: x * deviation + mean, then as unit

Nothing is left behind that was not checked against the model in this process.
"""

import copy
import json
import logging
import shutil
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from reid.data.transforms import MEAN, STD
from reid.inference.encoder import PersonEncoder
from reid.model.muva import Muva
from shared.errors import DataError, DgreidError
from shared.files import atomic_path, make_folder, write_text

Preprocess = Literal["raw", "unit", "imagenet"]
Precision = Literal["float32", "float16", "int8"]
OPSET = 18
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
INPUT, OUTPUT = "images", "output0"  # names that OpenCV's backends look for, too
CROPS = 64  # that every export is checked with
MAX_DIFFERENCE = {"float32": 1e-4, "float16": 2e-2, "int8": 1.0}  # of a feature's entry; int8 is judged by its mAP


class ImageTower(nn.Module):
    """Images (B, 3, height, width) float, as `preprocess` says -> features (B, F), L2-normalised."""

    def __init__(self, model: Muva, preprocess: Preprocess) -> None:
        super().__init__()
        self.image_encoder, self.neck = model.image_encoder, model.bnneck
        mean, deviation = IMAGENET if preprocess == "imagenet" else ((0.0,) * 3, (1.0,) * 3)
        unit = 255.0 if preprocess == "raw" else 1.0
        # tool's value -> 0..1 -> the model's (x - MEAN) / STD, in one step
        scale = [one / unit / STD for one in deviation]
        shift = [(one - MEAN) / STD for one in mean]
        self.register_buffer("scale", torch.tensor(scale).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("shift", torch.tensor(shift).view(1, 3, 1, 1), persistent=False)

    scale: Tensor
    shift: Tensor

    def forward(self, images: Tensor) -> Tensor:
        features = self.image_encoder(images * self.scale + self.shift).features
        return F.normalize(self.neck(features), dim=1)


def tool_input(crops: Tensor, preprocess: Preprocess) -> NDArray[np.float32]:
    """What a tool hands to the graph for uint8 crops [N, 3, height, width] of the model's size."""
    values = crops.numpy().astype(np.float32)
    if preprocess == "raw":
        return values
    values /= 255
    if preprocess == "imagenet":
        mean, deviation = (np.array(one, np.float32)[:, None, None] for one in IMAGENET)
        values = (values - mean) / deviation
    return values


@dataclass(frozen=True)
class Check:
    """How an export compares with the model. max_difference: of an entry of the features of the crops. same_order:
    share of the crops whose nearest five other crops come in the same order."""

    crops: int
    max_difference: float
    same_order: float


def checked(ours: NDArray[np.float32], theirs: NDArray[np.float32], precision: Precision, path: Path) -> Check:
    """Features [N, F] of the same crops by the model and by its export.

    Raises DgreidError where they differ by more than MAX_DIFFERENCE, in float32 also where the order changes.
    """
    if theirs.shape != ours.shape or not np.isfinite(theirs).all():
        raise _differs(f"features of shape {list(theirs.shape)}, not all of them numbers", path)
    largest = float(np.abs(ours - theirs).max())
    pairs = zip(ours @ ours.T, theirs @ theirs.T, strict=True)
    order = float(np.mean([_same_order(mine, other) for mine, other in pairs]))
    found = Check(len(ours), largest, order)
    if largest > MAX_DIFFERENCE[precision] and not (precision == "float16" and order > 0.9):
        raise _differs(f"a feature differs by {largest:.1e} from the model's", path)
    if precision == "float32" and order < 1:
        raise _differs(f"the order of the nearest crops changes for {1 - order:.0%} of them", path)
    return found


def _same_order(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> bool:
    """Whether five nearest agree, up to pairs that are equally near."""
    first, second = np.argsort(-ours, kind="stable")[:6], np.argsort(-theirs, kind="stable")[:6]
    return bool((np.abs(ours[first] - ours[second]) < 1e-5).all())


def export_onnx(
    encoder: PersonEncoder,
    path: Path,
    crops: Tensor,
    *,
    preprocess: Preprocess,
    precision: Precision = "float32",
    batch: int | None = None,
    calibration: Tensor | None = None,
) -> Check:
    """Write an ONNX file with its BoxMOT sidecar.

    Args:
        crops: uint8 [CROPS, 3, height, width], what it is checked with.
        precision: of the weights and the arithmetic; input and output are float32 in all of them.
        batch: a fixed number of images per call; None: any.
        calibration: uint8 crops of the sources, for int8.
    Raises:
        DataError: ONNX or ONNX Runtime is not installed.
        DgreidError: the export is not equal to the model; nothing is written.
    """
    tower = _tower(encoder, preprocess)
    example = torch.from_numpy(tool_input(crops[: batch or 2], preprocess))
    try:
        import onnx
    except ImportError as err:
        raise DataError("ONNX export needs onnx and onnxruntime", fix="pip install 'dgreid[export]'") from err
    with _quiet():
        shapes = None if batch else ({0: "batch"},)
        program = torch.onnx.export(
            tower,
            (example,),
            dynamo=True,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=shapes,
            opset_version=OPSET,
            custom_translation_table={torch.ops.aten.scaled_dot_product_attention.default: _attention},
            verbose=False,
        )
        assert program is not None
        model = program.model_proto
    gates = _stripped(model)
    for told, value in {"model_hash": encoder.model_hash, "preprocess": preprocess}.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = f"dgreid.{told}", value
    ours = _eager(encoder, crops)
    make_folder(path.parent)
    with atomic_path(path) as temporary:
        if precision == "float16":
            from onnxruntime.transformers.float16 import convert_float_to_float16

            model = convert_float_to_float16(model, keep_io_types=True, disable_shape_infer=True)
        onnx.save(model, temporary)
        if precision == "int8":
            images = tool_input(calibration if calibration is not None else crops, preprocess)
            _quantise(temporary, images, batch, kept=gates)
        theirs = run_onnx(temporary, tool_input(crops, preprocess), batch)
        found = checked(ours, theirs, precision, path)
    write_text(path.with_name(path.name + ".metadata.json"), json.dumps(_sidecar(encoder), indent=2) + "\n")
    return found


def run_onnx(
    path: Path, images: NDArray[np.float32], batch: int | None = None, *, threads: int = 0
) -> NDArray[np.float32]:
    """Features of images [N, 3, height, width] by ONNX Runtime on the CPU. batch: the graph's fixed one."""
    session = onnx_session(path, threads)
    size, rows = batch or 64, []
    for start in range(0, len(images), size):
        given = images[start : start + size]
        missing = (batch or 0) - len(given)
        if missing > 0:
            given = np.concatenate([given, np.repeat(given[-1:], missing, axis=0)])
        rows.append(session.run(None, {INPUT: given})[0][: len(images) - start])
    return np.concatenate(rows)


def onnx_session(path: Path, threads: int = 0) -> Any:
    """threads: of one operator; 0: all cores."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def export_torch(encoder: PersonEncoder, path: Path, crops: Tensor, *, preprocess: Preprocess) -> Check:
    """Write a torch.export program (.pt2) with any number of images per call. Errors as `export_onnx`."""
    tower = _tower(encoder, preprocess)
    given = torch.from_numpy(tool_input(crops, preprocess))
    with _quiet():
        program = torch.export.export(tower, (given[:2],), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
        for node in program.graph.nodes:  # file names of this machine
            node.meta.pop("stack_trace", None)
        make_folder(path.parent)
        with atomic_path(path) as temporary:
            with temporary.open("wb") as file:
                torch.export.save(program, file)
            with temporary.open("rb") as file, torch.inference_mode():
                theirs = torch.export.load(file).module()(given).numpy()
            return checked(_eager(encoder, crops), theirs, "float32", path)


def replace_folder(staged: Path, folder: Path) -> None:
    """Put a finished folder in the place of an earlier one."""
    earlier = folder.with_name(f".{folder.name}.earlier")
    shutil.rmtree(earlier, ignore_errors=True)
    if folder.exists():
        folder.rename(earlier)
    staged.rename(folder)
    shutil.rmtree(earlier, ignore_errors=True)


def _tower(encoder: PersonEncoder, preprocess: Preprocess) -> ImageTower:
    return copy.deepcopy(ImageTower(encoder.model, preprocess)).to("cpu").eval()  # the encoder stays on its device


def _eager(encoder: PersonEncoder, crops: Tensor) -> NDArray[np.float32]:
    return encoder.encode(crops)[0]


def _sidecar(encoder: PersonEncoder) -> dict[str, Any]:
    """What BoxMOT reads beside an ONNX file."""
    return {
        "schema_version": 1,
        "model_name": f"dgreid_{encoder.model_hash}",
        "preprocess": "resize",
        "model_kwargs_schema_version": 1,
        "model_kwargs": {"img_size": list(encoder.image_size)},
    }


def _quantise(path: Path, images: NDArray[np.float32], batch: int | None, *, kept: list[str]) -> None:
    """Static INT8 (QDQ) of the matrix products, calibrated on images. kept: nodes that stay in float32."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            size = batch or 16
            self._batches: Iterator[Any] = iter([images[n : n + size] for n in range(0, len(images) - size + 1, size)])

        def get_next(self) -> dict[str, Any] | None:
            found = next(self._batches, None)
            return None if found is None else {INPUT: found}

    prepared = path.with_name(path.name + ".prepared")
    try:
        quant_pre_process(str(path), str(prepared), skip_symbolic_shape=True, skip_optimization=True)
        quantize_static(
            str(prepared),
            str(path),
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=kept,
        )
    finally:
        prepared.unlink(missing_ok=True)


def _attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """Attention in ONNX's operators, of our encoder: no dropout, not causal, and every token attends to some.

    The exporter's own masks the scores of every head and looks for rows that may attend to nothing, which takes ONNX
    Runtime as long as the products.
    """
    from onnxscript import opset18

    op: Any = opset18
    scaled = op.Mul(query, op.Constant(value_float=query.shape[-1] ** -0.5))
    scores = op.MatMul(scaled, op.Transpose(key, perm=(0, 1, 3, 2)))
    if attn_mask is not None:
        if attn_mask.dtype.name == "BOOL":
            attn_mask = op.Where(attn_mask, op.Constant(value_float=0.0), op.Constant(value_float=float("-inf")))
        scores = op.Add(scores, attn_mask)
    return op.MatMul(op.Softmax(scores, axis=-1), value)


def _stripped(model: Any) -> list[str]:
    """Remove what the exporter notes about its own run, which names files of this machine; returns the names of the
    nodes of the mask predictors, whose gates are decided by the sign of a sum."""
    gates = []
    for node in model.graph.node:
        if any("mask_predictors" in entry.value for entry in node.metadata_props):
            gates.append(node.name)
        del node.metadata_props[:]
        node.doc_string = ""
    for value in [*model.graph.value_info, *model.graph.input, *model.graph.output, *model.graph.initializer]:
        del value.metadata_props[:]
    return gates


class _quiet(warnings.catch_warnings):  # noqa: N801 (a context manager)
    """Without the exporters' warnings about themselves."""

    def __enter__(self) -> Any:
        found = super().__enter__()
        warnings.simplefilter("ignore")
        for name in ("torch.onnx", "onnxscript", "onnx_ir", "torch.export"):
            logging.getLogger(name).setLevel(logging.ERROR)
        return found


def _differs(what: str, path: Path) -> DgreidError:
    return DgreidError(
        f"the export is not the model: {what}; it was not written",
        path=path,
        fix="report it with the run's config.yaml",
    )


@dataclass(frozen=True)
class Card:
    """What the model card says. scores: one row per target: name and sentences of its scores."""

    title: str
    model_hash: str
    image_size: tuple[int, int]
    feature_dim: int
    parts: Sequence[str]
    backbone: str
    pretrained: str
    protocol: str
    scores: Sequence[tuple[str, str, str]]  # target, mAP, Rank-1
    sources: Sequence[str]
    checks: Sequence[tuple[str, str]]  # file, how it compares


def write_card(card: Card, folder: Path) -> Path:
    """README.md of an export, with the hub's metadata."""
    height, width = card.image_size
    scores = "\n".join(f"| {' | '.join(row)} |" for row in card.scores) or "| not scored yet | | |"
    checks = "\n".join(f"| `{name}` | {told} |" for name, told in card.checks)
    text = f"""---
library_name: dgreid
pipeline_tag: image-feature-extraction
tags: [person-re-identification, dgreid]
license: other
license_name: terms-of-the-training-data
---

# {card.title}

Features of person crops by which the same person is found again in other cameras; trained with dgreid.

## Input and output

Crops of one upright person, RGB, resized to {height} x {width} pixels (height x width, bilinear) without keeping the
aspect ratio. ONNX files: opset {OPSET}, input `{INPUT}`, output `{OUTPUT}`. Output: {card.feature_dim} numbers per
crop, of length 1; compare them by their scalar product. Parts: {", ".join(card.parts) or "none"}.
Normalisation is inside each file, which says in its name what it expects:
`raw` 0..255, `unit` 0..1, `imagenet` (x - mean) / deviation of ImageNet. Model hash: `{card.model_hash}`.

| file | compared with the model in PyTorch |
|---|---|
{checks}

## Scores

{card.protocol or "Not scored yet."}

| test set | mAP % | Rank-1 % |
|---|---|---|
{scores}

A similarity is not a probability that two crops show one person.

## Sources and terms

Backbone: {card.backbone}, weights: {card.pretrained}. Trained on: {", ".join(card.sources)}. The terms of these data
sets and weights apply to this model; most allow research only. The people in them mostly did not consent; do not use
the model to identify anybody.
"""
    path = folder / "README.md"
    write_text(path, text)
    return path


def described(check: Check) -> str:
    order = f"same order of neighbours for {check.same_order:.1%} of {check.crops} crops"
    return f"largest difference {check.max_difference:.1e}, {order}"


def as_record(checks: dict[str, Check]) -> dict[str, Any]:
    return {name: asdict(check) for name, check in checks.items()}
