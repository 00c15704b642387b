"""Colour words as intervals of hue, saturation and value, wide enough that people of one colour word overlap."""

import colorsys

import numpy as np

from pipelines.synthetic.seeds import uniform

Rgb = tuple[int, int, int]
Interval = tuple[float, float]

# The colour words of the PETA attributes (Deng et al. 2014) -> hue in degrees, saturation, value in 0..1.
CLOTH: dict[str, tuple[Interval, Interval, Interval]] = {
    "Black": ((0, 360), (0.0, 0.20), (0.07, 0.17)),
    "Grey": ((200, 240), (0.0, 0.12), (0.30, 0.62)),
    "White": ((30, 60), (0.0, 0.07), (0.82, 0.95)),
    "Blue": ((203, 232), (0.40, 0.85), (0.24, 0.78)),
    "Red": ((350, 366), (0.65, 0.90), (0.45, 0.80)),
    "Green": ((85, 155), (0.30, 0.70), (0.22, 0.62)),
    "Brown": ((20, 36), (0.30, 0.65), (0.25, 0.66)),
    "Yellow": ((45, 55), (0.55, 0.85), (0.74, 0.92)),
    "Orange": ((14, 27), (0.70, 0.90), (0.76, 0.92)),
    "Pink": ((328, 348), (0.22, 0.52), (0.78, 0.94)),
    "Purple": ((266, 300), (0.32, 0.65), (0.28, 0.62)),
}
DENIM: tuple[Interval, Interval, Interval] = ((208, 224), (0.32, 0.60), (0.26, 0.60))
HAIR: dict[str, tuple[Interval, Interval, Interval]] = {
    "Black": ((0, 40), (0.10, 0.35), (0.05, 0.13)),
    "Brown": ((18, 32), (0.40, 0.65), (0.17, 0.38)),
    "Yellow": ((36, 48), (0.35, 0.60), (0.60, 0.80)),
    "Red": ((12, 20), (0.60, 0.80), (0.38, 0.52)),
    "Grey": ((30, 60), (0.00, 0.08), (0.42, 0.62)),
    "White": ((40, 60), (0.00, 0.06), (0.78, 0.88)),
}
SKIN: tuple[Rgb, ...] = ((236, 196, 168), (224, 176, 142), (205, 154, 118), (176, 124, 88), (134, 88, 60), (92, 60, 42))


def sample_colour(rng: np.random.Generator, bounds: tuple[Interval, Interval, Interval]) -> Rgb:
    """A random RGB colour (0..255) from intervals of hue (degrees), saturation and value."""
    hue, saturation, value = (uniform(rng, interval) for interval in bounds)
    red, green, blue = colorsys.hsv_to_rgb((hue % 360) / 360, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def blend(first: Rgb, second: Rgb, weight: float) -> Rgb:
    """(1 - weight) * first + weight * second; weight in 0..1."""
    red, green, blue = (round(a + (b - a) * weight) for a, b in zip(first, second, strict=True))
    return red, green, blue
