"""The report as data: what report.json holds, and what the Markdown and HTML reports take their numbers from."""

import json
import math
import shlex
import statistics
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from reid.config import different_settings, load_config
from reid.protocols.protocol import ALL_IMAGES
from reid.protocols.published import paper_score
from reid.report.label_facts import LabelFacts
from reid.report.run_record import SCORE_NAMES, STATES, RunRecord, Scores
from shared.errors import ConfigError

SCHEMA_VERSION = 1


def summarise(record: RunRecord, labels: LabelFacts, missing: Sequence[str]) -> dict[str, Any]:
    """Everything in the report that is not a picture, as JSON-able data. Scores are in percent.

    `missing` are the sentences that stand in place of figures that could not be made.
    """
    return {
        "schema_version": SCHEMA_VERSION,
        "run": record.name,
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "protocol": record.protocol,
        "sources": record.sources,
        "targets": record.targets,
        "scores": {
            target: {state: _known_scores(states[state]) for state in STATES if state in states}
            for target, states in record.scores.items()
        },
        "per_split": {
            target: {state: spread(splits) for state, splits in states.items() if len(splits) > 1}
            for target, states in record.per_split.items()
        },
        "re_ranking": record.re_ranking,
        "details": record.details,
        "paper": {target: _paper(record, target) for target in record.targets},
        "training_set": record.training_set or None,
        "labels": labels.as_data(),
        "seconds": record.seconds,
        "reproduce": {"commands": commands(record, labels), "changed_settings": changed_settings(record.config)},
        "config": record.config,
        "versions": record.versions,
        "missing": list(missing),
    }


def spread(splits: Sequence[Scores]) -> dict[str, Any]:
    """Mean, sample standard deviation (n - 1) and standard error of the mean of every score over random splits.

    In percent. Splits share people, so the standard error is a lower bound.
    """
    columns = {name: [split[name] for split in splits if name in split] for name in SCORE_NAMES}
    columns = {name: values for name, values in columns.items() if len(values) > 1}
    return {
        "splits": len(splits),
        "mean": {name: statistics.fmean(values) for name, values in columns.items()},
        "std": {name: statistics.stdev(values) for name, values in columns.items()},
        "standard_error": {name: statistics.stdev(values) / len(values) ** 0.5 for name, values in columns.items()},
    }


def headline(summary: dict[str, Any]) -> str:
    """What was trained and what came out, in one sentence."""
    sources = joined(summary["sources"]) or "unrecorded sources"
    results = [f"{target} {_result(states)}" for target, states in summary["scores"].items()]
    return f"Trained on {sources}: {'; '.join(results)}."


def _result(states: dict[str, Scores]) -> str:
    after, before = states.get("trained", {}), states.get("untrained", {})
    words = [
        f"{title} {_percent(after[name])}" + (f" ({_percent(before[name])} untrained)" if name in before else "")
        for name, title in (("rank_1", "Rank-1"), ("mean_ap", "mAP"))
        if name in after
    ]
    return f"reaches {' and '.join(words)}" if words else "has no trained score"


def _percent(value: float) -> str:
    return f"{value:.1f}\N{NO-BREAK SPACE}%"


def joined(names: Sequence[str]) -> str:
    """a, b and c"""
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def commands(record: RunRecord, labels: LabelFacts) -> list[str]:
    """The commands that make this run again from the data sets, in order."""
    run = _make_argument("RUN", record.name)
    chosen = _make_argument("LABELS", record.label_run) if record.label_run else ""
    engine = _make_argument("ENGINE", labels.made_by[0]["engine"]) if labels.made_by else ""
    protocol = _make_argument("PROTOCOL", record.config.get("protocol") or "<protocol>")
    preset = _make_argument("PRESET", record.config.get("preset") or "paper")
    changed = changed_settings(record.config)
    settings = _make_argument("ARGS", " ".join(changed)) if changed else ""
    label = [f"make label {_make_argument('DATASET', source)} {engine} {chosen}" for source in record.sources]
    steps = [*(label if record.label_run else []), f"make train {protocol} {preset} {chosen} {settings} {run}"]
    return [" ".join(step.split()) for step in [*steps, f"make eval {run}", f"make report {run}"]]


def changed_settings(config: dict[str, Any]) -> list[str] | None:
    """`section.key=value` of every setting that is not its preset's; None when the preset is none of the shipped."""
    if not config:
        return []
    try:
        preset = load_config(str(config.get("preset"))).model_dump(mode="json")
    except ConfigError:
        return None
    changed = different_settings(preset, config)
    said_otherwise = {"preset", "protocol", "data.label_run"}
    return [
        f"{key}={json.dumps(value, separators=(',', ':')) if not isinstance(value, str) else value}"
        for key, value in changed.items()
        if key not in said_otherwise
    ]


def _make_argument(name: str, value: Any) -> str:
    return f"{name}={shlex.quote(str(value))}"


def _known_scores(scores: Scores) -> Scores:
    """Without what is missing or not a number, which JSON cannot hold."""
    return {name: float(scores[name]) for name in SCORE_NAMES if math.isfinite(scores.get(name, math.nan))}


def _paper(record: RunRecord, target: str) -> dict[str, float] | None:
    if str(record.config.get("protocol", "")).startswith(ALL_IMAGES):  # the paper's scores are of train splits
        return None
    found = paper_score(record.sources, target)
    return found._asdict() if found else None
