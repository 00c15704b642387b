"""Pure box maths. A box is (x_min, y_min, x_max, y_max) in pixels, maxima exclusive, origin at the top left."""

from typing import NamedTuple


class Box(NamedTuple):
    x_min: float
    y_min: float
    x_max: float
    y_max: float

    @property
    def width(self) -> float:
        return self.x_max - self.x_min

    @property
    def height(self) -> float:
        return self.y_max - self.y_min

    @property
    def area(self) -> float:
        """Square pixels; 0 for an empty or reversed box."""
        return max(0.0, self.width) * max(0.0, self.height)


def ordered(box: Box) -> Box:
    """The same rectangle with its corners in order."""
    return Box(
        min(box.x_min, box.x_max),
        min(box.y_min, box.y_max),
        max(box.x_min, box.x_max),
        max(box.y_min, box.y_max),
    )


def clipped(box: Box, width: float, height: float) -> Box:
    """The part of an ordered box inside an image of width x height; empty (area 0) when it lies outside."""
    return Box(
        min(max(box.x_min, 0.0), width),
        min(max(box.y_min, 0.0), height),
        min(max(box.x_max, 0.0), width),
        min(max(box.y_max, 0.0), height),
    )


def scaled(box: Box, x_factor: float, y_factor: float) -> Box:
    return Box(box.x_min * x_factor, box.y_min * y_factor, box.x_max * x_factor, box.y_max * y_factor)


def mirrored(box: Box, width: float) -> Box:
    """The box in the horizontally mirrored image of that width."""
    return Box(width - box.x_max, box.y_min, width - box.x_min, box.y_max)


def iou(first: Box, second: Box) -> float:
    """Intersection over union in 0..1; 0 when either box is empty."""
    overlap = Box(
        max(first.x_min, second.x_min),
        max(first.y_min, second.y_min),
        min(first.x_max, second.x_max),
        min(first.y_max, second.y_max),
    ).area
    union = first.area + second.area - overlap
    return overlap / union if overlap > 0 else 0.0
