"""Runs side by side: those that differ in the seed alone are one group, with mean and deviation over the seeds."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reid.config import flat_settings, read_config
from reid.evaluation.results import (
    SCORE_NAMES,
    SCORE_TITLES,
    STATES,
    QueryResults,
    RunResults,
    read_queries,
    read_results,
)
from reid.metrics.paired import PairedDifference, paired_difference
from reid.metrics.scores import spread
from shared.errors import ConfigError, DataError
from shared.manifest import read_manifest
from shared.workspace import Workspace


@dataclass(frozen=True)
class ScoredRun:
    name: str
    config: dict[str, Any]
    results: RunResults


def compare_runs(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """Groups of runs in the order they are first named, as JSON-able data; scores in percent.

    Each group has `settings` (`section.key=value` of what is not the same in all groups), `runs` and `seeds`, and
    `scores`: target -> trained | untrained -> `mean` of every score over the runs and, from two runs on, `std`, the
    sample standard deviation (n - 1). The seed draws random evaluation splits too, so the deviation holds both. A
    target or state that a run of the group lacks is left out.

    Args:
        folders: of runs that were evaluated.
    Raises:
        ConfigError: no run at all, or two with the same settings and seed, which would count twice.
        DataError: a run was not evaluated, or its files are damaged.
    """
    groups: dict[tuple[tuple[str, str], ...], list[ScoredRun]] = {}
    for run in map(_read, folders):
        groups.setdefault(_settings(run), []).append(run)
    if not groups:
        raise ConfigError("no run was named", fix="name runs: dgreid compare <run> <run> ...")
    names = sorted({name for key in groups for name, _ in key})
    differing = [name for name in names if len({dict(key).get(name, "null") for key in groups}) > 1]
    return [
        {
            "settings": [f"{name}={dict(key).get(name, 'null')}" for name in differing],
            "runs": [run.name for run in members],
            "seeds": _different_seeds(members),
            "scores": {
                members[0].results.label(target): {
                    state: found for state in STATES if (found := _over_runs(members, target, state))
                }
                for target in members[0].results.targets
            },
        }
        for key, members in groups.items()
    ]


def comparison_table(groups: Sequence[Mapping[str, Any]]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """One row per target, group and state of the model, targets together."""
    targets = list(dict.fromkeys(target for group in groups for target in group["scores"]))
    rows = [
        (target, ", ".join(group["settings"]) or "all runs", state, str(len(group["runs"])), *_cells(found))
        for target in targets
        for state in STATES
        for group in groups
        if (found := group["scores"].get(target, {}).get(state))
    ]
    return ("target", "settings", "model", "runs", *SCORE_TITLES.values()), rows


def paired_runs(
    folders: Sequence[Path], workspace: Workspace
) -> tuple[dict[str, dict[str, dict[str, Any]]], list[str]]:
    """Every two runs' trained models on the same queries: "<target>: <first> − <second>" -> score -> as in `gains` of
    RunResults; and a sentence for every pair that cannot be compared.

    Raises DataError for a run without scores, and for a target whose manifest is gone.
    """
    found: dict[str, dict[str, dict[str, Any]]] = {}
    problems: list[str] = []
    results = {folder: read_results(folder) for folder in folders}
    for first, second in combinations(folders, 2):
        for target in [name for name in results[first].targets if name in results[second].targets]:
            title = f"{target}: {first.name} − {second.name}"
            try:
                one, other = (read_queries(run, results[run], target, "trained") for run in (first, second))
            except DataError as err:
                problems.append(f"{title}: {err.what}. To fix: {err.fix}.")
                continue
            if not same_queries(one, other):
                problems.append(f"{title}: the runs were tested on different queries or splits.")
                continue
            person = {row.path: row.identity for row in read_manifest(workspace.manifest(target))}
            identities = np.array([person[path] for path in one.paths[one.query].tolist()])
            found[title] = {name: asdict(_paired(one, other, identities, values)) for name, values in PAIRED.items()}
    return found, problems


def same_queries(one: QueryResults, other: QueryResults) -> bool:
    return np.array_equal(one.paths[one.query], other.paths[other.query]) and np.array_equal(one.split, other.split)


def _paired(
    one: QueryResults,
    other: QueryResults,
    identities: NDArray[np.int64],
    values_of: Callable[[QueryResults], NDArray[np.float64]],
) -> PairedDifference:
    splits = [np.flatnonzero(one.split == split) for split in range(int(one.split.max()) + 1)]
    first, second = values_of(one), values_of(other)
    return paired_difference(
        [first[rows] for rows in splits], [second[rows] for rows in splits], [identities[rows] for rows in splits]
    )


PAIRED: dict[str, Callable[[QueryResults], NDArray[np.float64]]] = {
    "mean_ap": lambda queries: 100 * queries.average_precision,
    "rank_1": lambda queries: np.where(queries.first_rank > 0, 100.0 * (queries.first_rank == 1), np.nan),
}


def spread_by_seed(by_seed: Mapping[int, float]) -> dict[str, Any]:
    """`mean`, `std` (None for one value) and `by_seed`, as JSON-able data."""
    found = spread(list(by_seed.values()))
    return {"mean": found.mean, "std": found.std, "by_seed": dict(by_seed)}


def _read(folder: Path) -> ScoredRun:
    config = read_config(folder).model_dump(mode="json")
    return ScoredRun(folder.absolute().name, config, read_results(folder))


def _settings(run: ScoredRun) -> tuple[tuple[str, str], ...]:
    """(name, value) of everything but the seed that a run's scores depend on."""
    settings = {**flat_settings(run.config), "re_ranking": run.results.re_ranking}
    settings.pop("seed", None)
    return tuple(sorted((name, _as_text(value)) for name, value in settings.items()))


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def _different_seeds(runs: Sequence[ScoredRun]) -> list[Any]:
    seeds: dict[Any, str] = {}
    for run in runs:
        seed = run.config.get("seed")
        if seed in seeds:
            raise ConfigError(
                f"{seeds[seed]} and {run.name} have the same settings and seed ({seed})", fix="name one of them"
            )
        seeds[seed] = run.name
    return list(seeds)


def _over_runs(runs: Sequence[ScoredRun], target: str, state: str) -> dict[str, dict[str, float]]:
    scores = [run.results.scores.get(target, {}).get(state) for run in runs]
    known = [one for one in scores if one]
    if len(known) < len(runs):
        return {}
    columns = {name: spread([one[name] for one in known]) for name in SCORE_NAMES}
    found = {"mean": {name: one.mean for name, one in columns.items()}}
    if len(known) > 1:
        found["std"] = {name: one.std for name, one in columns.items() if one.std is not None}
    return found


def _cells(found: Mapping[str, Mapping[str, float]]) -> list[str]:
    deviation = found.get("std", {})
    return [
        f"{found['mean'][name]:.1f}" + (f" ± {deviation[name]:.1f}" if name in deviation else "")
        for name in SCORE_TITLES
    ]
