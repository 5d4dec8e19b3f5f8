"""Shadows of boxes on the ground, and what lies in the shade of something large."""

import cv2
import numpy as np
from jaxtyping import Bool, Float64, Int32, Int64, UInt8

from perception.geometry import rigid
from perception.synthetic.level_frame import LevelFrame
from perception.synthetic.primitives import SEMANTIC_CLASSES, Primitives

_NEAR = 0.3
"""Shadows are cut off this close to the image plane [m]."""
_SUBPIXEL_BITS = 3
_MAX_SHADOW_SLOPE = 6.0
"""A shadow is at most this many times as long as what throws it."""
_CONTACT_CLEARANCE = 0.75
"""Boxes whose underside is lower than this [m] darken the ground below."""
_CONTACT_RANGE = 35.0
_CONTACT_GROWTH = 0.08
"""How far that reaches beyond the box [m]."""
_CASTER_SIZE = 1.0
"""Boxes that reach this far in any direction from their middle [m] shade others."""
_SHADE_RANGE = 70.0
"""Objects further than this from the camera [m] are never in the shade."""
_SHADOW_RANGE = 110.0
"""Shadows on the ground are drawn up to here [m]."""
_FIRST_OBJECT_CLASS = SEMANTIC_CLASSES.index("car")


def sun_shadows(
    primitives: Primitives,
    frame: LevelFrame,
    sun: Float64[np.ndarray, " 3"],
    rows: range,
    width: int,
) -> UInt8[np.ndarray, "h w"]:
    """Which share of the sun's light misses the ground, 0..255, in rows of an image.

    Args:
        primitives: All that may cast a shadow into the picture.
        frame: The camera's.
        sun: Unit vector towards the sun, global.
        rows: Rows of the image.
        width: Of the image [px].
    """
    along = sun[:2] / max(float(sun[2]), 1e-3)
    along *= min(1.0, _MAX_SHADOW_SLOPE / max(float(np.hypot(*along)), 1e-9))
    # A circle around the shadow, which leads from below the box away from the sun.
    size = np.sqrt(np.square(primitives.half_size).sum(axis=1))
    lean = (primitives.center_global[:, 2] + size) / 2
    middle = primitives.center_global[:, :2] - lean[:, None] * along
    near = _in_view(middle, size + lean * np.hypot(*along), frame, width, _SHADOW_RANGE)
    corners = _corners(primitives.center_global[near], _half_axes(primitives, near))
    footprints = corners[..., :2] - corners[..., 2:].clip(min=0) * along
    mask = np.zeros((len(rows), width), np.uint8)
    _fill(mask, footprints, frame, rows, 255)
    _soften(mask)
    return mask


def contact_shadows(
    primitives: Primitives, frame: LevelFrame, rows: range, width: int
) -> UInt8[np.ndarray, "h w"]:
    """Which share of the sky's light misses the ground below objects, 0..255."""
    is_object = primitives.semantic >= _FIRST_OBJECT_CLASS
    size = np.sqrt(np.square(primitives.half_size).sum(axis=1))
    near = _in_view(primitives.center_global[:, :2], size, frame, width, _CONTACT_RANGE)
    darkening = np.flatnonzero(is_object & near)
    axes, center = _half_axes(primitives, darkening), primitives.center_global[darkening]
    is_low = center[:, 2] - np.abs(axes[:, 2]).sum(axis=1) < _CONTACT_CLEARANCE
    axes, center = axes[is_low], center[is_low]
    grown = axes + _CONTACT_GROWTH * primitives.R_global_box[darkening[is_low]]
    mask = np.zeros((len(rows), width), np.uint8)
    _fill(mask, _corners(center, grown)[..., :2], frame, rows, 255)
    _soften(mask)
    return mask


def shaded_objects(
    primitives: Primitives,
    rows: Int64[np.ndarray, " k"],
    sun: Float64[np.ndarray, " 3"],
    around: Float64[np.ndarray, " 2"],
) -> Int32[np.ndarray, " objects"]:
    """Indices of the objects whose middle lies in the shade of something else that is large.

    Args:
        primitives: Parts of the objects and what may shade them.
        rows: Parts whose objects are asked for.
        sun: Unit vector towards the sun, global.
        around: Objects near this point are tested, global.
    """
    owner = primitives.object_index
    asked = np.unique(owner[rows])
    parts = np.flatnonzero(np.isin(owner, asked[asked >= 0]))
    objects, slot, counts = np.unique(owner[parts], return_inverse=True, return_counts=True)
    centers = np.zeros((3, len(objects)))
    for axis in range(3):
        weights = primitives.center_global[parts, axis]
        centers[axis] = np.bincount(slot, weights=weights, minlength=len(objects)) / counts
    near = np.hypot(centers[0] - around[0], centers[1] - around[1]) < _SHADE_RANGE
    objects, centers = objects[near], centers[:, near]
    is_large = primitives.half_size.max(axis=1) > _CASTER_SIZE
    offset = primitives.center_global[:, :2] - around
    large = np.flatnonzero(is_large & (np.hypot(offset[:, 0], offset[:, 1]) < 1.5 * _SHADE_RANGE))
    # A slab test along the ray to the sun, in the large boxes' own axes, each scaled to unit size.
    enter = np.full((len(objects), len(large)), -np.inf)
    leave = np.full_like(enter, np.inf)
    x, y, z = (
        c[:, None] - m for c, m in zip(centers, primitives.center_global[large].T, strict=True)
    )
    inverse = primitives.R_global_box[large] / primitives.half_size[large][:, None, :]
    for to_x, to_y, to_z in inverse.transpose(2, 1, 0):
        direction = to_x * sun[0] + to_y * sun[1] + to_z * sun[2]
        direction = np.where(np.abs(direction) < 1e-9, 1e-9, direction)
        middle = (x * to_x + y * to_y + z * to_z) / -direction
        np.maximum(enter, middle - 1 / np.abs(direction), out=enter)
        np.minimum(leave, middle + 1 / np.abs(direction), out=leave)
    met = (enter < leave) & (enter > 0) & (objects[:, None] != owner[large])
    return objects[met.any(axis=1)]


def _in_view(
    points_global: Float64[np.ndarray, "n 2"],
    radius: Float64[np.ndarray, " n"],
    frame: LevelFrame,
    width: int,
    reach: float,
) -> Bool[np.ndarray, " n"]:
    """Which circles on the ground touch what an upright image shows within `reach`."""
    offset = points_global - frame.T_global_level[:2, 3]
    cos, sin = frame.T_global_level[:2, 0]
    x, y = offset[:, 0] * cos + offset[:, 1] * sin, offset[:, 1] * cos - offset[:, 0] * sin
    seen = (x > -radius) & (np.hypot(x, y) < reach + radius)
    corners = frame.rays(np.array([0.0, 0.0]), 0.0), frame.rays(np.array([0.0, 0.0]), float(width))
    left, right = (ray[0, :2] / np.hypot(*ray[0, :2]) for ray in corners)
    seen &= y * left[0] - x * left[1] < radius
    return seen & (y * right[0] - x * right[1] > -radius)


def _half_axes(
    primitives: Primitives, rows: Bool[np.ndarray, " n"] | Int64[np.ndarray, " k"]
) -> Float64[np.ndarray, "k 3 3"]:
    """Half edges of some boxes, global, as columns."""
    return primitives.R_global_box[rows] * primitives.half_size[rows][:, None]


def _corners(
    center: Float64[np.ndarray, "n 3"], axes: Float64[np.ndarray, "n 3 3"]
) -> Float64[np.ndarray, "n 8 3"]:
    """Corners of boxes whose half axes are the columns of `axes`."""
    x, y, z = axes[..., 0], axes[..., 1], axes[..., 2]
    return center[:, None] + np.stack(
        [sx * x + sy * y + sz * z for sx in (-1, 1) for sy in (-1, 1) for sz in (-1, 1)], axis=1
    )


def _fill(
    mask: UInt8[np.ndarray, "h w"],
    points_global: Float64[np.ndarray, "n c 2"],
    frame: LevelFrame,
    rows: range,
    value: int,
) -> None:
    """Fill the convex hulls of sets of points on the ground."""
    height, width = mask.shape
    T = frame.T_global_level
    x, y = np.moveaxis(points_global - T[:2, 3], -1, 0)
    x, y = x * T[0, 0] + y * T[1, 0], y * T[1, 1] + x * T[0, 1]
    # (u, v, 1) * depth = inverse of A_level_pixel applied to the point of the ground.
    homogeneous = np.stack(
        [
            row[0] * x + row[1] * y - row[2] * frame.height
            for row in rigid.inverse_3x3(frame.A_level_pixel)
        ],
        axis=-1,
    )
    depth = homogeneous[..., 2]
    nearest, furthest = depth.min(axis=1, initial=np.inf), depth.max(axis=1, initial=-np.inf)
    safe = np.maximum(depth, _NEAR)[..., None]
    pixels = homogeneous[..., :2] / safe - (0.0, rows.start)
    low, high = pixels.min(axis=1), pixels.max(axis=1)
    inside = ((high > 0) & (low < (width, height)) & (high - low > 1.0)).all(axis=1)
    # Drawing counts pixels from their centres.
    fixed = _fixed_point(pixels)
    for k in np.flatnonzero(
        (inside & (nearest > _NEAR)) | ((furthest > _NEAR) & (nearest <= _NEAR))
    ):
        points = fixed[k]
        if nearest[k] <= _NEAR:
            points = _fixed_point(_cut(homogeneous[k], rows.start))
        cv2.fillConvexPoly(mask, cv2.convexHull(points), (value,), cv2.LINE_AA, _SUBPIXEL_BITS)


def _fixed_point(pixels: Float64[np.ndarray, "*n 2"]) -> Int32[np.ndarray, "*n 2"]:
    return np.clip((pixels - 0.5) * 2**_SUBPIXEL_BITS, -(2**20), 2**20).astype(np.int32)


def _cut(homogeneous: Float64[np.ndarray, "c 3"], first_row: int) -> Float64[np.ndarray, "p 2"]:
    """Pixels of the part of a convex set of points that lies in front of the camera."""
    in_front = homogeneous[:, 2] > _NEAR
    front, behind = homogeneous[in_front], homogeneous[~in_front]
    # Every edge of the hull that crosses is among the lines between the two sides.
    share = (front[:, None, 2] - _NEAR) / (front[:, None, 2] - behind[None, :, 2])
    crossing = front[:, None] + share[..., None] * (behind[None] - front[:, None])
    points = np.concatenate([front, crossing.reshape(-1, 3)])
    return points[:, :2] / points[:, 2:] - (0.0, first_row)


def _soften(mask: UInt8[np.ndarray, "h w"]) -> None:
    """Blur in place, the more the nearer the ground, which is in the lower rows."""
    height, width = mask.shape
    far, near = (
        cv2.blur(mask, (size, size)).astype(np.float32)
        for size in (2 * round(width / share) + 1 for share in (700, 180))
    )
    near -= far
    near *= np.linspace(0, 1, height, dtype=np.float32)[:, None]
    far += near
    mask[:] = far
