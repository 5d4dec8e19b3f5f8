"""What a camera would see of the LiDAR: a sparse image of depths, nearest point first."""

import numpy as np
from jaxtyping import Float32, Float64

from perception.geometry import rigid
from perception.geometry.camera import MIN_DEPTH


def depth_image(
    points_ego: Float32[np.ndarray, "5 n"],
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
        depth = P[2, 0] * x + P[2, 1] * y + P[2, 2] * z + P[2, 3]
        front = np.flatnonzero(depth > MIN_DEPTH)
        depth, points = depth[front], points_ego[:3].take(front, axis=1)
        u, v = (rigid.product_of_columns(P[:, :3], points)[:2] + P[:2, 3:]) / depth
        seen = np.flatnonzero((u >= 0) & (u < width_px) & (v >= 0) & (v < height_px))
    # pixel centres lie at half integers, so the pixel of a point is the floor of u and v
    pixel = v[seen].astype(np.int64) * width_px + u[seen].astype(np.int64)
    image = np.full(height_px * width_px, np.inf, np.float32)
    np.minimum.at(image, pixel, depth[seen])
    image[image == np.inf] = 0.0
    return image.reshape(height_px, width_px)
