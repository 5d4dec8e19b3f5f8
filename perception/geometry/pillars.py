"""LiDAR points to pillars: vertical columns on a BEV grid, a few points each.

Cut into slices along z they are voxels; a pillar is a voxel as high as the range.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int32, Int64

from perception.geometry.grid import BevGrid
from perception.geometry.lidar_points import CellVolume, fill_pillars, occupied_cells
from perception.geometry.stable_sort import stable_argsort

POINT_COLUMNS = ("x", "y", "z", "intensity", "dt")
"""x, y, z [m] in the ego frame, intensity 0..255, age against the frame's stamp [s]."""

INTENSITY_MAX = 255.0
"""Source: nuScenes, LIDAR_TOP file format."""


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
    """Pillars kept per frame, those nearest to the ego frame's origin; others are counted."""
    num_sweeps: int
    """Sweeps accumulated, the newest included. Source: specs, base network section 1: 10."""
    max_sweep_age: float = 0.5
    """Sweeps older than this against the frame's stamp [s] are left out: ten sweeps at 20 Hz."""
    ego_radius: float = 1.0
    """Points with |x| and |y| below this in the sensor frame [m] are the car. Source: same."""
    num_slices: int = 1
    """Slices of equal height from z_min to z_max: 1 makes pillars, more make voxels."""

    def __post_init__(self) -> None:
        """Refuse what has no room for a point."""
        if self.num_slices < 1 or self.z_max <= self.z_min:
            raise ValueError(
                f"{self.num_slices} slices from z {self.z_min} to {self.z_max} m, expected 1 or "
                "more and a positive height"
            )
        if self.num_cells >= 1 << 31:
            raise ValueError(f"{self.num_cells} cells do not fit into 32 bits: use larger cells")

    @property
    def num_cells(self) -> int:
        """Cells of all slices together."""
        return self.num_slices * self.grid.num_cells

    @property
    def volume(self) -> CellVolume:
        """Where points become pillars."""
        return CellVolume(
            grid=self.grid, z_min=self.z_min, z_max=self.z_max, num_slices=self.num_slices
        )


@dataclass(frozen=True, kw_only=True)
class Pillars:
    """Occupied pillars (or voxels) of one frame, in the order of their cells."""

    points: Float32[np.ndarray, "v m 5"]
    """Columns as `POINT_COLUMNS`; unused places are zero."""
    num_points: Int32[np.ndarray, " v"]
    """Points used per pillar, 1..m."""
    cell: Int32[np.ndarray, " v"]
    """Cell of each pillar, `(iz * ny + iy) * nx + ix`, strictly growing."""
    cell_pillar: Int32[np.ndarray, " g"]
    """Pillar of each cell, counted from 1; 0 where the cell is empty. Empty for voxels: most cells
    of a volume hold nothing, and sparse convolutions look neighbours up themselves."""
    num_dropped_pillars: int
    """Pillars beyond `max_pillars`."""


def build_pillars(points_ego: Float32[np.ndarray, "5 n"], config: PillarConfig) -> Pillars:
    """Sort points into pillars.

    Args:
        points_ego: One column per point, rows as `POINT_COLUMNS`, newest sweep first; points that
            are not finite or outside the range are left out.
        config: Grid and limits.
    """
    cell, occupied = occupied_cells(points_ego, config.volume)
    kept = occupied
    if len(occupied) > config.max_pillars:
        kept = occupied[_nearest(occupied, config)]
    points, num_points = fill_pillars(points_ego, cell, config.num_cells, kept, config.max_points)
    cell_pillar = np.zeros(config.grid.num_cells if config.num_slices == 1 else 0, np.int32)
    if config.num_slices == 1:
        cell_pillar[kept] = np.arange(1, len(kept) + 1, dtype=np.int32)
    return Pillars(
        points=points,
        num_points=num_points,
        cell=kept,
        cell_pillar=cell_pillar,
        num_dropped_pillars=len(occupied) - len(kept),
    )


def _nearest(
    cell: Int32[np.ndarray, " v"], config: PillarConfig
) -> Int64[np.ndarray, " max_pillars"]:
    """Which of these cells are kept where there are too many: the nearest, in their order.

    Distances are whole numbers of half cells, so that every computer draws the line alike; of equal
    ones the first come first.
    """
    grid = config.grid
    iy, ix = np.divmod(cell % np.int32(grid.num_cells), np.int32(grid.nx))
    dx = 2 * ix + np.int32(round(2 * grid.x_min / grid.cell) + 1)
    dy = 2 * iy + np.int32(round(2 * grid.y_min / grid.cell) + 1)
    distance = dx * dx + dy * dy
    order = stable_argsort(distance, 1 << 31)
    return np.sort(order[: config.max_pillars])
