"""One picture: a person of a domain before a camera of it, with the truth about every visible part."""

import math
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from pipelines.synthetic.camera import Camera, camera_of, photograph
from pipelines.synthetic.domains import Domain, domain_called
from pipelines.synthetic.figure import draw
from pipelines.synthetic.layer import NOTHING, Image
from pipelines.synthetic.occluders import occlude
from pipelines.synthetic.people import person
from pipelines.synthetic.placement import Placed, place
from pipelines.synthetic.scene import panorama
from pipelines.synthetic.seeds import IMAGE, TRACK, between, pick, stream
from pipelines.synthetic.skeleton import HIP_ROW, TOE_ROW, Pose, View
from shared.geometry import Box
from shared.schemas import PARTS

DEFAULT_SIZE = (64, 128)  # width, height in pixels
VISIBLE_SHARE = 0.15  # a part that shows less of its own pixels than this counts as absent
_STRANGER = 50_000_000  # identities from here on only ever stand in somebody's way


@dataclass(frozen=True)
class Sample:
    """A picture and its truth.

    Attributes:
        pixels: [H, W, 3] uint8 RGB, before JPEG.
        parts: a box per part of shared.schemas.PARTS around its visible pixels (maxima exclusive), None when absent.
        attributes: PETA-style words, the same for every picture of the identity.
        part_map: [H, W] uint8, 0 nothing, 1..3 the parts in order, 4 a bag.
        jpeg_quality: what the camera would store it with.
    """

    pixels: Image
    parts: dict[str, Box | None]
    attributes: tuple[str, ...]
    part_map: Image
    jpeg_quality: int


def render_person(
    domain: str,
    identity: int,
    camera: int,
    index: int,
    *,
    seed: int,
    size: tuple[int, int] = DEFAULT_SIZE,
    displaced: bool = False,
) -> Sample:
    """Draw image `index` of an identity in a camera; the same arguments give the same pixels.

    `size` is (width, height) in pixels; `displaced` puts the person half outside, as a failed detection does.
    Raises ConfigError for an unknown domain.
    """
    world, eye = domain_called(domain), camera_of(domain, camera, seed)
    rng = stream(seed, IMAGE, world.number, identity, camera, index)
    track = stream(seed, TRACK, world.number, identity, camera)
    grid = _oversampling(size)
    sight = _background(domain, camera, seed, eye, size, rng)
    if rng.random() < 0.18:
        _stranger(sight, None, domain, eye, seed, rng, grid, behind=True)
    who = person(domain, identity, seed)
    yaw, framing = _heading(eye, track, rng), _framing(world, rng, displaced)
    placed = _stand(domain, identity, seed, eye, size, grid, rng, yaw, framing)
    part_map: Image = np.zeros((size[1], size[0]), np.uint8)
    full = _put(sight, part_map, placed, eye, grid)
    if rng.random() < world.occluder_share:
        if rng.random() < 0.3:
            _stranger(sight, part_map, domain, eye, seed, rng, grid, behind=False)
        else:
            occlude(sight, part_map, rng)
    return Sample(photograph(sight, eye, rng), part_boxes(part_map, full), who.attributes, part_map, eye.jpeg_quality)


def part_boxes(part_map: Image, full: npt.NDArray[np.int64]) -> dict[str, Box | None]:
    """Tight boxes of the parts in a map [H, W]; `full` [5] counts the pixels each value would have unhidden."""
    boxes: dict[str, Box | None] = {}
    for value, name in enumerate(PARTS, start=1):
        mask = part_map == value
        if np.count_nonzero(mask) < max(1.0, VISIBLE_SHARE * full[value]):
            boxes[name] = None
            continue
        x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
        boxes[name] = Box(float(x), float(y), float(x + width), float(y + height))
    return boxes


def _oversampling(size: tuple[int, int]) -> int:
    return 3 if size[1] <= 160 else 2


def _background(
    domain: str, camera: int, seed: int, eye: Camera, size: tuple[int, int], rng: np.random.Generator
) -> Image:
    wide = panorama(domain, camera, seed, eye.pitch, size)
    zoom = 0.8 + 0.2 * rng.random()
    width, height = round(size[0] * zoom), round(size[1] * zoom)
    left = int(rng.integers(wide.shape[1] - width))
    top = int(rng.integers(wide.shape[0] - height + 1) * 0.5 + 0.25 * (wide.shape[0] - height))
    window: Image = cv2.resize(wide[top : top + height, left : left + width], size, interpolation=cv2.INTER_LINEAR)
    return window


def _heading(eye: Camera, track: np.random.Generator, rng: np.random.Generator) -> float:
    """Most people cross a camera's view the same way, and one person in one camera keeps a direction."""
    course = eye.facing if track.random() < 0.55 else float(track.uniform(-math.pi, math.pi))
    if rng.random() < 0.12:
        return float(rng.uniform(-math.pi, math.pi))
    return course + float(rng.normal(0, 0.3))


def _framing(world: Domain, rng: np.random.Generator, displaced: bool) -> tuple[float, float, float]:
    """Zoom, and the shift of the person in widths and heights of the crop."""
    if displaced:
        sign = 1.0 if rng.random() < 0.5 else -1.0
        return 1.1, sign * between(rng, (0.35, 0.55)), between(rng, (-0.25, 0.25))
    if rng.random() < world.cut_share:
        zoom = between(rng, (1.15, 2.1))
        return zoom, float(rng.normal(0, 0.04)), (zoom - 1) * 0.5 * (1 if rng.random() < 0.8 else -0.5)
    return float(rng.normal(1.0, 0.03)), float(rng.normal(0, 0.05)), float(rng.normal(0, 0.012))


def _stand(
    domain: str, identity: int, seed: int, eye: Camera, size: tuple[int, int], grid: int, rng: np.random.Generator,
    yaw: float, framing: tuple[float, float, float],
) -> Placed:  # fmt: skip
    who = person(domain, identity, seed)
    arms = {"hang": 8.0, "pocket": 1.2, "phone": 0.5, "read": 0.8}
    walking = rng.random() < 0.82
    pose = Pose(
        yaw=yaw,
        phase=float(rng.uniform(0, 2 * math.pi)),
        stride=between(rng, (0.22, 0.5)) if walking else between(rng, (0.0, 0.07)),
        arms=(pick(rng, arms), pick(rng, arms)),
        lean=float(rng.normal(0.04, 0.03)),
        head_turn=float(rng.normal(0, 0.3)),
    )
    zoom, shift_x, shift_y = framing
    zoom *= 0.6 + 0.4 * who.body.stature
    width, height = size[0] * grid, size[1] * grid
    tall = min(eye.fill, 0.97) * zoom * height
    middle = height * (0.5 + shift_y + 0.1 * (1 - eye.fill))
    view = View(eye.pitch + float(rng.normal(0, 0.03)), eye.perspective)
    return place(who, pose, view, middle - tall / 2, middle + tall / 2, width * (0.5 + shift_x))


def _put(sight: Image, part_map: Image | None, placed: Placed, eye: Camera, grid: int) -> npt.NDArray[np.int64]:
    """Draw a figure onto a sight; returns how many pixels of each part there would be on an endless crop [5]."""
    layer = draw(placed, eye.light, grid)
    lit = layer.finished(0.35 + 0.75 * eye.sun, 0.007 * placed.unit)
    rows, columns = layer.part.shape[0] // grid, layer.part.shape[1] // grid
    colour = cv2.resize(lit, (columns, rows), interpolation=cv2.INTER_AREA)
    alpha = cv2.resize((layer.part > 0).astype(np.uint8) * 255, (columns, rows), interpolation=cv2.INTER_AREA)
    part = layer.part[grid // 2 :: grid, grid // 2 :: grid]
    left, top = (int(value) // grid for value in layer.origin)
    height, width = sight.shape[:2]
    x0, y0, x1, y1 = max(left, 0), max(top, 0), min(left + columns, width), min(top + rows, height)
    full = np.bincount(part.ravel(), minlength=5)
    if x1 <= x0 or y1 <= y0:
        return full
    inside = (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))
    _shadow(sight, alpha, placed, eye, (left, top), grid)
    under = sight[y0:y1, x0:x1]
    keep = cv2.merge([255 - alpha[inside]] * 3)
    cv2.add(cv2.multiply(under, keep, scale=1 / 255), np.ascontiguousarray(colour[inside]), dst=under)
    if part_map is not None:
        piece, target = part[inside], part_map[y0:y1, x0:x1]
        np.copyto(target, piece, where=piece != NOTHING)
    return full


def _shadow(sight: Image, alpha: Image, placed: Placed, eye: Camera, origin: tuple[int, int], grid: int) -> None:
    """The figure's outline laid on the ground away from the light, and the dark spot under the feet."""
    height, width = sight.shape[:2]
    unit = placed.unit / grid
    ground = float(placed.points[:, 1].max()) / grid
    flat = 0.12 + 0.3 * math.sin(eye.pitch)
    slant = -eye.light[0] * 0.5
    above = ground - origin[1]
    # what is y above the ground lands `flat` * y above it, pushed aside by `slant` * y
    warp = np.array([[1.0, -slant, origin[0] + slant * above], [0.0, flat, ground - flat * above]])
    cast = cv2.warpAffine(alpha, warp, (width, height))
    dark = cv2.convertScaleAbs(cast, alpha=0.55 * eye.sun)
    feet = (round(float(placed.points[HIP_ROW : TOE_ROW + 2, 0].mean()) / grid), round(ground))
    spot = np.zeros((height, width), np.uint8)
    cv2.ellipse(spot, feet, (max(1, round(0.15 * unit)), max(1, round(0.035 * unit))), 0, 0, 360, 110, -1)
    dark = cv2.blur(cv2.max(dark, spot), (max(1, round(0.02 * unit)) * 2 + 1,) * 2)
    sight[:] = cv2.multiply(sight, cv2.merge([255 - dark] * 3), scale=1 / 255)


def _stranger(
    sight: Image, part_map: Image | None, domain: str, eye: Camera, seed: int, rng: np.random.Generator, grid: int,
    *, behind: bool,
) -> None:  # fmt: skip
    """Somebody else: smaller behind the person, or in front and in the way."""
    size = (sight.shape[1], sight.shape[0])
    zoom = between(rng, (0.5, 0.8)) if behind else between(rng, (0.95, 1.15))
    side = (1 if rng.random() < 0.5 else -1) * between(rng, (0.28, 0.5))
    framing = (zoom, side, between(rng, (-0.10, -0.02)) if behind else between(rng, (0.05, 0.15)))
    identity = _STRANGER + int(rng.integers(400))
    yaw = float(rng.uniform(-math.pi, math.pi))
    placed = _stand(domain, identity, seed, eye, size, grid, rng, yaw, framing)
    if part_map is None:
        _put(sight, None, placed, eye, grid)
        return
    hidden: Image = np.zeros_like(part_map)
    _put(sight, hidden, placed, eye, grid)
    part_map[hidden > 0] = NOTHING
