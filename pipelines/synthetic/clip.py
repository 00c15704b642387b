"""Clips of one camera with known people: they walk across, cross each other, leave, and come back later."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from pipelines.synthetic.camera import Camera, apply_camera, camera_of
from pipelines.synthetic.layer import Image
from pipelines.synthetic.people import person
from pipelines.synthetic.placement import place
from pipelines.synthetic.render import composite
from pipelines.synthetic.scene import panorama
from pipelines.synthetic.seeds import LAYOUT, stream
from pipelines.synthetic.skeleton import Pose, View
from shared.geometry import Box

SIZE = (480, 240)  # width, height in pixels
MIN_VISIBLE = 0.25  # of a person's pixels; whoever shows less is not in the ground truth
_GRID = 2  # super-sampling of the figures
_STEP_PHASE = 0.45  # radians of the step cycle per frame


@dataclass(frozen=True)
class Walk:
    """One pass of a person through the picture. first, last: frames, from 1. Height in pixels of the frame."""

    identity: int
    first: int
    last: int
    rightwards: bool
    height: float
    ground: float  # row of the soles


@dataclass(frozen=True)
class Frame:
    """pixels: RGB [H, W, 3]. boxes: identity -> the whole figure, clipped to the picture, of everybody who shows."""

    number: int
    pixels: Image
    boxes: dict[int, Box]


def walks(identities: int, frames: int, *, seed: int, camera: int) -> list[Walk]:
    """Everybody passes twice, in opposite directions, with a pause outside the picture in between."""
    rng = stream(seed, LAYOUT, 7, camera)
    found = []
    for identity in range(1, identities + 1):
        takes = int(rng.integers(int(0.3 * frames), int(0.42 * frames)))
        first = int(rng.integers(1, max(2, int(0.14 * frames))))
        again = int(rng.integers(int(0.5 * frames), max(int(0.5 * frames) + 1, frames - takes)))
        rightwards = bool(rng.random() < 0.5)
        height = float(rng.uniform(0.48, 0.58)) * SIZE[1]
        ground = float(rng.uniform(0.86, 0.95)) * SIZE[1]
        found.append(Walk(identity, first, first + takes, rightwards, height, ground))
        found.append(Walk(identity, again, min(frames, again + takes), not rightwards, height, ground))
    return found


def render_clip(domain: str, camera: int, *, identities: int, frames: int, seed: int) -> Iterator[Frame]:
    """The frames of a clip; the same arguments give the same pixels. The same identities in another camera of the
    domain are the same people. Raises ConfigError for an unknown domain."""
    optics = camera_of(domain, camera, seed)
    wide = panorama(domain, camera, seed, optics.pitch, (SIZE[0] // 3, SIZE[1]))
    scene = cv2.resize(wide[: SIZE[1]], SIZE, interpolation=cv2.INTER_LINEAR)
    passes = sorted(walks(identities, frames, seed=seed, camera=camera), key=lambda walk: walk.ground)
    for number in range(1, frames + 1):
        image, owner = scene.copy(), np.zeros((SIZE[1], SIZE[0]), np.int32)
        whole: dict[int, tuple[Box, int]] = {}
        for walk in passes:  # from the back to the front
            if walk.first <= number <= walk.last:
                whole[walk.identity] = _draw(image, owner, domain, walk, number, seed, optics)
        boxes = {
            identity: box
            for identity, (box, pixels) in whole.items()
            if pixels and np.count_nonzero(owner == identity) >= MIN_VISIBLE * pixels and box.area
        }
        rng = stream(seed, LAYOUT, 8, camera, number)
        yield Frame(number, apply_camera(image, optics, rng), boxes)


def _draw(
    image: Image, owner: np.ndarray, domain: str, walk: Walk, number: int, seed: int, optics: Camera
) -> tuple[Box, int]:
    """Draw one person; returns the box of the figure inside the picture, and how many pixels it would have unhidden."""
    share = (number - walk.first) / max(1, walk.last - walk.first)
    margin = 0.25 * walk.height
    across = -margin + share * (SIZE[0] + 2 * margin)
    centre = across if walk.rightwards else SIZE[0] - across
    pose = Pose(
        yaw=math.pi / 2 if walk.rightwards else -math.pi / 2,
        phase=_STEP_PHASE * (number - walk.first),
        stride=0.4,
        arms=("hang", "hang"),
        lean=0.05,
        head_turn=0.1,
    )
    view = View(optics.pitch, optics.perspective)
    placed = place(
        person(domain, walk.identity, seed),
        pose,
        view,
        (walk.ground - walk.height) * _GRID,
        walk.ground * _GRID,
        centre * _GRID,
    )
    parts: Image = np.zeros((SIZE[1], SIZE[0]), np.uint8)
    totals = composite(image, parts, placed, optics, _GRID)
    owner[parts > 0] = walk.identity
    if not parts.any():
        return Box(0, 0, 0, 0), 0
    x, y, width, height = cv2.boundingRect((parts > 0).astype(np.uint8))
    return Box(float(x), float(y), float(x + width), float(y + height)), int(totals[1:].sum() / _GRID**2)
