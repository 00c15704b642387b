"""Bags: on the back, on the hip, in the hand. Straps are part of the garment's texture (see cloth)."""

import math

import numpy as np

from pipelines.synthetic.colours import blend
from pipelines.synthetic.layer import CARRIED, OVAL, Layer
from pipelines.synthetic.placement import Placement
from pipelines.synthetic.skeleton import HAND_ROW, HIP_ROW, TRUNK_ROWS, Floats, half_width, xy

_BLOCK: Floats = np.sign(OVAL) * np.abs(OVAL) ** 0.4  # a rectangle with rounded corners, half axes 1


def backpack(layer: Layer, placed: Placement) -> None:
    """A backpack: a block behind the trunk, fully visible from behind, its side in profile."""
    who, yaw, unit = placed.who, placed.pose.yaw, placed.unit
    if who.bag != "backpack":
        return
    chest, waist = placed.points[TRUNK_ROWS.start + 2], placed.points[TRUNK_ROWS.start + 3]
    centre = 0.5 * (chest + waist) + xy(-math.sin(yaw) * 0.105 * unit, -0.01 * unit)
    half = (half_width(0.088, 0.055, yaw) * unit, 0.125 * unit)
    layer.solid(np.broadcast_to(centre, _BLOCK.shape), _BLOCK * half, who.bag_rgb, CARRIED)
    if math.cos(yaw) < -0.3:
        pocket = centre + _BLOCK * (half[0] * 0.72, half[1] * 0.34) + xy(0, 0.42 * half[1])
        layer.fill(pocket, blend(who.bag_rgb, (0, 0, 0), 0.22), CARRIED)
        across = np.array([(-half[0] * 0.8, -half[1] * 0.15), (half[0] * 0.8, -half[1] * 0.15)])
        layer.line(centre + across, blend(who.bag_rgb, (255, 255, 255), 0.25), round(0.008 * unit))


def hand_held(layer: Layer, placed: Placement) -> None:
    """A messenger bag on the hip, or a bag in the hand; on the far side the body occludes it."""
    who, yaw, unit = placed.who, placed.pose.yaw, placed.unit
    side = 0 if who.bag_side > 0 else 1
    if who.bag == "messenger":
        hip = placed.points[HIP_ROW + side]
        if placed.depth[HIP_ROW + side] < placed.depth[HIP_ROW + 1 - side] - 0.03:
            return
        centre = hip + xy(who.bag_side * math.cos(yaw) * 0.065 * unit, -0.005 * unit)
        half = (half_width(0.040, 0.085, yaw) * unit, 0.062 * unit)
        layer.solid(np.broadcast_to(centre, _BLOCK.shape), _BLOCK * half, who.bag_rgb, CARRIED)
        layer.crease(
            centre + np.array([(-half[0], 0.1 * half[1]), (half[0], 0.1 * half[1])]), 92, max(1, round(0.008 * unit))
        )
    elif who.bag in {"handbag", "shopping"} and placed.pose.arms[side] == "hang":
        hand = placed.points[HAND_ROW + side]
        large = who.bag == "shopping"
        half = (half_width(0.030, 0.085 if large else 0.065, yaw) * unit, (0.085 if large else 0.055) * unit)
        centre = hand + xy(0.0, half[1] + (0.045 if large else 0.06) * unit)
        for reach in (-0.6, 0.6):
            layer.line(
                np.stack([hand, centre + xy(reach * half[0], -half[1])]),
                blend(who.bag_rgb, (0, 0, 0), 0.3),
                round(0.008 * unit),
            )
        layer.solid(np.broadcast_to(centre, _BLOCK.shape), _BLOCK * half, who.bag_rgb, CARRIED)
