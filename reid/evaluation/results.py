"""What an evaluation leaves in the run folder: its only writer and its only reader.

    scores.json                        RunResults: scores in percent, by target and state of the model
    evaluation/<target>.<state>.npz    QueryResults: every query of every split, with its ranked gallery, and the CMC
    masks/examples.npz                 Examples: how the trained model sees a few training images
    masks/<target>.npz                 part masks that the trained model predicted (paths [N], masks bool [N, R, h, w])

A target is a canonical data set name; a state is "trained" or "untrained" (the same model before any training). Files
are written whole or not at all. Whoever shows a number reads it here.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from reid.metrics.scores import SCORE_NAMES, Scores, spread
from reid.protocols.protocol import EvaluationSplit
from shared.errors import DataError
from shared.files import atomic_path, write_text
from shared.schemas import ManifestRow

__all__ = [
    "SCORE_NAMES",
    "SCORE_TITLES",
    "STATES",
    "Examples",
    "QueryResults",
    "RunResults",
    "read_arrays",
    "read_examples",
    "read_masks",
    "read_queries",
    "read_results",
    "write_arrays",
    "write_examples",
    "write_queries",
    "write_results",
]

STATES = ("trained", "untrained")
SCORE_TITLES = {"mean_ap": "mAP", "rank_1": "Rank-1", "rank_5": "Rank-5", "rank_10": "Rank-10", "mean_inp": "mINP"}
QUERIES_VERSION = 1  # of evaluation/<target>.<state>.npz
RANKED = 50  # gallery images kept of every query

# What a target is to the run; see `tests` of RunResults.
TARGET, FURTHER, SOURCE = "target", "further", "source"


@dataclass(frozen=True)
class RunResults:
    """scores.json. Empty values stand for what an evaluation by an earlier version did not write.

    protocol: the line to print above every table of these scores.
    scores: target -> state -> SCORE_NAMES -> percent; the mean over the splits.
    per_split: target -> state -> one such mapping per split.
    details: target -> state -> reid.evaluation.details.score_details of the first split alone; see `breakdown`.
    breakdowns: the same over all splits, of targets with several.
    gains: target -> score -> what training changed on the same queries: `difference`, `low`, `high` (percent),
        `p_value`, `identities`; see reid.metrics.paired.
    tests: target -> `role` (TARGET: named by the protocol; FURTHER: a data set that it does not name; SOURCE: trained
        on, so no cross-domain score), `protocol` (the line for this target alone), `rule` and `splits` (how query and
        gallery were chosen, and how often), `queries` and `valid_queries` (in all splits; only those with a match in
        the gallery are scored), `duplicates` (queries whose very image is in their gallery, by content) and
        `scored_duplicates` (of these, the ones that the same-camera rule does not remove), `cameras` (whether images
        of both sides have a camera label, so that the rule could remove any), `trained_on` (how many of its test
        images were trained on, by content), `left_out` (sentences on what of the data set the scores are not about).
    models: state -> SHA-256 of what determines the model; all scores in one file are of these.
    failed: target -> why the last evaluation could not score it.
    untrained_missing: why the last evaluation left out the untrained model; "" when it did not.
    seconds: "<target> <state>" -> time taken.
    """

    protocol: str
    re_ranking: bool
    scores: dict[str, dict[str, dict[str, float]]]
    per_split: dict[str, dict[str, list[dict[str, float]]]] = field(default_factory=dict)
    details: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    breakdowns: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    gains: dict[str, dict[str, Any]] = field(default_factory=dict)
    tests: dict[str, dict[str, Any]] = field(default_factory=dict)
    models: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    untrained_missing: str = ""
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def targets(self) -> list[str]:
        return list(self.scores)

    def label(self, target: str) -> str:
        """The target's name, marked where its score is not one of the run's cross-domain scores."""
        marks = {SOURCE: " (trained on)", FURTHER: " (not in the protocol)"}
        mark = marks.get(str(self.tests.get(target, {}).get("role")), "")
        return target + mark

    def splits(self, target: str) -> int:
        """How many splits a target was scored on; 0 where that was not recorded."""
        return max((len(found) for found in self.per_split.get(target, {}).values()), default=0)

    def breakdown(self, target: str, state: str) -> dict[str, Any]:
        """`score_details` over all splits; of the first one where an earlier version wrote no other; {}: neither."""
        return self.breakdowns.get(target, {}).get(state) or self.details.get(target, {}).get(state) or {}

    def is_of_first_split(self, target: str, state: str) -> bool:
        """Whether `breakdown` is that of the first of several splits, as earlier versions wrote it."""
        known = self.details.get(target, {}).get(state), self.breakdowns.get(target, {}).get(state)
        return self.splits(target) > 1 and bool(known[0]) and not known[1]

    def spread(self, target: str, state: str) -> dict[str, Any] | None:
        """`splits`, and of every score over them `mean`, `std` (sample, n - 1) and `standard_error` of the mean, in
        percent; None for fewer than two splits. Splits share people: the standard error is a lower bound."""
        splits = self.per_split.get(target, {}).get(state, [])
        columns = {name: [split[name] for split in splits if name in split] for name in SCORE_NAMES}
        found = {name: spread(values) for name, values in columns.items() if len(values) > 1}
        if not found:
            return None
        return {
            "splits": len(splits),
            "mean": {name: one.mean for name, one in found.items()},
            "std": {name: one.std for name, one in found.items()},
            "standard_error": {name: one.standard_error for name, one in found.items()},
        }

    def flat_scores(self) -> dict[str, float]:
        """`scores/<target>/<state>/<name>` -> its value in percent."""
        return {
            f"scores/{target}/{state}/{name}": value
            for target, states in self.scores.items()
            for state, values in states.items()
            for name, value in values.items()
        }

    def notes(self) -> list[str]:
        """Sentences that belong beside the scores: queries without a match, duplicates, what was not scored."""
        sentences = []
        for target, test in self.tests.items():
            sentences += [f"{target}: {sentence}." for sentence in test.get("left_out", [])]
            queries, valid, splits = test["queries"], test["valid_queries"], test["splits"]
            if valid < queries:
                over = f" (over {splits} splits)" if splits > 1 else ""
                sentences.append(
                    f"{target}: {valid:,} of {queries:,} queries scored{over}; the others have no match in the gallery."
                )
            if test["duplicates"]:
                sentences.append(
                    f"{target}: {test['duplicates']:,} query images are in the gallery too (same content); "
                    f"{test['scored_duplicates']:,} of them count as found."
                )
        for target, reason in self.failed.items():
            before = "; its scores are those of an earlier evaluation" if target in self.scores else ""
            sentences.append(f"{target} could not be scored: {reason}{before}.")
        if self.untrained_missing and (
            alone := [name for name, found in self.scores.items() if len(found) < len(STATES)]
        ):
            sentences.append(f"No scores of the untrained model on {', '.join(alone)}: {self.untrained_missing}.")
        return sentences


@dataclass(frozen=True)
class QueryResults:
    """The queries of all S splits of a target, one split after another: Q rows; and its P images.

    Distances are Euclidean or, with re_ranking, k-reciprocal; the gallery is ranked by the rule of the scores: junk and
    images of the query's identity and camera are left out.
    """

    paths: NDArray[np.str_]  # [P], relative to the data set's folder
    cameras: NDArray[np.int64]  # [P]; meaningless where not `camera_known`
    camera_known: NDArray[np.bool_]  # [P]
    split: NDArray[np.int32]  # [Q] in 0..S-1
    query: NDArray[np.int32]  # [Q], index into paths
    average_precision: NDArray[np.float64]  # [Q] in 0..1; NaN: no match in the gallery, the query is not scored
    inverse_penalty: NDArray[np.float64]  # [Q] in 0..1, INP; NaN likewise
    first_rank: NDArray[np.int64]  # [Q], 1-based rank of the first match; 0 likewise
    ranked: NDArray[np.int32]  # [Q, L], indices into paths, nearest first; -1: the gallery is shorter
    correct: NDArray[np.bool_]  # [Q, L]: an image of the query's identity
    cmc: NDArray[np.float64]  # [S, max_rank] in 0..1
    model_sha256: str
    re_ranking: bool

    @classmethod
    def of(
        cls,
        rows: Sequence[ManifestRow],
        splits: Sequence[EvaluationSplit],
        scores: Sequence[Scores],
        *,
        model_sha256: str,
        re_ranking: bool,
    ) -> "QueryResults":
        """From the scores of every split, which hold ranked galleries; rows: every image of the splits once."""
        place = {row.path: number for number, row in enumerate(rows)}
        ranked, correct = [], []
        for split, one in zip(splits, scores, strict=True):
            gallery = np.array([place[row.path] for row in split.gallery], np.int32)
            number = {row.identity: index for index, row in enumerate(split.query)}
            # -1: shows nobody who is asked for, as distractors do, which have no identity
            in_gallery = np.array(
                [-1 if row.identity is None else number.get(row.identity, -1) for row in split.gallery]
            )
            of_query = np.array([number[row.identity] for row in split.query])
            found = one.ranked >= 0
            ranked.append(np.where(found, gallery[one.ranked], -1).astype(np.int32))
            correct.append(found & (in_gallery[one.ranked] == of_query[:, None]))
        return cls(
            paths=np.array([row.path for row in rows]),
            cameras=np.array([row.camera or 0 for row in rows], np.int64),
            camera_known=np.array([row.camera is not None for row in rows]),
            split=np.repeat(np.arange(len(splits), dtype=np.int32), [len(split.query) for split in splits]),
            query=np.array([place[row.path] for split in splits for row in split.query], np.int32),
            average_precision=np.concatenate([one.per_query_ap for one in scores]),
            inverse_penalty=np.concatenate([one.per_query_inp for one in scores]),
            first_rank=np.concatenate([one.per_query_rank for one in scores]),
            ranked=np.concatenate(ranked),
            correct=np.concatenate(correct),
            cmc=np.stack([one.cmc for one in scores]),
            model_sha256=model_sha256,
            re_ranking=re_ranking,
        )

    def camera(self, image: int) -> int | None:
        """The camera of an image, an index into paths."""
        return int(self.cameras[image]) if self.camera_known[image] else None


def write_results(folder: Path, results: RunResults) -> None:
    """Write scores.json. Raises DgreidError when it cannot be written."""
    write_text(folder / "scores.json", json.dumps(asdict(results), indent=2) + "\n")


def read_results(folder: Path) -> RunResults:
    """Read scores.json, also one of an earlier version.

    Raises DataError, naming the command that makes it, when it is missing or damaged or names no scores.
    """
    path, fix = folder / "scores.json", f"dgreid eval --run {folder.name}"
    if not path.is_file():
        raise DataError("this run has no scores yet", path=path, fix=fix)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:
        raise DataError(f"not readable as JSON ({err})", path=path, fix=fix) from err
    if not isinstance(found, dict) or not isinstance(found.get("scores"), dict) or not found["scores"]:
        raise DataError("the file names no scores", path=path, fix=fix)
    known: dict[str, Any] = {"protocol": "", "re_ranking": False}
    for entry in fields(RunResults):
        value = found.get(entry.name)
        if value is None:
            continue
        if isinstance(value, dict) != (entry.name not in ("protocol", "re_ranking", "untrained_missing")):
            raise DataError(f"{entry.name} is not what an evaluation writes", path=path, fix=fix)
        known[entry.name] = value
    try:
        known["scores"] = {
            target: {
                state: {name: float(states[state][name]) for name in SCORE_NAMES if _is_finite(states[state].get(name))}
                for state in STATES
                if state in states
            }
            for target, states in known["scores"].items()
        }
    except (AttributeError, TypeError) as err:
        raise DataError("scores is not what an evaluation writes", path=path, fix=fix) from err
    return RunResults(**known)


def write_queries(folder: Path, target: str, state: str, queries: QueryResults) -> None:
    """Write evaluation/<target>.<state>.npz. Raises DgreidError when it cannot be written."""
    arrays = {name: np.asarray(value) for name, value in vars(queries).items()}
    write_arrays(_queries_path(folder, target, state), compressed=True, schema=np.asarray(QUERIES_VERSION), **arrays)


def read_queries(folder: Path, results: RunResults, target: str, state: str) -> QueryResults:
    """Read evaluation/<target>.<state>.npz, which must be of the evaluation that `results` are of.

    Raises DataError, naming the command that makes it, when it is missing, damaged or of another evaluation.
    """
    path, fix = _queries_path(folder, target, state), f"dgreid eval --run {folder.name}"
    names = [entry.name for entry in fields(QueryResults)]
    found = read_arrays(path, ["schema", *names], fix=fix)
    version = found.pop("schema")
    if version.shape or int(version) != QUERIES_VERSION:
        raise DataError(f"ranked galleries of version {version}, not {QUERIES_VERSION}", path=path, fix=fix)
    columns: dict[str, Any] = {
        **found,
        "model_sha256": str(found["model_sha256"]),
        "re_ranking": bool(found["re_ranking"]),
    }
    queries = QueryResults(**columns)
    if (queries.model_sha256, queries.re_ranking) != (results.models.get(state), results.re_ranking):
        raise DataError("the ranked galleries are not of the evaluation in scores.json", path=path, fix=fix)
    images, rows = len(queries.paths), len(queries.query)
    by_query = (queries.split, queries.average_precision, queries.inverse_penalty, queries.first_rank)
    fits = all(len(column) == rows for column in (*by_query, queries.ranked, queries.correct))
    if not fits or not rows or max(queries.query.max(), queries.ranked.max(initial=-1)) >= images:
        raise DataError("the arrays do not fit together", path=path, fix=fix)
    return queries


def read_masks(folder: Path, target: str) -> tuple[list[str], NDArray[np.bool_]]:
    """masks/<target>.npz: paths of N images and masks bool [N, R, h, w]; R is 0 for a model without parts.

    Raises DataError, naming the command that makes it, when it is missing or damaged.
    """
    path, fix = folder / "masks" / f"{target}.npz", f"dgreid eval --run {folder.name}"
    found = read_arrays(path, ["paths", "masks"], fix=fix)
    masks = found["masks"].astype(bool)
    if masks.ndim != 4 or len(masks) != len(found["paths"]):
        raise DataError("the arrays do not fit together", path=path, fix=fix)
    return [str(name) for name in found["paths"]], masks


@dataclass(frozen=True)
class Examples:
    """N training images as the trained model sees them; R is 0 for a model without parts.

    visible: the masks of every block. attention: share in 0..1 of each part token's attention in the last block that
    goes to each patch, mean over the heads.
    """

    datasets: NDArray[np.str_]  # [N]
    paths: NDArray[np.str_]  # [N], relative to the data set's folder
    visible: NDArray[np.bool_]  # [N, blocks, R, h, w]
    attention: NDArray[np.float32]  # [N, R, h, w]
    model_sha256: str


def write_examples(folder: Path, examples: Examples) -> None:
    """Write masks/examples.npz. Raises DgreidError when it cannot be written."""
    arrays = {name: np.asarray(value) for name, value in vars(examples).items()}
    write_arrays(folder / "masks" / "examples.npz", compressed=True, **arrays)


def read_examples(folder: Path, model_sha256: str | None) -> Examples:
    """Raises DataError, naming the command that makes them, when they are missing, damaged or of another model."""
    path, fix = folder / "masks" / "examples.npz", f"dgreid eval --run {folder.name}"
    found = read_arrays(path, [entry.name for entry in fields(Examples)], fix=fix)
    columns: dict[str, Any] = {**found, "model_sha256": str(found["model_sha256"])}
    examples = Examples(**columns)
    if examples.model_sha256 != model_sha256:
        raise DataError("the examples are not of the model in scores.json", path=path, fix=fix)
    count = len(examples.paths)
    fits = len(examples.visible) == len(examples.attention) == len(examples.datasets) == count
    if not fits or examples.visible.ndim != 5 or examples.attention.shape[1:] != examples.visible.shape[2:]:
        raise DataError("the arrays do not fit together", path=path, fix=fix)
    return examples


def read_arrays(path: Path, names: list[str], *, fix: str) -> dict[str, NDArray[Any]]:
    """Named arrays of an .npz file, without running what a pickle may hold. Raises DataError with the remedy `fix`."""
    if not path.is_file():
        raise DataError("the file does not exist", path=path, fix=fix)
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in names}
    except (OSError, ValueError, KeyError, EOFError, BadZipFile, NotImplementedError) as err:
        raise DataError(f"the file could not be read ({type(err).__name__})", path=path, fix=fix) from err


def write_arrays(path: Path, *, compressed: bool = False, **arrays: NDArray[Any]) -> None:
    """Write an .npz file. Raises DgreidError when it cannot be written."""
    save = np.savez_compressed if compressed else np.savez
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        save(stream, **arrays)  # type: ignore[arg-type]  # numpy's stub takes a keyword for its own flag


def _queries_path(folder: Path, target: str, state: str) -> Path:
    return folder / "evaluation" / f"{target}.{state}.npz"


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)
