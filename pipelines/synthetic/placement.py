"""A posed person projected into a crop, the input of all drawing functions."""

from dataclasses import dataclass

import numpy as np

from pipelines.synthetic.people import Person
from pipelines.synthetic.skeleton import (
    HEAD_ROW,
    HEEL_ROW,
    HIP_ROW,
    KNEE_ROW,
    TOE_ROW,
    TRUNK_ROWS,
    Floats,
    Pose,
    View,
    joints,
    project,
)


@dataclass(frozen=True)
class Placement:
    """The person, the pose, and the joints in super-sampled crop pixels."""

    who: Person
    pose: Pose
    points: Floats  # [JOINTS, 2]: x right, y down
    depth: Floats  # [JOINTS]: towards the camera, statures
    unit: float  # pixels per stature
    hip_line: float  # crop row just below the hips


def place(who: Person, pose: Pose, view: View, top: float, bottom: float, centre_x: float) -> Placement:
    """Project a posed person so that the crown is at row `top`, the lowest sole at `bottom` (super-sampled pixels)."""
    table = joints(who.body, pose)
    seen = project(table, pose.yaw, view)
    crown = seen[HEAD_ROW, 1] + 0.07 * who.body.stature * seen[HEAD_ROW, 3]
    soles = seen[HEEL_ROW : TOE_ROW + 2, 1].min() - 0.018
    unit = (bottom - top) / (crown - soles)
    middle = 0.5 * (seen[HIP_ROW, 0] + seen[HIP_ROW + 1, 0])
    points = np.stack([centre_x + (seen[:, 0] - middle) * unit, top + (crown - seen[:, 1]) * unit], axis=1)
    hip = points[TRUNK_ROWS.stop - 1]
    knees = 0.5 * (points[KNEE_ROW] + points[KNEE_ROW + 1])
    return Placement(who, pose, points, seen[:, 2], unit, float(hip[1] + 0.10 * (knees[1] - hip[1])))
