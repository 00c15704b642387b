"""The table of a benchmark of several trainings: rows x targets, mean and deviation over seeds."""

import json
import statistics
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import matplotlib
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from reid.evaluation.comparison import spread_by_seed
from reid.report.figures import FIRST, SECOND, STYLE, Panel, inline_svg
from reid.report.tables import RESPONSIBLE_USE, Table, markdown_table
from reid.training.run_folder import versions
from shared.files import write_text

MEASURES = {"mean_ap": "mAP", "rank_1": "Rank-1"}
MEAN = "mean"  # over the targets; beside their names


def summarise(
    rows: Sequence[Mapping[str, Any]], found: Mapping[tuple[str, int], Mapping[str, Any]], *, baseline: str
) -> dict[str, Any]:
    """What dg.json holds: for every row, target and measure the values by seed, their mean and deviation.

    Args:
        rows: name, title, trained, and for untrained rows model_of, in the order of the table.
        found: (row, seed) -> what evaluate_run wrote, with minutes. Rows may lack seeds that are not done yet.
        baseline: the row that every other is compared with, seed by seed.
    """
    table = [_row(row, found) for row in rows]
    means = {row["name"]: row["targets"].get(MEAN, {}).get("mean_ap", {}).get("by_seed", {}) for row in table}
    for row in table:
        both = means[row["name"]].keys() & means[baseline].keys()
        gains = {seed: means[row["name"]][seed] - means[baseline][seed] for seed in sorted(both)}
        row[f"mean_ap_over_{baseline}"] = spread_by_seed(gains) if gains and row["name"] != baseline else None
    return {
        "protocols": sorted({result["protocol"] for result in found.values()}),
        "baseline": baseline,
        "rows": table,
        "minutes": sum(result["minutes"] for result in found.values()),
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
    }


def benchmark_table(summary: Mapping[str, Any]) -> str:
    """A table of each measure as Markdown: percent, mean ± standard deviation over seeds."""
    return "\n\n".join(f"**{title}**\n\n{markdown_table(*_table(summary, name))}" for name, title in MEASURES.items())


def write_benchmark(summary: Mapping[str, Any], folder: Path) -> None:
    """Write dg.json, dg.md and dg.html into a folder. Raises DgreidError when they cannot be written."""
    write_text(folder / "dg.json", json.dumps(summary, indent=2) + "\n")
    notes = _notes(summary)
    write_text(folder / "dg.md", "\n\n".join([benchmark_table(summary), *notes, RESPONSIBLE_USE]) + "\n")
    environment = Environment(
        loader=PackageLoader("reid.report.write"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("benchmark.html").render(
        summary=summary,
        tables={title: _table(summary, name) for name, title in MEASURES.items()},
        panel=_panel(summary),
        notes=notes,
        responsible_use=RESPONSIBLE_USE,
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
            measure: spread_by_seed({seed: scores[target][state][measure] for seed, scores in results.items()})
            for measure in MEASURES
        }
        for target in next(iter(results.values()), {})
    }
    if targets:
        targets[MEAN] = {
            measure: spread_by_seed(
                {
                    seed: statistics.fmean(states[state][measure] for states in scores.values())
                    for seed, scores in results.items()
                }
            )
            for measure in MEASURES
        }
    return {**row, "seeds": list(results), "targets": targets}


def _table(summary: Mapping[str, Any], measure: str) -> Table:
    """One measure of every row on every target; that of `mean_ap` ends with the gain over the baseline."""
    targets = next((list(row["targets"]) for row in summary["rows"] if row["targets"]), [])
    baseline = next(row["title"] for row in summary["rows"] if row["name"] == summary["baseline"])
    gains = measure == "mean_ap"
    header = ("row", *targets, *([f"mean over “{baseline}”"] if gains else []), "seeds")
    lines = []
    for row in summary["rows"]:
        cells = [_told(row["targets"][target][measure]) if row["targets"] else "not done" for target in targets]
        if gains:
            gain = row[f"mean_ap_over_{summary['baseline']}"]
            cells.append(_told(gain, sign="+") if gain else "–")
        lines.append((row["title"], *cells, str(len(row["seeds"]))))
    return header, lines


def _panel(summary: Mapping[str, Any]) -> Panel:
    """Mean mAP of every finished row as a bar, every seed as a dot, the baseline as a line."""
    finished = {
        row["name"]: (row["title"], row["targets"][MEAN]["mean_ap"]) for row in summary["rows"] if row["targets"]
    }
    with matplotlib.rc_context(STYLE | {"axes.grid.axis": "x"}):
        figure = Figure(figsize=(7.0, 0.6 + 0.32 * len(finished)), layout="constrained")
        axes = figure.add_subplot()
        for name, (title, spread) in finished.items():
            values = list(spread["by_seed"].values())
            axes.barh(title, spread["mean"], height=0.62, color=SECOND, alpha=0.55)
            axes.plot(values, [title] * len(values), "o", color=FIRST, markersize=3.5)
            if name == summary["baseline"]:
                axes.axvline(spread["mean"], color=FIRST, linewidth=0.8, linestyle="--")
        axes.invert_yaxis()
        axes.set(xlabel="mean mAP over the targets (%)", xlim=(0, None))
        described = "; ".join(f"{title}: {spread['mean']:.1f} %" for title, spread in finished.values())
        return Panel("Mean mAP", described, inline_svg(figure))


def _told(spread: Mapping[str, Any], sign: str = "") -> str:
    deviation = "" if spread["std"] is None else f" ± {spread['std']:.1f}"
    return f"{spread['mean']:{sign}.1f}{deviation}"


def _notes(summary: Mapping[str, Any]) -> list[str]:
    return [
        "Percent; mean ± standard deviation over the seeds; in the figure a dot is a seed and the line the row without "
        "parts. The last but one column of the mAP is the difference of the means over the targets, seed by seed. A "
        "seed draws the weights, the batches and the random splits of the targets; all rows of a seed have the same "
        "splits.",
        *(f"Protocol: {line}" for line in summary["protocols"]),
        f"Training and scoring took {summary['minutes']:.0f} minutes so far; an interrupted row counts from its last "
        "start.",
    ]
