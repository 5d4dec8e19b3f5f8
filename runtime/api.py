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
from runtime.decoding.cloud_decoding import POINT_FIELDS, CloudRules, to_points_lidar
from runtime.decoding.image_decoding import compressed_to_rgb, to_rgb
from runtime.decoding.message_header import ConversionError, to_frame_id, to_stamp_ns
from runtime.decoding.pose_decoding import (
    PIXEL_CENTER_SHIFT,
    to_intrinsics,
    to_T_global_ego,
    to_transforms,
)
from runtime.ego_motion import EgoPoseBuffer
from runtime.engines.selection import open_engine
from runtime.ladder import Ladder
from runtime.latency import LatencyRecorder, LatencySummary
from runtime.pipeline import Pipeline
from runtime.self_test import SelfTestReport, self_test
from runtime.synchronizer import Synchronizer, SynchronizerConfig

__all__ = [
    "LIDAR",
    "PIXEL_CENTER_SHIFT",
    "POINT_FIELDS",
    "Bundle",
    "Calibration",
    "CalibrationEpochs",
    "CameraCalibration",
    "CameraImage",
    "CloudRules",
    "ConversionError",
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
    "compressed_to_rgb",
    "load_bundle",
    "open_engine",
    "quaternion_from_transform",
    "read_calibration",
    "run_command",
    "same_calibration",
    "self_test",
    "to_T_global_ego",
    "to_frame_id",
    "to_intrinsics",
    "to_points_lidar",
    "to_rgb",
    "to_stamp_ns",
    "to_transforms",
    "transform_from_quaternion",
    "write_calibration",
]
