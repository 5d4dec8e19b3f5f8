"""Light of lamps by night: the car's own headlights and the street's, as a map in plan view."""

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float32, Float64

from perception.geometry import rigid
from perception.synthetic.level_frame import LevelFrame
from perception.synthetic.primitives import Primitives

_CELL = 0.75
_NUM_CELLS = 128
_BEHIND = 4.0
"""The map begins this far behind the camera [m]."""
_HEADLIGHT_X_EGO = 3.7
"""The car's front [m]. Source: ours, as the rest of this file."""
_HEADLIGHT_SPREAD = 0.5
"""Angle at which the beam has lost 63 % of its light [rad]."""
_HEADLIGHT_CUTOFF = 1.0
"""Height at which the beam has lost 63 % of its light [m], above the lamps' own."""
_HEADLIGHT_HEIGHT = 0.7
_STREET_LAMP_HEIGHT = 4.0
"""Lamps lower than this [m] light nothing but themselves."""
_POOL_RADIUS = 7.0
_POOL_LIGHT = 0.75
"""Below a lamp that glows with 1, as bright as that share of daylight."""


@dataclass(frozen=True, kw_only=True)
class LampLight:
    """Rasters of light, relative to daylight, in `level`; row = y, column = x."""

    beam: Float32[np.ndarray, "y x"]
    """Of the own headlights, at their height."""
    pools: Float32[np.ndarray, "y x"]
    """Of the street's lamps."""

    def on_ground(self, frame: LevelFrame, rows: range, width: int) -> Float32[np.ndarray, "h w"]:
        """Light on the ground in rows of an image."""
        scale = np.array([[1, 0, _BEHIND - _CELL / 2], [0, 1, (_NUM_CELLS - 1) / 2 * _CELL]])
        A_cell_level = np.concatenate([scale / _CELL, [[0.0, 0.0, 1.0]]])
        shift = np.array([[1.0, 0, 0.5], [0, 1, rows.start + 0.5], [0, 0, 1]])
        return cv2.warpPerspective(
            self.beam + self.pools,
            np.einsum("ij,jk,kl->il", A_cell_level, frame.ground_homography(), shift),
            (width, len(rows)),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        )

    def at_points(
        self, points_level: Float32[np.ndarray, "n 3"], ground_z: float
    ) -> Float32[np.ndarray, " n"]:
        """Light at points above the ground, which lies at `ground_z` in `level`."""
        column = np.floor((points_level[:, 0] + _BEHIND) / _CELL).astype(np.int32)
        row = np.floor(points_level[:, 1] / _CELL + _NUM_CELLS / 2).astype(np.int32)
        inside = (column >= 0) & (column < _NUM_CELLS) & (row >= 0) & (row < _NUM_CELLS)
        cell = np.where(inside, row * _NUM_CELLS + column, 0)
        above = np.maximum(points_level[:, 2] - np.float32(ground_z + _HEADLIGHT_HEIGHT), 0)
        reach = np.exp(-np.square(above / np.float32(_HEADLIGHT_CUTOFF)))
        # Walls catch the beam upright, the road only at a flat angle, hence the factor.
        light = 1.3 * self.beam.ravel()[cell] * reach + 0.7 * self.pools.ravel()[cell]
        return np.where(inside, light, 0).astype(np.float32)


def lamp_light(
    primitives: Primitives,
    frame: LevelFrame,
    headlights: float,
    T_global_ego: Float64[np.ndarray, "4 4"] | None,
) -> LampLight:
    """Work out where lamps shine.

    Args:
        primitives: Those that glow high above the ground are street lamps.
        frame: The camera's.
        headlights: Light of the own lamps 10 m ahead, relative to daylight.
        T_global_ego: Pose of the car; without it its lamps are off.
    """
    x = (np.arange(_NUM_CELLS) + 0.5) * _CELL - _BEHIND
    y = (np.arange(_NUM_CELLS) + 0.5 - _NUM_CELLS / 2) * _CELL
    beam = np.zeros((_NUM_CELLS, _NUM_CELLS), np.float32)
    if T_global_ego is not None:
        T_ego_level = np.einsum("ij,jk->ik", rigid.inverse(T_global_ego), frame.T_global_level)
        ahead = T_ego_level[0, 0] * x + T_ego_level[0, 1] * y[:, None] + T_ego_level[0, 3]
        aside = T_ego_level[1, 0] * x + T_ego_level[1, 1] * y[:, None] + T_ego_level[1, 3]
        ahead -= _HEADLIGHT_X_EGO
        angle = np.arctan2(aside, ahead)
        distance = np.hypot(ahead, aside)
        strength = np.minimum((10 / np.maximum(distance, 1)) ** 1.2, 1.5)
        beam = headlights * strength * np.exp(-np.square(angle / _HEADLIGHT_SPREAD))
    high = (primitives.glow > 0.3) & (primitives.center_global[:, 2] > _STREET_LAMP_HEIGHT)
    lamps_level = rigid.apply(rigid.inverse(frame.T_global_level), primitives.center_global[high])
    along = np.exp(-np.square((x - lamps_level[:, :1]) / _POOL_RADIUS))
    across = np.exp(-np.square((y - lamps_level[:, 1:2]) / _POOL_RADIUS))
    pools = np.einsum("k,ky,kx->yx", _POOL_LIGHT * primitives.glow[high], across, along)
    return LampLight(beam=beam.astype(np.float32), pools=pools.astype(np.float32))
