"""Cameras: position, colour response, lighting, blur, noise and compression."""

import math
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
import numpy.typing as npt

from pipelines.synthetic.domains import domain_called
from pipelines.synthetic.layer import Image
from pipelines.synthetic.seeds import CAMERA, stream, uniform

Pixels = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Camera:
    """Properties of all images of one camera. Lengths in pixels of an image of 128 pixels height."""

    pitch: float  # radians below the horizon
    perspective: float
    fill: float  # height of the person over height of the crop
    facing: float  # most frequent yaw (radians) of the people
    light: tuple[float, float]  # direction of the light on the screen, y down
    sun: float  # 0 diffuse .. 1 direct
    exposure: float
    contrast: float
    gamma: float
    saturation: float
    gains: tuple[float, float, float]  # red, green, blue
    vignette: float
    blur_px: float
    detail: float  # resolution relative to the image; below 1 the image is upsampled
    noise: float  # standard deviation, grey levels
    jpeg_quality: int


@lru_cache(maxsize=512)
def camera_of(domain: str, camera: int, seed: int) -> Camera:
    """Camera `camera` (>= 1) of a domain. Raises ConfigError for an unknown domain."""
    settings = domain_called(domain)
    rng = stream(seed, CAMERA, settings.number, camera)
    side = 1.0 if rng.random() < 0.5 else -1.0
    warm = uniform(rng, settings.warmth)
    tint = rng.normal(0, settings.tint_spread, 3)
    facing = (0.0, math.pi, math.pi / 2, -math.pi / 2, 0.7, -2.4)[camera % 6]
    return Camera(
        pitch=math.radians(uniform(rng, settings.pitch_deg)),
        perspective=uniform(rng, (0.08, 0.3)),
        fill=uniform(rng, settings.fill),
        facing=facing + float(rng.normal(0, 0.25)),
        light=(side * uniform(rng, (0.3, 0.8)), -uniform(rng, (0.2, 0.6))),
        sun=uniform(rng, settings.sun),
        exposure=uniform(rng, settings.exposure),
        contrast=uniform(rng, settings.contrast),
        gamma=uniform(rng, (0.85, 1.18)),
        saturation=uniform(rng, settings.saturation),
        gains=(
            float(1 + 0.16 * warm + tint[0]),
            float(1 + 0.01 * warm + 0.6 * tint[1]),
            float(1 - 0.20 * warm + tint[2]),
        ),
        vignette=uniform(rng, (0.0, 0.22)),
        blur_px=uniform(rng, settings.blur_px),
        detail=uniform(rng, (0.5, 1.0)) if rng.random() < 0.4 else 1.0,
        noise=uniform(rng, settings.noise),
        jpeg_quality=int(rng.integers(*settings.jpeg_quality)),
    )


def apply_camera(scene: Image, camera: Camera, rng: np.random.Generator) -> Image:
    """The camera's image of a rendered scene [H, W, 3] RGB: resolution, blur, colour response, vignette, noise."""
    height, width = scene.shape[:2]
    unit = height / 128
    pixels = scene
    if camera.detail < 1.0:
        small = (max(8, round(width * camera.detail)), max(16, round(height * camera.detail)))
        pixels = cv2.resize(cv2.resize(pixels, small, interpolation=cv2.INTER_AREA), (width, height))
    blur = camera.blur_px * unit * (0.7 + 0.6 * rng.random())
    if blur > 0.25:
        pixels = cv2.GaussianBlur(pixels, (0, 0), blur)
    if rng.random() < 0.08:  # motion blur
        reach = 2 * round(unit * (1 + 2 * rng.random())) + 1
        pixels = cv2.blur(pixels, (reach, 1))
    exposure = camera.exposure * (0.92 + 0.16 * rng.random())
    mix = camera.saturation * np.eye(3) + (1 - camera.saturation) * np.array((0.299, 0.587, 0.114))
    graded = cv2.transform(cv2.LUT(pixels, _curves(camera, exposure)).astype(np.float32), mix.astype(np.float32))
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
    curves = np.where(curves > 0.8, 0.8 + 0.2 * np.tanh((curves - 0.8) / 0.2), curves)  # compressed highlights
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
    """Sensor noise of standard deviation about 1, [2 H, 2 W, 3]. Every image takes a window of it: new noise would cost
    as much as rendering the person."""
    rng = stream(0, CAMERA, height, width)
    grey = rng.standard_normal((2 * height, 2 * width, 1), np.float32)
    return grey + 0.4 * rng.standard_normal((2 * height, 2 * width, 3), np.float32)
