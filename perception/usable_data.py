"""What of a frame may be used: sensors without a fault, and sweeps brought into the ego frame."""

import dataclasses
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float32, Float64

from perception.geometry import pillars, rigid
from perception.geometry.lidar_points import occupied_cells, sweep_to_ego
from perception.input_spec import InputSpec
from perception.messages import LidarSweep, SensorFrame, SensorMessage
from perception.rig_faults import MAX_POSITION, intrinsics_fault
from perception.taxonomy import LIDAR

JUMP_M = 50.0
"""The car does not drive this far while a frame's data comes in [m]: a localisation has found
itself anew. Source: specs of reliability, kinds of poses; half a second at 360 km/h."""

FIRST_POINTS = 1024
"""Points of a sweep that are looked at first. Source: ours."""


def is_pose(T: Float64[np.ndarray, "..."] | None) -> bool:
    """Whether a transform is given, with finite numbers that can be metres."""
    # false for NaN, too
    return T is not None and T.shape == (4, 4) and bool(np.abs(T).max() <= MAX_POSITION)


def has_jumped(
    T_global_ego_0: Float64[np.ndarray, "4 4"] | None,
    T_global_ego_1: Float64[np.ndarray, "4 4"] | None,
) -> bool:
    """Whether the car cannot have driven from one pose to the other; not where one is missing."""
    if T_global_ego_0 is None or T_global_ego_1 is None:
        return False
    return bool(np.linalg.norm(T_global_ego_1[:3, 3] - T_global_ego_0[:3, 3]) > JUMP_M)


def motion(
    T_global_ego_now: Float64[np.ndarray, "4 4"] | None,
    T_global_ego_then: Float64[np.ndarray, "4 4"] | None,
) -> Float64[np.ndarray, "4 4"]:
    """`T_ego_now_ego_then`; identity where that is not known: the car is taken to stand.

    It is not where a pose is missing, or the poses jump in between (`has_jumped`).
    """
    if T_global_ego_now is None or T_global_ego_then is None or not is_pose(T_global_ego_now):
        return np.eye(4)
    if has_jumped(T_global_ego_now, T_global_ego_then):
        return np.eye(4)
    return rigid.inverse(T_global_ego_now) @ T_global_ego_then


def usable_sweeps(frame: SensorFrame, spec: InputSpec) -> tuple[LidarSweep, ...]:
    """Sweeps that may be accumulated, newest first; empty where the newest is too old or too new.

    Without ego poses only the newest: older ones would smear over a moving car. Those from before
    a jump of the poses cannot be placed either.
    """
    if lidar_fault(frame, spec) is not None:
        return ()
    if not is_pose(frame.T_global_ego) or frame.sweeps[0].T_global_ego is None:
        return frame.sweeps[:1]
    recent = (
        sweep
        for sweep in frame.sweeps
        if frame.stamp_ns - sweep.stamp_ns <= spec.pillars.max_sweep_age * 1e9
        and is_pose(sweep.T_global_ego)
        and not has_jumped(frame.T_global_ego, sweep.T_global_ego)
        and _is_points(sweep.points_lidar)
    )
    return tuple(recent)[: spec.pillars.num_sweeps]


def accumulate(
    frame: SensorFrame, sweeps: tuple[LidarSweep, ...], config: pillars.PillarConfig
) -> Float32[np.ndarray, "5 n"]:
    """Bring sweeps into the frame's ego frame, newest first; rows as `pillars.POINT_COLUMNS`."""
    points_ego = np.empty((5, sum(sweep.points_lidar.shape[1] for sweep in sweeps)), np.float32)
    end = 0
    for sweep in sweeps:
        T_ego_lidar = motion(frame.T_global_ego, sweep.T_global_ego) @ frame.calibration.T_ego_lidar
        end += sweep_to_ego(
            sweep.points_lidar,
            T_ego_lidar[:3].astype(np.float32),
            config.ego_radius,
            (frame.stamp_ns - sweep.stamp_ns) * 1e-9,
            points_ego[:, end:],
        )
    return points_ego[:, :end]


def frame_points(frame: SensorFrame, spec: InputSpec) -> Float32[np.ndarray, "5 n"]:
    """All points of the usable sweeps, rows as `pillars.POINT_COLUMNS`, newest sweep first."""
    return accumulate(frame, usable_sweeps(frame, spec), spec.pillars)


def sensor_faults(frame: SensorFrame, spec: InputSpec) -> dict[str, str | None]:
    """Why each sensor of the network cannot be used, in the network's order; None where it can."""
    faults = {camera: camera_fault(frame, camera, spec) for camera in spec.cameras}
    if spec.use_lidar:
        faults[LIDAR] = lidar_fault(frame, spec)
    return faults


def missing_sensors(frame: SensorFrame, faults: Mapping[str, str | None]) -> dict[str, str]:
    """Why each sensor with a fault is not used: what the frame says of it, else the fault."""
    return {
        sensor: frame.missing.get(sensor, fault)
        for sensor, fault in faults.items()
        if fault is not None
    }


def camera_fault(frame: SensorFrame, camera: str, spec: InputSpec) -> str | None:
    """Why a camera of the frame cannot be used; None where it can."""
    if camera not in frame.images:
        return "no data"
    if camera not in frame.calibration.cameras:
        return "no calibration"
    image, calibration = frame.images[camera], frame.calibration.cameras[camera]
    if image.rgb.ndim != 3 or image.rgb.shape[2] != 3 or image.rgb.dtype != np.uint8:
        return f"image is {image.rgb.dtype} of shape {image.rgb.shape}, expected uint8 RGB"
    height, width, _ = image.rgb.shape
    if (height, width) != (calibration.height_px, calibration.width_px):
        return (
            f"image is {width} x {height} px, the calibration says {calibration.width_px} x "
            f"{calibration.height_px}"
        )
    try:
        spec.image.A_img_aug_img(width, height)
    except ValueError as error:
        return str(error)
    if fault := intrinsics_fault(calibration.K_cam, width, height):
        return f"K_cam {fault[1]}"
    if not is_pose(calibration.T_ego_cam):
        return "T_ego_cam is no finite pose"
    return _message_fault(image, frame, spec)


def lidar_fault(frame: SensorFrame, spec: InputSpec) -> str | None:
    """Why the LiDAR of the frame cannot be used; None where it can.

    Its newest sweep counts: older ones behind an empty one are the past, and would be fused as now.
    """
    if not frame.sweeps:
        return "no data"
    newest = frame.sweeps[0]
    if not _is_points(newest.points_lidar):
        return f"points are {newest.points_lidar.dtype} of shape {newest.points_lidar.shape}"
    if not is_pose(frame.calibration.T_ego_lidar):
        return "T_ego_lidar is no finite pose"
    fault = _message_fault(newest, frame, spec)
    if fault is None and not _has_usable_point(frame, spec):
        return "no usable point"
    return fault


def _is_points(points_lidar: np.ndarray) -> bool:
    return (
        points_lidar.ndim == 2 and points_lidar.shape[0] == 4 and (points_lidar.dtype == np.float32)
    )


def _has_usable_point(frame: SensorFrame, spec: InputSpec) -> bool:
    """Whether a point of the newest sweep is finite, not of the car, and within the range."""
    newest = frame.sweeps[0]
    # the first points nearly always have one: only a sweep without is looked at as a whole
    for part in (newest.points_lidar[:, :FIRST_POINTS], newest.points_lidar):
        sweep = dataclasses.replace(newest, points_lidar=part)
        points_ego = accumulate(frame, (sweep,), spec.pillars)
        if len(occupied_cells(points_ego, spec.pillars.volume)[1]):
            return True
    return False


def _message_fault(message: SensorMessage, frame: SensorFrame, spec: InputSpec) -> str | None:
    """What is wrong with a message's pose or age."""
    if message.T_global_ego is not None and not is_pose(message.T_global_ego):
        return "T_global_ego is no finite pose"
    age = (frame.stamp_ns - message.stamp_ns) * 1e-9
    if abs(age) <= spec.max_sensor_age:
        return None
    kind = "old" if age > 0 else "ahead"
    return f"newest data is {abs(age):.3f} s {kind}, the limit is {spec.max_sensor_age:.3f} s"
