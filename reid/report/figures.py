"""The report's figures as small inline SVGs whose colours follow the page, so that they read in light and in dark.

One SVG per panel: the page lays them out, and text keeps its size on a phone. No user text enters a figure
(names stand in the HTML caption), because Matplotlib would read `$` as mathematics.
"""

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# Colours Matplotlib draws with, and the page's CSS variables that take their place.
INK, GRID, FIRST, SECOND = "#010101", "#020202", "#030303", "#040404"
VARIABLES = {INK: "--muted", GRID: "--line", FIRST: "--accent", SECOND: "--second"}

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: selectable, in the page's font
    "font.size": 9.0,
    "font.family": "DejaVu Sans",
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
}
PANEL_INCHES = (3.5, 2.1)

STAGE1_PANELS = {"loss": ("Stage 1: prompt loss", "cross-entropy")}
STAGE2_PANELS = {  # column of stage2/metrics.csv -> title, unit
    "loss": ("Stage 2: total loss", "weighted sum"),
    "identity": ("Identity loss", "cross-entropy"),
    "memory": ("Identity memory loss", "cross-entropy"),
    "text": ("Image-to-text loss", "cross-entropy"),
    "mask_bce": ("Mask loss (BCE)", "binary cross-entropy"),
    "mask_dice": ("Mask loss (Dice)", "1 − Dice"),
    "mask_iou": ("Mask IoU", "IoU with the labels"),
    "accuracy": ("Training accuracy", "share correct"),
    "validation_map": ("Held-out source identities", "mAP (%)"),
}


class Panel(NamedTuple):
    title: str
    description: str  # what a screen reader says
    svg: str


def training_panels(stage1: Sequence[Mapping[str, float]], stage2: Sequence[Mapping[str, float]]) -> list[Panel]:
    """A panel per recorded quantity of both stages; a quantity that is missing everywhere has none."""
    panels = []
    for epochs, titles in ((stage1, STAGE1_PANELS), (stage2, STAGE2_PANELS)):
        for column, (title, unit) in titles.items():
            points = [(row["epoch"], row[column]) for row in epochs if "epoch" in row and column in row]
            if points:
                places, values = zip(*points, strict=True)
                described = f"{title}: {values[0]:.3g} in the first epoch, {values[-1]:.3g} in the last"
                panels.append(Panel(title, described, _loss_panel(places, values, unit)))
    return panels


def cmc_panel(curves: Mapping[str, Sequence[float]]) -> Panel:
    """Cumulative matching characteristic; curves: trained | untrained -> percent at rank 1, 2, ..."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.0, 2.8), layout="constrained")
        axes = figure.add_subplot()
        longest = max(len(values) for values in curves.values())
        for (name, values), colour, dash in zip(curves.items(), (FIRST, SECOND), ("-", "--"), strict=False):
            ranks = range(1, len(values) + 1)
            axes.plot(ranks, values, dash, color=colour, linewidth=1.8, marker="o", markersize=2.6, label=name)
        axes.set(xlabel="rank", ylabel="queries matched (%)", ylim=(0, 102), xlim=(0.6, longest + 0.4))
        axes.set_xticks([rank for rank in (1, 5, 10, 15, 20) if rank <= longest])
        axes.legend(loc="upper left" if max(map(max, curves.values())) < 60 else "lower right", frameon=False)
        described = "; ".join(f"{name}: {values[0]:.1f} % at rank 1" for name, values in curves.items())
        return Panel("", f"CMC curve, {described}", inline_svg(figure))


def detail_panels(details: Mapping[str, Any]) -> list[Panel]:
    """Histograms of one model on one target, from `reid.evaluation.details`; none for what is not there."""
    panels = []
    if found := details.get("ap_histogram"):
        panels.append(_ap_panel(found["edges"], found["queries"]))
    if found := details.get("distance_histogram"):
        panels.append(_distance_panel(found["edges"], found["same"], found["other"]))
    return panels


def _ap_panel(edges: Sequence[float], queries: Sequence[float]) -> Panel:
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes("average precision (%)", "queries")
        axes.stairs(queries, edges, fill=True, color=FIRST)
        axes.set_xlim(edges[0], edges[-1])
        half = sum(count for count, end in zip(queries, edges[1:], strict=True) if end <= 50)
        described = f"{half:,.0f} of {sum(queries):,.0f} queries have an average precision below 50 %"
        return Panel("Queries by average precision", described, inline_svg(figure))


def _distance_panel(edges: Sequence[float], same: Sequence[float], other: Sequence[float]) -> Panel:
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes("distance", "share of pairs (%)")
        axes.stairs([100 * share for share in other], edges, fill=True, color=SECOND, alpha=0.55, label="other people")
        axes.stairs([100 * share for share in same], edges, color=FIRST, linewidth=1.8, label="same person")
        axes.set_xlim(edges[0], edges[-1])
        axes.set_ylim(0, 1.35 * axes.get_ylim()[1])  # room for the legend
        axes.legend(loc="upper left", ncols=2, frameon=False, fontsize=8)
        overlap = sum(map(min, same, other))
        described = f"distances of the same person and of other people overlap by {overlap:.0%}"
        return Panel("Distances", described, inline_svg(figure))


def _loss_panel(places: Sequence[float], values: Sequence[float], unit: str) -> str:
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes("epoch", unit)
        axes.plot(places, values, color=FIRST, linewidth=1.6, marker="o" if len(values) < 3 else None, markersize=3)
        if len(places) > 1:
            axes.set_xlim(places[0], places[-1])
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        return inline_svg(figure)


def _axes(across: str, up: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=PANEL_INCHES, layout="constrained")
    axes = figure.add_subplot()
    axes.set(xlabel=across, ylabel=up)
    axes.yaxis.set_major_locator(MaxNLocator(4))
    return figure, axes


def inline_svg(figure: Figure) -> str:
    """The figure as an <svg> element for HTML: no prolog, no metadata, no fixed size, colours as CSS variables."""
    text = io.StringIO()
    # ids are hashes of what they name: equal ids in one page then mean equal content
    with matplotlib.rc_context({"svg.hashsalt": "dgreid"}):
        no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(text, format="svg", transparent=True, metadata=no_metadata)
    svg = re.sub(r"<style.*?</style>", "", text.getvalue(), flags=re.DOTALL)  # would style the whole page
    head, _, body = svg[svg.index("<svg") :].strip().partition(">")
    head = re.sub(r'\s(?:xmlns(?::xlink)?|version|width|height)="[^"]*"', "", head)
    body = re.sub(r'<g id="[^"]*"', "<g", body).replace("xlink:href", "href")
    svg = re.sub(r"font-family: [^;\"]*;?", "", f"{head}>{body}")
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    return svg
