"""LiDAR points to pillars: vertical columns on a BEV grid, a few points each."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int32

from perception.geometry.frustum import stable_argsort
from perception.geometry.grid import BevGrid

POINT_COLUMNS = ("x", "y", "z", "intensity", "dt")
"""x, y, z [m] in the ego frame, intensity 0..255, age against the frame's stamp [s]."""


@dataclass(frozen=True, kw_only=True)
class PillarConfig:
    """How points are sorted into pillars."""

    grid: BevGrid
    """Pillar grid; its cells divide the BEV grid's."""
    z_min: float
    """Points below this height above ground [m] are dropped."""
    z_max: float
    """Points above this height above ground [m] are dropped."""
    max_points: int
    """Points kept per pillar, the newest first."""
    max_pillars: int
    """Pillars kept per frame; those that come later in row order are dropped and counted."""
    num_sweeps: int
    """Sweeps accumulated, the newest included. Source: specs, base network section 1: 10."""
    max_sweep_age: float = 0.5
    """Sweeps older than this against the frame's stamp [s] are left out: ten sweeps at 20 Hz."""
    ego_radius: float = 1.0
    """Points with |x| and |y| below this in the sensor frame [m] are the car. Source: same."""


@dataclass(frozen=True, kw_only=True)
class Pillars:
    """Occupied pillars of one frame, in the order of their cells."""

    points: Float32[np.ndarray, "v m 5"]
    """Columns as `POINT_COLUMNS`; unused places are zero."""
    num_points: Int32[np.ndarray, " v"]
    """Points used per pillar, 1..m."""
    cell: Int32[np.ndarray, " v"]
    """Cell of each pillar, `iy * nx + ix`, strictly growing."""
    cell_pillar: Int32[np.ndarray, " g"]
    """Pillar of each cell, counted from 1; 0 where the cell is empty."""
    num_dropped_pillars: int
    """Pillars beyond `max_pillars`."""


def build_pillars(points_ego: Float32[np.ndarray, "5 n"], config: PillarConfig) -> Pillars:
    """Sort points into pillars.

    Args:
        points_ego: One column per point, rows as `POINT_COLUMNS`, newest sweep first; points that
            are not finite or outside the range are left out.
        config: Grid and limits.
    """
    x, y, z = points_ego[:3]
    with np.errstate(invalid="ignore"):
        cell, inside = config.grid.flat_index(x, y)
        inside &= (z >= config.z_min) & (z < config.z_max) & np.isfinite(points_ego[3])
    kept = np.flatnonzero(inside)
    cell = cell[kept]
    order = stable_argsort(cell, config.grid.num_cells)
    cell_sorted = cell[order]

    is_first = np.empty(len(cell_sorted), bool)
    is_first[:1] = True
    np.not_equal(cell_sorted[1:], cell_sorted[:-1], out=is_first[1:])
    first = np.flatnonzero(is_first)
    num_occupied = len(first)
    first = first[: config.max_pillars]
    end = np.append(first[1:], len(cell_sorted)) if num_occupied == len(first) else None
    if end is None:  # the first dropped pillar starts where the last kept one ends
        end = np.flatnonzero(is_first)[1 : config.max_pillars + 1]
    num_points = np.minimum(end - first, config.max_points).astype(np.int32)

    rank = np.arange(config.max_points)
    used = np.flatnonzero(rank[None, :] < num_points[:, None])
    source = kept[order[(first[:, None] + rank).ravel()[used]]]
    points = np.zeros((len(first) * config.max_points, len(POINT_COLUMNS)), np.float32)
    points[used] = points_ego.take(source, axis=1).T

    pillar_cell = cell_sorted[first]
    cell_pillar = np.zeros(config.grid.num_cells, np.int32)
    cell_pillar[pillar_cell] = np.arange(1, len(first) + 1, dtype=np.int32)
    return Pillars(
        points=points.reshape(len(first), config.max_points, len(POINT_COLUMNS)),
        num_points=num_points,
        cell=pillar_cell,
        cell_pillar=cell_pillar,
        num_dropped_pillars=num_occupied - len(first),
    )
