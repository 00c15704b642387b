"""What the embeddings of a run retrieve on one target: CMC curves, and ranked galleries of telling queries."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from reid.config import parse_config
from reid.evaluation.ranking import Ranking
from reid.protocols.protocol import EvaluationSplit, evaluation_splits, parse_protocol
from reid.protocols.splits import stored_splits
from reid.report.run_record import STATES, RunRecord
from shared.errors import DataError, DgreidError
from shared.manifest import read_manifest
from shared.schemas import ManifestRow
from shared.workspace import Workspace

CMC_RANKS = 20
STRIP_LENGTH = 10


@dataclass(frozen=True)
class RankedQuery:
    title: str
    query: ManifestRow
    nearest: list[tuple[ManifestRow, bool]]  # best first; True: the query's identity


@dataclass(frozen=True)
class TargetRetrieval:
    cmc: dict[str, list[float]] = field(default_factory=dict)  # trained | untrained -> percent at rank 1, 2, ...
    splits: int = 0
    ranked: list[RankedQuery] = field(default_factory=list)  # of the trained model on the first split
    problem: str = ""  # why there is nothing, or not all of it


@dataclass(frozen=True)
class Embedded:
    """features float32 [N, F], and which row is which path."""

    features: np.ndarray
    places: dict[str, int]

    def of(self, rows: Sequence[ManifestRow]) -> np.ndarray:
        """[len(rows), F]. Raises DataError for an image without an embedding."""
        try:
            return self.features[[self.places[row.path] for row in rows]]
        except KeyError as err:
            raise DataError(f"{err} has no embedding", fix="make eval RUN=<this run>") from err


def retrieve(record: RunRecord, target: str, workspace: Workspace) -> TargetRetrieval:
    """Rank a target's gallery for its queries with the stored embeddings. Never raises for missing or damaged
    files: `problem` says what could not be had."""
    try:
        rows = read_manifest(workspace.manifest(target))
        splits = _splits(record, target, rows, workspace)
        features = {state: _read_features(record.folder, target, state) for state in STATES}
    except DgreidError as err:
        return TargetRetrieval(problem=f"Nothing could be retrieved on {target}: {err.what}.")
    problem = " ".join(
        f"The embeddings of the {state} model are not there." for state in STATES if features[state] is None
    )
    cmc, ranked = {}, []
    for state, found in features.items():
        if found is None:
            continue
        try:
            first = Ranking.of(splits[0], found.of, re_ranking=record.re_ranking)
            others = (Ranking.of(split, found.of, re_ranking=record.re_ranking) for split in splits[1:])
            scores = [ranking.scores(CMC_RANKS) for ranking in (first, *others)]
        except DgreidError as err:
            problem = f"{problem} The {state} model's embeddings do not fit this data set: {err.what}.".strip()
            continue
        cmc[state] = (100 * np.mean([score.cmc for score in scores], axis=0)).tolist()
        if state == "trained":
            ranked = _telling_queries(splits[0], first, scores[0].per_query_ap)
    return TargetRetrieval(cmc, len(splits), ranked, problem)


def _splits(record: RunRecord, target: str, rows: Sequence[ManifestRow], workspace: Workspace) -> list[EvaluationSplit]:
    """The splits that the run was scored on."""
    protocol = parse_protocol(str(record.config.get("protocol", "")), workspace.data_root)
    config = parse_config(record.config, where="config.yaml")
    drawn = evaluation_splits(protocol, target, rows, splits=config.evaluation.splits, seed=config.seed)
    return stored_splits(record.folder, target, rows, drawn)


def _read_features(folder: Path, target: str, state: str) -> Embedded | None:
    path = folder / "embeddings" / f"{target}.{state}.npz"
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as stored:
            features, paths = stored["features"], stored["paths"].tolist()
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as err:
        raise DataError("the embeddings could not be read", path=path, fix=f"make eval RUN={folder.name}") from err
    return Embedded(features, {name: place for place, name in enumerate(paths)})


def _telling_queries(split: EvaluationSplit, ranking: Ranking, average_precision: np.ndarray) -> list[RankedQuery]:
    """The queries with the best, the median and the worst average precision; average_precision [Q], NaN: not valid."""
    valid = np.flatnonzero(~np.isnan(average_precision))
    order = valid[np.argsort(average_precision[valid], kind="stable")]
    places = {"Best": order[-1], "Median": order[len(order) // 2], "Worst": order[0]}
    chosen = {index: name for name, index in reversed(places.items())}  # few queries: each shown once
    return [
        _ranked(f"{name} of {len(order):,} queries", average_precision[index], split, ranking, index)
        for index, name in reversed(chosen.items())
    ]


def _ranked(name: str, average_precision: float, split: EvaluationSplit, ranking: Ranking, index: int) -> RankedQuery:
    """One query's gallery under the Market-1501 rule, ordered as the scores order it."""
    here = np.array([index])
    same = ranking.same_person(here)[0]
    kept = np.flatnonzero(~ranking.gallery.junk & ~(same & ranking.same_camera(here)[0]))
    order = kept[np.argsort(ranking.exact(index)[kept], kind="stable")]
    ordered, right = [split.gallery[place] for place in order], same[order].tolist()
    title = f"{name}: average precision {100 * average_precision:.1f} %, first right answer at rank"
    nearest = list(zip(ordered, right, strict=True))[:STRIP_LENGTH]
    return RankedQuery(f"{title} {right.index(True) + 1:,}", split.query[index], nearest)
