"""Tables of the BEV pool in tests: made from a cell per point, and taken apart into points."""

from itertools import pairwise

import numpy as np


def points_of(
    runs: np.ndarray, cell_start: np.ndarray, width: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Depth index, pixel index and cell of every point, one run and row after the other."""
    points = [
        (depth + row * width, pixel + row * width, cell)
        for cell, (start, end) in enumerate(pairwise(cell_start))
        for depth, pixel, rows in np.asarray(runs)[start:end].tolist()
        for row in range(rows)
    ]
    depth, pixel, cell = np.array(points, np.int32).reshape(-1, 3).T
    return depth, pixel, cell


def table_of_cells(cell: np.ndarray, num_cells: int) -> tuple[np.ndarray, np.ndarray]:
    """Runs and cell_start from the cell of each point (n, d, h, w), -1 where it has none."""
    n_images, num_depths, height, width = cell.shape
    lists: list[list[tuple[int, int, int]]] = [[] for _ in range(num_cells)]
    for n, d, w in np.ndindex(n_images, num_depths, width):
        column = [*cell[n, d, :, w].tolist(), -1]
        start = 0
        for h in range(1, height + 1):
            if column[h] != column[start] or h == height:
                if column[start] >= 0:
                    depth = ((n * num_depths + d) * height + start) * width + w
                    pixel = (n * height + start) * width + w
                    lists[column[start]].append((depth, pixel, h - start))
                start = h
    runs = np.array([run for of_cell in lists for run in of_cell], np.int32).reshape(-1, 3)
    cell_start = np.cumsum([0] + [len(of_cell) for of_cell in lists]).astype(np.int32)
    return runs, cell_start
