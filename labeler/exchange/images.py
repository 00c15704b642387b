"""What every exchange format says: images and, for each, boxes of parts in pixels; and how its JSON is read safely."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shared.errors import DataError
from shared.geometry import Box, clipped, ordered

MAX_FILE_BYTES = 2 * 2**30
LONGEST_TOLD = 120  # characters of a foreign text in a message


@dataclass(frozen=True)
class PartBoxes:
    """One image. path: as the file names it, outgoing relative to the data set's folder. scores: part -> 0..1."""

    path: str
    width: int  # pixels of the original image, the space of the boxes
    height: int
    boxes: dict[str, Box] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict)


def read_json(path: Path, parse: Callable[[Any], list[PartBoxes]], form: str) -> list[PartBoxes]:
    """Read one exchange file. Raises DataError when it is missing, too large, no JSON or not of that form."""
    fix = f"export the labels from your tool as {form} again"
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise DataError(f"more than {MAX_FILE_BYTES} bytes", path=path, fix=fix)
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as err:
        raise DataError(f"not readable as JSON ({str(err)[:LONGEST_TOLD]})", path=path, fix=fix) from err
    try:
        return parse(content)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as err:
        told = f"{type(err).__name__}: {str(err)[:LONGEST_TOLD]}"
        raise DataError(f"this is no {form} of part boxes ({told})", path=path, fix=fix) from err


def add_box(image: PartBoxes, part: Any, x: Any, y: Any, width: Any, height: Any) -> None:
    """Add a box by its corner and size in pixels, clipped to the image.

    Raises ValueError for a name that is no text, numbers that are not finite, a box outside of the image and a second
    box of the part.
    """
    numbers = [float(number) for number in (x, y, width, height)]
    if not isinstance(part, str) or not all(map(math.isfinite, numbers)):
        raise ValueError(f"{image.path}: no box of a part: {part!r} {numbers}")
    left, top, wide, high = numbers
    box = clipped(ordered(Box(left, top, left + wide, top + high)), image.width, image.height)
    if not box.area:
        raise ValueError(f"{image.path}: the box of {part!r} is empty or outside of the image")
    if part in image.boxes:
        raise ValueError(f"{image.path}: two boxes of {part!r}, keep one")
    image.boxes[part] = box
