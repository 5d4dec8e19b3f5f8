"""Which query is to say which object: costs, overlap of boxes, and the cheapest assignment.

In numpy on the host: a frame has a few hundred queries and some dozens of objects.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, Int, Int64
from scipy.optimize import linear_sum_assignment

from perception.geometry import boxes as box_geometry
from perception.geometry.grid import BevGrid
from perception.models.losses import FOCAL_GAMMA

FOCAL_ALPHA = 0.25
"""Source: specs, base network section 7, matching."""

FORBIDDEN = 1e6
"""Cost in place of one that is not finite, far above any other. Source: ours."""


@dataclass(frozen=True, kw_only=True)
class MatchWeights:
    """What counts how much; defaults from specs, base network section 7."""

    label: float = 0.15
    """Focal cost of the object's class."""
    center: float = 0.25
    """Distance |dx| + |dy| of the centres as a share of the grid's range."""
    overlap: float = 0.25
    """Negative 3D intersection over union."""


def match(
    class_logits: Float[np.ndarray, "q c"],
    boxes: Float[np.ndarray, "q 9"],
    objects: Float[np.ndarray, "n 9"],
    labels: Int[np.ndarray, " n"],
    grid: BevGrid,
    weights: MatchWeights,
) -> tuple[Int64[np.ndarray, " m"], Int64[np.ndarray, " m"]]:
    """Pair queries with objects at the lowest total cost, each used at most once.

    Args:
        class_logits: Per query, before the sigmoid.
        boxes: What the queries say.
        objects: What there is.
        labels: Class of each object.
        grid: Its range is the unit of distances.
        weights: Weights of the costs.

    Returns:
        Queries and their objects: min(q, n) pairs.
    """
    extent = np.array([grid.x_max - grid.x_min, grid.y_max - grid.y_min])
    offset = (boxes[:, None, :2].astype(np.float64) - objects[None, :, :2]) / extent
    cost = (
        weights.label * focal_cost(class_logits)[:, labels]
        + weights.center * np.abs(offset).sum(axis=-1)
        - weights.overlap * iou_3d(boxes, objects)
    )
    return linear_sum_assignment(np.where(np.isfinite(cost), cost, FORBIDDEN))


def focal_cost(logits: Float[np.ndarray, "*b"]) -> Float64[np.ndarray, "*b"]:
    """Focal loss if the class were true, less that if it were not."""
    x = logits.astype(np.float64)
    with np.errstate(invalid="ignore"):
        log_true, log_false = -np.logaddexp(0, -x), -np.logaddexp(0, x)
    true = -FOCAL_ALPHA * np.exp(FOCAL_GAMMA * log_false) * log_true
    false = -(1 - FOCAL_ALPHA) * np.exp(FOCAL_GAMMA * log_true) * log_false
    return true - false


def iou_3d(a: Float[np.ndarray, "q 9"], b: Float[np.ndarray, "n 9"]) -> Float64[np.ndarray, "q n"]:
    """Intersection over union of the volumes of upright boxes, yaw included.

    0 for boxes that hold a number that is not finite, or have no volume.
    """
    a, b = a.astype(np.float64), b.astype(np.float64)
    iou = np.zeros((len(a), len(b)))
    with np.errstate(invalid="ignore", over="ignore"):
        reach = np.hypot(a[:, None, 3], a[:, None, 4]) + np.hypot(b[None, :, 3], b[None, :, 4])
        distance = np.hypot(*np.moveaxis(a[:, None, :2] - b[None, :, :2], -1, 0))
        low = np.maximum.outer(a[:, 2] - a[:, 5] / 2, b[:, 2] - b[:, 5] / 2)
        high = np.minimum.outer(a[:, 2] + a[:, 5] / 2, b[:, 2] + b[:, 5] / 2)
        volume_a, volume_b = (np.prod(x[:, box_geometry.SIZE], axis=1) for x in (a, b))
        whole = np.add.outer(volume_a, volume_b)
        near = (distance < reach / 2) & (high > low) & np.isfinite(whole) & (whole > 0)
    # the velocity does not matter
    near &= np.isfinite(a[:, :7]).all(axis=1)[:, None] & np.isfinite(b[:, :7]).all(axis=1)
    i, j = np.nonzero(near)
    shared = overlap_area(a[i], b[j]) * (high - low)[i, j]
    iou[i, j] = shared / (whole[i, j] - shared)
    return iou


def overlap_area(
    a: Float64[np.ndarray, "p 9"], b: Float64[np.ndarray, "p 9"]
) -> Float64[np.ndarray, " p"]:
    """Area that each pair of boxes shares, seen from above [m^2].

    Green's theorem: the outline of what they share is the part of a's outline inside b and the part
    of b's inside a. Where edges coincide they would count twice, so a is taken a millionth larger.
    Source: ours.
    """
    a = a.copy()
    a[:, box_geometry.SIZE] *= 1 + 1e-6
    origin = a[:, None, :2]
    return _outline_inside(a, b, origin) + _outline_inside(b, a, origin)


def _outline_inside(
    a: Float64[np.ndarray, "p 9"],
    b: Float64[np.ndarray, "p 9"],
    origin: Float64[np.ndarray, "p 1 2"],
) -> Float64[np.ndarray, " p"]:
    """Half the integral of x dy - y dx along the part of a's outline that lies inside b."""
    start = box_geometry.corners(a)[:, :4, :2]
    step = np.roll(start, -1, axis=1) - start
    # each edge against b's two slabs, as shares 0..1 of the edge
    local, slope = _turned(start - b[:, None, :2], b), _turned(step, b)
    half = b[:, None, 3:5] / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        ends = np.stack([(-half - local) / slope, (half - local) / slope])
    beside = np.where(np.abs(local) <= half, np.inf, -np.inf)  # for edges along a slab
    enter = np.where(slope == 0, -beside, ends.min(axis=0)).max(axis=-1)
    leave = np.where(slope == 0, beside, ends.max(axis=0)).min(axis=-1)
    share = np.clip(np.minimum(leave, 1) - np.maximum(enter, 0), 0, None)
    x, y = np.moveaxis(start - origin, -1, 0)
    return (share * (x * step[..., 1] - y * step[..., 0])).sum(axis=1) / 2


def _turned(
    xy: Float64[np.ndarray, "p 4 2"], box: Float64[np.ndarray, "p 9"]
) -> Float64[np.ndarray, "p 4 2"]:
    """Vectors in the axes of each box."""
    cos, sin = np.cos(box[:, None, box_geometry.YAW]), np.sin(box[:, None, box_geometry.YAW])
    x, y = np.moveaxis(xy, -1, 0)
    return np.stack([x * cos + y * sin, y * cos - x * sin], axis=-1)
