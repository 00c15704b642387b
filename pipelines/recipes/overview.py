"""The picture of README.md, made from a finished demo run: python -m pipelines.recipes.overview

A generated training image with its part boxes, a query of the unseen place with the masks that the trained model
predicted, and the query's ranked gallery.
"""

import sys
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from reid.evaluation.results import read_masks, read_queries, read_results
from reid.report.pictures import PART_COLOURS
from shared.datasets import locate
from shared.files import atomic_path
from shared.images import load_image
from shared.labels import read
from shared.schemas import PARTS
from shared.workspace import Workspace

RUN, SOURCE, TARGET = "demo", "synth_plaza", "synth_night"
SHOWN = 8  # gallery images
OUT = Path(__file__).with_name("overview.png")
RIGHT, WRONG = "#1a9850", "#d73027"


def draw_overview(workspace: Workspace, out: Path) -> None:
    """Write the picture. Raises DataError when the demo has not been run in this workspace (dgreid demo)."""
    run = workspace.training_runs / RUN
    queries = read_queries(run, read_results(run), TARGET, "trained")
    paths, masks = read_masks(run, TARGET)
    # the median query by average precision, so that the strip is neither the best nor the worst
    scored = np.flatnonzero(~np.isnan(queries.average_precision))
    chosen = scored[np.argsort(queries.average_precision[scored], kind="stable")[len(scored) // 2]]
    query = str(queries.paths[queries.query[chosen]])
    folder = locate(TARGET, workspace.data_root)
    matplotlib.rcParams["font.family"] = "DejaVu Sans"
    figure = Figure(figsize=(11.0, 2.55), dpi=110, layout="constrained")
    axes = figure.subplots(1, 3 + SHOWN, gridspec_kw={"wspace": 0.06})
    _draw_boxes(axes[0], workspace)
    _show(axes[1], folder / query, "predicted masks")
    _draw_masks(axes[1], masks[list(paths).index(query)])
    _show(axes[2], folder / query, "query")
    for rank, axis in enumerate(axes[3:]):
        place = int(queries.ranked[chosen, rank])
        _show(axis, folder / str(queries.paths[place]), f"rank {rank + 1}")
        _frame(axis, RIGHT if queries.correct[chosen, rank] else WRONG)
    handles = [
        Patch(color=colour, label=part.replace("_", " ")) for part, colour in zip(PARTS, PART_COLOURS, strict=False)
    ]
    handles += [Patch(color=RIGHT, label="same person"), Patch(color=WRONG, label="somebody else")]
    figure.legend(handles=handles, loc="outside lower center", ncols=5, fontsize=8, frameon=False)
    with atomic_path(out) as temporary:
        figure.savefig(temporary, format="png", facecolor="white")


def _draw_boxes(axes: Axes, workspace: Workspace) -> None:
    """The first training image of which every part has a box."""
    rows = [row for row in read(SOURCE, workspace=workspace).to_pylist() if row["status"] == "ok"]
    boxed: dict[str, list[dict[str, float]]] = {}
    for row in rows:
        boxed.setdefault(row["path"], []).append(row)
    path = next(path for path, own in sorted(boxed.items()) if len(own) == len(PARTS))
    _show(axes, locate(SOURCE, workspace.data_root) / path, "part boxes")
    for row in boxed[path]:
        corner, size = (row["x_min"], row["y_min"]), (row["x_max"] - row["x_min"], row["y_max"] - row["y_min"])
        colour = PART_COLOURS[PARTS.index(str(row["part"]))]
        axes.add_patch(Rectangle(corner, *size, fill=False, edgecolor=colour, linewidth=1.8))


def _draw_masks(axes: Axes, masks: np.ndarray) -> None:
    """masks bool [R, h, w] over the image that the axes show."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    width, height = (right - left) / masks.shape[2], (bottom - top) / masks.shape[1]
    for mask, colour in zip(masks, PART_COLOURS, strict=False):
        for row, column in np.argwhere(mask):
            corner = (left + column * width, top + row * height)
            axes.add_patch(Rectangle(corner, width, height, color=colour, alpha=0.38, linewidth=0))


def _show(axes: Axes, image: Path, title: str) -> None:
    axes.imshow(np.asarray(load_image(image)), aspect="auto")
    axes.set_title(title, fontsize=8)
    axes.set_xticks([])
    axes.set_yticks([])


def _frame(axes: Axes, colour: str) -> None:
    for spine in axes.spines.values():
        spine.set(edgecolor=colour, linewidth=2.5)


if __name__ == "__main__":
    draw_overview(Workspace.from_environment(), Path(sys.argv[1]) if len(sys.argv) > 1 else OUT)
