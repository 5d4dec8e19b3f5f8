"""Which BEV cell each camera frustum point falls into, as lists of runs per cell.

            camera                 depth bins d            BEV cell g
          image column w  ----/----/----/----/---->   cell_start[g] .. cell_start[g+1]
          rows h .. h + n of one bin: a run             -> runs (depth index, pixel, n)

A run is a piece of an image column: consecutive rows of one camera and depth bin whose points fall
into the same cell. A column of pixels stands upright, so most of its points at one depth share a
cell: with real calibration a run has 18 points, and the table takes a twelfth of what a list of
points takes.

The table is data, not weights: it follows calibration and ego motion, and is an input of the
network. Geometry is in float64; the runs are sorted, so that the pooled sum has one fixed order.
"""

import hashlib
import math
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Float64, Int32

from perception import native
from perception.geometry import rigid
from perception.geometry.frustum import Frustum
from perception.geometry.grid import BevGrid
from perception.geometry.stable_sort import stable_argsort

TABLE_VERSION = 1
"""Raised when tables made before mean something else."""

RUN_COLUMNS = ("depth", "pixel", "rows")


@dataclass(frozen=True, kw_only=True)
class PoolTable:
    """For each BEV cell the runs of frustum points that fall into it.

    Row k of a run lies k * w further in both `depth[n, d, h, w]` and `feat[n, h, w]`.
    """

    runs: Int32[np.ndarray, "r 3"]
    """Index of the first point into the flattened depth, of its pixel into the flattened feature
    map, and number of rows. Sorted by cell, then by camera, depth bin, image column and row."""
    cell_start: Int32[np.ndarray, " g_plus_1"]
    """The runs of cell g are `cell_start[g]` to `cell_start[g + 1]`, excluded."""


def pool_table(
    frustum: Frustum,
    grid: BevGrid,
    feature_height: int,
    feature_width: int,
    K_img_aug: Sequence[Float64[np.ndarray, "3 3"] | None],
    T_ego_cam: Sequence[Float64[np.ndarray, "4 4"] | None],
) -> PoolTable:
    """Build the table of one rig.

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
    pairs = zip(K_img_aug, T_ego_cam, strict=True)
    used = np.array([K is not None and T is not None for K, T in pairs], dtype=bool)
    R_ego_pixel, t_ego = np.zeros((len(used), 3, 3)), np.zeros((len(used), 3))
    for cam, (K, T) in enumerate(zip(K_img_aug, T_ego_cam, strict=True)):
        if K is not None and T is not None:
            R_ego_pixel[cam] = T[:3, :3] @ rigid.inverse_3x3(K)
            t_ego[cam] = T[:3, 3]
    library = native.library() if used.any() else None  # a LiDAR network has no cameras at all
    build = _numpy_table if library is None else library.build_pool_table
    runs, cell_start = build(R_ego_pixel, t_ego, used, frustum, grid, feature_height, feature_width)
    return PoolTable(runs=runs, cell_start=cell_start)


def _numpy_table(
    R_ego_pixel: Float64[np.ndarray, "cam 3 3"],
    t_ego: Float64[np.ndarray, "cam 3"],
    used: Bool[np.ndarray, " cam"],
    frustum: Frustum,
    grid: BevGrid,
    height: int,
    width: int,
) -> tuple[Int32[np.ndarray, "r 3"], Int32[np.ndarray, " g_plus_1"]]:
    """The plain form of `NativeLibrary.build_pool_table`, entry by entry the same."""
    cells, runs = [np.zeros(0, np.int32)], [np.zeros((0, 3), np.int32)]
    for cam in np.flatnonzero(used):
        run_cell, run = _runs(_cells(frustum, grid, height, width, R_ego_pixel[cam], t_ego[cam]))
        of_camera = cam * height * width * np.array([frustum.num_depths, 1, 0])
        cells.append(run_cell)
        runs.append((run + of_camera).astype(np.int32))
    cell = np.concatenate(cells)
    cell_start = np.zeros(grid.num_cells + 1, np.int32)
    np.cumsum(np.bincount(cell, minlength=grid.num_cells), out=cell_start[1:])
    return np.concatenate(runs)[stable_argsort(cell, grid.num_cells)], cell_start


def table_key(
    frustum: Frustum,
    grid: BevGrid,
    feature_height: int,
    feature_width: int,
    K_img_aug: Sequence[Float64[np.ndarray, "3 3"] | None],
    T_ego_cam: Sequence[Float64[np.ndarray, "4 4"] | None],
) -> str:
    """Name of the table that `pool_table` builds from the same arguments."""
    text = repr((TABLE_VERSION, astuple(frustum), astuple(grid), feature_height, feature_width))
    digest = hashlib.sha256(text.encode())
    for matrix in (*K_img_aug, *T_ego_cam):
        digest.update(b"-" if matrix is None else np.ascontiguousarray(matrix).tobytes())
    return digest.hexdigest()


class PoolTableCache:
    """The newest tables by name: a rig that stands still needs its table once.

    Odometry moves the cameras a little in every frame, and with them the table; without odometry,
    or where a calibration stays, the same comes again and again. One thread may build what another
    will ask for: no thread waits for a table that is not its own.
    """

    def __init__(self, size: int = 8) -> None:
        """Start empty.

        Args:
            size: Tables kept; 1 and more.
        """
        self._size = size
        self._tables: OrderedDict[str, PoolTable] = OrderedDict()
        self._lock = threading.Lock()

    def table(
        self,
        frustum: Frustum,
        grid: BevGrid,
        feature_height: int,
        feature_width: int,
        K_img_aug: Sequence[Float64[np.ndarray, "3 3"] | None],
        T_ego_cam: Sequence[Float64[np.ndarray, "4 4"] | None],
    ) -> PoolTable:
        """The table of these arguments, built only where it is not kept; not to be changed."""
        arguments = (frustum, grid, feature_height, feature_width, K_img_aug, T_ego_cam)
        key = table_key(*arguments)
        with self._lock:
            kept = self._tables.get(key)
        made = pool_table(*arguments) if kept is None else kept
        with self._lock:
            self._tables[key] = made
            self._tables.move_to_end(key)
            if len(self._tables) > self._size:
                self._tables.popitem(last=False)
        return made


def table_fault(
    runs: Int32[np.ndarray, "r k"],
    cell_start: Int32[np.ndarray, " g_plus_1"],
    num_images: int,
    num_depths: int,
    height: int,
    width: int,
) -> str | None:
    """What would make a kernel read outside its inputs; None for a sound table.

    Args:
        runs: As in `PoolTable`, padding allowed.
        cell_start: As in `PoolTable`.
        num_images: Cameras, of all frames of a batch.
        num_depths: Depth bins.
        height: Rows of the feature map.
        width: Columns of the feature map.
    """
    if runs.shape[1] != len(RUN_COLUMNS) or len(cell_start) == 0:
        return f"runs of {runs.shape[1]} columns and {len(cell_start)} cell starts"
    sizes = (num_images, num_depths, height, width)
    is_plain = all(x.dtype == np.int32 and x.flags.c_contiguous for x in (runs, cell_start))
    library = native.library() if is_plain else None
    if library is not None and library.pool_table_fault(runs, cell_start, sizes) is None:
        return None  # the same rules in a tenth of the time; what follows has the words
    # a difference of two int32 may wrap: neighbours are compared
    falls = (cell_start[1:] < cell_start[:-1]).any()
    if cell_start[0] != 0 or falls or cell_start[-1] > len(runs):
        return f"cell_start does not rise from 0 to at most {len(runs)} runs"
    if cell_start[-1] == 0:
        return None  # a network without cameras has no points
    if min(sizes) < 1 or math.prod(sizes) > native.INT32_MAX:
        return f"a depth of {list(sizes)} has no points, or more than 32 bits can index"
    depth, pixel, rows = runs[: cell_start[-1]].astype(np.int64).T
    area = height * width
    image, place = np.divmod(pixel, area)
    inside = (pixel >= 0) & (image < num_images) & (depth >= 0)
    same_pixel = (depth // (num_depths * area) == image) & (depth % area == place)
    in_column = (rows >= 1) & (place // width + rows <= height)
    wrong = np.flatnonzero(~(inside & same_pixel & in_column))
    if len(wrong) > 0:
        return f"run {wrong[0]} is {runs[wrong[0]].tolist()}, outside the feature map"
    return None


def _cells(
    frustum: Frustum,
    grid: BevGrid,
    height: int,
    width: int,
    R_ego_pixel: Float64[np.ndarray, "3 3"],
    t_ego: Float64[np.ndarray, " 3"],
) -> Int32[np.ndarray, "d w h"]:
    """Cell of each frustum point, -1 for one that counts nowhere.

    A point is `R_ego_pixel @ (u d, v d, d) + t_ego`. Its three sums are written out, in the order
    of the compiled builder, so that both round alike.
    """
    d, ud, vd = _pixel_depth_grid(frustum, height, width)
    x, y, z = (
        (R[0] * ud + (R[2] * d + t)) + R[1] * vd for R, t in zip(R_ego_pixel, t_ego, strict=True)
    )
    cell, inside = grid.flat_index(x.reshape(-1), y.reshape(-1))
    inside &= ((z >= frustum.z_min) & (z < frustum.z_max)).reshape(-1)
    return np.where(inside, cell, np.int32(-1)).reshape(x.shape)


def _runs(
    cell: Int32[np.ndarray, "d w h"],
) -> tuple[Int32[np.ndarray, " r"], Int32[np.ndarray, "r 3"]]:
    """Cell and run of each piece of a column with one cell."""
    _, width, height = cell.shape
    is_first = np.ones(cell.shape, dtype=bool)
    is_first[:, :, 1:] = cell[:, :, 1:] != cell[:, :, :-1]
    first = np.flatnonzero(is_first)
    rows = np.diff(first, append=cell.size)
    run_cell = cell.reshape(-1)[first]
    counts = np.flatnonzero(run_cell >= 0)
    column, h = np.divmod(first[counts], height)
    d, w = np.divmod(column, width)
    pixel = h * width + w
    run = np.stack([d * (height * width) + pixel, pixel, rows[counts]], axis=1)
    return run_cell[counts], run.astype(np.int32)


@lru_cache(maxsize=8)
def _pixel_depth_grid(
    frustum: Frustum, height: int, width: int
) -> tuple[
    Float64[np.ndarray, "d 1 1"], Float64[np.ndarray, "d w 1"], Float64[np.ndarray, "d 1 h"]
]:
    """Depth of each bin, and u and v of each pixel times depth."""
    depth = frustum.depth_min + (np.arange(frustum.num_depths) + 0.5) * frustum.depth_step
    d = depth[:, None, None]
    u = (np.arange(width) + 0.5) * frustum.stride
    v = (np.arange(height) + 0.5) * frustum.stride
    return d, d * u[:, None], d * v
