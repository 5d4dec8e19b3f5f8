"""A camera's view in its `level` frame: at the camera, x ahead along the ground, y left, z up."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from perception.geometry import rigid
from perception.synthetic.casts import CameraView


@dataclass(frozen=True, kw_only=True)
class LevelFrame:
    """Where the frame lies and how pixels look into it."""

    T_global_level: Float64[np.ndarray, "4 4"]
    height: float
    """Of the camera above the ground [m], > 0."""
    A_level_pixel: Float64[np.ndarray, "3 3"]
    """Takes (u, v, 1) to the point of its ray at 1 m along the optical axis."""

    def ground_homography(self, height: float = 0.0) -> Float64[np.ndarray, "3 3"]:
        """Take (u, v, 1) to homogeneous x, y of `level` on the plane that high above ground [m].

        The third element is negative for rays that go down.
        """
        below = height - self.height
        x, y, z = self.A_level_pixel
        return np.stack([below * x, below * y, z])

    def rays(self, v_px: Float64[np.ndarray, " n"], u_px: float) -> Float64[np.ndarray, "n 3"]:
        """Rays of some pixels of a column."""
        pixels = np.stack([np.full_like(v_px, u_px), v_px, np.ones_like(v_px)])
        return np.einsum("ij,jn->ni", self.A_level_pixel, pixels)


def level_frame(view: CameraView) -> LevelFrame:
    """Build the frame of a view.

    A camera that looks straight up or down has its image's upper edge ahead.
    """
    R_global_cam = view.T_global_cam[:3, :3]
    ahead = R_global_cam[:2, 2]
    if np.hypot(*ahead) < 1e-3:
        ahead = -R_global_cam[:2, 1] * np.sign(-R_global_cam[2, 2])
    cos, sin = ahead / np.hypot(*ahead)
    T_global_level = np.eye(4)
    T_global_level[:2, :2] = [[cos, -sin], [sin, cos]]
    T_global_level[:3, 3] = view.T_global_cam[:3, 3]
    R_level_cam = np.einsum("ji,jk->ik", T_global_level[:3, :3], R_global_cam)
    return LevelFrame(
        T_global_level=T_global_level,
        height=float(view.T_global_cam[2, 3]),
        A_level_pixel=np.einsum("ij,jk->ik", R_level_cam, rigid.inverse_3x3(view.K_cam)),
    )
