"""Who can be seen from the car, as far as a look at the map tells."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float64

from perception.synthetic.primitives import Primitives
from perception.synthetic.scene_script import Actor, Track
from perception.taxonomy import DETECTION_CLASS_OF_CATEGORY

CLASS_RADIUS = 38.0
"""Objects count within this distance of the car [m]. Source: the nuScenes detection task looks at
40 m or more, but for cones and barriers."""
SMALL_RADIUS = 28.0
"""... and cones and barriers within this one: it looks at 30 m."""
_EYE_HEIGHT = 1.5
"""Things lower than this hide nothing [m]."""


def classes_in_sight(
    actors: Sequence[Actor],
    ego: Track,
    clutter: Primitives,
    times: Float64[np.ndarray, " t"],
) -> set[str]:
    """Detection classes with an actor near the car in free sight, at one time or another."""
    classes = np.array([DETECTION_CLASS_OF_CATEGORY[actor.category] for actor in actors])
    radius = np.where(np.isin(classes, ("barrier", "traffic_cone")), SMALL_RADIUS, CLASS_RADIUS)
    tall = np.array([actor.size[2] > _EYE_HEIGHT for actor in actors])
    half = np.array([actor.size[:2] for actor in actors]).reshape(-1, 2) / 2
    poses = np.array([actor.track.poses(times) for actor in actors]).reshape(-1, len(times), 3)
    walls = _tall_boxes(clutter)
    seen: set[str] = set()
    for step, eye in enumerate(ego.poses(times)[:, :2]):
        boxes = np.concatenate([poses[:, step], half], axis=-1)
        near_walls = walls[np.hypot(*(walls[:, :2] - eye).T) < CLASS_RADIUS + walls[:, 3]]
        hidden = blocked(eye, boxes[:, :2], np.concatenate([boxes[tall], near_walls]))
        in_reach = np.hypot(*(boxes[:, :2] - eye).T) < radius
        seen.update(classes[in_reach & ~hidden].tolist())
    return seen


def blocked(
    eye: Float64[np.ndarray, " 2"],
    targets: Float64[np.ndarray, "n 2"],
    boxes: Float64[np.ndarray, "m 5"],
) -> Bool[np.ndarray, " n"]:
    """Whether a rectangle lies between the eye and each target.

    Args:
        eye: Where one looks from [m].
        targets: Where one looks to.
        boxes: x, y, yaw, half length, half width. Those around a target do not hide it.
    """
    cos, sin = np.cos(boxes[:, 2]), np.sin(boxes[:, 2])
    R_box_global = np.stack([np.stack([cos, sin], -1), np.stack([-sin, cos], -1)], -2)
    start = np.einsum("mij,mj->mi", R_box_global, eye - boxes[:, :2])[None]
    end = np.einsum("mij,nmj->nmi", R_box_global, targets[:, None] - boxes[None, :, :2])
    way = end - start
    way = np.where(np.abs(way) < 1e-9, 1e-9, way)
    first, second = (-boxes[:, 3:] - start) / way, (boxes[:, 3:] - start) / way
    enters = np.minimum(first, second).max(axis=-1)
    leaves = np.maximum(first, second).min(axis=-1)
    around_target = (np.abs(end) <= boxes[:, 3:]).all(axis=-1)
    return ((enters < leaves) & (leaves > 0) & (enters < 1) & ~around_target).any(axis=1)


def _tall_boxes(clutter: Primitives) -> Float64[np.ndarray, "n 5"]:
    """x, y, yaw, half length, half width of what reaches from below the eyes to above."""
    bottom = clutter.center_global[:, 2] - clutter.half_size[:, 2]
    top = clutter.center_global[:, 2] + clutter.half_size[:, 2]
    tall = (bottom < _EYE_HEIGHT) & (top > _EYE_HEIGHT)
    R = clutter.R_global_box[tall]
    return np.concatenate(
        [
            clutter.center_global[tall, :2],
            np.arctan2(R[:, 1, 0], R[:, 0, 0])[:, None],
            clutter.half_size[tall, :2],
        ],
        axis=-1,
    )
