"""Scores of a training run on its targets, before and after training, from the run folder and the targets alone."""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from lightning_fabric import Fabric

from reid.config import RunConfig, read_config
from reid.data.person_images import PersonImages
from reid.data.transforms import TESTING
from reid.evaluation.details import score_details
from reid.evaluation.ranking import Ranking
from reid.inference.devices import make_fabric
from reid.inference.embed import features_and_masks
from reid.inference.trained import final_weights, selected_checkpoint, selection
from reid.model.checkpoint import file_sha256, load_checkpoint
from reid.model.muva import Muva, build_model
from reid.protocols.protocol import EvaluationSplit, Protocol, evaluation_splits, parse_protocol, shared_images
from reid.protocols.splits import store_splits, stored_splits
from reid.training.run_folder import read_image_ids
from shared.datasets import locate
from shared.errors import DataError
from shared.files import atomic_path, write_text
from shared.manifest import read_manifest
from shared.progress import Progress
from shared.schemas import ManifestRow
from shared.workspace import Workspace

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Target:
    """A data set to be scored on, and the images its splits need, each once."""

    name: str
    splits: list[EvaluationSplit]
    rows: list[ManifestRow]
    folder: Path

    @property
    def image_ids(self) -> list[str]:
        return [row.image_id for row in self.rows]

    @property
    def paths(self) -> list[str]:
        return [row.path for row in self.rows]


class Contestant:
    """One state of the model, built when it is first needed.

    Args:
        state: "trained" or "untrained".
        sha256: of what determines the model; embeddings made with another one are not used again.
        build: makes the model on the CPU.
    """

    def __init__(self, state: str, sha256: str, build: Callable[[], Muva], fabric: Fabric) -> None:
        self.state, self.sha256, self.fabric = state, sha256, fabric
        self._build = build

    @cached_property
    def model(self) -> Muva:
        return self._build().to(self.fabric.device).eval()


def evaluate_run(
    run_folder: Path, workspace: Workspace, *, device: str | None = None, re_ranking: bool | None = None
) -> dict[str, Any]:
    """Score a run's model, and the same model before any training, on every target; writes and returns scores.json.

    Reads the run's config.yaml, stage 2's chosen checkpoint and the targets' manifests and images, nothing else.
    Writes embeddings/, masks/ and splits/ as well; embeddings of the same model and images are used again, and so are
    random splits. Always in float32, so that the scores do not depend on the device. A target with random splits gets
    the mean over them.

    Args:
        device: in place of the run's own.
        re_ranking: in place of the run's `evaluation.re_ranking`.
    Raises:
        DataError: the run, its checkpoint, or a target's manifest is not there.
        ConfigError: the device cannot be had.
        DgreidError: a file is damaged, or a target has no query that can be scored.
    """
    config = read_config(run_folder)
    protocol = parse_protocol(
        config.protocol,
        workspace.data_root,
        pretrained_on=config.model.pretrained_on,
        allow_pretrained_targets=True,  # the protocol line says so
    )
    checkpoint = selected_checkpoint(run_folder, config)
    if not checkpoint.is_file():
        raise DataError(
            "this run has no trained model yet", path=checkpoint, fix="run its make train command to the end"
        )
    targets = [_target(protocol, name, config, workspace, run_folder) for name in protocol.targets]
    contestants = _contestants(config, checkpoint, make_fabric(device or config.device, "32-true"))
    re_ranking = config.evaluation.re_ranking if re_ranking is None else re_ranking
    splits = {target.name: target.splits for target in targets}
    trained_on = read_image_ids(run_folder) or frozenset()
    leaks = {target.name: len(shared_images(trained_on, target.rows)) for target in targets}
    line = protocol.line(splits, selected_on=selection(config), re_ranking=re_ranking, trained_on=leaks)
    report: dict[str, Any] = {"protocol": line, "re_ranking": re_ranking}
    report |= {"scores": {}, "per_split": {}, "details": {}, "seconds": {}}
    for target in targets:
        for contestant in contestants:
            started = time.monotonic()
            features = _features(contestant, target, run_folder, config)
            found, details = _scores(target, features, config, re_ranking=re_ranking)
            means = {name: float(np.mean([split[name] for split in found])) for name in found[0]}
            for key, value in (("scores", means), ("per_split", found), ("details", details)):
                report[key].setdefault(target.name, {})[contestant.state] = value
            report["seconds"][f"{target.name} {contestant.state}"] = time.monotonic() - started
    write_text(run_folder / "scores.json", json.dumps(report, indent=2) + "\n")
    return report


def _target(protocol: Protocol, name: str, config: RunConfig, workspace: Workspace, run_folder: Path) -> Target:
    rows = read_manifest(workspace.manifest(name))
    drawn = evaluation_splits(protocol, name, rows, splits=config.evaluation.splits, seed=config.seed)
    splits = stored_splits(run_folder, name, rows, drawn)
    store_splits(run_folder, name, splits, seed=config.seed)
    needed = {row.path: row for split in splits for row in [*split.query, *split.gallery]}
    return Target(name, splits, [needed[path] for path in sorted(needed)], locate(name, workspace.data_root))


def _contestants(config: RunConfig, checkpoint: Path, fabric: Fabric) -> list[Contestant]:
    state, meta = load_checkpoint(checkpoint)
    if not config.data.validation_share and meta["epoch"] < config.stage2.epochs:
        log.warning("this run is at epoch %d of %d: its scores are not final", meta["epoch"], config.stage2.epochs)
    identities = int(meta["num_identities"])

    def trained() -> Muva:
        model = build_model(config.model, identities, seed=config.seed, load_weights=False)
        model.load_state_dict(final_weights(state))
        return model

    def untrained() -> Muva:
        return build_model(config.model, identities, seed=config.seed)

    origin = json.dumps([config.model.model_dump(mode="json"), config.seed], sort_keys=True)
    return [
        Contestant("trained", file_sha256(checkpoint), trained, fabric),
        Contestant("untrained", hashlib.sha256(origin.encode()).hexdigest(), untrained, fabric),
    ]


def _features(contestant: Contestant, target: Target, run_folder: Path, config: RunConfig) -> dict[str, np.ndarray]:
    """Path -> feature [F], from the run folder when they are of this model and these images, else computed."""
    path = run_folder / "embeddings" / f"{target.name}.{contestant.state}.npz"
    features = _stored(path, contestant, target)
    if features is None:
        images = PersonImages([target.folder / row.path for row in target.rows], contestant.model.grid, TESTING)
        paths = np.array(target.paths)
        with Progress(f"embed {target.name} {contestant.state}", len(images)) as progress:
            features, masks = features_and_masks(
                contestant.model,
                images,
                contestant.fabric,
                batch_size=config.evaluation.batch_size,
                workers=config.data.workers,
                progress=progress,
            )
        if contestant.state == "trained":
            _write_arrays(run_folder / "masks" / f"{target.name}.npz", paths=paths, masks=masks)
        _write_arrays(
            path,
            features=features,
            image_ids=np.array(target.image_ids),
            paths=paths,
            model_sha256=np.array(contestant.sha256),
        )
    return dict(zip(target.paths, features, strict=True))


def _stored(path: Path, contestant: Contestant, target: Target) -> np.ndarray | None:
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as stored:
            found = (str(stored["model_sha256"]), stored["paths"].tolist(), stored["image_ids"].tolist())
            return stored["features"] if found == (contestant.sha256, target.paths, target.image_ids) else None
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        log.warning("%s cannot be read: made again", path)
        return None


def _write_arrays(path: Path, **arrays: np.ndarray) -> None:
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        np.savez(stream, **arrays)  # type: ignore[arg-type]  # numpy's stub takes a keyword for its own flag


def _scores(
    target: Target, features: dict[str, np.ndarray], config: RunConfig, *, re_ranking: bool
) -> tuple[list[dict[str, float]], dict[str, Any]]:
    """mean_ap, mean_inp, rank_1, rank_5, rank_10 in percent of every split, and what stands behind the first's."""

    def of(rows: Sequence[ManifestRow]) -> np.ndarray:
        return np.stack([features[row.path] for row in rows])

    summaries, details = [], {}
    for number, split in enumerate(target.splits):
        ranking = Ranking.of(split, of, re_ranking=re_ranking)
        scores = ranking.scores(config.evaluation.max_rank)
        summaries.append(scores.summary())
        if number == 0:
            details = score_details(ranking, scores, config.model.parts, seed=config.seed)
    return summaries, details
