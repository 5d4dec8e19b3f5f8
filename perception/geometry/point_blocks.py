"""Points by sector, so that a camera looks at a quarter of a cloud instead of at all of it.

A LiDAR turns, so that points that follow one another in its message lie in one direction. A block
is a piece of the message; its sector, seen from between the cameras, tells whether any of its
points may be in a picture. Points in any other order give the same pictures, only later.
"""

import numpy as np
from jaxtyping import Bool, Float32, Float64

from perception.geometry import rigid

BLOCK_POINTS = 256
"""Points per block: 8 directions of a LiDAR of 32 beams. Source: ours, measured."""

MARGIN = 1e-3
"""Widening of a camera's sector [rad], for rounding. Source: ours."""


class PointBlocks:
    """A cloud cut into blocks, with the sector of each."""

    def __init__(
        self, points_ego: Float32[np.ndarray, "c n"], center_ego: Float64[np.ndarray, " 2"]
    ) -> None:
        """Find the sectors.

        Args:
            points_ego: One column per point, rows that begin with x, y, z [m].
            center_ego: Where sectors are seen from [m]: between the cameras, so that each of them
                looks away from it.
        """
        self._points, self._center = points_ego[:3], center_ego
        num_blocks = points_ego.shape[1] // BLOCK_POINTS
        self._end = num_blocks * BLOCK_POINTS
        x, y = points_ego[:2, : self._end]
        heading = _diamond(x - np.float32(center_ego[0]), y - np.float32(center_ego[1]))
        heading = heading.reshape(num_blocks, BLOCK_POINTS)
        self._low, self._high = heading.min(axis=1), heading.max(axis=1)

    def maybe_seen(
        self,
        T_ego_cam: Float64[np.ndarray, "4 4"],
        K_img_aug: Float64[np.ndarray, "3 3"],
        height_px: int,
        width_px: int,
    ) -> Float32[np.ndarray, "3 k"]:
        """Points of which no block that may show in a camera's picture is left out.

        Args:
            T_ego_cam: Camera to ego.
            K_img_aug: Intrinsics of the picture [px].
            height_px: Rows of the picture.
            width_px: Columns of the picture.

        Returns:
            x, y, z in the ego frame [m]; blocks stay in their order.
        """
        sector = _sector(T_ego_cam, K_img_aug, height_px, width_px, self._center)
        if sector is None:
            return self._points
        blocks = self._points[:, : self._end].reshape(3, -1, BLOCK_POINTS)
        near = blocks[:, self._touches(*sector)].reshape(3, -1)
        return np.concatenate([near, self._points[:, self._end :]], axis=1)

    def _touches(self, low: float, high: float) -> Bool[np.ndarray, " blocks"]:
        """Blocks that share a heading with a sector, which may lead over the back.

        A block of a point that is nowhere has no sector, and touches each.
        """
        before, behind = self._high < low, self._low > high
        return ~(before | behind) if low <= high else ~(before & behind)


def _sector(
    T_ego_cam: Float64[np.ndarray, "4 4"],
    K_img_aug: Float64[np.ndarray, "3 3"],
    height_px: int,
    width_px: int,
    center_ego: Float64[np.ndarray, " 2"],
) -> tuple[float, float] | None:
    """Headings from the centre that hold all that a camera sees; None where that may be any.

    What it sees is its place plus a sum of rays through the picture's corners, and with them lies
    in every sector that holds these directions, as long as that is less than half of the circle.
    """
    u, v = [0, width_px, width_px, 0], [0, 0, height_px, height_px]
    rays_cam = rigid.inverse_3x3(K_img_aug) @ np.array([u, v, [1.0] * 4])
    corners = (T_ego_cam[:3, :3] @ rays_cam)[:2]
    axis_x, axis_y = (corners / np.linalg.norm(corners, axis=0)).sum(axis=1)
    x, y = np.column_stack([corners, T_ego_cam[:2, 3] - center_ego])
    turn = np.arctan2(axis_x * y - axis_y * x, axis_x * x + axis_y * y)
    if not np.abs(turn).max() < np.pi / 2 - MARGIN:
        return None
    heading = np.arctan2(axis_y, axis_x) + np.array([turn.min() - MARGIN, turn.max() + MARGIN])
    low, high = _diamond(np.cos(heading), np.sin(heading))
    return float(low), float(high)


def _diamond(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A heading that costs no arc tangent: -2 to 2, growing as `arctan2(y, x)` does."""
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        share = np.abs(x)
        share += np.abs(y)
        np.divide(x, share, out=share)
        np.subtract(1, share, out=share)
        return np.copysign(share, y, out=share)
