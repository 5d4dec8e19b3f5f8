"""What the ray caster takes and gives."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64, Int32, Int64

GROUND = -1
"""`primitive` of a ray that meets the plane z = 0 first."""
NOTHING = -2
"""`primitive` of a ray that meets nothing: sky, or no return."""


@dataclass(frozen=True, kw_only=True)
class CameraView:
    """A pinhole camera at one instant."""

    K_cam: Float64[np.ndarray, "3 3"]
    """Intrinsics [px]; the first pixel's centre is (0.5, 0.5)."""
    T_global_cam: Float64[np.ndarray, "4 4"]
    width_px: int
    height_px: int


@dataclass(frozen=True, kw_only=True)
class CameraCast:
    """What each pixel's centre sees."""

    depth: Float32[np.ndarray, "h w"]
    """Distance along the optical axis [m]; infinite where there is nothing."""
    primitive: Int32[np.ndarray, "h w"]
    """Row of the table of primitives, `GROUND` or `NOTHING`."""
    visible_px: Int64[np.ndarray, " objects"]
    """Pixels of each annotated object."""
    unoccluded_px: Int64[np.ndarray, " objects"]
    """Pixels it would have if nothing else stood in the way (the ground does not count)."""


@dataclass(frozen=True, kw_only=True)
class LidarCast:
    """What each ray of one revolution meets, in the order of `rig.lidar_directions`."""

    range: Float32[np.ndarray, " rays"]
    """Distance along the ray [m], free of noise; infinite where there is nothing in range."""
    primitive: Int32[np.ndarray, " rays"]
    """Row of the table of primitives, `GROUND` or `NOTHING`."""
