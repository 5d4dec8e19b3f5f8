"""The sky: from the horizon's colour to the top's, with clouds that stay where they are."""

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

from perception.synthetic.conditions import Conditions
from perception.synthetic.level_frame import LevelFrame
from perception.synthetic.noise_tiles import TILE_SIZE, noise_tiles

_CLOUD_HEIGHT = 600.0
"""Height of the clouds' plane above ground [m]. Source: ours, for the look."""
_CLOUD_CELL = 6.0
"""Cell of the tile of clouds [m]."""


def paint_sky(
    frame: LevelFrame, rows: range, columns: range, conditions: Conditions
) -> UInt8[np.ndarray, "h w 4"]:
    """Colours of a part of an image that lies above the horizon; the fourth channel is void."""
    v_px = np.arange(rows.start, rows.stop) + 0.5
    rays = frame.rays(v_px, (columns.start + columns.stop) / 2)
    rise = np.clip(rays[:, 2] / np.linalg.norm(rays, axis=1), 0, 1)
    top, horizon = (
        np.array(rgb, np.float64) for rgb in (conditions.sky_top_rgb, conditions.sky_horizon_rgb)
    )
    blend = 1 - np.exp(-rise * 3.2)
    gradient = (horizon + blend[:, None] * (top - horizon)).astype(np.float32)
    # Clouds take the sky's own light, white by day; they thin out towards the horizon.
    lit = np.minimum(1.06 * horizon + 14, 255.0)
    cover = _cloud_cover(frame, rows, columns, conditions.cloudiness)
    cover *= (np.clip(rise * 7 - 0.25, 0, 1) * 0.75).astype(np.float32)[:, None]
    planes = []
    for below, cloud in zip(gradient.T, lit.astype(np.float32), strict=True):
        plane = cover * (cloud - below[:, None])
        plane += below[:, None]
        planes.append(plane.astype(np.uint8))
    return cv2.merge([*planes, planes[0]])


def _cloud_cover(
    frame: LevelFrame, rows: range, columns: range, cloudiness: float
) -> Float32[np.ndarray, "h w"]:
    """Opacity of the clouds, 0..1."""
    # Clouds are soft: half the resolution does.
    size = (max(len(columns) // 2, 1), max(len(rows) // 2, 1))
    step_x, step_y = len(columns) / size[0], len(rows) / size[1]
    A_pixel_sample = np.array(
        [
            [step_x, 0, columns.start + step_x / 2],
            [0, step_y, rows.start + step_y / 2],
            [0, 0, 1],
        ]
    )
    A_global_level = frame.T_global_level[np.ix_([0, 1, 3], [0, 1, 3])]
    A_global_level[:2, 2] = np.remainder(A_global_level[:2, 2], TILE_SIZE * _CLOUD_CELL)
    A_cell_global = np.diag([1 / _CLOUD_CELL, 1 / _CLOUD_CELL, 1.0])
    homography = frame.ground_homography(_CLOUD_HEIGHT)
    clouds = cv2.warpPerspective(
        noise_tiles().clouds,
        np.einsum("ij,jk,kl,lm->im", A_cell_global, A_global_level, homography, A_pixel_sample),
        size,
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_WRAP,
    )
    # The tile's values are evenly spread: this share of them lies above the threshold.
    levels = np.arange(256, dtype=np.float32) / 255
    table = np.clip((levels - (1 - cloudiness)) / 0.45, 0, 1).astype(np.float32)
    return cv2.resize(
        cv2.LUT(clouds, table), (len(columns), len(rows)), interpolation=cv2.INTER_LINEAR
    )
