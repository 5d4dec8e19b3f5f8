"""The nearest box of each ray, compiled: bit for bit what `ray_hits` gives, in less time.

Needs numba: `pip install bev-perception[fast]`.
"""

from typing import no_type_check

import numpy as np
from jaxtyping import Bool, Float32, Int32, Int64
from numba import njit

from perception.synthetic.ray_outlines import Outlines
from perception.synthetic.ray_slabs import TINY, Slabs
from perception.synthetic.ray_windows import NEAR_PLANE, Windows

_NEAR = np.float32(NEAR_PLANE)
_ONE = np.float32(1.0)


def nearest_hits_numba(
    slabs: Slabs,
    windows: Windows,
    row: Int64[np.ndarray, " k"],
    outlines: Outlines,
    t: Float32[np.ndarray, "h w"],
    primitive: Int32[np.ndarray, "h w"],
) -> None:
    """See `ray_hits.nearest_hits`."""
    rectangles = np.stack([windows.column, windows.end_column, windows.line, windows.end_line])
    pictures = np.stack([outlines.begin[:-1], outlines.line, outlines.column, outlines.width])
    _nearest_hits(
        rectangles,
        np.stack([slabs.first_column[:-1], slabs.first_line[:-1]]),
        slabs.column_way,
        slabs.line_way,
        slabs.mixed,
        slabs.column_direction,
        slabs.line_direction,
        slabs.faces,
        row,
        outlines.object_index,
        pictures,
        outlines.is_met,
        t,
        primitive,
    )


# Checks of annotations, which tests switch on, would wrap the function and hide it from numba.
# Without fast-math nothing is reordered or fused.
@no_type_check
@njit(cache=True, error_model="numpy", nogil=True)
def _nearest_hits(
    rectangles: Int64[np.ndarray, "4 k"],
    begins: Int64[np.ndarray, "2 k"],
    column_way: Float32[np.ndarray, "2 columns"],
    line_way: Float32[np.ndarray, "2 lines"],
    mixed: Bool[np.ndarray, "3 k"],
    column_direction: Float32[np.ndarray, "3 columns"],
    line_direction: Float32[np.ndarray, "3 lines"],
    faces: Float32[np.ndarray, "2 3 k"],
    row: Int64[np.ndarray, " k"],
    object_index: Int64[np.ndarray, " k"],
    pictures: Int64[np.ndarray, "4 objects"],
    is_met: Bool[np.ndarray, " cells"],
    t: Float32[np.ndarray, "h w"],
    primitive: Int32[np.ndarray, "h w"],
) -> None:
    """The same float32 operations in the same order as in `ray_slabs` and `ray_hits`."""
    for k in range(rectangles.shape[1]):
        first_column, end_column, first_line, end_line = rectangles[:, k]
        is_mixed = mixed[0, k] or mixed[1, k] or mixed[2, k]
        index = object_index[k]
        for line in range(first_line, end_line):
            at_line = begins[1, k] + line - first_line
            for column in range(first_column, end_column):
                at_column = begins[0, k] + column - first_column
                enter = max(column_way[0, at_column], line_way[0, at_line])
                leave = min(column_way[1, at_column], line_way[1, at_line])
                if is_mixed:
                    for axis in range(3):
                        if mixed[axis, k]:
                            direction = (
                                column_direction[axis, at_column] + line_direction[axis, at_line]
                            )
                            if abs(direction) < TINY:
                                direction = TINY
                            inverse = _ONE / direction
                            a, b = faces[0, axis, k] * inverse, faces[1, axis, k] * inverse
                            enter, leave = max(enter, min(a, b)), min(leave, max(a, b))
                if enter > leave or enter < _NEAR:
                    continue
                if index >= 0:
                    down, right = line - pictures[1, index], column - pictures[2, index]
                    is_met[pictures[0, index] + down * pictures[3, index] + right] = True
                if enter < t[line, column]:
                    t[line, column], primitive[line, column] = enter, row[k]
