"""The BEV grid: which cell a point lies in. The only place that knows.

`bev[b, c, y, x]`: row = y, column = x, both growing with the coordinate. Cell `i` covers
`min + i * cell` (included) to `min + (i + 1) * cell` (excluded).
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float64, Int32


@dataclass(frozen=True, kw_only=True)
class BevGrid:
    """A rectangle of square cells in the ego xy plane."""

    x_min: float
    """Low edge along ego x [m]."""
    x_max: float
    """High edge along ego x [m]."""
    y_min: float
    """Low edge along ego y [m]."""
    y_max: float
    """High edge along ego y [m]."""
    cell: float
    """Edge of a cell [m]."""

    def __post_init__(self) -> None:
        """Refuse a range that is not a positive whole number of cells."""
        limits = (self.x_min, self.x_max, self.y_min, self.y_max, self.cell)
        if not np.isfinite(limits).all():
            raise ValueError(f"grid limits and cell are {limits}, expected finite numbers")
        for axis, low, high in (("x", self.x_min, self.x_max), ("y", self.y_min, self.y_max)):
            num = (high - low) / self.cell if self.cell > 0 else -1.0
            if num < 0.5 or abs(num - round(num)) > 1e-6 * num:
                raise ValueError(
                    f"{axis} range {low}..{high} m is {num:.4f} cells of {self.cell} m, expected a "
                    "positive whole number: change the range or the cell"
                )

    @property
    def nx(self) -> int:
        """Columns."""
        return round((self.x_max - self.x_min) / self.cell)

    @property
    def ny(self) -> int:
        """Rows."""
        return round((self.y_max - self.y_min) / self.cell)

    @property
    def num_cells(self) -> int:
        """Rows times columns."""
        return self.nx * self.ny

    def fine_cells(self, fine: "BevGrid", allowed: tuple[int, ...]) -> int:
        """Cells of a finer grid along each edge of one of this grid's cells.

        Raises:
            ValueError: The grids have different ranges, or it is none of the allowed numbers.
        """
        ratio = round(self.cell / fine.cell)
        same_range = fine == replace(self, cell=fine.cell) and (fine.nx, fine.ny) == (
            ratio * self.nx,
            ratio * self.ny,
        )
        if ratio not in allowed or not same_range:
            numbers = " or ".join(str(number) for number in allowed)
            raise ValueError(
                f"{fine} under {self}, expected the same range and {numbers} cells of the first "
                "per cell of the second along each axis"
            )
        return ratio

    def flat_index(
        self, x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"]
    ) -> tuple[Int32[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
        """Cell of each point as `iy * nx + ix`, and whether the point lies on the grid.

        The index of a point outside, or of one that is not finite, means nothing.
        """
        with np.errstate(invalid="ignore"):
            u = (x - self.x_min) / self.cell
            v = (y - self.y_min) / self.cell
            inside = (u >= 0) & (u < self.nx) & (v >= 0) & (v < self.ny)
            # cutting off decimals is floor for all that counts: what is negative is outside
            return v.astype(np.int32) * np.int32(self.nx) + u.astype(np.int32), inside

    def x_centers(self) -> Float64[np.ndarray, " nx"]:
        """Centre of each column [m]."""
        return self.x_min + (np.arange(self.nx) + 0.5) * self.cell

    def y_centers(self) -> Float64[np.ndarray, " ny"]:
        """Centre of each row [m]."""
        return self.y_min + (np.arange(self.ny) + 0.5) * self.cell

    def cell_coordinates(self, xy: Float[Any, "*b 2"]) -> Float[Any, "*b 2"]:
        """Metres to cells (x, y); the centre of the first cell is (0.5, 0.5)."""
        offset = np.array([self.x_min, self.y_min])
        return (xy - _like(xy, offset)) / self.cell

    def metric_coordinates(self, cells: Float[Any, "*b 2"]) -> Float[Any, "*b 2"]:
        """Cells (x, y) to metres: the inverse of `cell_coordinates`."""
        offset = np.array([self.x_min, self.y_min])
        return cells * self.cell + _like(cells, offset)


def _like(example: Any, array: np.ndarray) -> Any:
    """`array` as numpy or torch, with the type and place of `example`."""
    return (
        array.astype(example.dtype)
        if isinstance(example, np.ndarray)
        else example.new_tensor(array)
    )
