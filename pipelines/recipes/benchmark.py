"""Ablation benchmark of the method on data sets that training never saw: rows x seeds, tables and a page.

Every row is trained with every seed; a finished training is read, an interrupted one resumed.
"""

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from reid.config import load_config, read_config
from reid.evaluation.comparison import spread_by_seed
from reid.evaluation.evaluate import evaluate_run
from reid.metrics.scores import spread
from reid.protocols.protocol import Protocol
from reid.report.figures import FIRST, SECOND, STYLE, Panel, inline_svg
from reid.report.page import page_environment
from reid.report.tables import RESPONSIBLE_USE, Table, markdown_table
from reid.training.run_folder import versions
from reid.training.train import train
from shared.errors import DgreidError
from shared.files import write_text
from shared.workspace import Workspace

log = logging.getLogger(__name__)

PRIOR_LABELS, GROUNDER_LABELS = "bench-prior", "bench-grounder"  # label runs
MEASURES = {"mean_ap": "mAP", "rank_1": "Rank-1"}
MEAN = "mean"  # over the targets; a column beside their names


@dataclass(frozen=True)
class Row:
    """One line of the table: how its training differs from the method's."""

    name: str
    title: str
    labels: str | None  # label run; None: trained without labels
    overrides: tuple[str, ...] = ()
    trained: bool = True  # False: the model of the row `model_of` before its training
    model_of: str = ""


ROWS = (
    Row("untrained", "untrained backbone", None, trained=False, model_of="no_parts"),
    Row("no_parts", "no parts (R = 0)", None, ("model.parts=[]",)),
    Row("prior_boxes", "parts, boxes of the body prior", PRIOR_LABELS),
    Row("method", "parts, boxes of the grounder: the method", GROUNDER_LABELS),
    Row(
        "no_mask_loss",
        "method without the mask loss",
        GROUNDER_LABELS,
        ("stage2.losses.mask_bce=0", "stage2.losses.mask_dice=0"),
    ),
    Row("no_text", "method without the text alignment", GROUNDER_LABELS, ("stage2.losses.text=0",)),
    Row("no_memory", "method without the memory term", GROUNDER_LABELS, ("stage2.losses.memory=0",)),
)
BASELINE = "no_parts"  # the row that every other is compared with, seed by seed
BUDGET = ("data.max_images_per_identity=6", "data.missing_labels=drop")  # of every row


def run_benchmark(
    preset: str, protocol: Protocol, overrides: Sequence[str], seeds: int, workspace: Workspace, folder: Path
) -> dict[str, Any]:
    """Train and score every row with seeds 0..`seeds` - 1 in `folder`/dg; returns the content of dg.json.

    dg.json, dg.md and dg.html are rewritten after each training. The label runs of the rows must exist.

    Args:
        overrides: `section.key=value` for every row.

    Raises ConfigError, DataError or DgreidError as training and evaluation do.
    """
    common = (*BUDGET, *overrides)
    trained = [(row, seed) for seed in range(seeds) for row in ROWS if row.trained]
    results: dict[tuple[str, int], dict[str, Any]] = {}
    summary: dict[str, Any] = {}
    for index, (row, seed) in enumerate(trained, start=1):
        log.info("[%d/%d] %s, seed %d", index, len(trained), row.title, seed)
        results[row.name, seed] = _train_row(row, seed, (preset, protocol, common), workspace, folder / "dg")
        summary = summarise(results)
        summary |= {"preset": preset, "protocol_name": protocol.name, "overrides": list(common), "seeds_wanted": seeds}
        write_benchmark(summary, folder)
    return summary


def _train_row(
    row: Row, seed: int, common: tuple[str, Protocol, tuple[str, ...]], workspace: Workspace, folder: Path
) -> dict[str, Any]:
    """scores.json of one training with its minutes: read if it is finished, else trained or resumed, and scored."""
    preset, protocol, overrides = common
    labels = (f"data.label_run={row.labels}",) if row.labels else ()
    config = load_config(preset, [*overrides, *labels, *row.overrides, f"seed={seed}"], protocol=protocol.name)
    run = folder / f"{row.name}-seed{seed}"
    scores, clock = run / "scores.json", run / "minutes.json"
    if scores.is_file() and clock.is_file() and read_config(run) == config:
        return {**json.loads(scores.read_text(encoding="utf-8")), **json.loads(clock.read_text(encoding="utf-8"))}
    started = time.monotonic()
    train(protocol, config, workspace, run)
    result = evaluate_run(run, workspace)
    if result.failed:
        raise DgreidError(f"{', '.join(result.failed)} could not be scored", path=run, fix="repeat the command")
    elapsed = {"minutes": (time.monotonic() - started) / 60}
    write_text(clock, json.dumps(elapsed) + "\n")
    return asdict(result) | elapsed


def summarise(results: Mapping[tuple[str, int], Mapping[str, Any]]) -> dict[str, Any]:
    """For every row, target and measure: the values by seed, their mean and standard deviation.

    results: (row, seed) -> the content of scores.json, with minutes. Seeds that are not finished may be missing.
    """
    table = [_summary_row(row, results) for row in ROWS]
    means = {row["name"]: row["targets"].get(MEAN, {}).get("mean_ap", {}).get("by_seed", {}) for row in table}
    for row in table:
        both = means[row["name"]].keys() & means[BASELINE].keys()
        gains = {seed: means[row["name"]][seed] - means[BASELINE][seed] for seed in sorted(both)}
        row[f"mean_ap_over_{BASELINE}"] = spread_by_seed(gains) if gains and row["name"] != BASELINE else None
    return {
        "protocols": sorted({result["protocol"] for result in results.values()}),
        "baseline": BASELINE,
        "rows": table,
        "minutes": sum(result["minutes"] for result in results.values()),
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
    page = (
        page_environment("pipelines.recipes")
        .get_template("benchmark.html")
        .render(
            summary=summary,
            tables={title: _table(summary, name) for name, title in MEASURES.items()},
            panel=_panel(summary),
            notes=notes,
            responsible_use=RESPONSIBLE_USE,
        )
    )
    write_text(folder / "dg.html", page)


def _summary_row(row: Row, results: Mapping[tuple[str, int], Mapping[str, Any]]) -> dict[str, Any]:
    state = "trained" if row.trained else "untrained"
    by_seed = {
        seed: {target: states[state] for target, states in result["scores"].items()}
        for (name, seed), result in sorted(results.items())
        if name == (row.model_of or row.name)
    }
    targets: dict[str, Any] = {}
    for target in next(iter(by_seed.values()), {}):
        targets[target] = {
            measure: spread_by_seed({seed: scores[target][measure] for seed, scores in by_seed.items()})
            for measure in MEASURES
        }
    if targets:
        targets[MEAN] = {
            measure: spread_by_seed(
                {seed: spread([each[measure] for each in scores.values()]).mean for seed, scores in by_seed.items()}
            )
            for measure in MEASURES
        }
    return {**asdict(row), "seeds": list(by_seed), "targets": targets}


def _table(summary: Mapping[str, Any], measure: str) -> Table:
    """One measure of every row on every target; for mean_ap also the gain over the baseline."""
    targets = next((list(row["targets"]) for row in summary["rows"] if row["targets"]), [])
    baseline = next(row["title"] for row in summary["rows"] if row["name"] == summary["baseline"])
    gains = measure == "mean_ap"
    header = ("row", *targets, *([f"gain over “{baseline}”"] if gains else []), "seeds")
    lines = []
    for row in summary["rows"]:
        cells = [_percent(row["targets"][target][measure]) if row["targets"] else "not finished" for target in targets]
        if gains:
            gain = row[f"mean_ap_over_{summary['baseline']}"]
            cells.append(_percent(gain, sign="+") if gain else "–")
        lines.append((row["title"], *cells, str(len(row["seeds"]))))
    return header, lines


def _panel(summary: Mapping[str, Any]) -> Panel:
    """Mean mAP over the targets: a bar per finished row, a dot per seed, a line for the baseline."""
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


def _percent(spread: Mapping[str, Any], sign: str = "") -> str:
    deviation = "" if spread["std"] is None else f" ± {spread['std']:.1f}"
    return f"{spread['mean']:{sign}.1f}{deviation}"


def _notes(summary: Mapping[str, Any]) -> list[str]:
    return [
        "Percent; mean ± standard deviation over seeds. In the figure, dots are seeds and the line is the row without "
        "parts. The gain is the difference of the means over the targets, computed seed by seed. A seed determines the "
        "weights, the batches and the random splits of the targets; all rows of a seed have the same splits.",
        *(f"Protocol: {line}" for line in summary["protocols"]),
        f"Training and evaluation took {summary['minutes']:.0f} minutes; resumed rows count from their last start.",
    ]
