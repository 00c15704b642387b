"""Garment textures unwrapped around the trunk (360 degrees), so that all views of a garment are consistent."""

from functools import lru_cache

import cv2
import numpy as np

from pipelines.synthetic.colours import Rgb, blend
from pipelines.synthetic.layer import Image
from pipelines.synthetic.people import Outfit, Person
from pipelines.synthetic.seeds import OUTFIT, stream
from pipelines.synthetic.wardrobe import UPPERS

ROWS, COLUMNS = 60, 120  # neck to hem, 360 degrees; the sternum is at column FRONT
FRONT = 60
_VISIBLE = np.degrees(np.arcsin(np.linspace(-0.995, 0.995, 48)))  # azimuth at each column of a cylinder's visible half


def visible_texture(texture: Image, yaw: float) -> Image:
    """The visible half [ROWS, 48, 3] of a texture [ROWS, COLUMNS, 3] on a body with this yaw (radians)."""
    columns = np.rint(FRONT + (_VISIBLE - np.degrees(yaw)) * COLUMNS / 360).astype(np.int64) % COLUMNS
    return texture[:, columns]


@lru_cache(maxsize=4096)
def upper_texture(who: Person) -> Image:
    """The upper garment's texture [ROWS, COLUMNS, 3] RGB with pattern, front, collar and the straps of a bag."""
    outfit = who.outfit
    garment = UPPERS[outfit.upper]
    texture = patterned(outfit, ROWS, COLUMNS)
    dark = blend(outfit.upper_rgb, (0, 0, 0), 0.45)
    if garment.front == "open":
        half = 3 if outfit.upper == "suit" else 7
        for row in range(ROWS):  # lapels: wide at the neck, narrow below
            reach = half + round(5 * max(0.0, 1 - row / 22))
            texture[row, FRONT - reach : FRONT + reach] = outfit.inner_rgb
            texture[row, [FRONT - reach - 1, FRONT + reach]] = dark
        if outfit.upper == "suit":
            texture[4:34, FRONT - 1 : FRONT + 1] = outfit.second_rgb  # the tie
    elif garment.front == "zip":
        texture[:, FRONT - 1 : FRONT + 1] = dark
        texture[12::12] = blend(outfit.upper_rgb, (0, 0, 0), 0.18)  # quilting
    elif garment.front == "buttons":
        texture[:, FRONT] = blend(outfit.upper_rgb, (0, 0, 0), 0.25)
        texture[6::8, FRONT - 1 : FRONT + 1] = dark
    elif outfit.upper in {"tshirt", "tank", "dress"}:
        cv2.ellipse(texture, (FRONT, 0), (9, 6), 0, 0, 360, who.skin, -1)  # the neckline
    if outfit.upper == "hoodie":
        texture[36:50, FRONT - 14 : FRONT + 14] = blend(outfit.upper_rgb, (0, 0, 0), 0.12)  # the pouch
        cv2.ellipse(texture, (0, 0), (16, 14), 0, 0, 360, dark, -1)  # the hood on the back
        cv2.ellipse(texture, (COLUMNS, 0), (16, 14), 0, 0, 360, dark, -1)
    _straps(texture, who)
    texture[-2:] = blend(outfit.upper_rgb, (0, 0, 0), 0.3)
    return texture


def patterned(outfit: Outfit, rows: int, columns: int) -> Image:
    """The garment's colour and pattern without details: [rows, columns, 3] RGB."""
    cloth: Image = np.empty((rows, columns, 3), np.uint8)
    cloth[:] = outfit.upper_rgb
    other = outfit.second_rgb
    rng = stream(outfit.texture_seed, OUTFIT)
    if outfit.pattern == "thin_stripes":
        for row in range(3, rows, 7):
            cloth[row : row + 3] = other
    elif outfit.pattern == "thick_stripes":
        for row in range(4, rows, 18):
            cloth[row : row + 9] = other
    elif outfit.pattern == "plaid":
        _plaid(cloth, outfit.upper_rgb, other)
    elif outfit.pattern == "dots":
        for x, y in rng.integers(0, (columns, rows), (columns * rows // 70, 2)):
            cv2.circle(cloth, (int(x), int(y)), 2, other, -1)
    elif outfit.pattern == "print":
        _front_print(cloth, rng, other)
    elif outfit.pattern == "yoke":
        cloth[: rows * 2 // 5] = other
    elif outfit.pattern == "sides":
        for centre in (columns // 4, columns * 3 // 4):
            cloth[:, centre - columns // 12 : centre + columns // 12] = other
    elif outfit.pattern == "band":
        cloth[rows * 3 // 10 : rows * 11 // 20] = other
    return cloth


def sleeve_colour(outfit: Outfit) -> Rgb:
    """The colour of sleeves without stripes; striped ones use `patterned`."""
    return outfit.second_rgb if outfit.pattern == "yoke" else outfit.upper_rgb


def _plaid(cloth: Image, base: Rgb, other: Rgb) -> None:
    rows, columns = cloth.shape[:2]
    half = np.array(blend(base, other, 0.5), np.uint8)
    for row in range(0, rows, 10):
        cloth[row : row + 4] = half
    for column in range(0, columns, 10):
        cloth[:, column : column + 4] = half
    for row in range(0, rows, 10):
        for column in range(0, columns, 10):
            cloth[row : row + 4, column : column + 4] = other


def _front_print(cloth: Image, rng: np.random.Generator, other: Rgb) -> None:
    """A shape on the chest, visible from the front only."""
    columns = cloth.shape[1]
    if columns < COLUMNS:
        return  # a sleeve
    centre = (FRONT, int(rng.integers(17, 25)))
    size = int(rng.integers(6, 11))
    shape = int(rng.integers(4))
    if shape == 0:
        cv2.circle(cloth, centre, size, other, -1)
    elif shape == 1:
        cv2.rectangle(cloth, (FRONT - size, centre[1] - size // 2), (FRONT + size, centre[1] + size), other, -1)
    elif shape == 2:
        corners = np.array(
            [(FRONT, centre[1] - size), (FRONT + size, centre[1] + size), (FRONT - size, centre[1] + size)]
        )
        cv2.fillPoly(cloth, [corners.astype(np.int32)], other)
    else:
        for line in range(3):
            reach = int(rng.integers(5, 12))
            cv2.rectangle(
                cloth, (FRONT - reach, centre[1] + 6 * line), (FRONT + reach, centre[1] + 6 * line + 2), other, -1
            )


def _straps(texture: Image, who: Person) -> None:
    strap = blend(who.bag_rgb, (0, 0, 0), 0.2)
    if who.bag == "backpack":
        for angle in (-36, 36):
            column = FRONT + angle * COLUMNS // 360
            texture[: ROWS * 6 // 10, column - 2 : column + 2] = strap
    elif who.bag == "messenger":
        side = who.bag_side
        for step in range(0, 181):  # over one shoulder, down to the other hip; the back mirrors the front
            row = min(ROWS - 1, round(ROWS * 0.95 * step / 180))
            reach = round((0.16 - 0.40 * step / 180) * COLUMNS / 2)
            for column in (FRONT - side * reach, side * reach):
                first = column % COLUMNS
                texture[row, [first, (first + 1) % COLUMNS, (first + 2) % COLUMNS]] = strap
