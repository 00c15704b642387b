"""Backgrounds: one panorama per camera; every crop of that camera is a window of it."""

from functools import lru_cache

import cv2
import numpy as np

from pipelines.synthetic.colours import Rgb, blend
from pipelines.synthetic.domains import domain_called
from pipelines.synthetic.layer import Image
from pipelines.synthetic.seeds import SCENE, stream, uniform

Rng = np.random.Generator
SPAN = 6  # widths of a crop in one camera's scene
_UNIT = 128  # drawn at this crop height, then scaled


@lru_cache(maxsize=64)
def panorama(domain: str, camera: int, seed: int, pitch: float, size: tuple[int, int]) -> Image:
    """The static scene of a camera, [1.25 H, SPAN W, 3] RGB, for crops of (W, H); a steeper pitch shows more floor."""
    settings = domain_called(domain)
    rng = stream(seed, SCENE, settings.number, camera)
    height, width = round(_UNIT * 1.25), 64 * SPAN
    canvas: Image = np.zeros((height, width, 3), np.uint8)
    floor = int(height * np.clip(0.70 - 0.95 * pitch + 0.08 * rng.standard_normal(), 0.12, 0.74))
    {"plaza": _plaza, "campus": _campus, "mall": _mall, "night": _night}[settings.scene](canvas, floor, rng)
    grain = rng.normal(0, 4, (height, width, 1)) + cv2.resize(rng.normal(0, 7, (20, 48)), (width, height))[:, :, None]
    canvas = np.clip(canvas + grain, 0, 255).astype(np.uint8)
    scaled: Image = cv2.resize(canvas, (SPAN * size[0], round(1.25 * size[1])), interpolation=cv2.INTER_LINEAR)
    return scaled


def _rgb(rng: Rng, low: Rgb, high: Rgb) -> Rgb:
    return blend(low, high, float(rng.random()))


def _box(canvas: Image, x: float, y: float, width: float, height: float, rgb: Rgb) -> None:
    cv2.rectangle(canvas, (round(x), round(y)), (round(x + width), round(y + height)), rgb, -1)


def _floor(canvas: Image, top: int, rgb: Rgb, joint: Rgb, rng: Rng, tile: float) -> None:
    """Ground with joints that meet at a vanishing point; tile 0 means none."""
    height, width = canvas.shape[:2]
    far, near = np.array(blend(rgb, (150, 150, 150), 0.2)), np.array(rgb)
    ramp = np.linspace(0, 1, max(1, height - top))[:, None, None]
    canvas[top:] = (far + (near - far) * ramp).astype(np.uint8)
    if not tile:
        return
    focus = (uniform(rng, (0, width)), top - uniform(rng, (20, 90)))
    for x in np.arange(-3 * width, 4 * width, tile * 3):
        cv2.line(canvas, (round(x), height * 2), (round(focus[0]), round(focus[1])), joint, 1, cv2.LINE_AA)
    canvas[:top] = 0
    gap, y = tile * 0.25, float(top)
    while y < height:
        cv2.line(canvas, (0, round(y)), (width, round(y)), joint, 1)
        gap *= 1.18
        y += gap


def _facade(canvas: Image, floor: int, wall: Rgb, glass: tuple[Rgb, Rgb], rng: Rng, lit: float = 1.0) -> None:
    """Facades of varying width with rows of windows and doors."""
    x = -uniform(rng, (0, 40))
    while x < canvas.shape[1]:
        width = uniform(rng, (45, 120))
        own = blend(wall, _rgb(rng, (60, 50, 45), (245, 235, 215)), 0.3)
        _box(canvas, x, 0, width, floor, own)
        _box(canvas, x, floor - uniform(rng, (4, 12)), width, 12, blend(own, (0, 0, 0), 0.25))
        step, tall = uniform(rng, (15, 26)), uniform(rng, (14, 28))
        for left in np.arange(x + 5, x + width - step * 0.7, step):
            for top in np.arange(floor - 14 - tall, -tall, -tall * 1.5):
                pane = blend(*glass, float(rng.random())) if rng.random() < lit else (22, 24, 30)
                _box(canvas, left, top, step * 0.55, tall, pane)
                corner = (round(left + step * 0.55), round(top + tall))
                cv2.rectangle(canvas, (round(left), round(top)), corner, blend(own, (255, 255, 255), 0.3), 1)
        if rng.random() < 0.6:
            _box(canvas, x + width * 0.4, floor - 34, 16, 34, _rgb(rng, (50, 35, 30), (110, 80, 60)))
        x += width


def _blobs(canvas: Image, centre: tuple[float, float], radius: float, colours: list[Rgb], count: int, rng: Rng) -> None:
    for dx, dy, size, which in zip(
        *rng.normal(0, 0.5, (2, count)), rng.random(count), rng.integers(len(colours), size=count), strict=True
    ):
        place = (round(centre[0] + dx * radius), round(centre[1] + dy * radius))
        cv2.circle(canvas, place, max(1, round(radius * (0.12 + 0.2 * size))), colours[which], -1, cv2.LINE_AA)


def _background_people(canvas: Image, floor: int, rng: Rng, count: int, dark: float) -> None:
    """Small people in the background: body, legs, head."""
    for _ in range(count):
        tall = uniform(rng, (26, 52))
        x, y = uniform(rng, (0, canvas.shape[1])), floor + uniform(rng, (2, 14))
        coat = blend(_rgb(rng, (30, 30, 40), (220, 180, 160)), (0, 0, 0), dark)
        legs = blend(_rgb(rng, (25, 28, 40), (110, 110, 120)), (0, 0, 0), dark)
        _box(canvas, x - tall * 0.07, y - tall * 0.5, tall * 0.14, tall * 0.5, legs)
        _box(canvas, x - tall * 0.1, y - tall * 0.85, tall * 0.2, tall * 0.4, coat)
        face = blend((190, 150, 120), (0, 0, 0), dark)
        cv2.circle(canvas, (round(x), round(y - tall * 0.93)), max(1, round(tall * 0.065)), face, -1)


def _plaza(canvas: Image, floor: int, rng: Rng) -> None:
    width = canvas.shape[1]
    stone = _rgb(rng, (196, 180, 150), (222, 214, 200))
    _floor(canvas, floor, stone, blend(stone, (90, 80, 70), 0.35), rng, uniform(rng, (9, 16)))
    _facade(canvas, floor, _rgb(rng, (226, 196, 150), (236, 224, 200)), ((70, 92, 112), (150, 184, 208)), rng)
    if floor > 50 and rng.random() < 0.6:
        _box(canvas, 0, 0, width, floor * 0.25, _rgb(rng, (120, 172, 226), (170, 204, 240)))
    for x in rng.uniform(0, width, 5):
        awning = _rgb(rng, (200, 50, 40), (240, 220, 120))
        _box(canvas, x, floor - 46, 34, 9, awning)
        _box(canvas, x + 4, floor - 16, 24, 16, blend(awning, (60, 60, 60), 0.6))
    for x in rng.uniform(0, width, 4):
        _box(canvas, x, floor + 2, 22, 12, (176, 120, 86))
        _blobs(canvas, (x + 11, floor - 4), 14, [(58, 122, 48), (88, 150, 60), (206, 84, 96)], 26, rng)
    _background_people(canvas, floor, rng, 9, 0.0)
    shade = np.array(
        [(0, floor), (width * rng.random(), floor), (width * rng.random() * 0.6, canvas.shape[0]), (0, canvas.shape[0])]
    )
    mask = np.zeros(canvas.shape[:2], np.uint8)
    cv2.fillPoly(mask, [shade.astype(np.int32)], 255)  # the shadow of a house on the ground
    np.copyto(canvas, (canvas * 0.62).astype(np.uint8), where=mask[:, :, None] > 0)


def _campus(canvas: Image, floor: int, rng: Rng) -> None:
    width = canvas.shape[1]
    path = _rgb(rng, (118, 116, 112), (146, 142, 136))
    _floor(canvas, floor, path, blend(path, (70, 70, 70), 0.4), rng, 0 if rng.random() < 0.6 else 14)
    canvas[:floor] = _rgb(rng, (186, 190, 194), (206, 208, 210))
    brick = _rgb(rng, (120, 66, 52), (148, 92, 72))
    for x in rng.uniform(-60, width, 4):
        top = uniform(rng, (-20, floor * 0.4))
        _box(canvas, x, top, 110, floor - top, brick)
        for row in np.arange(top + 4, floor, 4):
            cv2.line(
                canvas, (round(x), round(row)), (round(x + 110), round(row)), blend(brick, (190, 180, 170), 0.25), 1
            )
        for left in np.arange(x + 8, x + 100, 26):
            _box(canvas, left, top + 10, 14, 22, (104, 114, 122))
    lawn = _rgb(rng, (84, 98, 50), (118, 116, 62))
    _box(canvas, 0, floor - 3, width, uniform(rng, (8, 26)), lawn)
    leaves: list[Rgb] = [(190, 108, 34), (204, 142, 44), (150, 72, 36), (122, 110, 52)]
    for x in rng.uniform(0, width, 6):
        thick = uniform(rng, (3, 8))
        _box(canvas, x, 0, thick, floor + uniform(rng, (0, 10)), (70, 56, 46))
        _blobs(canvas, (x, uniform(rng, (-6, 22))), uniform(rng, (24, 42)), leaves, 50, rng)
    for x, y in zip(rng.uniform(0, width, 240), rng.uniform(floor, canvas.shape[0], 240), strict=True):
        cv2.circle(canvas, (round(x), round(y)), 1, leaves[int(x) % 4], -1)
    for x in rng.uniform(0, width, 2):  # bicycles
        for wheel in (0, 22):
            cv2.circle(canvas, (round(x + wheel), floor + 4), 9, (40, 40, 44), 1, cv2.LINE_AA)
        cv2.line(canvas, (round(x), floor + 4), (round(x + 22), floor - 6), (60, 90, 120), 2, cv2.LINE_AA)
    _background_people(canvas, floor, rng, 5, 0.25)


def _mall(canvas: Image, floor: int, rng: Rng) -> None:
    width = canvas.shape[1]
    marble = _rgb(rng, (206, 188, 160), (226, 214, 196))
    _floor(canvas, floor, marble, blend(marble, (150, 120, 90), 0.4), rng, uniform(rng, (22, 34)))
    _box(canvas, 0, 0, width, floor, _rgb(rng, (186, 150, 112), (220, 196, 162)))
    x = -uniform(rng, (0, 30))
    while x < width:
        shop = uniform(rng, (56, 96))
        _box(canvas, x + 5, floor - 78, shop - 10, 76, _rgb(rng, (250, 226, 170), (255, 244, 220)))
        sign = _rgb(rng, (170, 30, 40), (40, 70, 140))
        _box(canvas, x + 5, floor - 92, shop - 10, 13, sign)
        for letter in np.arange(x + 14, x + shop - 16, 7):
            _box(canvas, letter, floor - 88, 4, 5, (250, 240, 220))
        for left in np.arange(x + 9, x + shop - 14, 9):  # goods and mannequins behind the glass
            tall = uniform(rng, (14, 44))
            _box(canvas, left, floor - 4 - tall, 6, tall, _rgb(rng, (90, 50, 60), (230, 190, 150)))
        _box(canvas, x, 0, 5, floor, (120, 96, 74))
        x += shop
    below = canvas[max(0, 2 * floor - canvas.shape[0]) : floor][::-1]  # the polished floor mirrors the shops
    mirror = canvas[floor : floor + len(below)]
    cv2.addWeighted(mirror, 0.72, cv2.blur(below, (3, 9)), 0.28, 0, dst=mirror)
    for x in rng.uniform(0, width, 3):
        _box(canvas, x, floor - 10, 3, 22, (150, 150, 152))
        _box(canvas, x, floor - 10, 60, 2, (176, 176, 178))
    for x in rng.uniform(0, width, 2):
        _box(canvas, x, floor - 4, 14, 14, (96, 72, 54))
        _blobs(canvas, (x + 7, floor - 14), 15, [(40, 92, 48), (62, 120, 60)], 24, rng)
    _background_people(canvas, floor, rng, 8, 0.1)


def _night(canvas: Image, floor: int, rng: Rng) -> None:
    width = canvas.shape[1]
    asphalt = _rgb(rng, (58, 58, 64), (84, 82, 84))
    _floor(canvas, floor, asphalt, asphalt, rng, 0)
    _facade(canvas, floor, (62, 56, 56), ((250, 206, 120), (190, 214, 240)), rng, lit=0.35)
    kerb = floor + uniform(rng, (4, 18))
    _box(canvas, 0, kerb, width, 2, (120, 118, 114))
    for x in np.arange(uniform(rng, (0, 30)), width, 46):
        cv2.line(canvas, (round(x), round(kerb + 20)), (round(x + 22), round(kerb + 20)), (170, 170, 160), 2)
    for x in rng.uniform(0, width, 3):  # parked cars
        body = _rgb(rng, (30, 32, 38), (120, 30, 34))
        _box(canvas, x, floor - 14, 62, 14, body)
        _box(canvas, x + 12, floor - 24, 34, 11, (26, 30, 36))
        for wheel in (12, 50):
            cv2.circle(canvas, (round(x + wheel), floor), 6, (14, 14, 16), -1, cv2.LINE_AA)
        cv2.circle(canvas, (round(x + 61), floor - 8), 2, (255, 70, 50), -1)
    glow = np.zeros(canvas.shape, np.float32)
    for x in rng.uniform(0, width, 7):
        lamp = (round(x), round(uniform(rng, (-4, floor * 0.7))))
        light = _rgb(rng, (255, 170, 70), (190, 210, 255))
        cv2.circle(glow, lamp, round(uniform(rng, (10, 26))), light, -1)
        cv2.circle(
            glow,
            (lamp[0], round(kerb + uniform(rng, (6, 40)))),
            round(uniform(rng, (8, 20))),
            blend(light, (0, 0, 0), 0.55),
            -1,
        )
    glow = cv2.GaussianBlur(glow, (0, 0), 9)
    canvas[:] = np.clip(canvas + 0.65 * glow, 0, 255).astype(np.uint8)
    _background_people(canvas, floor, rng, 4, 0.6)
