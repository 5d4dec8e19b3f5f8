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
    Mode,
    PerceptionResult,
    SensorFrame,
    SensorMessage,
)
from perception.taxonomy import LIDAR
from runtime.calibration_epochs import CalibrationEpochs, same_calibration
from runtime.calibration_file import read_calibration, write_calibration
from runtime.ego_motion import EgoPoseBuffer
from runtime.engines.selection import open_engine
from runtime.ladder import Ladder
from runtime.latency import LatencyRecorder, LatencySummary
from runtime.pipeline import Pipeline
from runtime.self_test import SelfTestReport, self_test
from runtime.synchronizer import Synchronizer, SynchronizerConfig

__all__ = [
    "LIDAR",
    "Bundle",
    "Calibration",
    "CalibrationEpochs",
    "CameraCalibration",
    "CameraImage",
    "Detections",
    "EgoPoseBuffer",
    "InputError",
    "Ladder",
    "LatencyRecorder",
    "LatencySummary",
    "LidarSweep",
    "MapMask",
    "MissingFile",
    "Mode",
    "NuScenesLog",
    "PerceptionResult",
    "Pipeline",
    "SelfTestReport",
    "SensorFrame",
    "SensorMessage",
    "Synchronizer",
    "SynchronizerConfig",
    "load_bundle",
    "open_engine",
    "quaternion_from_transform",
    "read_calibration",
    "run_command",
    "same_calibration",
    "self_test",
    "transform_from_quaternion",
    "write_calibration",
]
