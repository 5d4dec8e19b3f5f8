"""The nearest box of each ray, in NumPy: the reference of the compiled kernel."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float32, Int32, Int64

from perception.synthetic.ray_outlines import Outlines
from perception.synthetic.ray_slabs import Slabs, ragged, way_through
from perception.synthetic.ray_windows import NEAR_PLANE, Windows

_SMALL = 512
"""Windows of fewer rays are worked on together, larger ones one by one. Source: ours, measured."""
_BAND = 1 << 15
"""Rays of a large window that are worked on at a time: they fit into the cache. Source: ours."""


def nearest_hits(
    slabs: Slabs,
    windows: Windows,
    row: Int64[np.ndarray, " k"],
    outlines: Outlines,
    t: Float32[np.ndarray, "h w"],
    primitive: Int32[np.ndarray, "h w"],
) -> None:
    """Lower `t` and set `primitive` wherever a box is met nearer; the lower row wins a tie.

    Args:
        slabs: Of each window.
        windows: Rectangles of the grid.
        row: What to write into `primitive` for each window; does not fall.
        outlines: Marked with every ray that would meet an object's boxes if they stood alone.
        t: Distance of the nearest hit so far; changed in place.
        primitive: What is hit there, negative before the first call; changed in place.
    """
    area = (windows.end_column - windows.column) * (windows.end_line - windows.line)
    _one_by_one(np.flatnonzero(area >= _SMALL), slabs, windows, row, outlines, t, primitive)
    _together(np.flatnonzero(area < _SMALL), slabs, windows, row, outlines, t, primitive)


def _one_by_one(
    chosen: Int64[np.ndarray, " m"],
    slabs: Slabs,
    windows: Windows,
    row: Int64[np.ndarray, " k"],
    outlines: Outlines,
    t: Float32[np.ndarray, "h w"],
    primitive: Int32[np.ndarray, "h w"],
) -> None:
    """Few calls per ray: whole rectangles at a time."""
    scratch = np.empty((2, _BAND), dtype=np.float32)
    mixed = slabs.mixed.T.tolist()
    scratch_hit = np.empty(_BAND, dtype=bool)
    for k, line, end_line in _bands(chosen, windows):
        here = slice(line, end_line), slice(int(windows.column[k]), int(windows.end_column[k]))
        nearest = t[here]
        enter, leave = scratch[:, : nearest.size].reshape(2, *nearest.shape)
        is_hit = scratch_hit[: nearest.size].reshape(nearest.shape)
        columns = slice(int(slabs.first_column[k]), int(slabs.first_column[k + 1]))
        skipped = int(slabs.first_line[k]) - int(windows.line[k])
        lines = slice(line + skipped, end_line + skipped)
        np.maximum(slabs.column_way[0, columns], slabs.line_way[0, lines, None], out=enter)
        np.minimum(slabs.column_way[1, columns], slabs.line_way[1, lines, None], out=leave)
        for axis in range(3):
            if not mixed[k][axis]:
                continue
            direction = (
                slabs.column_direction[axis, columns] + slabs.line_direction[axis, lines, None]
            )
            way = way_through(direction, slabs.faces[0, axis, k], slabs.faces[1, axis, k])
            np.maximum(enter, way[0], out=enter)
            np.minimum(leave, way[1], out=leave)
        np.less_equal(enter, leave, out=is_hit)
        if windows.reaches_near_plane[k]:
            is_hit &= enter >= np.float32(NEAR_PLANE)
        outline = outlines.of_window(k, here)
        if outline is not None:
            outline |= is_hit
        is_hit &= enter < nearest
        np.copyto(nearest, enter, where=is_hit)
        np.copyto(primitive[here], row[k], where=is_hit)


def _bands(chosen: Int64[np.ndarray, " m"], windows: Windows) -> Iterator[tuple[int, int, int]]:
    """Window, first and end line of pieces of at most `_BAND` rays."""
    for k in chosen.tolist():
        line, end_line = int(windows.line[k]), int(windows.end_line[k])
        step = max(1, _BAND // int(windows.end_column[k] - windows.column[k]))
        for first in range(line, end_line, step):
            yield k, first, min(first + step, end_line)


def _together(
    chosen: Int64[np.ndarray, " m"],
    slabs: Slabs,
    windows: Windows,
    row: Int64[np.ndarray, " k"],
    outlines: Outlines,
    t: Float32[np.ndarray, "h w"],
    primitive: Int32[np.ndarray, "h w"],
) -> None:
    """Few calls per window: all pairs of a window and one of its rays in one list."""
    # Lines of all chosen windows, then their rays; `[of_ray]` takes from a line to its rays.
    _, of_line, line = ragged(windows.line[chosen], windows.end_line[chosen])
    window = chosen[of_line]
    at_line = line + (slabs.first_line[:-1] - windows.line)[window]
    _, of_ray, column = ragged(windows.column[window], windows.end_column[window])
    at_column = column + (slabs.first_column[:-1] - windows.column)[window][of_ray]
    enter = np.maximum(slabs.column_way[0, at_column], slabs.line_way[0, at_line][of_ray])
    leave = np.minimum(slabs.column_way[1, at_column], slabs.line_way[1, at_line][of_ray])
    for axis in range(3):
        if not slabs.mixed[axis, chosen].any():
            continue
        tilted = np.flatnonzero(slabs.mixed[axis][window][of_ray])
        its_line = of_ray[tilted]
        direction = (
            slabs.column_direction[axis, at_column[tilted]]
            + slabs.line_direction[axis, at_line[its_line]]
        )
        faces = slabs.faces[:, axis, window[its_line]]
        way = way_through(direction, faces[0], faces[1])
        enter[tilted] = np.maximum(enter[tilted], way[0])
        leave[tilted] = np.minimum(leave[tilted], way[1])
    is_hit = np.flatnonzero((enter <= leave) & (enter >= np.float32(NEAR_PLANE)))
    enter, column, of_ray = enter[is_hit], column[is_hit], of_ray[is_hit]
    k, line = window[of_ray], line[of_ray]
    outlines.mark(k, line, column)
    _keep_nearest(line * t.shape[1] + column, enter, row[k], t.reshape(-1), primitive.reshape(-1))


def _keep_nearest(
    ray: Int64[np.ndarray, " n"],
    enter: Float32[np.ndarray, " n"],
    row: Int64[np.ndarray, " n"],
    t: Float32[np.ndarray, " rays"],
    primitive: Int32[np.ndarray, " rays"],
) -> None:
    """Lower `t` and set `primitive` of rays, which may be named many times."""
    is_better = (enter < t[ray]) | ((enter == t[ray]) & (row < primitive[ray]))
    ray, enter, row = ray[is_better], enter[is_better], row[is_better]
    np.minimum.at(t, ray, enter)
    is_nearest = enter == t[ray]
    ray, row = ray[is_nearest], row[is_nearest].astype(np.int32)
    primitive[ray] = np.iinfo(np.int32).max
    np.minimum.at(primitive, ray, row)
