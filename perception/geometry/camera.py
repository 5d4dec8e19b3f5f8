"""Pinhole projection. Pixel centres lie at half integers: the first pixel spans 0..1."""

from typing import Any

from jaxtyping import Bool, Float

from perception.geometry import rigid

MIN_DEPTH = 0.1
"""Points nearer than this to the image plane [m] count as behind the camera. Source: specs, base
network section 12, trap 2 (filter by depth, never clamp)."""


def project(
    points_ego: Float[Any, "n 3"], T_ego_cam: Float[Any, "4 4"], K_cam: Float[Any, "3 3"]
) -> tuple[Float[Any, "n 2"], Float[Any, " n"], Bool[Any, " n"]]:
    """Project points into an image.

    Returns:
        Pixels (u, v), depth along the optical axis [m], and whether the point is in front of the
        camera. The pixel of a point behind the camera means nothing.
    """
    points_cam = rigid.apply(rigid.inverse(T_ego_cam), points_ego)
    depth = points_cam[:, 2]
    in_front = depth > MIN_DEPTH
    safe_depth = depth * in_front + 1.0 * ~in_front
    pixels = (points_cam @ K_cam.swapaxes(-1, -2))[:, :2] / safe_depth[:, None]
    return pixels, depth, in_front
