"""Cameras: where they hang, how they see colour and light, and what their picture loses on the way to the disk."""

import math
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
import numpy.typing as npt

from pipelines.synthetic.domains import domain_called
from pipelines.synthetic.layer import Image
from pipelines.synthetic.seeds import CAMERA, between, stream

Pixels = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Camera:
    """What every picture of one camera has in common. Lengths in pixels of an image 128 pixels high."""

    pitch: float  # radians below the horizon
    perspective: float
    fill: float  # height of the person over height of the crop
    facing: float  # yaw (radians) of most people who pass
    light: tuple[float, float]  # where the light comes from on the screen, y down
    sun: float  # 0 flat .. 1 hard
    exposure: float
    contrast: float
    gamma: float
    saturation: float
    gains: tuple[float, float, float]  # red, green, blue
    vignette: float
    blur_px: float
    detail: float  # share of the resolution that is real; below 1 the picture was enlarged
    noise: float  # standard deviation, grey levels
    jpeg_quality: int


@lru_cache(maxsize=512)
def camera_of(domain: str, camera: int, seed: int) -> Camera:
    """Camera `camera` (>= 1) of a domain. Raises ConfigError for an unknown domain."""
    world = domain_called(domain)
    rng = stream(seed, CAMERA, world.number, camera)
    side = 1.0 if rng.random() < 0.5 else -1.0
    warm = between(rng, world.warmth)
    tint = rng.normal(0, world.tint_spread, 3)
    facing = (0.0, math.pi, math.pi / 2, -math.pi / 2, 0.7, -2.4)[camera % 6]
    return Camera(
        pitch=math.radians(between(rng, world.pitch_deg)),
        perspective=between(rng, (0.08, 0.3)),
        fill=between(rng, world.fill),
        facing=facing + float(rng.normal(0, 0.25)),
        light=(side * between(rng, (0.3, 0.8)), -between(rng, (0.2, 0.6))),
        sun=between(rng, world.sun),
        exposure=between(rng, world.exposure),
        contrast=between(rng, world.contrast),
        gamma=between(rng, (0.85, 1.18)),
        saturation=between(rng, world.saturation),
        gains=(
            float(1 + 0.16 * warm + tint[0]),
            float(1 + 0.01 * warm + 0.6 * tint[1]),
            float(1 - 0.20 * warm + tint[2]),
        ),
        vignette=between(rng, (0.0, 0.22)),
        blur_px=between(rng, world.blur_px),
        detail=between(rng, (0.5, 1.0)) if rng.random() < 0.4 else 1.0,
        noise=between(rng, world.noise),
        jpeg_quality=int(rng.integers(*world.jpeg_quality)),
    )


def photograph(sight: Image, camera: Camera, rng: np.random.Generator) -> Image:
    """What the camera records of a sight [H, W, 3] RGB: lens, sensor, white balance, grading, noise."""
    height, width = sight.shape[:2]
    unit = height / 128
    seen = sight
    if camera.detail < 1.0:
        small = (max(8, round(width * camera.detail)), max(16, round(height * camera.detail)))
        seen = cv2.resize(cv2.resize(seen, small, interpolation=cv2.INTER_AREA), (width, height))
    blur = camera.blur_px * unit * (0.7 + 0.6 * rng.random())
    if blur > 0.25:
        seen = cv2.GaussianBlur(seen, (0, 0), blur)
    if rng.random() < 0.08:  # a camera that shook, or a long exposure
        reach = 2 * round(unit * (1 + 2 * rng.random())) + 1
        seen = cv2.blur(seen, (reach, 1))
    exposure = camera.exposure * (0.92 + 0.16 * rng.random())
    mix = camera.saturation * np.eye(3) + (1 - camera.saturation) * np.array((0.299, 0.587, 0.114))
    graded = cv2.transform(cv2.LUT(seen, _curves(camera, exposure)).astype(np.float32), mix.astype(np.float32))
    graded *= _vignette(height, width, camera.vignette)
    field = _noise_field(height, width)
    top, left = (int(rng.integers(span)) for span in (height, width))
    graded += np.float32(camera.noise) * field[top : top + height, left : left + width]
    recorded: Image = np.clip(graded, 0, 255).astype(np.uint8)
    return recorded


def _curves(camera: Camera, exposure: float) -> npt.NDArray[np.uint8]:
    """Per-channel tone curves [256, 1, 3]: gamma, exposure and white balance, then contrast about mid-grey."""
    level = (np.arange(256) / 255) ** camera.gamma
    curves = level[:, None] * exposure * np.array(camera.gains)
    curves = np.where(curves > 0.8, 0.8 + 0.2 * np.tanh((curves - 0.8) / 0.2), curves)  # highlights roll off
    middle = 0.5 * min(1.0, exposure)
    curves = middle + (curves - middle) * camera.contrast
    table: npt.NDArray[np.uint8] = np.clip(curves * 255, 0, 255).astype(np.uint8)[:, None, :]
    return table


@lru_cache(maxsize=512)
def _vignette(height: int, width: int, strength: float) -> Pixels:
    y = np.linspace(-1, 1, height)[:, None]
    x = np.linspace(-1, 1, width)[None, :]
    falloff: Pixels = (1 - strength * 0.5 * (x**2 + y**2)).astype(np.float32)[:, :, None]
    return falloff


@lru_cache(maxsize=8)
def _noise_field(height: int, width: int) -> Pixels:
    """Sensor noise of standard deviation about 1, [2 H, 2 W, 3]; every picture takes a window of it, as drawing it
    anew would cost as much as the person."""
    rng = stream(0, CAMERA, height, width)
    grey = rng.standard_normal((2 * height, 2 * width, 1), np.float32)
    return grey + 0.4 * rng.standard_normal((2 * height, 2 * width, 3), np.float32)
