"""The ground in perspective: its texture warped into an image, free of aliasing."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float32, Float64, UInt8

from perception.synthetic.ground import Ground, Surface
from perception.synthetic.level_frame import LevelFrame
from perception.synthetic.noise_tiles import TILE_SIZE, noise_tiles

_NUM_LEVELS = 6
_MAX_OVERSAMPLING = 4
"""Samples per pixel along the line of sight; what is further than that allows is blurred."""
_DETAIL_CELL = 0.012
"""Cell of the grain that is added close to the car, finer than the texture [m]."""
_DETAIL_RANGE = 7.0
"""How far the grain reaches, fading [m]."""
_DETAIL_STRENGTH = 0.09


@dataclass(frozen=True, kw_only=True)
class GroundView:
    """A map's ground, ready to be looked at."""

    cell: float
    """Edge of a cell of the finest level [m]."""
    levels: tuple[UInt8[np.ndarray, "_y _x 3"], ...]
    """Texture; each level has cells twice as large as the one before."""
    outside_rgb: tuple[int, int, int]
    """Colour of the ground around the map."""


def build_ground_view(ground: Ground) -> GroundView:
    """Make the pyramid. The finest level is the ground's own texture, not a copy."""
    levels = [np.asarray(ground.texture_rgb)]
    while len(levels) < _NUM_LEVELS and min(levels[-1].shape[:2]) >= 2:
        rows, columns = (size // 2 for size in levels[-1].shape[:2])
        even = levels[-1][: 2 * rows, : 2 * columns]
        levels.append(cv2.resize(even, (columns, rows), interpolation=cv2.INTER_AREA))
    sparse = np.asarray(ground.texture_rgb[::16, ::16])
    grass = sparse[ground.surface[::16, ::16] == Surface.GRASS]
    red, green, blue = grass.mean(axis=0) if len(grass) else (92.0, 116.0, 62.0)
    return GroundView(
        cell=ground.cell, levels=tuple(levels), outside_rgb=(int(red), int(green), int(blue))
    )


@dataclass(frozen=True, kw_only=True)
class _Band:
    """Rows of an image that share a level of the pyramid."""

    begin: int
    end: int
    level: int
    oversampling: int


def view_ground(
    ground_view: GroundView, frame: LevelFrame, is_ground: Bool[np.ndarray, "h w"]
) -> UInt8[np.ndarray, "h w 3"]:
    """Colours by full daylight of an image's pixels that see the ground; the others are void."""
    A_global_level = frame.T_global_level[np.ix_([0, 1, 3], [0, 1, 3])]
    A_global_pixel = np.einsum("ij,jk->ik", A_global_level, frame.ground_homography())
    image = np.zeros((*is_ground.shape, 3), np.uint8)
    for band in _bands(frame, is_ground, ground_view.cell, len(ground_view.levels)):
        left, _, width, _ = cv2.boundingRect(is_ground[band.begin : band.end].view(np.uint8))
        if not width:
            continue
        # A level's first cell is centred at half its edge, warpPerspective counts from 0.
        per_meter = 1 / (ground_view.cell * 2**band.level)
        A_cell_global = np.array([[per_meter, 0, -0.5], [0, per_meter, -0.5], [0, 0, 1]])
        step = 1 / band.oversampling
        A_pixel_sample = np.array([[1, 0, left + 0.5], [0, step, band.begin + step / 2], [0, 0, 1]])
        num_rows = band.end - band.begin
        samples = cv2.warpPerspective(
            ground_view.levels[band.level],
            np.einsum("ij,jk,kl->il", A_cell_global, A_global_pixel, A_pixel_sample),
            (width, num_rows * band.oversampling),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=ground_view.outside_rgb,
        )
        if band.oversampling > 1:
            samples = cv2.resize(samples, (width, num_rows), interpolation=cv2.INTER_AREA)
        image[band.begin : band.end, left : left + width] = samples
    return image


def add_detail(
    gain: Float32[np.ndarray, "h w"], frame: LevelFrame, is_ground: Bool[np.ndarray, "h w"]
) -> None:
    """Roughen the brightness of the ground close to the camera, in place."""
    distance = _distances(frame, *is_ground.shape)
    begin = int(np.argmax(distance < _DETAIL_RANGE))
    if distance[begin] >= _DETAIL_RANGE:
        return
    left, top, width, height = cv2.boundingRect(is_ground[begin:].view(np.uint8))
    if not width:
        return
    top += begin
    A_global_level = frame.T_global_level[np.ix_([0, 1, 3], [0, 1, 3])]
    # Whole tiles are left out, so that the numbers stay small.
    A_global_level[:2, 2] = np.remainder(A_global_level[:2, 2], TILE_SIZE * _DETAIL_CELL)
    A_cell_global = np.diag([1 / _DETAIL_CELL, 1 / _DETAIL_CELL, 1.0])
    # Half the resolution does: close to the camera a pixel is far smaller than a cell.
    size = (max(width // 2, 1), max(height // 2, 1))
    step_x, step_y = width / size[0], height / size[1]
    A_pixel_sample = np.array(
        [[step_x, 0, left + step_x / 2], [0, step_y, top + step_y / 2], [0, 0, 1]]
    )
    homography = frame.ground_homography()
    grain = cv2.warpPerspective(
        noise_tiles().grain,
        np.einsum("ij,jk,kl,lm->im", A_cell_global, A_global_level, homography, A_pixel_sample),
        size,
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_WRAP,
    )
    grain = cv2.resize(grain, (width, height), interpolation=cv2.INTER_LINEAR)
    fade = np.clip(1 - distance[top : top + height] / _DETAIL_RANGE, 0, 1) * _DETAIL_STRENGTH / 32
    strength = fade.astype(np.float32)[:, None]
    gain[top : top + height, left : left + width] *= (1 - 128 * strength) + grain * strength


def _distances(frame: LevelFrame, height: int, width: int) -> Float64[np.ndarray, " h"]:
    """How far ahead the ground lies in the middle of each row [m]; infinite above the horizon."""
    rays = frame.rays(np.arange(height) + 0.5, width / 2)
    down = np.maximum(-rays[:, 2], 1e-9)
    return np.where(rays[:, 2] < -1e-6, frame.height / down, np.inf)


def _bands(
    frame: LevelFrame, is_ground: Bool[np.ndarray, "h w"], cell: float, num_levels: int
) -> Iterator[_Band]:
    """Split the rows that see the ground by what a pixel covers there."""
    _, top, _, height = cv2.boundingRect(is_ground.view(np.uint8))
    distance = np.minimum(_distances(frame, *is_ground.shape)[top : top + height], 1e4)
    focal_px = 1 / float(np.linalg.norm(frame.A_level_pixel[:, 0]))
    across = distance / focal_px
    along = np.maximum(across * distance / frame.height, across)
    wanted = np.exp2(np.ceil(np.log2(along / np.maximum(across, cell) - 1e-6)))
    oversampling = np.clip(wanted, 1, _MAX_OVERSAMPLING).astype(np.int64)
    covered = np.maximum(across, along / oversampling)
    level = np.clip(np.round(np.log2(covered / cell)), 0, num_levels - 1).astype(np.int64)
    changes = np.flatnonzero(np.diff(level) | np.diff(oversampling)) + 1
    edges = [0, *changes.tolist(), height]
    for begin, end in itertools.pairwise(edges):
        if end > begin:
            yield _Band(
                begin=top + begin,
                end=top + end,
                level=int(level[begin]),
                oversampling=int(oversampling[begin]),
            )
