"""The report as data: what report.json holds, and what the Markdown and HTML reports take their numbers from."""

import json
import shlex
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from reid.config import different_settings, load_config
from reid.evaluation.results import SOURCE
from reid.protocols.protocol import ALL_IMAGES
from reid.protocols.published import paper_score
from reid.report.labels import LabelFacts
from reid.report.run_record import RunRecord
from shared.errors import ConfigError

SCHEMA_VERSION = 2  # 2: `details` are over all splits; `tests`, `notes`


def summarise(record: RunRecord, labels: LabelFacts, missing: Sequence[str]) -> dict[str, Any]:
    """Everything in the report that is not a picture, as JSON-able data. Scores are in percent.

    `missing` are the sentences that stand in place of figures that could not be made.
    """
    results = record.results
    states = [(target, state) for target, found in results.scores.items() for state in found]
    spreads = {pair: found for pair in states if (found := results.spread(*pair))}
    details = {pair: found for pair in states if (found := results.breakdown(*pair))}
    return {
        "schema_version": SCHEMA_VERSION,
        "run": record.name,
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "protocol": results.protocol,
        "sources": record.sources,
        "targets": record.targets,
        "labels_of_targets": {target: results.label(target) for target in record.targets},
        "tests": results.tests,
        "notes": results.notes(),
        "scores": results.scores,
        "gains": {results.label(target): found for target, found in results.gains.items()},
        "per_split": _by_target(spreads),
        "re_ranking": results.re_ranking,
        "details": _by_target(details),
        "paper": {target: _paper(record, target) for target in record.targets},
        "training_set": record.training_set or None,
        "labels": labels.as_data(),
        "seconds": results.seconds,
        "reproduce": {"commands": commands(record, labels), "changed_settings": changed_settings(record.config)},
        "config": record.config,
        "versions": record.versions,
        "missing": list(missing),
    }


def _by_target(found: dict[tuple[str, str], Any]) -> dict[str, dict[str, Any]]:
    nested: dict[str, dict[str, Any]] = {}
    for (target, state), value in found.items():
        nested.setdefault(target, {})[state] = value
    return nested


def headline(summary: dict[str, Any]) -> str:
    """What was trained and what came out, in one sentence."""
    sources = joined(summary["sources"]) or "unrecorded sources"
    named = protocol_targets(summary) or summary["targets"]
    results = [f"{summary['labels_of_targets'][target]} {_result(summary['scores'][target])}" for target in named]
    return f"Trained on {sources}: {'; '.join(results)}."


def protocol_targets(summary: dict[str, Any]) -> list[str]:
    """The targets without those that were scored beside the protocol."""
    return [name for name in summary["targets"] if summary["labels_of_targets"][name] == name]


def _result(states: dict[str, dict[str, float]]) -> str:
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
    run = ["--run", record.name]
    labelled = ["--label-run", record.label_run] if record.label_run else []
    engine = ["--engine", labels.made_by[0]["engine"]] if labels.made_by else []
    label = [["label", source, *engine, *labelled] for source in record.sources] if labelled else []
    protocol = str(record.config.get("protocol") or "<protocol>")
    preset = ["--preset", str(record.config.get("preset") or "paper")]
    train = ["train", protocol, *(changed_settings(record.config) or []), *preset, *labelled, *run]
    return [shlex.join(["dgreid", *step]) for step in (*label, train, ["eval", *run], ["report", *run])]


def changed_settings(config: dict[str, Any]) -> list[str] | None:
    """`section.key=value` of every setting that is not its preset's; None when the preset is none of the shipped."""
    if not config:
        return []
    try:
        preset = load_config(str(config.get("preset"))).model_dump(mode="json")
    except ConfigError:
        return None
    named_elsewhere = {"preset", "protocol", "data.label_run"}
    return [
        f"{key}={json.dumps(value, separators=(',', ':')) if not isinstance(value, str) else value}"
        for key, value in different_settings(preset, config).items()
        if key not in named_elsewhere
    ]


def _paper(record: RunRecord, target: str) -> dict[str, float] | None:
    role = record.results.tests.get(target, {}).get("role")
    if role == SOURCE or str(record.config.get("protocol", "")).startswith(ALL_IMAGES):  # not trained on these images
        return None
    found = paper_score(record.sources, target)
    return found._asdict() if found else None
