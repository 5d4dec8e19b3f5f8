"""Annotations to what the heads should say: heatmaps, box codes, map rasters."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32, Int64

from perception.geometry import boxes as box_columns
from perception.geometry.grid import BevGrid

MIN_OVERLAP = 0.1
MIN_RADIUS = 2
"""Gaussian radius: boxes shifted by it still overlap by this IoU; at least so many cells.
Source: specs, base network section 7."""

MAX_OBJECTS = 500
"""Places for objects per frame; nuScenes' evaluation takes as many boxes."""


@dataclass(frozen=True, kw_only=True)
class FrameBoxTargets:
    """Box targets of one frame; `perception.models.heads.box_code.BoxTargets` of a batch."""

    heatmap: Float32[np.ndarray, "k y x"]
    cell: Int64[np.ndarray, " n"]
    label: Int64[np.ndarray, " n"]
    code: Float32[np.ndarray, "n 10"]
    object_mask: Bool[np.ndarray, " n"]


def box_targets(
    boxes_ego: Float[np.ndarray, "k 9"],
    labels: Int64[np.ndarray, " k"],
    num_classes: int,
    grid: BevGrid,
) -> FrameBoxTargets:
    """Draw each box as a peak at its cell; boxes whose centre is off the grid are left out.

    Args:
        boxes_ego: In the ego frame; a velocity may be NaN (not known).
        labels: Class of each box, 0 to num_classes - 1.
        num_classes: Channels of the heatmap.
        grid: The head's grid.
    """
    flat, inside = grid.flat_index(boxes_ego[:, 0], boxes_ego[:, 1])
    kept = np.flatnonzero(inside)[:MAX_OBJECTS]
    heatmap = np.zeros((num_classes, grid.ny, grid.nx), np.float32)
    for k in kept:
        length, width = boxes_ego[k, box_columns.SIZE][:2] / grid.cell
        radius = max(MIN_RADIUS, int(gaussian_radius(length, width)))
        row, column = divmod(int(flat[k]), grid.nx)
        draw_gaussian(heatmap[labels[k]], column, row, radius)
    cell, label = np.zeros((2, MAX_OBJECTS), np.int64)
    code = np.zeros((MAX_OBJECTS, 10), np.float32)
    cell[: len(kept)] = flat[kept]
    label[: len(kept)] = labels[kept]
    code[: len(kept)] = encode_boxes(boxes_ego[kept], flat[kept], grid)
    return FrameBoxTargets(
        heatmap=heatmap,
        cell=cell,
        label=label,
        code=code,
        object_mask=np.arange(MAX_OBJECTS) < len(kept),
    )


def encode_boxes(
    boxes_ego: Float[np.ndarray, "k 9"], cell: np.ndarray, grid: BevGrid
) -> Float32[np.ndarray, "k 10"]:
    """Metric boxes to codes at their cells: the inverse of `box_code.decode_boxes`."""
    corner = np.stack([cell % grid.nx, cell // grid.nx], axis=-1)
    offset = grid.cell_coordinates(boxes_ego[:, :2]) - corner
    yaw = boxes_ego[:, box_columns.YAW, None]
    parts = [
        offset,
        boxes_ego[:, 2:3],
        np.log(boxes_ego[:, box_columns.SIZE]),
        np.sin(yaw),
        np.cos(yaw),
        boxes_ego[:, box_columns.VELOCITY],
    ]
    return np.concatenate(parts, axis=-1).astype(np.float32)


def gaussian_radius(length: float, width: float) -> float:
    """Largest shift [cells] at which two boxes of this size still overlap by `MIN_OVERLAP`.

    Source: Law & Deng 2018 (CornerNet), the smallest of their three cases (corrected roots).
    """
    total, area, iou = length + width, length * width, MIN_OVERLAP
    inner = (total - np.sqrt(total**2 - 4 * area * (1 - iou) / (1 + iou))) / 2
    shrunk = (total - np.sqrt(total**2 - 4 * area * (1 - iou))) / 4
    grown = (np.sqrt(total**2 + 4 * area * (1 - iou) / iou) - total) / 4
    return float(min(inner, shrunk, grown))


def draw_gaussian(heatmap: Float32[np.ndarray, "y x"], column: int, row: int, radius: int) -> None:
    """Raise `heatmap` (in place) to a peak of 1 at a cell, with a sigma of a sixth of its width."""
    reach = np.arange(-radius, radius + 1)
    sigma = (2 * radius + 1) / 6
    peak = np.exp(-(reach[:, None] ** 2 + reach[None, :] ** 2) / (2 * sigma**2))
    rows, columns = row + reach, column + reach
    on_rows = (rows >= 0) & (rows < heatmap.shape[0])
    on_columns = (columns >= 0) & (columns < heatmap.shape[1])
    patch = np.ix_(rows[on_rows], columns[on_columns])
    heatmap[patch] = np.maximum(heatmap[patch], peak[np.ix_(on_rows, on_columns)])
