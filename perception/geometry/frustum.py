"""Which BEV cell each camera frustum point falls into, as lists per cell (CSR).

            camera                 depth bins d            BEV cell g
          image column w  ----/----/----/----/---->   cell_start[g] .. cell_start[g+1]
          image row h                                   -> (cam, d, h, w) of each point

The lists are data, not weights: they follow calibration and ego motion, and are inputs of the
network. Geometry is in float64; the lists are sorted, so that the pooled sum has one fixed order.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float64, Int32

from perception.geometry import rigid
from perception.geometry.grid import BevGrid


@dataclass(frozen=True, kw_only=True)
class Frustum:
    """Sampling of space in front of a camera."""

    stride: int
    """Pixels of the network's image per feature cell."""
    depth_min: float
    """Near edge of the first depth bin [m]."""
    depth_max: float
    """Far edge of the last depth bin [m]."""
    depth_step: float
    """Depth of a bin [m]; a bin's point lies in its middle."""
    z_min: float
    """Points below this height above ground [m] are dropped."""
    z_max: float
    """Points above this height above ground [m] are dropped."""

    def __post_init__(self) -> None:
        """Refuse bins behind the camera or a range that is not a whole number of bins."""
        num = (self.depth_max - self.depth_min) / self.depth_step
        if self.depth_min <= 0 or num < 0.5 or abs(num - round(num)) > 1e-6 * num:
            raise ValueError(
                f"depth {self.depth_min}..{self.depth_max} m in steps of {self.depth_step} m is "
                f"{num:.3f} bins, expected a whole number in front of the camera"
            )

    @property
    def num_depths(self) -> int:
        """Depth bins."""
        return round((self.depth_max - self.depth_min) / self.depth_step)


@dataclass(frozen=True, kw_only=True)
class PoolTable:
    """For each BEV cell the frustum points that fall into it."""

    point_depth: Int32[np.ndarray, " p"]
    """Index into `depth[cam, d, h, w]`, flattened; points sorted by cell, then by index."""
    point_feat: Int32[np.ndarray, " p"]
    """Index into `feat[cam, h, w]`, flattened: the pixel that the point belongs to."""
    cell_start: Int32[np.ndarray, " g_plus_1"]
    """The points of cell g are `cell_start[g]` to `cell_start[g + 1]`, excluded."""


def pool_table(
    frustum: Frustum,
    grid: BevGrid,
    feature_height: int,
    feature_width: int,
    K_img_aug: Sequence[Float64[np.ndarray, "3 3"] | None],
    T_ego_cam: Sequence[Float64[np.ndarray, "4 4"] | None],
) -> PoolTable:
    """Build the lists of one rig.

    Args:
        frustum: Depth bins and stride.
        grid: The cells.
        feature_height: Rows of the feature map.
        feature_width: Columns of the feature map.
        K_img_aug: Intrinsics after resize and crop, per camera [px].
        T_ego_cam: Camera at its own stamp to ego at the frame's stamp, per camera; None for a
            camera that gives no points.

    Source: Philion & Fidler 2020, sections 3.1-3.2; lists instead of a prefix sum.
    """
    num_points = frustum.num_depths * feature_height * feature_width
    rays = _pixel_depth_grid(frustum, feature_height, feature_width)
    cells, indices = [], []
    for cam, (K, T) in enumerate(zip(K_img_aug, T_ego_cam, strict=True)):
        if K is None or T is None:
            continue
        R_ego_pixel = T[:3, :3] @ rigid.inverse_3x3(K)
        points_ego = rigid.product_of_columns(R_ego_pixel, rays) + T[:3, 3:]
        cell, inside = grid.flat_index(points_ego[0], points_ego[1])
        inside &= (points_ego[2] >= frustum.z_min) & (points_ego[2] < frustum.z_max)
        kept = np.flatnonzero(inside)
        cells.append(cell[kept])
        indices.append(kept.astype(np.int32) + np.int32(cam * num_points))
    cell = np.concatenate(cells) if cells else np.zeros(0, np.int32)
    index = np.concatenate(indices) if indices else np.zeros(0, np.int32)
    order = stable_argsort(cell, grid.num_cells)
    cell_start = np.zeros(grid.num_cells + 1, np.int32)
    np.cumsum(np.bincount(cell, minlength=grid.num_cells), out=cell_start[1:])
    point_depth = index[order]
    pixel = _pixel_of_point(frustum, feature_height, feature_width, len(K_img_aug))
    return PoolTable(
        point_depth=point_depth, point_feat=pixel.take(point_depth), cell_start=cell_start
    )


def stable_argsort(keys: Int32[np.ndarray, " n"], num_keys: int) -> np.ndarray:
    """Order of `keys`, all in 0..num_keys - 1; equal keys stay in place.

    numpy sorts 16-bit keys by counting (twenty times faster than wider ones): one pass where they
    fit, two passes of 16 bits otherwise.
    """
    order = np.argsort((keys & 0xFFFF).astype(np.uint16), kind="stable")
    if num_keys > 1 << 16:
        high = (keys[order] >> 16).astype(np.uint16)
        order = order[np.argsort(high, kind="stable")]
    return order


@lru_cache(maxsize=8)
def _pixel_depth_grid(frustum: Frustum, height: int, width: int) -> Float64[np.ndarray, "3 dhw"]:
    """(u d, v d, d) of each frustum point, flattened over d, h, w."""
    depth = frustum.depth_min + (np.arange(frustum.num_depths) + 0.5) * frustum.depth_step
    u = (np.arange(width) + 0.5) * frustum.stride
    v = (np.arange(height) + 0.5) * frustum.stride
    d, v, u = np.meshgrid(depth, v, u, indexing="ij")
    return np.stack([u * d, v * d, d]).reshape(3, -1)


@lru_cache(maxsize=8)
def _pixel_of_point(
    frustum: Frustum, height: int, width: int, num_cameras: int
) -> Int32[np.ndarray, " p"]:
    """Pixel index (cam, h, w) of each point index (cam, d, h, w)."""
    pixels = np.arange(num_cameras * height * width, dtype=np.int32)
    pixels = pixels.reshape(num_cameras, 1, height * width)
    return np.repeat(pixels, frustum.num_depths, axis=1).reshape(-1)
