"""What travels between sensors, network and car: frames, calibration, detections.

Frames and units are those of docs/conventions.md. Nothing here is ever modified in place.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float32, Float64, Int64, UInt8

from perception.geometry.grid import BevGrid
from perception.taxonomy import LIDAR

Mode = Literal["fusion", "camera", "lidar", "invalid"]
"""What a result was made from; "invalid": no sensor, the result means nothing."""


@dataclass(frozen=True, kw_only=True)
class CameraImage:
    """One picture of one camera."""

    camera: str
    """Camera name, one of `perception.taxonomy.CAMERAS`."""
    stamp_ns: int
    """Acquisition time [ns]."""
    rgb: UInt8[np.ndarray, "h w 3"]
    """RGB, 0..255, row 0 at the top."""
    T_global_ego: Float64[np.ndarray, "4 4"] | None
    """Ego pose at `stamp_ns`; None where it is not known."""


@dataclass(frozen=True, kw_only=True)
class LidarSweep:
    """One revolution of the LiDAR."""

    stamp_ns: int
    """Acquisition time [ns]."""
    points_lidar: Float32[np.ndarray, "4 n"]
    """Rows x, y, z [m] in the sensor's own frame and intensity 0..255; one column per point."""
    T_global_ego: Float64[np.ndarray, "4 4"] | None
    """Ego pose at `stamp_ns`; None where it is not known."""


SensorMessage = CameraImage | LidarSweep


@dataclass(frozen=True, kw_only=True)
class CameraCalibration:
    """Where a camera sits and how it projects."""

    K_cam: Float64[np.ndarray, "3 3"]
    """Pinhole intrinsics of the full image [px]; the first pixel's centre is (0.5, 0.5)."""
    T_ego_cam: Float64[np.ndarray, "4 4"]
    """Camera (x right, y down, z forward) to ego (x forward, y left, z up)."""
    width_px: int
    height_px: int


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """The rig: one entry per camera, and the LiDAR."""

    cameras: Mapping[str, CameraCalibration]
    T_ego_lidar: Float64[np.ndarray, "4 4"]
    knows_lidar: bool = True
    """False: nobody has said where the LiDAR sits, `T_ego_lidar` stands for nothing, and no sweep
    may be used."""


@dataclass(frozen=True, kw_only=True)
class SensorFrame:
    """What is known at one instant: the model's raw input."""

    stamp_ns: int
    """Reference time [ns]: the LiDAR sweep's, or the newest image's where there is no new sweep, or
    when the frame was due where there is no new image either."""
    T_global_ego: Float64[np.ndarray, "4 4"] | None
    """Ego pose at `stamp_ns`. The model works in this ego frame."""
    images: Mapping[str, CameraImage]
    """The newest usable image per camera; a camera that has none is absent."""
    sweeps: tuple[LidarSweep, ...]
    """Newest first; empty where there is no usable sweep."""
    calibration: Calibration
    missing: Mapping[str, str]
    """Sensor name -> why it is not in the frame."""
    calibration_epoch: int = 0
    """Which calibration this is: grows by one with every change."""


@dataclass(frozen=True, kw_only=True)
class Detections:
    """3D boxes of one frame, best first."""

    boxes_ego: Float32[np.ndarray, "k 9"]
    """Columns as in `perception.geometry.boxes`, in the ego frame at the result's stamp."""
    scores: Float32[np.ndarray, " k"]
    labels: Int64[np.ndarray, " k"]
    """Index into `classes`."""
    classes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class MapMask:
    """Probability of each map layer round the car; layers overlap."""

    prob: Float32[np.ndarray, "c y x"]
    """0..1; row = y, column = x, both growing with the coordinate."""
    classes: tuple[str, ...]
    grid: BevGrid
    """Where the raster lies in the ego frame at the result's stamp."""


@dataclass(frozen=True, kw_only=True)
class PerceptionResult:
    """One frame's answer."""

    stamp_ns: int
    """The frame's reference time [ns], never the time of computing."""
    T_global_ego: Float64[np.ndarray, "4 4"] | None
    """The frame's; None where that was no finite pose."""
    detections: Detections
    map_mask: MapMask
    sensors_used: tuple[str, ...]
    """Sensors that the network has seen."""
    sensors_missing: Mapping[str, str]
    """Sensor name -> why it was not used."""
    stage_ms: Mapping[str, float]
    """Time spent per stage [ms]; a name with "/" is part of another stage."""
    calibration_epoch: int = 0
    """The frame's."""
    bundle_digest: str = ""
    """Digest of the bundle that was asked, be it that its engine failed; empty where none was,
    because no sensor could be used."""

    @property
    def mode(self) -> Mode:
        """What the result was made from."""
        if not self.sensors_used:
            return "invalid"
        if LIDAR not in self.sensors_used:
            return "camera"
        return "lidar" if self.sensors_used == (LIDAR,) else "fusion"
