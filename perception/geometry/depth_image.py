"""What a camera would see of the LiDAR: a sparse image of depths, nearest point first."""

import numpy as np
from jaxtyping import Float32, Float64

from perception.geometry import rigid
from perception.geometry.camera import MIN_DEPTH
from perception.geometry.lidar_points import nearest_depths


def depth_image(
    points_ego: Float32[np.ndarray, "rows n"],
    T_ego_cam: Float64[np.ndarray, "4 4"],
    K_img_aug: Float64[np.ndarray, "3 3"],
    height_px: int,
    width_px: int,
    out: Float32[np.ndarray, "h w"] | None = None,
) -> Float32[np.ndarray, "h w"]:
    """Write the depth of each point at the pixel it falls on; 0 where there is no point.

    Args:
        points_ego: Columns that begin with x, y, z [m], before any augmentation in space. Points
            that are not finite or not in front of the camera are left out.
        T_ego_cam: Camera at its own stamp to ego at the frame's stamp; a rigid transform.
        K_img_aug: Intrinsics after resize, crop and whatever else was done to the image [px].
        height_px: Rows of the network's image.
        width_px: Columns of the network's image.
        out: Where it is written; None makes a new array.

    Returns:
        Metres along the optical axis. Where several points share a pixel the nearest stays.

    Source: specs, base network section 6; traps 1 and 2 of section 12 (nothing is moved in place,
    points behind the camera are dropped, never clamped).
    """
    T_cam_ego = rigid.inverse(T_ego_cam)
    # a row each for u * depth, v * depth and depth, as homographies of images keep (0, 0, 1)
    P = (K_img_aug @ T_cam_ego[:3]).astype(np.float32)
    image = np.empty((height_px, width_px), np.float32) if out is None else out
    nearest_depths(points_ego, P, MIN_DEPTH, image)
    return image
