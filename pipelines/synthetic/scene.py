"""Backgrounds: one wide picture per camera, drawn once; every crop of that camera is a window of it."""

from functools import lru_cache

import cv2
import numpy as np

from pipelines.synthetic.colours import Rgb, mixed
from pipelines.synthetic.domains import domain_called
from pipelines.synthetic.layer import Image
from pipelines.synthetic.seeds import SCENE, between, stream

Rng = np.random.Generator
SPAN = 6  # widths of a crop in one camera's scene
_UNIT = 128  # drawn at this crop height, then scaled


@lru_cache(maxsize=64)
def panorama(domain: str, camera: int, seed: int, pitch: float, size: tuple[int, int]) -> Image:
    """The static scene of a camera, [1.25 H, SPAN W, 3] RGB, for crops of (W, H); a steeper pitch shows more floor."""
    world = domain_called(domain)
    rng = stream(seed, SCENE, world.number, camera)
    height, width = round(_UNIT * 1.25), 64 * SPAN
    sheet: Image = np.zeros((height, width, 3), np.uint8)
    floor = int(height * np.clip(0.70 - 0.95 * pitch + 0.08 * rng.standard_normal(), 0.12, 0.74))
    {"plaza": _plaza, "campus": _campus, "mall": _mall, "night": _night}[world.scene](sheet, floor, rng)
    grain = rng.normal(0, 4, (height, width, 1)) + cv2.resize(rng.normal(0, 7, (20, 48)), (width, height))[:, :, None]
    sheet = np.clip(sheet + grain, 0, 255).astype(np.uint8)
    scaled: Image = cv2.resize(sheet, (SPAN * size[0], round(1.25 * size[1])), interpolation=cv2.INTER_LINEAR)
    return scaled


def _rgb(rng: Rng, low: Rgb, high: Rgb) -> Rgb:
    return mixed(low, high, float(rng.random()))


def _box(sheet: Image, x: float, y: float, width: float, height: float, rgb: Rgb) -> None:
    cv2.rectangle(sheet, (round(x), round(y)), (round(x + width), round(y + height)), rgb, -1)


def _floor(sheet: Image, top: int, rgb: Rgb, joint: Rgb, rng: Rng, tile: float) -> None:
    """Ground with joints that meet at a vanishing point; tile 0 means none."""
    height, width = sheet.shape[:2]
    far, near = np.array(mixed(rgb, (150, 150, 150), 0.2)), np.array(rgb)
    ramp = np.linspace(0, 1, max(1, height - top))[:, None, None]
    sheet[top:] = (far + (near - far) * ramp).astype(np.uint8)
    if not tile:
        return
    focus = (between(rng, (0, width)), top - between(rng, (20, 90)))
    for x in np.arange(-3 * width, 4 * width, tile * 3):
        cv2.line(sheet, (round(x), height * 2), (round(focus[0]), round(focus[1])), joint, 1, cv2.LINE_AA)
    sheet[:top] = 0
    gap, y = tile * 0.25, float(top)
    while y < height:
        cv2.line(sheet, (0, round(y)), (width, round(y)), joint, 1)
        gap *= 1.18
        y += gap


def _facade(sheet: Image, floor: int, wall: Rgb, glass: tuple[Rgb, Rgb], rng: Rng, lit: float = 1.0) -> None:
    """House fronts of changing width with rows of windows and doors."""
    x = -between(rng, (0, 40))
    while x < sheet.shape[1]:
        width = between(rng, (45, 120))
        own = mixed(wall, _rgb(rng, (60, 50, 45), (245, 235, 215)), 0.3)
        _box(sheet, x, 0, width, floor, own)
        _box(sheet, x, floor - between(rng, (4, 12)), width, 12, mixed(own, (0, 0, 0), 0.25))
        step, tall = between(rng, (15, 26)), between(rng, (14, 28))
        for left in np.arange(x + 5, x + width - step * 0.7, step):
            for top in np.arange(floor - 14 - tall, -tall, -tall * 1.5):
                pane = mixed(*glass, float(rng.random())) if rng.random() < lit else (22, 24, 30)
                _box(sheet, left, top, step * 0.55, tall, pane)
                corner = (round(left + step * 0.55), round(top + tall))
                cv2.rectangle(sheet, (round(left), round(top)), corner, mixed(own, (255, 255, 255), 0.3), 1)
        if rng.random() < 0.6:
            _box(sheet, x + width * 0.4, floor - 34, 16, 34, _rgb(rng, (50, 35, 30), (110, 80, 60)))
        x += width


def _blobs(sheet: Image, centre: tuple[float, float], radius: float, colours: list[Rgb], count: int, rng: Rng) -> None:
    for dx, dy, size, which in zip(
        *rng.normal(0, 0.5, (2, count)), rng.random(count), rng.integers(len(colours), size=count), strict=True
    ):
        place = (round(centre[0] + dx * radius), round(centre[1] + dy * radius))
        cv2.circle(sheet, place, max(1, round(radius * (0.12 + 0.2 * size))), colours[which], -1, cv2.LINE_AA)


def _passers_by(sheet: Image, floor: int, rng: Rng, count: int, dark: float) -> None:
    """Small people far away: a body, legs, a head."""
    for _ in range(count):
        tall = between(rng, (26, 52))
        x, y = between(rng, (0, sheet.shape[1])), floor + between(rng, (2, 14))
        coat = mixed(_rgb(rng, (30, 30, 40), (220, 180, 160)), (0, 0, 0), dark)
        legs = mixed(_rgb(rng, (25, 28, 40), (110, 110, 120)), (0, 0, 0), dark)
        _box(sheet, x - tall * 0.07, y - tall * 0.5, tall * 0.14, tall * 0.5, legs)
        _box(sheet, x - tall * 0.1, y - tall * 0.85, tall * 0.2, tall * 0.4, coat)
        face = mixed((190, 150, 120), (0, 0, 0), dark)
        cv2.circle(sheet, (round(x), round(y - tall * 0.93)), max(1, round(tall * 0.065)), face, -1)


def _plaza(sheet: Image, floor: int, rng: Rng) -> None:
    width = sheet.shape[1]
    stone = _rgb(rng, (196, 180, 150), (222, 214, 200))
    _floor(sheet, floor, stone, mixed(stone, (90, 80, 70), 0.35), rng, between(rng, (9, 16)))
    _facade(sheet, floor, _rgb(rng, (226, 196, 150), (236, 224, 200)), ((70, 92, 112), (150, 184, 208)), rng)
    if floor > 50 and rng.random() < 0.6:
        _box(sheet, 0, 0, width, floor * 0.25, _rgb(rng, (120, 172, 226), (170, 204, 240)))
    for x in rng.uniform(0, width, 5):
        awning = _rgb(rng, (200, 50, 40), (240, 220, 120))
        _box(sheet, x, floor - 46, 34, 9, awning)
        _box(sheet, x + 4, floor - 16, 24, 16, mixed(awning, (60, 60, 60), 0.6))
    for x in rng.uniform(0, width, 4):
        _box(sheet, x, floor + 2, 22, 12, (176, 120, 86))
        _blobs(sheet, (x + 11, floor - 4), 14, [(58, 122, 48), (88, 150, 60), (206, 84, 96)], 26, rng)
    _passers_by(sheet, floor, rng, 9, 0.0)
    shade = np.array(
        [(0, floor), (width * rng.random(), floor), (width * rng.random() * 0.6, sheet.shape[0]), (0, sheet.shape[0])]
    )
    mask = np.zeros(sheet.shape[:2], np.uint8)
    cv2.fillPoly(mask, [shade.astype(np.int32)], 255)  # the shadow of a house on the ground
    np.copyto(sheet, (sheet * 0.62).astype(np.uint8), where=mask[:, :, None] > 0)


def _campus(sheet: Image, floor: int, rng: Rng) -> None:
    width = sheet.shape[1]
    path = _rgb(rng, (118, 116, 112), (146, 142, 136))
    _floor(sheet, floor, path, mixed(path, (70, 70, 70), 0.4), rng, 0 if rng.random() < 0.6 else 14)
    sheet[:floor] = _rgb(rng, (186, 190, 194), (206, 208, 210))
    brick = _rgb(rng, (120, 66, 52), (148, 92, 72))
    for x in rng.uniform(-60, width, 4):
        top = between(rng, (-20, floor * 0.4))
        _box(sheet, x, top, 110, floor - top, brick)
        for row in np.arange(top + 4, floor, 4):
            cv2.line(
                sheet, (round(x), round(row)), (round(x + 110), round(row)), mixed(brick, (190, 180, 170), 0.25), 1
            )
        for left in np.arange(x + 8, x + 100, 26):
            _box(sheet, left, top + 10, 14, 22, (104, 114, 122))
    lawn = _rgb(rng, (84, 98, 50), (118, 116, 62))
    _box(sheet, 0, floor - 3, width, between(rng, (8, 26)), lawn)
    leaves: list[Rgb] = [(190, 108, 34), (204, 142, 44), (150, 72, 36), (122, 110, 52)]
    for x in rng.uniform(0, width, 6):
        thick = between(rng, (3, 8))
        _box(sheet, x, 0, thick, floor + between(rng, (0, 10)), (70, 56, 46))
        _blobs(sheet, (x, between(rng, (-6, 22))), between(rng, (24, 42)), leaves, 50, rng)
    for x, y in zip(rng.uniform(0, width, 240), rng.uniform(floor, sheet.shape[0], 240), strict=True):
        cv2.circle(sheet, (round(x), round(y)), 1, leaves[int(x) % 4], -1)
    for x in rng.uniform(0, width, 2):  # bicycles
        for wheel in (0, 22):
            cv2.circle(sheet, (round(x + wheel), floor + 4), 9, (40, 40, 44), 1, cv2.LINE_AA)
        cv2.line(sheet, (round(x), floor + 4), (round(x + 22), floor - 6), (60, 90, 120), 2, cv2.LINE_AA)
    _passers_by(sheet, floor, rng, 5, 0.25)


def _mall(sheet: Image, floor: int, rng: Rng) -> None:
    width = sheet.shape[1]
    marble = _rgb(rng, (206, 188, 160), (226, 214, 196))
    _floor(sheet, floor, marble, mixed(marble, (150, 120, 90), 0.4), rng, between(rng, (22, 34)))
    _box(sheet, 0, 0, width, floor, _rgb(rng, (186, 150, 112), (220, 196, 162)))
    x = -between(rng, (0, 30))
    while x < width:
        shop = between(rng, (56, 96))
        _box(sheet, x + 5, floor - 78, shop - 10, 76, _rgb(rng, (250, 226, 170), (255, 244, 220)))
        sign = _rgb(rng, (170, 30, 40), (40, 70, 140))
        _box(sheet, x + 5, floor - 92, shop - 10, 13, sign)
        for letter in np.arange(x + 14, x + shop - 16, 7):
            _box(sheet, letter, floor - 88, 4, 5, (250, 240, 220))
        for left in np.arange(x + 9, x + shop - 14, 9):  # goods and mannequins behind the glass
            tall = between(rng, (14, 44))
            _box(sheet, left, floor - 4 - tall, 6, tall, _rgb(rng, (90, 50, 60), (230, 190, 150)))
        _box(sheet, x, 0, 5, floor, (120, 96, 74))
        x += shop
    below = sheet[max(0, 2 * floor - sheet.shape[0]) : floor][::-1]  # the polished floor mirrors the shops
    mirror = sheet[floor : floor + len(below)]
    cv2.addWeighted(mirror, 0.72, cv2.blur(below, (3, 9)), 0.28, 0, dst=mirror)
    for x in rng.uniform(0, width, 3):
        _box(sheet, x, floor - 10, 3, 22, (150, 150, 152))
        _box(sheet, x, floor - 10, 60, 2, (176, 176, 178))
    for x in rng.uniform(0, width, 2):
        _box(sheet, x, floor - 4, 14, 14, (96, 72, 54))
        _blobs(sheet, (x + 7, floor - 14), 15, [(40, 92, 48), (62, 120, 60)], 24, rng)
    _passers_by(sheet, floor, rng, 8, 0.1)


def _night(sheet: Image, floor: int, rng: Rng) -> None:
    width = sheet.shape[1]
    asphalt = _rgb(rng, (58, 58, 64), (84, 82, 84))
    _floor(sheet, floor, asphalt, asphalt, rng, 0)
    _facade(sheet, floor, (62, 56, 56), ((250, 206, 120), (190, 214, 240)), rng, lit=0.35)
    kerb = floor + between(rng, (4, 18))
    _box(sheet, 0, kerb, width, 2, (120, 118, 114))
    for x in np.arange(between(rng, (0, 30)), width, 46):
        cv2.line(sheet, (round(x), round(kerb + 20)), (round(x + 22), round(kerb + 20)), (170, 170, 160), 2)
    for x in rng.uniform(0, width, 3):  # parked cars
        body = _rgb(rng, (30, 32, 38), (120, 30, 34))
        _box(sheet, x, floor - 14, 62, 14, body)
        _box(sheet, x + 12, floor - 24, 34, 11, (26, 30, 36))
        for wheel in (12, 50):
            cv2.circle(sheet, (round(x + wheel), floor), 6, (14, 14, 16), -1, cv2.LINE_AA)
        cv2.circle(sheet, (round(x + 61), floor - 8), 2, (255, 70, 50), -1)
    glow = np.zeros(sheet.shape, np.float32)
    for x in rng.uniform(0, width, 7):
        lamp = (round(x), round(between(rng, (-4, floor * 0.7))))
        light = _rgb(rng, (255, 170, 70), (190, 210, 255))
        cv2.circle(glow, lamp, round(between(rng, (10, 26))), light, -1)
        cv2.circle(
            glow,
            (lamp[0], round(kerb + between(rng, (6, 40)))),
            round(between(rng, (8, 20))),
            mixed(light, (0, 0, 0), 0.55),
            -1,
        )
    glow = cv2.GaussianBlur(glow, (0, 0), 9)
    sheet[:] = np.clip(sheet + 0.65 * glow, 0, 255).astype(np.uint8)
    _passers_by(sheet, floor, rng, 4, 0.6)
