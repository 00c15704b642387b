"""Rendering one image: a person in a camera of a domain, with part boxes of what is visible."""

import math
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from pipelines.synthetic.camera import Camera, apply_camera, camera_of
from pipelines.synthetic.domains import Domain, domain_called
from pipelines.synthetic.figure import draw
from pipelines.synthetic.layer import NOTHING, Image
from pipelines.synthetic.occluders import occlude
from pipelines.synthetic.people import person
from pipelines.synthetic.placement import Placement, place
from pipelines.synthetic.scene import panorama
from pipelines.synthetic.seeds import IMAGE, TRACK, choose, stream, uniform
from pipelines.synthetic.skeleton import HIP_ROW, TOE_ROW, Pose, View
from shared.geometry import Box
from shared.schemas import PARTS

DEFAULT_SIZE = (64, 128)  # width, height in pixels
MIN_PART_VISIBILITY = 0.15  # a part with a smaller fraction of its pixels visible counts as absent
_FIRST_BYSTANDER = 50_000_000  # identities from here on appear only in the background or as occluders


@dataclass(frozen=True)
class Sample:
    """An image and its ground truth.

    Attributes:
        pixels: [H, W, 3] uint8 RGB, before JPEG.
        parts: a box per part of shared.schemas.PARTS around its visible pixels (maxima exclusive), None when absent.
        attributes: PETA attribute words, the same for every image of the identity.
        part_map: [H, W] uint8, 0 nothing, 1..3 the parts in order, 4 a bag.
        jpeg_quality: of the camera.
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
    """Render image `index` of an identity in a camera; the same arguments give the same pixels.

    `size` is (width, height) in pixels; `displaced` moves the person half out of the image, like a false detection.
    Raises ConfigError for an unknown domain.
    """
    settings, optics = domain_called(domain), camera_of(domain, camera, seed)
    rng = stream(seed, IMAGE, settings.number, identity, camera, index)
    track = stream(seed, TRACK, settings.number, identity, camera)
    grid = _oversampling(size)
    image = _background(domain, camera, seed, optics, size, rng)
    if rng.random() < 0.18:
        _bystander(image, None, domain, optics, seed, rng, grid, behind=True)
    who = person(domain, identity, seed)
    yaw, framing = _heading(optics, track, rng), _framing(settings, rng, displaced)
    placed = _pose_person(domain, identity, seed, optics, size, grid, rng, yaw, framing)
    part_map: Image = np.zeros((size[1], size[0]), np.uint8)
    totals = composite(image, part_map, placed, optics, grid)
    if rng.random() < settings.occluder_probability:
        if rng.random() < 0.3:
            _bystander(image, part_map, domain, optics, seed, rng, grid, behind=False)
        else:
            occlude(image, part_map, rng)
    boxes = part_boxes(part_map, totals)
    return Sample(apply_camera(image, optics, rng), boxes, who.attributes, part_map, optics.jpeg_quality)


def part_boxes(part_map: Image, totals: npt.NDArray[np.int64]) -> dict[str, Box | None]:
    """Tight boxes of the parts in a map [H, W]; `totals` [5] counts the pixels each value would have unhidden."""
    boxes: dict[str, Box | None] = {}
    for value, name in enumerate(PARTS, start=1):
        mask = part_map == value
        if np.count_nonzero(mask) < max(1.0, MIN_PART_VISIBILITY * totals[value]):
            boxes[name] = None
            continue
        x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
        boxes[name] = Box(float(x), float(y), float(x + width), float(y + height))
    return boxes


def _oversampling(size: tuple[int, int]) -> int:
    return 3 if size[1] <= 160 else 2


def _background(
    domain: str, camera: int, seed: int, optics: Camera, size: tuple[int, int], rng: np.random.Generator
) -> Image:
    wide = panorama(domain, camera, seed, optics.pitch, size)
    zoom = 0.8 + 0.2 * rng.random()
    width, height = round(size[0] * zoom), round(size[1] * zoom)
    left = int(rng.integers(wide.shape[1] - width))
    top = int(rng.integers(wide.shape[0] - height + 1) * 0.5 + 0.25 * (wide.shape[0] - height))
    window: Image = cv2.resize(wide[top : top + height, left : left + width], size, interpolation=cv2.INTER_LINEAR)
    return window


def _heading(optics: Camera, track: np.random.Generator, rng: np.random.Generator) -> float:
    """Yaw of the person: most people pass a camera in its main direction, and a track keeps its direction."""
    course = optics.facing if track.random() < 0.55 else float(track.uniform(-math.pi, math.pi))
    if rng.random() < 0.12:
        return float(rng.uniform(-math.pi, math.pi))
    return course + float(rng.normal(0, 0.3))


def _framing(settings: Domain, rng: np.random.Generator, displaced: bool) -> tuple[float, float, float]:
    """Zoom, and the shift of the person in fractions of the crop's width and height."""
    if displaced:
        sign = 1.0 if rng.random() < 0.5 else -1.0
        return 1.1, sign * uniform(rng, (0.35, 0.55)), uniform(rng, (-0.25, 0.25))
    if rng.random() < settings.truncation_probability:
        zoom = uniform(rng, (1.15, 2.1))
        return zoom, float(rng.normal(0, 0.04)), (zoom - 1) * 0.5 * (1 if rng.random() < 0.8 else -0.5)
    return float(rng.normal(1.0, 0.03)), float(rng.normal(0, 0.05)), float(rng.normal(0, 0.012))


def _pose_person(
    domain: str, identity: int, seed: int, optics: Camera, size: tuple[int, int], grid: int, rng: np.random.Generator,
    yaw: float, framing: tuple[float, float, float],
) -> Placement:  # fmt: skip
    who = person(domain, identity, seed)
    arms = {"hang": 8.0, "pocket": 1.2, "phone": 0.5, "read": 0.8}
    walking = rng.random() < 0.82
    pose = Pose(
        yaw=yaw,
        phase=float(rng.uniform(0, 2 * math.pi)),
        stride=uniform(rng, (0.22, 0.5)) if walking else uniform(rng, (0.0, 0.07)),
        arms=(choose(rng, arms), choose(rng, arms)),
        lean=float(rng.normal(0.04, 0.03)),
        head_turn=float(rng.normal(0, 0.3)),
    )
    zoom, shift_x, shift_y = framing
    zoom *= 0.6 + 0.4 * who.body.stature
    width, height = size[0] * grid, size[1] * grid
    tall = min(optics.fill, 0.97) * zoom * height
    middle = height * (0.5 + shift_y + 0.1 * (1 - optics.fill))
    view = View(optics.pitch + float(rng.normal(0, 0.03)), optics.perspective)
    return place(who, pose, view, middle - tall / 2, middle + tall / 2, width * (0.5 + shift_x))


def composite(
    image: Image, part_map: Image | None, placed: Placement, optics: Camera, grid: int
) -> npt.NDArray[np.int64]:
    """Composite a figure onto an image; returns the pixel count of each part map value on an unlimited crop, [5]."""
    layer = draw(placed, optics.light, grid)
    lit = layer.render(0.35 + 0.75 * optics.sun, 0.007 * placed.unit)
    rows, columns = layer.part.shape[0] // grid, layer.part.shape[1] // grid
    colour = cv2.resize(lit, (columns, rows), interpolation=cv2.INTER_AREA)
    alpha = cv2.resize((layer.part > 0).astype(np.uint8) * 255, (columns, rows), interpolation=cv2.INTER_AREA)
    part = layer.part[grid // 2 :: grid, grid // 2 :: grid]
    left, top = (int(value) // grid for value in layer.origin)
    height, width = image.shape[:2]
    x0, y0, x1, y1 = max(left, 0), max(top, 0), min(left + columns, width), min(top + rows, height)
    totals = np.bincount(part.ravel(), minlength=5)
    if x1 <= x0 or y1 <= y0:
        return totals
    inside = (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))
    _shadow(image, alpha, placed, optics, (left, top), grid)
    under = image[y0:y1, x0:x1]
    keep = cv2.merge([255 - alpha[inside]] * 3)
    cv2.add(cv2.multiply(under, keep, scale=1 / 255), np.ascontiguousarray(colour[inside]), dst=under)
    if part_map is not None:
        piece, target = part[inside], part_map[y0:y1, x0:x1]
        np.copyto(target, piece, where=piece != NOTHING)
    return totals


def _shadow(image: Image, alpha: Image, placed: Placement, optics: Camera, origin: tuple[int, int], grid: int) -> None:
    """The cast shadow of the figure on the ground, and the contact shadow under the feet."""
    height, width = image.shape[:2]
    unit = placed.unit / grid
    ground = float(placed.points[:, 1].max()) / grid
    flat = 0.12 + 0.3 * math.sin(optics.pitch)
    slant = -optics.light[0] * 0.5
    above = ground - origin[1]
    # what is y above the ground lands `flat` * y above it, pushed aside by `slant` * y
    warp = np.array([[1.0, -slant, origin[0] + slant * above], [0.0, flat, ground - flat * above]])
    cast = cv2.warpAffine(alpha, warp, (width, height))
    dark = cv2.convertScaleAbs(cast, alpha=0.55 * optics.sun)
    feet = (round(float(placed.points[HIP_ROW : TOE_ROW + 2, 0].mean()) / grid), round(ground))
    spot = np.zeros((height, width), np.uint8)
    cv2.ellipse(spot, feet, (max(1, round(0.15 * unit)), max(1, round(0.035 * unit))), 0, 0, 360, 110, -1)
    dark = cv2.blur(cv2.max(dark, spot), (max(1, round(0.02 * unit)) * 2 + 1,) * 2)
    image[:] = cv2.multiply(image, cv2.merge([255 - dark] * 3), scale=1 / 255)


def _bystander(
    image: Image, part_map: Image | None, domain: str, optics: Camera, seed: int, rng: np.random.Generator, grid: int,
    *, behind: bool,
) -> None:  # fmt: skip
    """Draw another person: smaller in the background, or as an occluder in front."""
    size = (image.shape[1], image.shape[0])
    zoom = uniform(rng, (0.5, 0.8)) if behind else uniform(rng, (0.95, 1.15))
    side = (1 if rng.random() < 0.5 else -1) * uniform(rng, (0.28, 0.5))
    framing = (zoom, side, uniform(rng, (-0.10, -0.02)) if behind else uniform(rng, (0.05, 0.15)))
    identity = _FIRST_BYSTANDER + int(rng.integers(400))
    yaw = float(rng.uniform(-math.pi, math.pi))
    placed = _pose_person(domain, identity, seed, optics, size, grid, rng, yaw, framing)
    if part_map is None:
        composite(image, None, placed, optics, grid)
        return
    hidden: Image = np.zeros_like(part_map)
    composite(image, hidden, placed, optics, grid)
    part_map[hidden > 0] = NOTHING
