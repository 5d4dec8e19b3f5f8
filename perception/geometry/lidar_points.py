"""Loops over the points of a LiDAR: into the ego frame, into cells and pillars, into depth images.

The compiled library does them where there is one (`export/plugins/kernels/lidar_points.h`), numpy
else, two to three times slower. Both round after every operation and give the same numbers, bit by
bit. Points are columns, with rows x, y, z [m], intensity and age [s].
"""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Int32

from perception import native
from perception.geometry import rigid
from perception.geometry.grid import BevGrid
from perception.geometry.stable_sort import stable_argsort

NUM_ROWS = 5

_NO_MEMORY = 10
"""Source: export/plugins/kernels/lidar_points.h."""


@dataclass(frozen=True, kw_only=True)
class CellVolume:
    """A grid in slices of equal height: cell `(iz * ny + iy) * nx + ix`."""

    grid: BevGrid
    """Cells seen from above."""
    z_min: float
    """Lower end of the first slice [m]."""
    z_max: float
    """Upper end of the last slice [m]."""
    num_slices: int
    """1 or more."""

    @property
    def num_cells(self) -> int:
        """Cells of all slices together."""
        return self.num_slices * self.grid.num_cells

    @property
    def slice_height(self) -> float:
        """Height of a slice [m]."""
        return (self.z_max - self.z_min) / self.num_slices


class _VolumeStruct(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_float) for name in ("x_min", "y_min", "z_min", "z_max")),
        *((name, ctypes.c_float) for name in ("cell", "slice")),
        *((name, ctypes.c_int32) for name in ("nx", "ny", "num_slices")),
    ]


def sweep_to_ego(
    points_lidar: Float32[np.ndarray, "rows n"],
    T_ego_lidar: Float32[np.ndarray, "3 4"],
    ego_radius: float,
    age: float,
    points_ego: Float32[np.ndarray, "5 m"],
) -> int:
    """Bring a sweep into the ego frame, without the points on the car.

    Args:
        points_lidar: Columns that begin with x, y, z, intensity.
        T_ego_lidar: Sensor at the sweep's time to ego at the frame's.
        ego_radius: Points with |x| and |y| below this in the sensor frame [m] are the car.
        age: Of every point [s].
        points_ego: Where the points go, from the first column on; room for all of them.

    Returns:
        Points written.
    """
    num_points = points_lidar.shape[1]
    library = native.library()
    if library is None:
        x, y = points_lidar[:2]
        far = np.flatnonzero((np.abs(x) >= ego_radius) | (np.abs(y) >= ego_radius))
        kept = points_lidar[:4].take(far, axis=1)
        points_ego[:3, : len(far)] = rigid.apply_to_columns(T_ego_lidar, kept[:3])
        points_ego[3, : len(far)] = kept[3]
        points_ego[4, : len(far)] = age
        return len(far)
    row_step, point_step = (step // points_lidar.itemsize for step in points_lidar.strides)
    num_kept = ctypes.c_int64()
    _run(
        library.functions.lidar_points_to_ego,
        native.address(points_lidar),
        ctypes.c_int64(row_step),
        ctypes.c_int64(point_step),
        ctypes.c_int64(num_points),
        native.address(np.ascontiguousarray(T_ego_lidar)),
        ctypes.c_float(ego_radius),
        ctypes.c_float(age),
        ctypes.c_int64(points_ego.strides[0] // points_ego.itemsize),
        native.address(points_ego),
        ctypes.byref(num_kept),
    )
    return num_kept.value


def occupied_cells(
    points_ego: Float32[np.ndarray, "5 n"], volume: CellVolume
) -> tuple[Int32[np.ndarray, " n"], Int32[np.ndarray, " occupied"]]:
    """Cell of each point, -1 for one not finite or outside; and the cells with a point, growing."""
    library = native.library()
    if library is None:
        cell, inside = _cells(points_ego, volume)
        cell = np.where(inside, cell, np.int32(-1))
        is_occupied = np.zeros(volume.num_cells, bool)
        is_occupied[cell[inside]] = True
        return cell, np.flatnonzero(is_occupied).astype(np.int32)
    rows, row_step = _rows(points_ego)
    num_points = points_ego.shape[1]
    cell, occupied = np.empty(num_points, np.int32), np.empty(num_points, np.int32)
    num_occupied = ctypes.c_int64()
    grid = volume.grid
    limits = (grid.x_min, grid.y_min, volume.z_min, volume.z_max, grid.cell, volume.slice_height)
    _run(
        library.functions.lidar_points_cells,
        native.address(rows),
        row_step,
        ctypes.c_int64(num_points),
        ctypes.byref(_VolumeStruct(*limits, grid.nx, grid.ny, volume.num_slices)),
        native.address(cell),
        native.address(occupied),
        ctypes.byref(num_occupied),
    )
    return cell, occupied[: num_occupied.value].copy()


def _cells(
    points_ego: Float32[np.ndarray, "5 n"], volume: CellVolume
) -> tuple[Int32[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    """Cell of each point, and whether it is finite and inside: the cell of others is noise."""
    x, y, z = points_ego[:3]
    with np.errstate(invalid="ignore", over="ignore"):
        cell, inside = volume.grid.flat_index(x, y)
        inside &= (z >= volume.z_min) & (z < volume.z_max) & np.isfinite(points_ego[3])
        if volume.num_slices > 1:
            # a point just below z_max may round up to the slice above the last
            iz = ((z - volume.z_min) / volume.slice_height).astype(np.int32)
            cell = cell + np.minimum(iz, volume.num_slices - 1) * np.int32(volume.grid.num_cells)
    return cell, inside


def fill_pillars(
    points_ego: Float32[np.ndarray, "5 n"],
    cell: Int32[np.ndarray, " n"],
    num_cells: int,
    kept: Int32[np.ndarray, " v"],
    max_points: int,
) -> tuple[Float32[np.ndarray, "v max_points 5"], Int32[np.ndarray, " v"]]:
    """Put the points of some cells into pillars: the first `max_points` of each, in their order.

    Args:
        points_ego: Points.
        cell: Cell of each, as `occupied_cells` gives them.
        num_cells: Cells of the volume.
        kept: Cells that become pillars, growing.
        max_points: Places of a pillar.

    Returns:
        Points of each pillar, unused places zero, and how many it has.
    """
    library = native.library()
    if library is None:
        return _fill(points_ego, cell, num_cells, kept, max_points)
    rows, row_step = _rows(points_ego)
    points = np.empty((len(kept), max_points, NUM_ROWS), np.float32)
    num_used = np.empty(len(kept), np.int32)
    _run(
        library.functions.lidar_points_fill,
        native.address(rows),
        row_step,
        ctypes.c_int64(points_ego.shape[1]),
        native.address(np.ascontiguousarray(cell)),
        ctypes.c_int32(num_cells),
        native.address(np.ascontiguousarray(kept)),
        ctypes.c_int64(len(kept)),
        ctypes.c_int32(max_points),
        native.address(points),
        native.address(num_used),
    )
    return points, num_used


def _fill(
    points_ego: Float32[np.ndarray, "5 n"],
    cell: Int32[np.ndarray, " n"],
    num_cells: int,
    kept: Int32[np.ndarray, " v"],
    max_points: int,
) -> tuple[Float32[np.ndarray, "v max_points 5"], Int32[np.ndarray, " v"]]:
    inside = np.flatnonzero(cell >= 0)
    by_cell = inside[stable_argsort(cell[inside], num_cells)]
    sorted_cell = cell[by_cell]
    first = np.searchsorted(sorted_cell, kept, side="left")
    end = np.searchsorted(sorted_cell, kept, side="right")
    num_used = np.minimum(end - first, max_points).astype(np.int32)
    rank = np.arange(max_points)
    used = np.flatnonzero(rank[None, :] < num_used[:, None])
    points = np.zeros((len(kept) * max_points, NUM_ROWS), np.float32)
    source = by_cell[(first[:, None] + rank).reshape(-1)[used]]
    points[used] = points_ego.take(source, axis=1).T
    return points.reshape(len(kept), max_points, NUM_ROWS), num_used


def nearest_depths(
    points_ego: Float32[np.ndarray, "rows n"],
    P: Float32[np.ndarray, "3 4"],
    min_depth: float,
    image: Float32[np.ndarray, "h w"],
) -> None:
    """Write the depth of each point at the pixel it falls on; 0 where there is none.

    Args:
        points_ego: Columns that begin with x, y, z [m]. Points that are not finite are left out.
        P: Rows that give u * depth, v * depth and depth of a point; pixel centres lie at half
            integers.
        min_depth: Points must be farther away [m]; at least 0.
        image: Where several points share a pixel the nearest stays [m].
    """
    height, width = image.shape
    library = native.library()
    if library is None:
        _draw_depths(points_ego, P, min_depth, image)
        return
    rows, row_step = _rows(points_ego)
    _run(
        library.functions.lidar_points_depth_image,
        native.address(rows),
        row_step,
        ctypes.c_int64(points_ego.shape[1]),
        native.address(np.ascontiguousarray(P)),
        ctypes.c_float(min_depth),
        ctypes.c_int32(height),
        ctypes.c_int32(width),
        native.address(image),
    )


def _draw_depths(
    points_ego: Float32[np.ndarray, "rows n"],
    P: Float32[np.ndarray, "3 4"],
    min_depth: float,
    image: Float32[np.ndarray, "h w"],
) -> None:
    height, width = image.shape
    with np.errstate(invalid="ignore", over="ignore"):
        u_depth, v_depth, depth = rigid.apply_to_columns(P, points_ego[:3])
        inside = depth > min_depth
        for value, size in ((u_depth, width), (v_depth, height)):
            inside &= value >= 0
            inside &= value < size * depth
    seen = np.flatnonzero(inside)
    depth = depth.take(seen)
    # rounding may carry a point up to the edge
    u = np.minimum((u_depth.take(seen) / depth).astype(np.int64), width - 1)
    v = np.minimum((v_depth.take(seen) / depth).astype(np.int64), height - 1)
    image[:] = 0.0
    image[v, u] = np.inf
    np.minimum.at(image, (v, u), depth)


def _rows(points: Float32[np.ndarray, "rows n"]) -> tuple[np.ndarray, ctypes.c_int64]:
    """Points whose rows are without gaps, and the step from row to row [floats]."""
    if points.shape[1] > 1 and points.strides[1] != points.itemsize:
        points = np.ascontiguousarray(points)
    return points, ctypes.c_int64(points.strides[0] // points.itemsize)


def _run(function: Callable[..., int], *arguments: object) -> None:
    code = function(*arguments)
    if code == _NO_MEMORY:
        raise MemoryError("no memory to sort the points of a LiDAR")
    if code:
        raise ValueError(f"arrays of points do not belong together (code {code})")
