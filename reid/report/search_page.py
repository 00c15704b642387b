"""The HTML strip of a search: the query, then its nearest images with their predicted parts drawn over them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from reid.report.page import Tile, page_environment
from reid.report.pictures import Picture, mask_areas, part_colours


@dataclass(frozen=True)
class Shown:
    """One image of a strip. image: None when it is gone. masks bool [R, h, w]; None: not known."""

    path: str
    mark: str
    caption: str
    image: Image.Image | None
    masks: np.ndarray | None = None


def render_strips(title: str, note: str, strips: Mapping[str, Sequence[Shown]], parts: Sequence[str]) -> str:
    """One self-contained page; strips: heading -> the query, then what was found."""
    colours = part_colours(parts)
    tiles = {heading: [_tile(one, colours) for one in shown] for heading, shown in strips.items()}
    return page_environment().get_template("search.html").render(title=title, note=note, strips=tiles, colours=colours)


def _tile(shown: Shown, colours: Mapping[str, str]) -> Tile:
    picture = Picture(shown.image) if shown.image is not None else None
    fills = []
    if picture and shown.masks is not None and shown.masks.size:
        fills = mask_areas(shown.masks, list(colours.values()), picture.width, picture.height)
    return Tile(
        picture, Path(shown.path).name, f"{shown.mark}: {shown.caption}", shown.caption, shown.mark, fills=fills
    )
