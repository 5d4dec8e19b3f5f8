"""The one door to the car's side: what an integrator or a ROS node imports."""

from perception.bundle import Bundle, load_bundle
from perception.data.nuscenes_log import MissingFile, NuScenesLog
from perception.errors import InputError, run_command
from perception.geometry.rigid import quaternion_from_transform, transform_from_quaternion
from perception.messages import (
    Calibration,
    CameraCalibration,
    CameraImage,
    Detections,
    LidarSweep,
    MapMask,
    PerceptionResult,
    SensorFrame,
    SensorMessage,
)
from runtime.calibration_file import read_calibration, write_calibration
from runtime.ego_motion import EgoPoseBuffer
from runtime.engines.selection import open_engine
from runtime.latency import LatencyRecorder
from runtime.pipeline import Pipeline
from runtime.synchronizer import Synchronizer, SynchronizerConfig

__all__ = [
    "Bundle",
    "Calibration",
    "CameraCalibration",
    "CameraImage",
    "Detections",
    "EgoPoseBuffer",
    "InputError",
    "LatencyRecorder",
    "LidarSweep",
    "MapMask",
    "MissingFile",
    "NuScenesLog",
    "PerceptionResult",
    "Pipeline",
    "SensorFrame",
    "SensorMessage",
    "Synchronizer",
    "SynchronizerConfig",
    "load_bundle",
    "open_engine",
    "quaternion_from_transform",
    "read_calibration",
    "run_command",
    "transform_from_quaternion",
    "write_calibration",
]
