"""What stands behind the scores, drawn: queries by average precision, distances of right and wrong images."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from reid.report.curves import FIRST, PANEL_INCHES, SECOND, STYLE, Panel, inline_svg


def detail_panels(details: Mapping[str, Any]) -> list[Panel]:
    """Panels of one model on one target, from `reid.evaluation.details`; none for what is not there."""
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
        axes.stairs([100 * share for share in other], edges, fill=True, color=SECOND, alpha=0.55, label="somebody else")
        axes.stairs([100 * share for share in same], edges, color=FIRST, linewidth=1.8, label="same person")
        axes.set_xlim(edges[0], edges[-1])
        axes.set_ylim(0, 1.35 * axes.get_ylim()[1])  # room for the legend
        axes.legend(loc="upper left", ncols=2, frameon=False, fontsize=8)
        overlap = sum(map(min, same, other))
        described = f"distances of the same person and of other people overlap by {overlap:.0%}"
        return Panel("Distances", described, inline_svg(figure))


def _axes(across: str, up: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=PANEL_INCHES, layout="constrained")
    axes = figure.add_subplot()
    axes.set(xlabel=across, ylabel=up)
    axes.yaxis.set_major_locator(MaxNLocator(4))
    return figure, axes
