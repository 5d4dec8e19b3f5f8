"""3D boxes: rows of `x, y, z, length, width, height, yaw, vx, vy`.

The centre is the box's middle (gravity centre), length lies along the heading, yaw is
counter-clockwise from +x in (-pi, pi]. SI units.
"""

from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float64

from perception.geometry import rigid

CENTER = slice(0, 3)
SIZE = slice(3, 6)
YAW = 6
VELOCITY = slice(7, 9)
NUM_COLUMNS = 9


def wrap_angle(angle: Any) -> Any:
    """Bring an angle [rad] into (-pi, pi]."""
    return -((-angle + np.pi) % (2 * np.pi) - np.pi)


def transform(
    T_dst_src: Float64[np.ndarray, "4 4"], boxes_src: Float[np.ndarray, "k 9"]
) -> Float[np.ndarray, "k 9"]:
    """Express boxes in another frame whose z axis points (nearly) the same way.

    Yaw turns by the heading between the frames: exact for a rotation about z, and within the square
    of the tilt otherwise (1 degree of pitch: 0.0003 rad). A velocity that is NaN stays NaN.
    """
    boxes_dst = boxes_src.copy()
    boxes_dst[:, CENTER] = rigid.apply(T_dst_src, boxes_src[:, CENTER])
    heading = np.stack(
        [np.cos(boxes_src[:, YAW]), np.sin(boxes_src[:, YAW]), np.zeros(len(boxes_src))], axis=-1
    )
    heading_dst = heading @ T_dst_src[:3, :3].T
    boxes_dst[:, YAW] = np.arctan2(heading_dst[:, 1], heading_dst[:, 0])
    velocity = np.concatenate([boxes_src[:, VELOCITY], np.zeros((len(boxes_src), 1))], axis=-1)
    boxes_dst[:, VELOCITY] = (velocity @ T_dst_src[:3, :3].T)[:, :2]
    return boxes_dst


def corners(boxes: Float[np.ndarray, "k 9"]) -> Float64[np.ndarray, "k 8 3"]:
    """Eight corners: the four of the bottom counter-clockwise from front-left, then the top's."""
    signs = np.array(
        [
            [x, y, z]
            for z in (-0.5, 0.5)
            for x, y in ((0.5, 0.5), (-0.5, 0.5), (-0.5, -0.5), (0.5, -0.5))
        ]
    )
    local = signs[None] * boxes[:, None, SIZE]
    cos, sin = np.cos(boxes[:, YAW, None]), np.sin(boxes[:, YAW, None])
    x = local[..., 0] * cos - local[..., 1] * sin
    y = local[..., 0] * sin + local[..., 1] * cos
    return np.stack([x, y, local[..., 2]], axis=-1) + boxes[:, None, CENTER]


def points_inside(
    boxes: Float[np.ndarray, "k 9"], points: Float[np.ndarray, "n 3"]
) -> Bool[np.ndarray, "k n"]:
    """Which points lie in which box, faces included; boxes upright in the points' frame."""
    offset = points[None, :, :] - boxes[:, None, CENTER]
    cos, sin = np.cos(boxes[:, YAW, None]), np.sin(boxes[:, YAW, None])
    local = np.stack(
        [
            offset[..., 0] * cos + offset[..., 1] * sin,
            offset[..., 1] * cos - offset[..., 0] * sin,
            offset[..., 2],
        ],
        axis=-1,
    )
    return (np.abs(local) <= boxes[:, None, SIZE] / 2).all(axis=-1)
