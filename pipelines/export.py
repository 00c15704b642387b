"""`export`: a run's model as a file for other programs."""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from pipelines.datasets import scan
from pipelines.embed import ON_DISK, RunName, image_files, load_encoder
from pipelines.runs import newest_run, run_folder
from pipelines.terminal import print_table, say
from shared.errors import DataError, DgreidError, UsageError
from shared.files import make_folder, write_text
from shared.workspace import Workspace

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from reid.config import RunConfig
    from reid.inference.encoder import PersonEncoder

CALIBRATION_CROPS = 256  # of the sources, for int8


def export(
    out: Annotated[Path, typer.Option(help="folder that is written; replaced each time", **ON_DISK)],
    run: RunName = None,
    form: Annotated[
        Literal["onnx", "torch", "hf"], typer.Option("--format", help="torch: a torch.export program")
    ] = "onnx",
    preprocess: Annotated[
        Literal["raw", "unit", "imagenet"], typer.Option(help="what the tool hands over: 0..255, 0..1, or ImageNet's")
    ] = "imagenet",
    precision: Annotated[Literal["float32", "float16", "int8"], typer.Option(help="of an ONNX file")] = "float32",
    batch: Annotated[str, typer.Option(help="dynamic, or a number of images")] = "dynamic",
    images: Annotated[
        str | None, typer.Option(help="crops to check (and calibrate int8) with; default: the run's sources")
    ] = None,
    score_on: Annotated[
        str | None, typer.Option(help="data set of the mAP before and after float16 or int8; default: a target")
    ] = None,
    push_to: Annotated[str | None, typer.Option(help="with --format hf: upload to this repository of the hub")] = None,
) -> None:
    """Write a run's model for other programs, checked against the model: ONNX, torch.export or the hub's form."""
    workspace = Workspace.from_environment()
    folder = run_folder(workspace, run) if run else newest_run(workspace)
    fixed = _batch(batch)
    if form != "onnx" and (precision != "float32" or fixed):
        raise UsageError(f"--format {form} has no precision and no fixed batch", fix="use --format onnx")
    if push_to and form != "hf":
        raise UsageError("only the hub's form can be pushed", fix="add --format hf")
    if out.exists() and not (out / "export.json").is_file() and (out.is_file() or any(out.iterdir())):
        raise DataError("this is not the folder of an earlier export", path=out, fix="name another --out")

    from reid.config import read_config
    from reid.inference import export as exporting

    config = read_config(folder)
    encoder = load_encoder(workspace, str(folder), "cpu")
    crops = _crops(images, folder, config, encoder, workspace)
    checking = crops[: exporting.CROPS]
    make_folder(out.parent)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", suffix=".tmp", dir=out.parent) as temporary:
        staged = Path(temporary) / out.name
        staged.mkdir()
        name = f"person_{preprocess}" + ("" if precision == "float32" else f"_{precision}")
        if form == "onnx":
            path = staged / f"{name}.onnx"
            check = exporting.export_onnx(
                encoder, path, checking, preprocess=preprocess, precision=precision, batch=fixed, calibration=crops
            )
        elif form == "torch":
            path = staged / f"{name}.pt2"
            check = exporting.export_torch(encoder, path, checking, preprocess=preprocess)
        else:
            path, check = staged / "model.safetensors", _save_hub(encoder, config, staged, checking)
        told = exporting.described(check)
        record: dict[str, Any] = {"run": folder.name, "model_hash": encoder.model_hash, "file": path.name}
        record |= {"preprocess": preprocess, "precision": precision, "batch": batch, "check": check.__dict__}
        if form == "onnx" and precision != "float32":
            record["mean_ap"] = scores = _mean_ap(encoder, path, preprocess, fixed, score_on, config, workspace)
            told += f"; mAP on {scores['data_set']} {scores['before']:.2f} % before, {scores['after']:.2f} % after"
        exporting.write_card(_card(folder, config, encoder, [(path.name, told)], workspace), staged)
        write_text(staged / "export.json", json.dumps(record, indent=2) + "\n")
        exporting.replace_folder(staged, out)
    print_table(("file", "compared with the model"), [(path.name, told)])
    if push_to:
        from reid.inference.hub import PersonModel

        say(str(PersonModel.from_pretrained(str(out)).push_to_hub(push_to)))
    say(f"exported: {out}")


def _batch(text: str) -> int | None:
    if text == "dynamic":
        return None
    if not text.isdecimal() or not 0 < int(text) <= 4096:
        raise UsageError(f"--batch {text} is neither dynamic nor a number from 1 to 4096", fix="--batch dynamic")
    return int(text)


def _sources(folder: Path, config: "RunConfig", workspace: Workspace) -> Sequence[str]:
    """What the run was trained on, as it recorded it: the data sets need not be on this machine."""
    from reid.evaluation.evaluate import run_protocol

    try:
        return tuple(map(str, json.loads((folder / "training_set.json").read_text(encoding="utf-8"))["sources"]))
    except (OSError, ValueError, KeyError, TypeError):
        return run_protocol(config, workspace).sources


def _crops(
    images: str | None, folder: Path, config: "RunConfig", encoder: "PersonEncoder", workspace: Workspace
) -> "Tensor":
    """uint8 [N, 3, height, width], evenly spread over the sources that are on this machine."""
    import torch

    found = []
    for name in [images] if images else _sources(folder, config, workspace):
        try:
            files = image_files(name, workspace)
        except UsageError:
            if images:
                raise
            continue
        found += files
    if len(found) < 2:
        raise DataError("the run's sources are not on this machine", fix="name crops to check with: --images FOLDER")
    step = max(1, len(found) / CALIBRATION_CROPS)
    chosen = [found[int(place * step)] for place in range(min(CALIBRATION_CROPS, len(found)))]
    order = torch.randperm(len(chosen), generator=torch.Generator().manual_seed(0)).tolist()  # all sources in any part
    return torch.stack([encoder.preprocessed(chosen[place].folder / chosen[place].path) for place in order])


def _save_hub(encoder: "PersonEncoder", config: "RunConfig", folder: Path, crops: "Tensor") -> Any:
    import torch

    from reid.inference.export import checked
    from reid.inference.hub import PersonModel, load_pretrained

    PersonModel.of(encoder, config.model).save_pretrained(folder)
    with torch.inference_mode():
        theirs = PersonModel.from_pretrained(str(folder)).eval()(crops.float() / 255).numpy()
    found = checked(encoder.encode(crops)[0], theirs, "float32", folder)
    from reid.inference.trained import model_hash

    if model_hash(load_pretrained(folder)) != encoder.model_hash:
        raise DgreidError("the saved model is not the run's", path=folder, fix="report it with the run's config.yaml")
    return found


def _mean_ap(
    encoder: "PersonEncoder",
    path: Path,
    preprocess: Literal["raw", "unit", "imagenet"],
    batch: int | None,
    score_on: str | None,
    config: "RunConfig",
    workspace: Workspace,
) -> dict[str, Any]:
    """mAP in percent of the model and of the file, on the first split of a data set."""
    import torch

    from reid.evaluation.evaluate import run_protocol
    from reid.evaluation.ranking import Ranking
    from reid.inference.export import run_onnx, tool_input
    from reid.protocols.protocol import Protocol, evaluation_splits
    from shared.datasets import locate, resolve_name

    name, rows = "", []
    targets = [resolve_name(score_on, workspace.data_root)] if score_on else run_protocol(config, workspace).targets
    for candidate in targets:
        try:
            rows, name = list(scan(candidate, workspace)), candidate
            break
        except UsageError:
            if score_on:
                raise
    if not name:
        raise DataError("no target of the run is on this machine to score the export on", fix="--score-on DATASET")
    of_target = Protocol(config.protocol, (), ()).with_target(name, workspace.data_root)
    split = evaluation_splits(of_target, name, rows, splits=1, seed=config.seed)[0]
    root, needed = (
        locate(name, workspace.data_root),
        list({row.path: row for row in [*split.query, *split.gallery]}.values()),
    )
    crops = torch.stack([encoder.preprocessed(root / row.path) for row in needed])
    ours = _in_batches(encoder, crops)
    theirs = run_onnx(path, tool_input(crops, preprocess), batch)

    def score(features: "np.ndarray") -> float:
        of_path = {row.path: feature for row, feature in zip(needed, features, strict=True)}

        def features_of(side: Any) -> "np.ndarray":
            import numpy as np

            return np.stack([of_path[row.path] for row in side])

        return 100 * Ranking.of(split, features_of, re_ranking=False).scores(max_rank=10).mean_ap

    return {"data_set": name, "before": score(ours), "after": score(theirs)}


def _in_batches(encoder: "PersonEncoder", crops: "Tensor") -> "np.ndarray":
    import numpy as np
    import torch

    return np.concatenate([encoder.encode(part)[0] for part in torch.split(crops, 64)])


def _card(
    folder: Path, config: "RunConfig", encoder: "PersonEncoder", checks: list[tuple[str, str]], workspace: Workspace
) -> Any:
    from reid.evaluation.results import read_results
    from reid.inference.export import Card

    try:
        results = read_results(folder)
        scores = [
            (target, f"{states['trained']['mean_ap']:.1f}", f"{states['trained']['rank_1']:.1f}")
            for target, states in results.scores.items()
        ]
        protocol = results.protocol
    except DataError:
        scores, protocol = [], ""
    weights = config.model.pretrained or (config.model.weights_file and config.model.weights_file.name) or "random"
    seen = f", pretrained on people of {', '.join(config.model.pretrained_on)}" if config.model.pretrained_on else ""
    return Card(
        title=f"dgreid {folder.name}",
        model_hash=encoder.model_hash,
        image_size=encoder.image_size,
        feature_dim=encoder.feature_dim,
        parts=encoder.parts,
        backbone=config.model.backbone,
        pretrained=f"{weights}{seen}",
        protocol=protocol,
        scores=scores,
        sources=_sources(folder, config, workspace),
        checks=checks,
    )
