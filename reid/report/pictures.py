"""Person crops for the HTML page: each a small SVG that holds the image as a data URI and what is drawn over it."""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from shared.datasets import locate
from shared.errors import UsageError
from shared.geometry import Box
from shared.images import UnreadableImageError, load_image
from shared.workspace import Workspace

TILE_HEIGHT = 288  # pixels; more than the page shows, for dense screens
JPEG_QUALITY = 82
PART_COLOURS = ("#f5b700", "#25b4f5", "#f25fb4", "#9b8cff", "#5ad1a5", "#ff8552")  # read on light and dark clothes

Area = tuple[str, str]  # SVG path in the picture's pixels, colour


class Picture:
    """One image made ready for the page.

    href: data URI. width, height: pixels of the original image, the space of what is drawn over it.
    """

    def __init__(self, image: Image.Image) -> None:
        self.width, self.height = image.size
        shrunk = image.copy()
        shrunk.thumbnail((4 * TILE_HEIGHT, TILE_HEIGHT), Image.Resampling.LANCZOS)
        content = io.BytesIO()
        shrunk.save(content, "JPEG", quality=JPEG_QUALITY, optimize=True)
        self.href = f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}"


class Album:
    """Opens images of the data sets; one that is gone, damaged or outside its data set's folder is None and counted."""

    def __init__(self, workspace: Workspace) -> None:
        self.missing = 0
        self._data_root = workspace.data_root
        self._folders: dict[str, Path | None] = {}

    def picture(self, dataset: str, path: str) -> Picture | None:
        """The image at `path`, relative to the data set's folder."""
        folder, inside = self._folder(dataset), PurePosixPath(path)
        if folder is not None and not inside.is_absolute() and ".." not in inside.parts:
            try:
                return Picture(load_image(folder / inside))
            except UnreadableImageError:
                pass
        self.missing += 1
        return None

    def _folder(self, dataset: str) -> Path | None:
        if dataset not in self._folders:
            try:
                self._folders[dataset] = locate(dataset, self._data_root)
            except UsageError:
                self._folders[dataset] = None
        return self._folders[dataset]


def part_colours(parts: Sequence[str]) -> dict[str, str]:
    return {part: PART_COLOURS[place % len(PART_COLOURS)] for place, part in enumerate(parts)}


def box_outlines(boxes: Mapping[str, Box], colours: Mapping[str, str]) -> list[Area]:
    """Rectangles in the image's own pixels."""
    return [
        (f"M{box.x_min:.1f} {box.y_min:.1f}H{box.x_max:.1f}V{box.y_max:.1f}H{box.x_min:.1f}Z", colours[part])
        for part, box in boxes.items()
        if part in colours
    ]


def mask_areas(masks: np.ndarray, colours: Sequence[str], width: float, height: float) -> list[Area]:
    """Visible patches as filled areas. masks bool [R, h, w] over an image of width x height pixels."""
    cell_x, cell_y = width / masks.shape[2], height / masks.shape[1]
    areas = []
    for mask, colour in zip(masks, colours, strict=False):
        runs = [
            f"M{start * cell_x:.1f} {row * cell_y:.1f}h{(stop - start) * cell_x:.1f}v{cell_y:.1f}H{start * cell_x:.1f}Z"
            for row in range(mask.shape[0])
            for start, stop in _runs(mask[row])
        ]
        areas.append(("".join(runs), colour))
    return areas


def mask_outlines(masks: np.ndarray, colours: Sequence[str], width: float, height: float) -> list[Area]:
    """The borders of the visible patches. masks bool [R, h, w] over an image of width x height pixels."""
    cell_x, cell_y = width / masks.shape[2], height / masks.shape[1]
    areas = []
    for mask, colour in zip(masks, colours, strict=False):
        inside = np.pad(mask.astype(bool), 1)
        upright, level = inside[1:-1, 1:] != inside[1:-1, :-1], inside[1:, 1:-1] != inside[:-1, 1:-1]
        lines = [f"M{x * cell_x:.1f} {y * cell_y:.1f}v{cell_y:.1f}" for y, x in np.argwhere(upright)]
        lines += [f"M{x * cell_x:.1f} {y * cell_y:.1f}h{cell_x:.1f}" for y, x in np.argwhere(level)]
        areas.append(("".join(lines), colour))
    return areas


def _runs(line: np.ndarray) -> list[tuple[int, int]]:
    """Half-open stretches of True in a bool [w]."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], line.astype(bool), [False]])))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))
