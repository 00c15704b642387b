"""Runs side by side: those that differ in the seed alone are one group, with mean and deviation over the seeds."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reid.config import flat_settings, read_config
from reid.evaluation.results import SCORE_NAMES, SCORE_TITLES, STATES, RunResults, read_results
from reid.metrics.scores import spread
from shared.errors import ConfigError


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
