"""A walking skeleton in three dimensions and its projection into a camera that looks down.

Lengths are fractions of an average stature. Body axes: x to the side (positive is screen right when the person faces
the camera), y up, z forward. Segment lengths follow Drillis and Contini (1966).
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipelines.synthetic.people import Body

Floats = npt.NDArray[np.float64]

SHOULDER, HIP, WAIST, CHEST, NECK = 0.815, 0.525, 0.62, 0.72, 0.85  # heights of an average body
HEAD_HALF = 0.066  # half the height of the head: a head is 1/7.5 of the stature
# Rows of a joint table; the side (0: x > 0, 1: x < 0) is added to the paired ones.
NECK_ROW, HEAD_ROW = 0, 1
SHOULDER_ROW, ELBOW_ROW, WRIST_ROW, HAND_ROW = 2, 4, 6, 8
HIP_ROW, KNEE_ROW, ANKLE_ROW, HEEL_ROW, TOE_ROW = 10, 12, 14, 16, 18
TRUNK_ROWS = slice(20, 25)  # centre line: neck, shoulders, chest, waist, hip
JOINTS = 25


@dataclass(frozen=True)
class Pose:
    """One phase of a walk. Angles in radians."""

    yaw: float  # 0 faces the camera, pi/2 walks to screen right, pi shows the back
    phase: float  # of the step cycle
    stride: float  # amplitude of the thighs; near 0 when standing
    arms: tuple[str, str]  # hang | pocket | phone | read, per side
    lean: float
    head_turn: float  # yaw of the head relative to the body


@dataclass(frozen=True)
class View:
    """Camera parameters of the projection."""

    pitch: float  # radians below the horizon
    perspective: float  # relative magnification per stature of depth


def joints(body: Body, pose: Pose) -> Floats:
    """Joint positions [JOINTS, 3] in body axes, the lower foot on the ground (y = 0)."""
    table = np.zeros((JOINTS, 3))
    legs = body.legs * body.stature
    trunk = body.stature
    hip_y = HIP * legs
    bob = [hip_y + (height - HIP) * trunk for height in (NECK, SHOULDER, CHEST, WAIST, HIP)]
    for row, height in zip(range(TRUNK_ROWS.start, TRUNK_ROWS.stop), bob, strict=True):
        table[row] = (0.0, height, math.sin(pose.lean) * (height - hip_y))
    table[NECK_ROW] = table[TRUNK_ROWS.start]
    table[HEAD_ROW] = table[NECK_ROW] + np.array((0.0, (0.012 + HEAD_HALF) * trunk, 0.014))
    for side, sign in enumerate((1.0, -1.0)):
        step = pose.phase + (0.0 if side == 0 else math.pi)
        _leg(table, side, sign, body, pose.stride, step, hip_y, legs)
        _arm(table, side, sign, body, pose, step, table[TRUNK_ROWS.start + 1], trunk)
    table[:, 1] -= table[[HEEL_ROW, HEEL_ROW + 1, TOE_ROW, TOE_ROW + 1], 1].min()
    return table


def _leg(
    table: Floats, side: int, sign: float, body: Body, stride: float, step: float, hip_y: float, legs: float
) -> None:
    thigh = stride * math.sin(step)
    knee = 0.05 + 1.7 * stride * max(0.0, math.cos(step)) ** 1.5  # bent most while the foot swings forward
    shank = thigh - knee
    foot = 0.75 * shank
    hip = np.array((sign * 0.052 * body.hips, hip_y, 0.0))
    at_knee = hip + 0.245 * legs * np.array((0.0, -math.cos(thigh), math.sin(thigh)))
    ankle = at_knee + 0.240 * legs * np.array((-sign * 0.03, -math.cos(shank), math.sin(shank)))
    forward = np.array((sign * 0.12, math.sin(foot), math.cos(foot)))
    down = np.array((0.0, -math.cos(foot), math.sin(foot)))
    for row, point in (
        (HIP_ROW, hip),
        (KNEE_ROW, at_knee),
        (ANKLE_ROW, ankle),
        (HEEL_ROW, ankle + 0.032 * down - 0.018 * forward),
        (TOE_ROW, ankle + 0.036 * down + 0.088 * forward),
    ):
        table[row + side] = point


def _arm(
    table: Floats, side: int, sign: float, body: Body, pose: Pose, step: float, shoulders: Floats, trunk: float
) -> None:
    upper = -0.75 * pose.stride * math.sin(step)
    bend = 0.22 + 0.5 * pose.stride * (1 - math.sin(step))
    out, in_fore = 0.10 + 0.10 * (body.girth - 1.0), 0.02
    kind = pose.arms[side]
    if kind == "pocket":
        upper, bend, out, in_fore = -0.30, 0.55, 0.28, -0.32
    elif kind == "phone":
        upper, bend, out, in_fore = 0.50, 2.35, 0.35, -0.25
    elif kind == "read":
        upper, bend, out, in_fore = 0.15, 1.35, 0.12, -0.35
    fore = upper + bend
    shoulder = shoulders + np.array((sign * 0.093 * body.shoulders, -0.033 * trunk, 0.0))
    elbow = shoulder + 0.172 * trunk * np.array((sign * out, -math.cos(upper), math.sin(upper)))
    along = np.array((sign * in_fore, -math.cos(fore), math.sin(fore)))
    wrist = elbow + 0.145 * trunk * along
    for row, point in (
        (SHOULDER_ROW, shoulder),
        (ELBOW_ROW, elbow),
        (WRIST_ROW, wrist),
        (HAND_ROW, wrist + 0.05 * along),
    ):
        table[row + side] = point


def project(points: Floats, yaw: float, view: View) -> Floats:
    """Screen positions [N, 4] of points [N, 3]: x right, y up, depth towards the camera, and the local scale.

    Weak perspective about half the stature: parts nearer to the camera are magnified.
    """
    sin_yaw, cos_yaw = math.sin(yaw), math.cos(yaw)
    sin_pitch, cos_pitch = math.sin(view.pitch), math.cos(view.pitch)
    across = points[:, 0] * cos_yaw + points[:, 2] * sin_yaw
    towards = points[:, 2] * cos_yaw - points[:, 0] * sin_yaw
    height = points[:, 1] - 0.5
    depth = towards * cos_pitch + height * sin_pitch
    scale = 1.0 + view.perspective * depth
    return np.stack([across * scale, (height * cos_pitch - towards * sin_pitch) * scale, depth, scale], axis=1)


def half_width(across: float, deep: float, yaw: float) -> float:
    """Half the silhouette's width of an ellipse with half axes `across` (x) and `deep` (z) seen under a yaw."""
    return math.hypot(across * math.cos(yaw), deep * math.sin(yaw))


def xy(x: float, y: float) -> Floats:
    """A vector on the screen, [2]."""
    return np.array((x, y))
