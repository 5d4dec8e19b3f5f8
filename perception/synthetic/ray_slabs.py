"""The slab test of rays against boxes, split into what depends on a column, on a line, or on both.

A box is the overlap of three slabs. In units of its half size, with the sensor at the origin, the
ray's way through slab k is (lower_k / d_k, upper_k / d_k), where d_k is its direction along axis k.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int64

from perception.synthetic.ray_grid import RayGrid
from perception.synthetic.ray_windows import Boxes, Windows

TINY = np.float32(1e-20)
"""Stands for directions along a face, so that nothing is divided by zero. Source: ours; with
distances below 1e5 half sizes the quotients stay finite in float32."""
_SNAP = 1e-9
"""Rounding left over in a rotation between upright frames. Source: ours, 1e-6 m at 1 km."""


@dataclass(frozen=True, kw_only=True)
class Slabs:
    """Ways of rays through the slabs of each window's box.

    Columns of all windows stand one after the other, and so do their lines. Only an axis that is
    tilted in the picture (`mixed`) has to be looked at ray by ray.
    """

    first_column: Int64[np.ndarray, " k_and_1"]
    """Where each window's columns begin; then the total."""
    first_line: Int64[np.ndarray, " k_and_1"]
    column_way: Float32[np.ndarray, "2 columns"]
    """From, to [t] through the slabs whose direction is the same along a column."""
    line_way: Float32[np.ndarray, "2 lines"]
    mixed: Bool[np.ndarray, "3 k"]
    column_direction: Float32[np.ndarray, "3 columns"]
    """A mixed axis' direction is the sum of its column's and its line's."""
    line_direction: Float32[np.ndarray, "3 lines"]
    faces: Float32[np.ndarray, "2 3 k"]
    """Lower and upper face of the window's box, seen from the sensor [half sizes]."""


def slabs_of(boxes: Boxes, windows: Windows, grid: RayGrid) -> Slabs:
    """Prepare the slab test of each window.

    Args:
        boxes: In the sensor's frame.
        windows: Rectangles of `grid`, by index into `boxes`.
        grid: The sensor's rays.
    """
    rotation = boxes.R_sensor_box.transpose(2, 1, 0)  # axis of the box, axis of the sensor, box
    rotation = np.where(np.abs(rotation) < _SNAP, 0.0, rotation)
    half_size = boxes.half_size.T
    middle = (rotation * boxes.center.T).sum(axis=1) / half_size
    faces = np.stack([middle - 1.0, middle + 1.0]).astype(np.float32)[:, :, windows.box]
    to_box = (rotation / half_size[:, None, :]).astype(np.float32)[:, :, windows.box]
    uses_column = ((to_box != 0) & grid.columns.any(axis=1)[:, None]).any(axis=1)
    uses_line = ((to_box != 0) & grid.lines.any(axis=1)[:, None]).any(axis=1)
    first_column, of_column, column = ragged(windows.column, windows.end_column)
    first_line, of_line, line = ragged(windows.line, windows.end_line)
    column_direction = _directions(to_box, of_column, grid.columns, column)
    line_direction = _directions(to_box, of_line, grid.lines, line)
    return Slabs(
        first_column=first_column,
        first_line=first_line,
        column_way=_way(column_direction, faces, ~uses_line, of_column),
        line_way=_way(line_direction, faces, uses_line & ~uses_column, of_line),
        mixed=uses_column & uses_line,
        column_direction=column_direction,
        line_direction=line_direction,
        faces=faces,
    )


def ragged(
    first: Int64[np.ndarray, " k"], end: Int64[np.ndarray, " k"]
) -> tuple[Int64[np.ndarray, " k_and_1"], Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
    """All of first[i] .. end[i]: where each i begins, then i and number of every entry."""
    begin = np.concatenate([[0], np.cumsum(end - first)])
    of_window = np.repeat(np.arange(len(first)), end - first)
    return begin, of_window, np.arange(begin[-1]) + (first - begin[:-1])[of_window]


def _directions(
    to_box: Float32[np.ndarray, "3 3 k"],
    of_window: Int64[np.ndarray, " n"],
    parts: Float32[np.ndarray, "3 m"],
    index: Int64[np.ndarray, " n"],
) -> Float32[np.ndarray, "3 n"]:
    """Directions along the axes of each window's box; components that are 0 everywhere skipped."""
    total = np.zeros((3, len(index)), dtype=np.float32)
    for component in np.flatnonzero(parts.any(axis=1)):
        total += to_box[:, component][:, of_window] * parts[component][index]
    return total


def _way(
    direction: Float32[np.ndarray, "3 n"],
    faces: Float32[np.ndarray, "2 3 k"],
    counts: Bool[np.ndarray, "3 k"],
    of_window: Int64[np.ndarray, " n"],
) -> Float32[np.ndarray, "2 n"]:
    """From, to [t] through the slabs of those axes that count."""
    way = np.empty((2, direction.shape[1]), dtype=np.float32)
    way[0], way[1] = -np.inf, np.inf
    for axis in range(3):
        enter, leave = way_through(
            direction[axis], faces[0, axis][of_window], faces[1, axis][of_window]
        )
        is_counted = counts[axis][of_window]
        np.maximum(way[0], enter, out=way[0], where=is_counted)
        np.minimum(way[1], leave, out=way[1], where=is_counted)
    return way


def way_through(
    direction: Float32[np.ndarray, "*n"], lower: Any, upper: Any
) -> tuple[Float32[np.ndarray, "*n"], Float32[np.ndarray, "*n"]]:
    """From, to [t] through one slab."""
    inverse = np.float32(1.0) / np.where(np.abs(direction) < TINY, TINY, direction)
    a, b = lower * inverse, upper * inverse
    return np.minimum(a, b), np.maximum(a, b)
