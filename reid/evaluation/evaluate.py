"""Score a training run: embed its targets, rank them, and write everything that a report or a reader needs, once."""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from lightning_fabric import Fabric

from reid.config import RunConfig, read_config
from reid.data.packing import packed_by_first
from reid.data.person_images import PersonImages
from reid.data.transforms import TESTING
from reid.evaluation.details import gains, score_details
from reid.evaluation.examples import keep_examples
from reid.evaluation.ranking import Ranking
from reid.evaluation.results import (
    FURTHER,
    RANKED,
    SOURCE,
    STATES,
    TARGET,
    QueryResults,
    RunResults,
    read_arrays,
    read_results,
    write_arrays,
    write_queries,
    write_results,
)
from reid.inference.devices import make_fabric
from reid.inference.embed import features_and_masks
from reid.inference.trained import final_weights, selected_checkpoint, selection
from reid.metrics.scores import Scores, spread
from reid.model.checkpoint import file_sha256, load_checkpoint
from reid.model.muva import Muva, build_model
from reid.protocols.protocol import (
    EvaluationSplit,
    Protocol,
    evaluation_splits,
    parse_protocol,
    shared_images,
    training_rows,
)
from reid.protocols.splits import left_out, store_splits, stored_splits
from reid.training.run_folder import read_image_ids
from shared.datasets import locate
from shared.errors import ConfigError, DataError, DgreidError
from shared.manifest import read_manifest
from shared.progress import Progress
from shared.schemas import ManifestRow
from shared.workspace import Workspace

log = logging.getLogger(__name__)

BY_TARGET = ("scores", "per_split", "details", "breakdowns", "gains", "tests")  # fields of RunResults


@dataclass(frozen=True)
class Target:
    """A data set to be scored on, and the images its splits need, each once, by path."""

    name: str
    role: str  # see reid.evaluation.results
    protocol: Protocol  # the run's training, tested on this data set alone
    splits: list[EvaluationSplit]
    rows: list[ManifestRow]
    folder: Path
    left_out: list[str]  # see reid.protocols.splits

    @property
    def image_ids(self) -> list[str]:
        return [row.image_id for row in self.rows]

    @property
    def paths(self) -> list[str]:
        return [row.path for row in self.rows]


@dataclass(frozen=True)
class ScoredModel:
    """One state of the model. sha256: of what determines it; embeddings of another one are not used again."""

    state: str
    sha256: str
    build: Callable[[], Muva]  # on the CPU; raises DgreidError when its weights are not at hand
    fabric: Fabric


def evaluate_run(
    run_folder: Path,
    workspace: Workspace,
    *,
    targets: Sequence[str] | None = None,
    device: str | None = None,
    re_ranking: bool | None = None,
    untrained: bool = True,
    allow_source: bool = False,
    unusable: Mapping[str, DgreidError] | None = None,
    fabric: Fabric | None = None,
) -> RunResults:
    """Score a run's model, and the same model before any training, on its targets or on other data sets.

    Reads the run folder and the targets' manifests and images, nothing else. Writes what reid.evaluation.results
    describes, and embeddings/ and splits/; embeddings of the same model and images are used again, and so are random
    splits. Always in float32, so that the scores do not depend on the device. A target with several splits gets the
    mean over them. Scores of other targets from an earlier evaluation stay when they are of the same model and
    re-ranking setting; otherwise they are removed.

    Several processes (`fabric`) share the embedding; the first one scores and writes, the others return nothing of use.

    A target that cannot be scored costs only its own scores: `failed` of the result names it. The untrained model is
    left out where its weights are not at hand: `untrained_missing` says why.

    Args:
        targets: canonical data set names; None: those of the run's protocol. Others are scored as what they are, see
            `tests` of RunResults.
        device: in place of the run's own.
        re_ranking: in place of the run's `evaluation.re_ranking`.
        untrained: False leaves the untrained model out.
        allow_source: score data sets that were trained on, too, on the test images that were not. Such a score is
            supervised, not cross-domain, and is marked so.
        unusable: targets that cannot be scored, and why, as the caller found out: `failed` of the result names them.
        fabric: the devices, launched, in float32; None: the one named by `device`.
    Raises:
        DataError: the run or its checkpoint is not there.
        ConfigError: the device cannot be had, or a data set was trained on and `allow_source` is False.
        DgreidError: a file of the run is damaged, or no target could be scored.
    """
    config = read_config(run_folder)
    protocol = run_protocol(config, workspace)
    earlier = _earlier(run_folder)
    names = list(dict.fromkeys(targets or protocol.targets))
    if earlier and not earlier.tests:  # of a version that did not say how they were tested: scored again
        names += [name for name in earlier.targets if name in protocol.targets and name not in names]
    protocols = {name: _for_target(protocol, name, workspace, allow_source=allow_source) for name in names}
    checkpoint = selected_checkpoint(run_folder, config)
    if not checkpoint.is_file():
        raise DataError(
            "this run has no trained model yet", path=checkpoint, fix="run its dgreid train command to the end"
        )
    fabric = fabric or make_fabric(device or config.device, "32-true")
    models = _models(config, checkpoint, fabric)
    re_ranking = config.evaluation.re_ranking if re_ranking is None else re_ranking
    results = RunResults(
        protocol="", re_ranking=re_ranking, scores={}, models={model.state: model.sha256 for model in models}
    )
    if earlier:
        _keep_earlier(results, earlier, names)
    problems = dict(unusable or {})
    for name in names:
        try:
            target = _target(
                protocols[name], name, protocol, config, workspace, run_folder, written=fabric.is_global_zero
            )
            chosen = models if untrained else models[:1]
            missing = _score_target(target, chosen, results, config, workspace, run_folder)
        except DgreidError as err:
            if fabric.world_size > 1:  # the others wait for this process
                raise
            problems[name] = err
            log.error("%s is not scored: %s", name, err)
            continue
        if not fabric.is_global_zero:
            continue
        reason = missing if untrained else "left out by --no-untrained"
        line = _protocol_line(protocol, results, selected_on=selection(config))
        failed = {problem: str(error).partition("\n")[0] for problem, error in problems.items()}
        results = replace(results, protocol=line, untrained_missing=reason, failed=failed)
        write_results(run_folder, results)
    if not fabric.is_global_zero:
        return results
    if problems.keys() >= set(names):
        raise _nothing_scored(problems)
    failed = {problem: str(error).partition("\n")[0] for problem, error in problems.items()}
    results = replace(results, failed=failed)
    write_results(run_folder, results)
    trained = models[0]
    keep_examples(run_folder, protocol, workspace, trained.fabric, model_sha256=trained.sha256, build=trained.build)
    return results


def run_protocol(config: RunConfig, workspace: Workspace) -> Protocol:
    """What a run was trained on and is to be tested on. Raises as reid.protocols.protocol.parse_protocol."""
    return parse_protocol(
        config.protocol,
        workspace.data_root,
        pretrained_on=config.model.pretrained_on,
        allow_pretrained_targets=True,  # the protocol line says so
        finished=True,
    )


def _earlier(run_folder: Path) -> RunResults | None:
    try:
        return read_results(run_folder)
    except DataError:  # none yet, or a damaged file that is rewritten
        return None


def _for_target(protocol: Protocol, name: str, workspace: Workspace, *, allow_source: bool) -> Protocol:
    """The run's protocol for one target. Raises ConfigError for one that was trained on, unless that is allowed."""
    if name in protocol.targets:
        return replace(protocol, targets=(name,))
    found = protocol.with_target(name, workspace.data_root)
    if found.supervised and not allow_source:
        raise ConfigError(
            f"{name} was trained on: its score would not be a cross-domain one",
            fix="name another data set, or add --allow-source to get a supervised score that is marked as such",
        )
    return found


def _target(
    protocol: Protocol,
    name: str,
    of_run: Protocol,
    config: RunConfig,
    workspace: Workspace,
    run_folder: Path,
    *,
    written: bool,
) -> Target:
    rows = read_manifest(workspace.manifest(name))
    if name in of_run.targets:
        role = TARGET
    elif protocol.supervised:
        role = SOURCE
        training_rows(protocol, name, rows)  # refuses a set whose test images were trained on
    else:
        role = FURTHER
    drawn = evaluation_splits(protocol, name, rows, splits=config.evaluation.splits, seed=config.seed)
    splits = stored_splits(run_folder, name, rows, drawn)
    if written:
        store_splits(run_folder, name, splits, seed=config.seed)
    needed = {row.path: row for split in splits for row in [*split.query, *split.gallery]}
    used = [needed[path] for path in sorted(needed)]
    return Target(name, role, protocol, splits, used, locate(name, workspace.data_root), left_out(rows, splits))


def _models(config: RunConfig, checkpoint: Path, fabric: Fabric) -> list[ScoredModel]:
    """Trained, then untrained."""
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
    digests = file_sha256(checkpoint), hashlib.sha256(origin.encode()).hexdigest()
    return [
        ScoredModel(name, sha256, build, fabric)
        for name, sha256, build in zip(STATES, digests, (trained, untrained), strict=True)
    ]


def _keep_earlier(results: RunResults, earlier: RunResults, redone: Sequence[str]) -> None:
    """Take over what an earlier evaluation found on other targets, where it is of the same model and setting."""
    same = (earlier.re_ranking, earlier.models.get("trained")) == (results.re_ranking, results.models["trained"])
    for target in [name for name in earlier.targets if name not in redone]:
        if not same:
            log.warning("the earlier scores of %s are of another model or re-ranking setting: removed", target)
            continue
        for name in BY_TARGET:
            if (found := getattr(earlier, name).get(target)) is not None:
                getattr(results, name)[target] = found
        results.seconds.update({key: took for key, took in earlier.seconds.items() if key.split(" ")[0] == target})


def _score_target(
    target: Target,
    models: Sequence[ScoredModel],
    results: RunResults,
    config: RunConfig,
    workspace: Workspace,
    run_folder: Path,
) -> str:
    """Add the scores of one target to `results`; returns why the untrained model has none, "" when it has."""
    found: dict[str, tuple[list[Scores], dict[str, Any]]] = {}
    missing = ""
    for model in models:
        started = time.monotonic()
        features = _stored(_embeddings(run_folder, target.name, model.state), model, target)
        if features is None:
            try:
                network = model.build()
            except DgreidError as err:
                if model.state == "trained":
                    raise
                missing = str(err).partition("\n")[0]
                log.warning("%s: the untrained model is not scored: %s", target.name, missing)
                continue
            features = _embed(network, model, target, config, workspace, run_folder)
        if not model.fabric.is_global_zero:
            continue
        device = model.fabric.device if model.fabric.device.type == "cuda" else None
        found[model.state] = _scores(target, features, config, re_ranking=results.re_ranking, device=device)
        queries = QueryResults.of(
            target.rows,
            target.splits,
            found[model.state][0],
            model_sha256=model.sha256,
            re_ranking=results.re_ranking,
        )
        write_queries(run_folder, target.name, model.state, queries)
        results.seconds[f"{target.name} {model.state}"] = time.monotonic() - started
    if not found:  # another process scores
        return missing
    for name in BY_TARGET:
        getattr(results, name).pop(target.name, None)
    for state, (scores, details) in found.items():
        summaries = [one.summary() for one in scores]
        results.scores.setdefault(target.name, {})[state] = {
            name: spread([one[name] for one in summaries]).mean for name in summaries[0]
        }
        results.per_split.setdefault(target.name, {})[state] = summaries
        for name, breakdown in details.items():
            getattr(results, name).setdefault(target.name, {})[state] = breakdown
    if "untrained" in found:
        identities = [np.array([row.person for row in split.query]) for split in target.splits]
        results.gains[target.name] = gains(found["trained"][0], found["untrained"][0], identities, seed=config.seed)
    valid = sum(one.num_valid_queries for one in found["trained"][0])
    leaks = len(shared_images(read_image_ids(run_folder) or frozenset(), target.rows))
    results.tests[target.name] = _described(
        target, valid, leaks, selected_on=selection(config), re_ranking=results.re_ranking
    )
    return missing


def _embed(
    network: Muva, model: ScoredModel, target: Target, config: RunConfig, workspace: Workspace, run_folder: Path
) -> dict[str, np.ndarray]:
    """Path -> feature [F]; written to the run folder, as are the trained model's masks."""
    network = network.to(model.fabric.device).eval()
    grid = network.grid
    packed = packed_by_first(
        model.fabric,
        [target.name] * len(target.rows),
        target.paths,
        workspace=workspace,
        size=(grid.image_height, grid.image_width),
        mode=TESTING,
        limit_bytes=config.data.cache_bytes,
    )
    files = [target.folder / path for path in target.paths]
    images = PersonImages(files, grid, TESTING, image_ids=target.image_ids, packed=packed)
    paths = np.array(target.paths)
    first = model.fabric.is_global_zero
    with Progress(f"embed {target.name} {model.state}", len(images), shown=first) as progress:
        features, masks = features_and_masks(
            network,
            images,
            model.fabric,
            batch_size=config.evaluation.batch_size,
            workers=config.data.workers,
            progress=progress,
        )
    if not first:
        return dict(zip(target.paths, features, strict=True))
    if model.state == "trained":
        write_arrays(run_folder / "masks" / f"{target.name}.npz", paths=paths, masks=masks)
    write_arrays(
        _embeddings(run_folder, target.name, model.state),
        features=features,
        image_ids=np.array(target.image_ids),
        paths=paths,
        model_sha256=np.array(model.sha256),
    )
    return dict(zip(target.paths, features, strict=True))


def _embeddings(run_folder: Path, target: str, state: str) -> Path:
    return run_folder / "embeddings" / f"{target}.{state}.npz"


def _stored(path: Path, model: ScoredModel, target: Target) -> dict[str, np.ndarray] | None:
    """Path -> feature [F] of this model and these images, None where they are not in the run folder."""
    if not path.is_file():
        return None
    try:
        stored = read_arrays(path, ["features", "image_ids", "paths", "model_sha256"], fix="")
    except DataError as err:
        log.warning("%s cannot be read (%s): computed again", path, err.what)
        return None
    found = (str(stored["model_sha256"]), stored["paths"].tolist(), stored["image_ids"].tolist())
    if found != (model.sha256, target.paths, target.image_ids):
        return None
    return dict(zip(target.paths, stored["features"], strict=True))


def _scores(
    target: Target, features: Mapping[str, np.ndarray], config: RunConfig, *, re_ranking: bool, device: Any = None
) -> tuple[list[Scores], dict[str, Any]]:
    """Scores of every split, and their `details` (first split) and, of several, `breakdowns` (all splits)."""

    def of(rows: Sequence[ManifestRow]) -> np.ndarray:
        return np.stack([features[row.path] for row in rows])

    rankings = [Ranking.of(split, of, re_ranking=re_ranking) for split in target.splits]
    scores = [ranking.scores(config.evaluation.max_rank, RANKED, device) for ranking in rankings]
    parts, seed = config.model.parts, config.seed
    details = {"details": score_details(rankings[:1], scores[:1], parts, seed=seed)}
    if len(rankings) > 1:
        details["breakdowns"] = score_details(rankings, scores, parts, seed=seed)
    return scores, details


def _described(target: Target, valid: int, leaks: int, *, selected_on: str, re_ranking: bool) -> dict[str, Any]:
    """`tests` of RunResults for one target."""
    splits = target.splits
    queries = sum(len(split.query) for split in splits)
    duplicates, scored = zip(*map(_duplicates, splits), strict=True)
    cameras = all(
        any(row.camera is not None for row in split.query) and any(row.camera is not None for row in split.gallery)
        for split in splits
    )
    line = target.protocol.line(
        {target.name: splits},
        selected_on=selected_on,
        re_ranking=re_ranking,
        trained_on={target.name: leaks},
        without_cameras=[] if cameras else [target.name],
    )
    return {
        "role": target.role,
        "protocol": line + _ROLE_NOTES[target.role].format(target.name),
        "rule": splits[0].rule,
        "splits": len(splits),
        "queries": queries,
        "valid_queries": valid,
        "duplicates": sum(duplicates),
        "scored_duplicates": sum(scored),
        "cameras": cameras,
        "trained_on": leaks,
        "left_out": target.left_out,
    }


_ROLE_NOTES = {
    TARGET: "",
    FURTHER: " | {} is not named by the run's protocol",
    SOURCE: " | {} was trained on: not a cross-domain score",
}


def _duplicates(split: EvaluationSplit) -> tuple[int, int]:
    """Queries whose image is in the gallery by content; and those that the same-camera rule leaves there."""
    in_gallery: dict[str, list[ManifestRow]] = {}
    for row in split.gallery:
        in_gallery.setdefault(row.image_id, []).append(row)
    found = [(query, in_gallery[query.image_id]) for query in split.query if query.image_id in in_gallery]
    scored = [
        query
        for query, copies in found
        if any(
            copy.identity == query.identity and (query.camera is None or copy.camera != query.camera) for copy in copies
        )
    ]
    return len(found), len(scored)


def _protocol_line(protocol: Protocol, results: RunResults, *, selected_on: str) -> str:
    """One line over all scores: what the protocol names, then what it does not."""
    tests = results.tests
    # an earlier evaluation's splits are known by their rule and number, which is all that the line tells of them
    named = {
        name: [EvaluationSplit((), (), tests[name]["rule"])] * tests[name]["splits"]
        for name in protocol.targets
        if name in tests
    }
    others = [name for name in tests if name not in named]
    if not named:
        return " / ".join(tests[name]["protocol"] for name in others)
    line = protocol.line(
        named,
        selected_on=selected_on,
        re_ranking=results.re_ranking,
        trained_on={name: tests[name]["trained_on"] for name in named},
        without_cameras=[name for name in named if not tests[name]["cameras"]],
    )
    return line + "".join(_ROLE_NOTES[tests[name]["role"]].format(name) for name in others)


def _nothing_scored(problems: Mapping[str, DgreidError]) -> DgreidError:
    if len(problems) == 1:
        return next(iter(problems.values()))
    told = "; ".join(f"{name}: {error.what}" for name, error in problems.items())
    return DgreidError(f"no target could be scored ({told})", fix="see what each of them lacks")
