"""What a camera would see of the LiDAR: a sparse image of depths, nearest point first."""

import numpy as np
from jaxtyping import Float32, Float64

from perception.geometry import rigid
from perception.geometry.camera import MIN_DEPTH


def depth_image(
    points_ego: Float32[np.ndarray, "rows n"],
    T_ego_cam: Float64[np.ndarray, "4 4"],
    K_img_aug: Float64[np.ndarray, "3 3"],
    height_px: int,
    width_px: int,
) -> Float32[np.ndarray, "h w"]:
    """Write the depth of each point at the pixel it falls on; 0 where there is no point.

    Args:
        points_ego: Columns that begin with x, y, z [m], before any augmentation in space. Points
            that are not finite or not in front of the camera are left out.
        T_ego_cam: Camera at its own stamp to ego at the frame's stamp; a rigid transform.
        K_img_aug: Intrinsics after resize, crop and whatever else was done to the image [px].
        height_px: Rows of the network's image.
        width_px: Columns of the network's image.

    Returns:
        Metres along the optical axis. Where several points share a pixel the nearest stays.

    Source: specs, base network section 6; traps 1 and 2 of section 12 (nothing is moved in place,
    points behind the camera are dropped, never clamped).
    """
    T_cam_ego = rigid.inverse(T_ego_cam)
    # a row each for u * depth, v * depth and depth, as homographies of images keep (0, 0, 1)
    P = (K_img_aug @ T_cam_ego[:3]).astype(np.float32)
    x, y, z = points_ego[:3]
    with np.errstate(invalid="ignore", over="ignore"):
        u_depth, v_depth, depth = (_affine(row, x, y, z) for row in P)
        inside = depth > MIN_DEPTH
        for value, size in ((u_depth, width_px), (v_depth, height_px)):
            inside &= value >= 0
            inside &= value < size * depth
    seen = np.flatnonzero(inside)
    depth = depth.take(seen)
    # pixel centres lie at half integers, so the pixel of a point is the floor of u and v; rounding
    # may carry a point up to the edge
    u = np.minimum((u_depth.take(seen) / depth).astype(np.int64), width_px - 1)
    v = np.minimum((v_depth.take(seen) / depth).astype(np.int64), height_px - 1)
    pixel = v * width_px + u
    image = np.zeros(height_px * width_px, np.float32)
    image[pixel] = np.inf
    np.minimum.at(image, pixel, depth)
    return image.reshape(height_px, width_px)


def _affine(
    row: Float32[np.ndarray, " 4"],
    x: Float32[np.ndarray, " n"],
    y: Float32[np.ndarray, " n"],
    z: Float32[np.ndarray, " n"],
) -> Float32[np.ndarray, " n"]:
    """A row of a projection times each point, in this thread: see `rigid.product_of_columns`."""
    result = x * row[0]
    term = y * row[1]
    result += term
    np.multiply(z, row[2], out=term)
    result += term
    result += row[3]
    return result
