"""Drawing one person: limbs from far to near, clothes, head and bag, on a layer of the person's size."""

import math

import numpy as np

from pipelines.synthetic import bags, heads
from pipelines.synthetic.cloth import patterned, sleeve_colour, upper_texture, visible_texture
from pipelines.synthetic.colours import Rgb, blend
from pipelines.synthetic.layer import LEGS, UPPER, Layer, Texture, tube
from pipelines.synthetic.people import Person
from pipelines.synthetic.placement import Placement
from pipelines.synthetic.skeleton import (
    ANKLE_ROW,
    ELBOW_ROW,
    HAND_ROW,
    HEEL_ROW,
    HIP_ROW,
    KNEE_ROW,
    SHOULDER_ROW,
    TOE_ROW,
    TRUNK_ROWS,
    WRIST_ROW,
    Floats,
    half_width,
    xy,
)
from pipelines.synthetic.wardrobe import LOWERS, UPPERS

# Half axes (across, deep) of the trunk at the heights of skeleton.TRUNK_ROWS, in statures.
_TRUNK = ((0.036, 0.036), (0.094, 0.050), (0.100, 0.064), (0.084, 0.058), (0.094, 0.068))
_STRIPES = frozenset({"thin_stripes", "thick_stripes", "plaid", "dots"})


def draw(placed: Placement, light: tuple[float, float], grid: int) -> Layer:
    """The person on a layer of its own, whose origin and size are multiples of `grid` super-sampled pixels."""
    margin = 0.17 * placed.unit
    low = np.floor((placed.points.min(0) - margin) / grid) * grid
    high = np.ceil((placed.points.max(0) + margin) / grid) * grid
    width, height = (int(size) for size in high - low)
    layer = Layer(height, width, (int(low[0]), int(low[1])), light, placed.hip_line)
    facing_away = math.cos(placed.pose.yaw) < -0.15
    near = 0 if placed.depth[SHOULDER_ROW] > placed.depth[SHOULDER_ROW + 1] else 1
    sideways = abs(math.sin(placed.pose.yaw)) > 0.45
    if not facing_away:
        heads.hair_behind(layer, placed)
        bags.backpack(layer, placed)
    if sideways:
        _arm(layer, placed, 1 - near)
    first = 0 if placed.depth[ANKLE_ROW] < placed.depth[ANKLE_ROW + 1] else 1
    _leg(layer, placed, first)
    _leg(layer, placed, 1 - first)
    _lower_cloth(layer, placed)
    _trunk(layer, placed)
    if not sideways:
        _arm(layer, placed, 1 - near)
    heads.head(layer, placed)
    _arm(layer, placed, near)
    if facing_away:
        bags.backpack(layer, placed)
        heads.hair_behind(layer, placed)
    bags.hand_held(layer, placed)
    return layer


def _girth(who: Person) -> float:
    return 0.5 + 0.5 * who.body.girth


def _leg(layer: Layer, placed: Placement, side: int) -> None:
    who, unit, points = placed.who, placed.unit, placed.points
    lower = LOWERS[who.outfit.lower]
    hip, knee, ankle = (points[row + side] for row in (HIP_ROW, KNEE_ROW, ANKLE_ROW))
    girth = _girth(who)
    cloth = who.outfit.lower_rgb
    full = lower.cover > 0.9 and not lower.skirt
    extra = lower.loose if full else 0.0
    skin_or_cloth = cloth if full else who.skin
    _shoe(layer, placed, side)
    thigh = ((0.056 * girth + extra) * unit, (0.040 * girth + extra) * unit)
    wide = who.outfit.lower == "wide"
    shank = ((0.040 * girth + extra) * unit, (0.021 + extra * (1.25 if wide else 0.75)) * unit)
    hem = ankle + (0.10 if full else 0.0) * (ankle - knee) * (1.0 if wide else 0.35)
    layer.limb(knee, hem, shank, skin_or_cloth, LEGS)
    layer.limb(hip, knee, thigh, skin_or_cloth, LEGS)
    if not full and not lower.skirt and lower.cover > 0.2:
        end = hip + (knee - hip) * min(1.0, lower.cover * 2)
        layer.limb(hip, end, ((0.059 * girth + lower.loose) * unit, (0.046 * girth + lower.loose) * unit), cloth, LEGS)
    if full:
        behind = np.array((0.012, 0.0)) * unit
        layer.crease(np.stack([knee - behind, knee + behind]), 96, max(1, round(0.008 * unit)))
        layer.crease(
            np.stack([hem - 1.2 * behind, hem + 1.2 * behind + xy(0, 0.01 * unit)]), 88, max(1, round(0.008 * unit))
        )


def _shoe(layer: Layer, placed: Placement, side: int) -> None:
    who, unit, points = placed.who, placed.unit, placed.points
    heel, toe, ankle = (points[row + side] for row in (HEEL_ROW, TOE_ROW, ANKLE_ROW))
    rgb = who.shoe_rgb
    if who.shoe == "boots":
        knee = points[KNEE_ROW + side]
        layer.limb(ankle + 0.35 * (knee - ankle), heel, (0.030 * unit, 0.026 * unit), rgb, LEGS)
    layer.limb(ankle, heel, (0.020 * unit, 0.022 * unit), who.skin if who.shoe == "sandals" else rgb, LEGS)
    layer.limb(heel, toe, (0.024 * unit, 0.018 * unit), rgb, LEGS)
    sole = np.stack([heel, toe]) + xy(0.0, 0.017 * unit)
    rim = (232, 232, 228) if who.shoe == "sneakers" else blend(rgb, (0, 0, 0), 0.5)
    layer.line(sole, rim, round(0.010 * unit))


def _lower_cloth(layer: Layer, placed: Placement) -> None:
    """The seat of trousers, or a skirt around both thighs."""
    who, unit, points = placed.who, placed.unit, placed.points
    lower = LOWERS[who.outfit.lower]
    waist, hip = points[TRUNK_ROWS.stop - 2], points[TRUNK_ROWS.stop - 1]
    across, deep = _TRUNK[4]
    reach = half_width(across * who.body.hips, deep, placed.pose.yaw) * _girth(who) * unit
    top = hip + 0.35 * (waist - hip)
    if not lower.skirt:
        layer.limb(top, hip + xy(0, 0.02 * unit), (reach * 0.90, reach * 0.92), who.outfit.lower_rgb, LEGS)
        return
    _bell(layer, placed, top, lower.cover, reach + lower.loose * unit, 1.35, who.outfit.lower_rgb)


def _bell(layer: Layer, placed: Placement, top: Floats, cover: float, reach: float, flare: float, rgb: Rgb) -> None:
    """Cloth that hangs from `top` around both legs and covers the fraction `cover` of the leg."""
    points, unit = placed.points, placed.unit
    hip = points[TRUNK_ROWS.stop - 1]
    along = []
    for side in (0, 1):
        at_hip, knee, ankle = (points[row + side] for row in (HIP_ROW, KNEE_ROW, ANKLE_ROW))
        down = cover * 2
        along.append(at_hip + (knee - at_hip) * min(1.0, down) + (ankle - knee) * max(0.0, down - 1.0) * 0.8)
    low = max(point[1] for point in along)
    left = min(*(point[0] - 0.045 * unit for point in along), hip[0] - reach * flare * 0.9)
    right = max(*(point[0] + 0.045 * unit for point in along), hip[0] + reach * flare * 0.9)
    middle = 0.5 * (left + right)
    outline = np.array(
        [
            (top[0] - reach * 0.85, top[1]),
            (top[0] + reach * 0.85, top[1]),
            (hip[0] + reach, hip[1]),
            (right, low),
            (middle, low + 0.012 * unit),
            (left, low),
            (hip[0] - reach, hip[1]),
        ]
    )
    axis = np.array([top, top, hip, (middle, low), (middle, low), (middle, low), hip])
    layer.solid(axis, outline - axis, rgb, UPPER if placed.who.outfit.lower == "bare" or top[1] < hip[1] else LEGS)
    for share in (0.3, 0.5, 0.72):
        foot = (left + (right - left) * share, low)
        layer.crease(np.array([(top[0] + (share - 0.5) * reach, hip[1]), foot]), 106, max(1, round(0.012 * unit)))


def _trunk(layer: Layer, placed: Placement) -> None:
    who, unit = placed.who, placed.unit
    garment = UPPERS[who.outfit.upper]
    yaw = placed.pose.yaw
    centre = placed.points[TRUNK_ROWS]
    scale = (1.0, who.body.shoulders, 0.5 + 0.5 * who.body.shoulders, who.body.waist, who.body.hips)
    girth = _girth(who)
    reach = []
    for (across, deep), factor in zip(_TRUNK, scale, strict=True):
        loose = 0.3 * garment.loose if factor == 1.0 else garment.loose
        reach.append((half_width(across * factor, deep * girth, yaw) * girth + loose) * unit)
    reach[0] = (0.034 + garment.collar) * unit
    hip, waist = centre[4], centre[3]
    knees = 0.5 * (placed.points[KNEE_ROW] + placed.points[KNEE_ROW + 1])
    share = (0.525 - garment.hem) / 0.245  # how far down the thigh the hem hangs; negative above the hip
    hem = hip + (knees - hip) * share if share > 0 else hip + (waist - hip) * (-share)
    if share > 0.15:
        rgb = who.outfit.upper_rgb
        _bell(layer, placed, hip + 0.4 * (waist - hip), min(share, 1.0) / 2, reach[4], garment.flare, rgb)
        hem = hip + 0.3 * (knees - hip) * share
    collar = centre[0] - xy(0, garment.collar * unit)
    rows = np.array([collar, centre[0] + 0.3 * (centre[1] - centre[0]), centre[1], *centre[2:4], hip, hem])
    reaches = np.array(
        [reach[0], reach[0] * 1.45, reach[1], *reach[2:4], reach[4], reach[4] * (0.98 + 0.02 * garment.flare)]
    )
    axis = np.concatenate([rows, rows[::-1]])
    spread = np.stack([np.concatenate([reaches, -reaches[::-1]]), np.zeros(len(axis))], axis=1)
    wide = float(reaches.max())
    down = hem - collar
    corners = np.array([collar - xy(wide, 0), collar + xy(wide, 0), collar - xy(wide, 0) + down])
    texture = Texture(visible_texture(upper_texture(who), yaw), corners)
    layer.solid(axis, spread, who.outfit.upper_rgb, UPPER, texture)
    for height, tilt in ((0.55, 0.25), (0.75, -0.3)):  # folds at the waist
        at = centre[1] + (hip - centre[1]) * height
        ends = np.array([(-0.6 * wide, -tilt * 0.2 * wide), (0.3 * wide, tilt * 0.2 * wide)])
        layer.crease(at + ends * (1 if placed.pose.phase > math.pi else -1), 108, max(1, round(0.012 * unit)))
    layer.crease(np.array([hem - xy(reach[4], 0), hem + xy(reach[4], 0)]), 80, max(1, round(0.010 * unit)))


def _arm(layer: Layer, placed: Placement, side: int) -> None:
    who, unit, points = placed.who, placed.unit, placed.points
    garment = UPPERS[who.outfit.upper]
    shoulder, elbow, wrist, hand = (points[row + side] for row in (SHOULDER_ROW, ELBOW_ROW, WRIST_ROW, HAND_ROW))
    girth = _girth(who)
    loose = garment.loose
    skin_radii = [radius * girth * unit for radius in (0.032, 0.026, 0.018)]
    cloth_radii = [
        (radius * girth + loose * share) * unit for radius, share in ((0.034, 0.55), (0.028, 0.75), (0.022, 0.75))
    ]
    if placed.pose.arms[side] != "pocket":
        layer.limb(wrist, wrist + 0.75 * (hand - wrist), (0.015 * unit, 0.019 * unit), who.skin, UPPER)
    if garment.sleeve < 1.0:
        layer.limb(elbow, wrist, (skin_radii[1], skin_radii[2] * 0.85), who.skin, UPPER)
        layer.limb(shoulder, elbow, (skin_radii[0], skin_radii[1]), who.skin, UPPER)
        if garment.sleeve > 0:
            end = shoulder + (elbow - shoulder) * garment.sleeve * 1.7
            _sleeve(layer, placed, shoulder, end, (cloth_radii[0], cloth_radii[1]))
        return
    _sleeve(layer, placed, elbow, wrist, (cloth_radii[1], cloth_radii[2]))
    _sleeve(layer, placed, shoulder, elbow, (cloth_radii[0], cloth_radii[1]))
    fold = np.array((0.018, -0.004)) * unit
    layer.crease(np.stack([elbow - fold, elbow + fold]), 88, max(1, round(0.009 * unit)))


def _sleeve(layer: Layer, placed: Placement, start: Floats, end: Floats, radii: tuple[float, float]) -> None:
    outfit = placed.who.outfit
    axis, spread = tube(start, end, *radii)
    texture = None
    if outfit.pattern in _STRIPES:
        along = end - start
        across = np.array((-along[1], along[0])) / max(float(np.hypot(*along)), 1e-6) * radii[0]
        texture = Texture(patterned(outfit, 24, 16), np.stack([start - across, start + across, end - across]))
    layer.solid(axis, spread, sleeve_colour(outfit), UPPER, texture)
