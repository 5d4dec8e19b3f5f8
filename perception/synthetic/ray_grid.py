"""The rays of a sensor as a grid whose directions are sums of a part per column and one per line.

Both sensors fit. A pinhole's ray is (x(u), 0, 1) + (0, y(v), 0); a LiDAR's, scaled to a horizontal
length of 1, is (cos a, sin a, 0) + (0, 0, tan e). What depends on the column or on the line alone
is computed once per column or line instead of once per ray; for upright boxes, that is nearly all.
"""

import functools
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Float64

from perception.synthetic import rig
from perception.synthetic.casts import CameraView


@dataclass(frozen=True, kw_only=True)
class RayGrid:
    """Directions in the sensor's frame: `columns[:, u] + lines[:, v]`.

    Distances `t` along a ray count in lengths of its direction: z-depth [m] for cameras, horizontal
    range [m] for the LiDAR.
    """

    columns: Float32[np.ndarray, "3 w"]
    lines: Float32[np.ndarray, "3 h"]

    @property
    def shape(self) -> tuple[int, int]:
        """Lines, columns."""
        return self.lines.shape[1], self.columns.shape[1]

    def directions(self) -> Float32[np.ndarray, "h w 3"]:
        """Of every ray, in the sensor's frame."""
        return (self.columns[:, None, :] + self.lines[:, :, None]).transpose(1, 2, 0)


@functools.lru_cache(maxsize=1)
def lidar_grid() -> RayGrid:
    """Grid of the rig's LiDAR: a line per ring, a column per azimuth; arrays are read-only."""
    directions = rig.lidar_directions().reshape(rig.LIDAR_AZIMUTHS, rig.LIDAR_RINGS, 3)
    horizontal = np.hypot(directions[..., 0], directions[..., 1])
    columns = np.zeros((3, rig.LIDAR_AZIMUTHS))
    columns[:2] = (directions[:, 0, :2] / horizontal[:, :1]).T
    lines = np.zeros((3, rig.LIDAR_RINGS))
    lines[2] = directions[0, :, 2] / horizontal[0]
    return RayGrid(columns=_constant(columns), lines=_constant(lines))


def camera_grid(view: CameraView) -> RayGrid:
    """Grid of a camera's pixel centres, at depth 1."""
    (fx, skew, cx), (_, fy, cy), _ = view.K_cam.tolist()
    x = (np.arange(view.width_px) + 0.5 - cx) / fx
    y = (np.arange(view.height_px) + 0.5 - cy) / fy
    columns = np.stack([x, np.zeros_like(x), np.ones_like(x)])
    lines = np.stack([-skew / fx * y, y, np.zeros_like(y)])
    return RayGrid(columns=columns.astype(np.float32), lines=lines.astype(np.float32))


def _constant(array: Float64[np.ndarray, "*n"]) -> Float[np.ndarray, "*n"]:
    array = array.astype(np.float32)
    array.flags.writeable = False
    return array
