"""The table of a benchmark of several trainings: rows x targets, mean and deviation over seeds."""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from reid.reporting.markdown import markdown_table
from reid.reporting.tables import RESPONSIBLE_USE, Table
from shared.atomic_files import write_text
from shared.runlog import versions

MEASURES = {"mean_ap": "mAP", "rank_1": "Rank-1"}
MEAN = "mean"  # over the targets; beside their names


def summarise(
    rows: Sequence[Mapping[str, Any]], found: Mapping[tuple[str, int], Mapping[str, Any]], *, baseline: str
) -> dict[str, Any]:
    """What dg.json holds: for every row, target and measure the values by seed, their mean and deviation.

    Args:
        rows: name, title, trained, and for untrained rows model_of, in the order of the table.
        found: (row, seed) -> what reid.evaluation wrote, with minutes. Rows may lack seeds that are not done yet.
        baseline: the row that every other is compared with, seed by seed.
    """
    table = [_row(row, found) for row in rows]
    means = {row["name"]: row["targets"].get(MEAN, {}).get("mean_ap", {}).get("by_seed", {}) for row in table}
    for row in table:
        both = means[row["name"]].keys() & means[baseline].keys()
        gains = {seed: means[row["name"]][seed] - means[baseline][seed] for seed in sorted(both)}
        row[f"mean_ap_over_{baseline}"] = _spread(gains) if gains and row["name"] != baseline else None
    return {
        "protocols": sorted({result["protocol"] for result in found.values()}),
        "baseline": baseline,
        "rows": table,
        "minutes": sum(result["minutes"] for result in found.values()),
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
    }


def benchmark_table(summary: Mapping[str, Any]) -> str:
    """The table as Markdown: percent, mean ± standard deviation over seeds."""
    return markdown_table(*_table(summary))


def write_benchmark(summary: Mapping[str, Any], folder: Path) -> None:
    """Write dg.json, dg.md and dg.html into a folder. Raises DgreidError when they cannot be written."""
    write_text(folder / "dg.json", json.dumps(summary, indent=2) + "\n")
    notes = _notes(summary)
    write_text(folder / "dg.md", "\n\n".join([benchmark_table(summary), *notes, RESPONSIBLE_USE]) + "\n")
    environment = Environment(
        loader=PackageLoader("reid"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.get_template("benchmark.html").render(
        summary=summary, table=_table(summary), notes=notes, responsible_use=RESPONSIBLE_USE
    )
    write_text(folder / "dg.html", page)


def _row(row: Mapping[str, Any], found: Mapping[tuple[str, int], Mapping[str, Any]]) -> dict[str, Any]:
    state = "trained" if row["trained"] else "untrained"
    results = {
        seed: result["scores"]
        for (name, seed), result in sorted(found.items())
        if name == (row["model_of"] or row["name"])
    }
    targets = {
        target: {
            measure: _spread({seed: scores[target][state][measure] for seed, scores in results.items()})
            for measure in MEASURES
        }
        for target in next(iter(results.values()), {})
    }
    if targets:
        targets[MEAN] = {
            measure: _spread(
                {
                    seed: float(np.mean([scores[target][state][measure] for target in scores]))
                    for seed, scores in results.items()
                }
            )
            for measure in MEASURES
        }
    return {**row, "seeds": list(results), "targets": targets}


def _spread(by_seed: Mapping[int, float]) -> dict[str, Any]:
    """Mean and sample standard deviation; one value has none."""
    values = list(by_seed.values())
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"mean": float(np.mean(values)), "std": deviation, "by_seed": dict(by_seed)}


def _table(summary: Mapping[str, Any]) -> Table:
    targets = next((list(row["targets"]) for row in summary["rows"] if row["targets"]), [])
    baseline = next(row["title"] for row in summary["rows"] if row["name"] == summary["baseline"])
    header = ("row", *(f"{target} mAP / Rank-1" for target in targets), f"mean mAP over “{baseline}”", "seeds")
    lines = []
    for row in summary["rows"]:
        cells = [
            " / ".join(_told(row["targets"][target][measure]) for measure in MEASURES) if row["targets"] else "not done"
            for target in targets
        ]
        gain = row[f"mean_ap_over_{summary['baseline']}"]
        lines.append((row["title"], *cells, _told(gain, sign="+") if gain else "–", str(len(row["seeds"]))))
    return header, lines


def _told(spread: Mapping[str, Any], sign: str = "") -> str:
    deviation = "" if spread["std"] is None else f" ± {spread['std']:.1f}"
    return f"{spread['mean']:{sign}.1f}{deviation}"


def _notes(summary: Mapping[str, Any]) -> list[str]:
    return [
        "Percent; mean ± standard deviation over the seeds. The last but one column is the difference of the mean mAP "
        "over the targets, seed by seed. A seed draws the weights, the batches and the random splits of the targets; "
        "all rows of a seed have the same splits.",
        *(f"Protocol: {line}" for line in summary["protocols"]),
        f"Training and scoring took {summary['minutes']:.0f} minutes so far; an interrupted row counts from its last "
        "start.",
    ]
