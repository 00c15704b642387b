"""Heads: skull, face, hair, hats, scarf, as visible from the head's yaw."""

import math

import numpy as np

from pipelines.synthetic.colours import blend
from pipelines.synthetic.layer import HEAD, OVAL, UPPER, Layer
from pipelines.synthetic.placement import Placement
from pipelines.synthetic.skeleton import HEAD_HALF, HEAD_ROW, NECK_ROW, TRUNK_ROWS, Floats, half_width, xy

_EGG = OVAL * np.stack([1 - 0.22 * np.maximum(OVAL[:, 1], 0.0) ** 2, np.ones(len(OVAL))], axis=1)  # a narrow jaw


def _frame(placed: Placement) -> tuple[Floats, float, float, float]:
    """Centre of the head, half width and half height (pixels), and the yaw it looks with."""
    body = placed.who.body
    yaw = placed.pose.yaw + placed.pose.head_turn
    unit = placed.unit * body.stature * body.head
    return placed.points[HEAD_ROW], half_width(0.050, 0.060, yaw) * unit, HEAD_HALF * unit, yaw


def hair_behind(layer: Layer, placed: Placement) -> None:
    """Hair below the skull: drawn before the trunk in front views, after it in back views."""
    who = placed.who
    if who.hair not in {"long", "medium", "ponytail", "bun"} or who.headwear == "hood":
        return
    centre, half_x, half_y, yaw = _frame(placed)
    back = -math.sin(yaw)
    rgb = blend(who.hair_rgb, (0, 0, 0), 0.12)
    chest = placed.points[TRUNK_ROWS.start + 2]
    if who.hair == "bun":
        layer.ellipse(centre + xy(back * half_x * 1.0, -half_y * 0.55), (half_x * 0.45, half_y * 0.36), rgb, HEAD)
        return
    if who.hair == "ponytail":
        if math.cos(yaw) < 0.6:
            root = centre + xy(back * half_x * 0.95, -half_y * 0.15)
            tip = root + xy(back * half_x * 0.35, half_y * 2.3)
            layer.limb(root, tip, (half_x * 0.36, half_x * 0.18), rgb, HEAD)
        return
    low = chest[1] - 0.02 * placed.unit if who.hair == "long" else placed.points[NECK_ROW][1]
    shift = back * half_x * 0.40
    end = np.array((centre[0] + shift * 1.2, low))
    wide = half_x * (0.78 if abs(back) > 0.6 else 1.08)
    layer.limb(centre + xy(shift, -0.1 * half_y), end, (wide, wide * 0.95), rgb, HEAD)


def head(layer: Layer, placed: Placement) -> None:
    """Neck, skull, face and everything worn on the head."""
    who = placed.who
    centre, half_x, half_y, yaw = _frame(placed)
    neck = placed.points[NECK_ROW]
    layer.limb(
        neck + xy(0, 0.004 * placed.unit),
        centre + xy(0, 0.5 * half_y),
        (0.029 * placed.unit,) * 2,
        blend(who.skin, (0, 0, 0), 0.22),
        HEAD,
    )
    if who.scarf_rgb:
        layer.limb(
            neck + xy(-0.030 * placed.unit, 0.0),
            neck + xy(0.030 * placed.unit, 0.0),
            (0.026 * placed.unit,) * 2,
            who.scarf_rgb,
            UPPER,
        )
    hooded = who.headwear == "hood"
    back, away = -math.sin(yaw), max(0.0, -math.cos(yaw))
    skull = np.broadcast_to(centre, _EGG.shape)
    half = (half_x * (1.22 if hooded else 0.96), half_y * (1.22 if hooded else 1.0))
    layer.solid(skull, _EGG * half, who.headwear_rgb if hooded else who.skin, HEAD)
    if not hooded and who.hair != "bald":
        lower = 0.30 + 0.35 * away + (0.15 if who.hair in {"long", "medium"} else 0.0)
        cap = centre + xy(back * 0.20 * half_x, -(0.55 - 0.5 * lower) * half_y * 0.5)
        layer.ellipse(cap, (half_x * (1.04 - 0.12 * abs(back)), half_y * (0.72 + 0.5 * lower)), who.hair_rgb, HEAD)
    if math.cos(yaw) > -0.55:
        _face(layer, placed, centre, half_x, half_y, yaw)
    if who.headwear in {"cap", "beanie"}:
        _hat(layer, placed, centre, half_x, half_y, yaw)


def _face(layer: Layer, placed: Placement, centre: Floats, half_x: float, half_y: float, yaw: float) -> None:
    who = placed.who
    front = math.cos(yaw)
    unit = placed.unit * who.body.stature * who.body.head
    side = math.sin(yaw)
    hairline = 0.0 if who.hair == "bald" else 0.20
    middle = centre + xy(side * 0.46 * half_x, hairline * half_y)
    half_face = 0.047 * unit * (0.55 + 0.42 * max(front, 0.0)) * (1.0 if front > 0 else 1 + front)
    tall = half_y * (0.98 if who.hair == "bald" else 0.82)
    layer.solid(np.broadcast_to(middle, OVAL.shape), _EGG * (half_face, tall), who.skin, HEAD)
    if front < -0.2:
        return
    if abs(side) > 0.35:  # in profile the nose is part of the outline
        tip = centre + xy(side * 1.04 * half_x, 0.30 * half_y)
        layer.limb(middle + xy(0.0, 0.25 * half_y), tip, (0.2 * half_x, 0.09 * half_x), who.skin, HEAD)
    if who.beard:
        jaw = OVAL[:13] * (half_face * 1.02, tall * 1.02)
        layer.fill(middle + jaw + xy(0, 0.12 * half_y), blend(who.hair_rgb, who.skin, 0.25), HEAD)
    dark = blend(who.skin, (20, 10, 10), 0.6)
    thick = round(0.010 * unit)
    for azimuth in (-0.42, 0.42):
        if math.cos(azimuth + yaw) > 0.25:
            eye = centre + xy(math.sin(azimuth + yaw) * 0.92 * half_x, 0.10 * half_y)
            reach = np.array((0.007 * unit, 0.0))
            layer.line(np.stack([eye - reach, eye + reach]), dark, thick)
            layer.line(
                np.stack([eye - reach, eye + reach]) - xy(0, 0.2 * half_y), blend(who.hair_rgb, who.skin, 0.6), thick
            )
            if who.glasses:
                layer.ellipse(eye, (0.014 * unit, 0.010 * unit), (24, 24, 30), HEAD)
    mouth = centre + xy(math.sin(yaw) * 0.85 * half_x, 0.66 * half_y)
    reach = np.array((0.012 * unit * max(0.3, front), 0.0))
    layer.line(np.stack([mouth - reach, mouth + reach]), blend(who.skin, (120, 30, 40), 0.55), thick)
    nose = centre + xy(math.sin(yaw) * 1.0 * half_x, 0.36 * half_y)
    layer.crease(np.stack([nose - xy(0, 0.2 * half_y), nose]), 104, thick)


def _hat(layer: Layer, placed: Placement, centre: Floats, half_x: float, half_y: float, yaw: float) -> None:
    who = placed.who
    crown = OVAL[12:] if who.headwear == "cap" else OVAL[11:]
    top = np.concatenate([crown, OVAL[:1]]) * (1.10 * half_x, 1.14 * half_y)
    lift = np.array((0.0, -0.12 * half_y if who.headwear == "cap" else -0.02 * half_y))
    axis = np.broadcast_to(centre + lift, top.shape)
    layer.solid(axis, top, who.headwear_rgb, HEAD)
    brim_y = centre + lift
    if who.headwear == "beanie":
        band = np.array([(-1.08 * half_x, 0.0), (1.08 * half_x, 0.0)])
        layer.crease(brim_y + band, 100, max(1, round(0.016 * placed.unit)))
    elif math.cos(yaw) > -0.5:
        root = brim_y + xy(math.sin(yaw) * 0.5 * half_x, -0.04 * half_y)
        reach = 0.75 * half_x if abs(math.sin(yaw)) < 0.5 else 0.4 * half_x
        tip = root + xy(math.sin(yaw) * 1.05 * half_x, 0.10 * half_y)
        rgb = blend(who.headwear_rgb, (0, 0, 0), 0.25)
        layer.limb(root - xy(reach * 0.6, 0), tip + xy(reach * 0.6, 0), (0.13 * half_y, 0.11 * half_y), rgb, HEAD)
