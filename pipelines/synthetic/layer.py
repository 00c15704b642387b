"""The layer a figure is drawn on: colour, part map and shading.

Coordinates are super-sampled pixels; shading is drawn separately from colour, blurred, and multiplied at the end.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from pipelines.synthetic.colours import Rgb
from pipelines.synthetic.skeleton import Floats

Image = npt.NDArray[np.uint8]

NOTHING, HEAD, UPPER, LEGS, CARRIED = 0, 1, 2, 3, 4  # values of a part map; 1..3 follow shared.schemas.PARTS
_ARC = np.concatenate([np.linspace(-np.pi / 2, np.pi / 2, 7), np.linspace(np.pi / 2, 3 * np.pi / 2, 7)])
_ENDS = np.stack([np.arange(14) < 7, np.arange(14) >= 7], axis=1).astype(np.float64)  # the end that a corner belongs to
# A tube's outline is linear in its two ends and its two radii along and across it.
_TUBE_AXIS = np.concatenate([_ENDS, np.cos(_ARC)[:, None] * _ENDS], axis=1)  # [14, 4]
_TUBE_SPREAD = np.sin(_ARC)[:, None] * _ENDS  # [14, 2]
_ANGLES = np.linspace(0, 2 * np.pi, 25)[:-1]
OVAL: Floats = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], axis=1)  # unit circle
_CIRCLE = np.stack([np.cos(np.linspace(0, 2 * np.pi, 22)[:-1]), np.sin(np.linspace(0, 2 * np.pi, 22)[:-1])], axis=1)
# Three nested outlines shade a round shape: their size, their shift towards the light, the brightness inside.
_RING_SIZE = np.array((1.0, 0.76, 0.46))[:, None, None]
_RING_SHIFT = np.array((0.0, 0.22, 0.55))[:, None, None]
_RING_LIGHT = (94, 122, 152)
NEUTRAL = 128  # the shading that leaves a colour unchanged


class Layer:
    """Height x width super-sampled pixels whose top left corner is at `origin` of the crop.

    Args:
        light: direction of the light on the screen, x right and y down, length 0..1.
        cut_y: crop row of the line just below the hips, where UPPER ends.
    """

    def __init__(self, height: int, width: int, origin: tuple[int, int], light: tuple[float, float], cut_y: float):
        self.colour: Image = np.zeros((height, width, 3), np.uint8)
        self.part: Image = np.zeros((height, width), np.uint8)
        self.shade: Image = np.full((height, width), NEUTRAL, np.uint8)
        self.origin = np.array(origin, np.float64)
        self._zero = self.origin - 0.5  # makes the truncation to int round
        self._ring_shift = _RING_SHIFT * np.array(light)
        self.cut_row = int(np.clip(round(cut_y - origin[1]), 0, height))

    def fill(self, points: Floats, rgb: Rgb, part: int) -> None:
        """A flat polygon [N, 2] in crop coordinates."""
        local = self._local(points)
        cv2.fillPoly(self.colour, [local], rgb)
        cv2.fillPoly(self.part, [local], part)

    def solid(self, axis: Floats, spread: Floats, rgb: Rgb, part: int, texture: "Texture | None" = None) -> None:
        """A shaded round shape, outline axis + spread (both [N, 2]): dark at the rim, bright towards the light."""
        flat = spread.ravel()
        reach = math.sqrt(float(flat @ flat) / len(flat))
        rings = axis - self._zero + _RING_SIZE * spread + reach * self._ring_shift  # [3, N, 2]
        corners = rings.astype(np.int32)
        if texture is None:
            cv2.fillPoly(self.colour, [corners[0]], rgb)
            cv2.fillPoly(self.part, [corners[0]], part)
        else:
            self._cloth(corners[0], texture, part)
        for ring, light in zip(corners, _RING_LIGHT, strict=True):
            cv2.fillPoly(self.shade, [ring], light)

    def limb(self, start: Floats, end: Floats, radii: tuple[float, float], rgb: Rgb, part: int) -> None:
        """A tapering tube with round ends."""
        self.solid(*tube(start, end, *radii), rgb, part)

    def ellipse(self, centre: Floats, half: tuple[float, float], rgb: Rgb, part: int) -> None:
        """A shaded ellipse with half axes in x and y."""
        self.solid(np.broadcast_to(centre, _CIRCLE.shape), _CIRCLE * half, rgb, part)

    def _cloth(self, local: npt.NDArray[np.int32], texture: "Texture", part: int) -> None:
        """A polygon [N, 2] in layer coordinates filled with a texture."""
        cv2.fillPoly(self.part, [local], part)
        low = np.maximum(local.min(0), 0)
        high = np.minimum(local.max(0) + 1, (self.part.shape[1], self.part.shape[0]))
        if (high <= low).any():
            return
        width, height = (int(size) for size in high - low)
        mask = np.zeros((height, width), np.uint8)
        cv2.fillPoly(mask, [(local - low).astype(np.int32)], 255)
        target = (texture.corners - self.origin - low).astype(np.float32)
        rows, columns = texture.pixels.shape[:2]
        source = np.array([(0, 0), (columns, 0), (0, rows)], np.float32)
        warp = cv2.getAffineTransform(source, target)
        drawn = cv2.warpAffine(
            texture.pixels, warp, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
        cv2.copyTo(drawn, mask, self.colour[low[1] : high[1], low[0] : high[0]])

    def crease(self, points: Floats, value: int, thickness: int) -> None:
        """A fold or seam: an open line [N, 2] of shading only. Below NEUTRAL is darker."""
        cv2.polylines(self.shade, [self._local(points)], False, value, thickness)

    def line(self, points: Floats, rgb: Rgb, thickness: int) -> None:
        """A thin line [N, 2] of colour that does not change the part map."""
        cv2.polylines(self.colour, [self._local(points)], False, rgb, max(1, thickness))

    def render(self, depth: float, softness: float) -> Image:
        """RGB with the shading applied; `depth` scales its contrast, `softness` is its blur in pixels.

        Also assigns what hangs below the hip line (hems, hands) to the legs.
        """
        below = self.part[self.cut_row :]
        below[below == UPPER] = LEGS
        size = 2 * max(1, round(softness)) + 1
        soft = cv2.blur(cv2.blur(self.shade, (size, size)), (size, size))  # close to a Gaussian, much faster
        light = cv2.convertScaleAbs(soft, alpha=depth, beta=NEUTRAL * (1 - depth))
        lit: Image = cv2.multiply(self.colour, cv2.merge([light, light, light]), scale=1 / NEUTRAL)
        return lit

    def _local(self, points: Floats) -> npt.NDArray[np.int32]:
        return (points - self._zero).astype(np.int32)


@dataclass(frozen=True)
class Texture:
    """A texture and the positions of its top left, top right and bottom left corners."""

    pixels: Image  # [H, W, 3]
    corners: Floats  # [3, 2], crop coordinates


def tube(start: Floats, end: Floats, first: float, last: float) -> tuple[Floats, Floats]:
    """Axis and spread ([14, 2] each) of a tapering tube with half-round ends, for `Layer.solid`.

    The spread is across the tube only, so that no rim is visible where two tubes meet at a joint.
    """
    (x, y), (end_x, end_y) = start.tolist(), end.tolist()  # plain floats: NumPy is slow on single numbers
    along_x, along_y = end_x - x, end_y - y
    unit = 1.0 / max(math.hypot(along_x, along_y), 1e-6)
    last_x, last_y = last * unit * along_x, last * unit * along_y
    first_x, first_y = first * unit * along_x, first * unit * along_y
    axis = _TUBE_AXIS @ np.array(((end_x, end_y), (x, y), (last_x, last_y), (first_x, first_y)))
    return axis, _TUBE_SPREAD @ np.array(((-last_y, last_x), (-first_y, first_x)))
