"""The ground as the sensors see it: the plane z = 0 with one kind of surface per cell."""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from jaxtyping import Float64, UInt8

MAP_LAYERS = (
    "drivable_area",
    "ped_crossing",
    "walkway",
    "stop_line",
    "carpark_area",
    "road_divider",
    "lane_divider",
)
"""Bit k of `Ground.layers` is layer k: the generator's own raster of the map's areas."""


class Surface(IntEnum):
    """What the ground is made of."""

    GRASS = 0
    ASPHALT = 1
    PAVEMENT = 2
    """Walkways: light slabs."""
    CONCRETE = 3
    """Car parks."""
    WHITE_PAINT = 4
    YELLOW_PAINT = 5
    KERB = 6
    SOIL = 7
    """Work zones, flower beds."""


@dataclass(frozen=True, kw_only=True)
class Ground:
    """Rasters of a square map; row = y, column = x, both growing with the coordinate.

    Cell i covers `i * cell` (included) to `(i + 1) * cell` (excluded), in the global frame.
    Outside lies grass.
    """

    cell: float
    """Edge of a cell [m]."""
    surface: UInt8[np.ndarray, "y x"]
    """A `Surface`."""
    texture_rgb: UInt8[np.ndarray, "y x 3"]
    """Colour by full daylight, fine grain included."""
    layers: UInt8[np.ndarray, "y x"]
    """Bits of `MAP_LAYERS`."""

    @property
    def size(self) -> float:
        """Edge of the map [m]."""
        return self.cell * self.surface.shape[0]

    def surface_at(
        self, x_global: Float64[np.ndarray, " n"], y_global: Float64[np.ndarray, " n"]
    ) -> UInt8[np.ndarray, " n"]:
        """`Surface` under points; grass outside the map."""
        column = np.floor(x_global / self.cell).astype(np.int64)
        row = np.floor(y_global / self.cell).astype(np.int64)
        ny, nx = self.surface.shape
        inside = (column >= 0) & (column < nx) & (row >= 0) & (row < ny)
        found = self.surface[np.where(inside, row, 0), np.where(inside, column, 0)]
        return np.where(inside, found, np.uint8(Surface.GRASS))
