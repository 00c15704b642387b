"""Runs side by side: those that differ in the seed alone are one group, with mean and deviation over the seeds."""

import json
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from reid.config import flat_settings
from reid.report.run_record import SCORE_NAMES, STATES, RunRecord, Scores
from reid.report.tables import SCORE_TITLES, Table
from shared.errors import ConfigError


def compare_runs(runs: Sequence[RunRecord]) -> list[dict[str, Any]]:
    """Groups of runs in the order they are first named, as JSON-able data; scores in percent.

    Each group has `settings` (`section.key=value` of what is not the same in all groups), `runs` and `seeds`, and
    `scores`: target -> trained | untrained -> `mean` of every score over the runs and, from two runs on, `std`, the
    sample standard deviation (n - 1). The seed draws random evaluation splits too, so the deviation holds both.

    Raises:
        ConfigError: no run at all, or two with the same settings and seed, which would count twice.
    """
    groups: dict[tuple[tuple[str, str], ...], list[RunRecord]] = {}
    for run in runs:
        groups.setdefault(_settings(run), []).append(run)
    if not groups:
        raise ConfigError("no run was named", fix="RUNS='<run> <run> ...'")
    common = set.intersection(*(set(key) for key in groups))
    return [
        {
            "settings": [f"{name}={value}" for name, value in key if (name, value) not in common],
            "runs": [run.name for run in members],
            "seeds": _different_seeds(members),
            "scores": {
                target: {state: _over_runs([run.scores[target][state] for run in members]) for state in STATES}
                for target in members[0].targets
            },
        }
        for key, members in groups.items()
    ]


def comparison_table(groups: Sequence[Mapping[str, Any]]) -> Table:
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


def _settings(run: RunRecord) -> tuple[tuple[str, str], ...]:
    """(name, value) of everything but the seed that a run's scores depend on."""
    settings = {**flat_settings(run.config), "re_ranking": run.re_ranking}
    settings.pop("seed", None)
    return tuple(sorted((name, _text(value)) for name, value in settings.items()))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def _different_seeds(runs: Sequence[RunRecord]) -> list[Any]:
    seeds: dict[Any, str] = {}
    for run in runs:
        seed = run.config.get("seed")
        if seed in seeds:
            raise ConfigError(
                f"{seeds[seed]} and {run.name} have the same settings and seed ({seed})", fix="name one of them"
            )
        seeds[seed] = run.name
    return list(seeds)


def _over_runs(scores: Sequence[Scores]) -> dict[str, Scores]:
    columns = {name: [run[name] for run in scores] for name in SCORE_NAMES}
    found = {"mean": {name: statistics.fmean(values) for name, values in columns.items()}}
    if len(scores) > 1:
        found["std"] = {name: statistics.stdev(values) for name, values in columns.items()}
    return found


def _cells(found: Mapping[str, Scores]) -> list[str]:
    deviation = found.get("std", {})
    return [
        f"{found['mean'][name]:.1f}" + (f" ± {deviation[name]:.1f}" if name in deviation else "")
        for name in SCORE_TITLES
    ]
