"""Cameras' intrinsics and poses: CameraInfo, Odometry, TransformStamped."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from perception.geometry.rigid import transform_from_quaternion
from perception.rig_faults import (
    MAX_POSITION,
    ROTATION_TOLERANCE,
    intrinsics_fault,
    rotation_error,
)
from runtime.decoding.message_header import ConversionError, to_frame_id

PIXEL_CENTER_SHIFT = 0.5
"""Principal points of ROS and OpenCV count from the centre of the first pixel, ours from its corner
[px]. Source: docs/conventions.md; OpenCV's calibration puts pixel centres at whole numbers."""

_DISTORTION = {
    "plumb_bob": (0, 4, 5),
    "rational_polynomial": (0, 8),
    "equidistant": (0, 4),
    "": (0,),
}
"""Model -> possible numbers of coefficients. Source: sensor_msgs/distortion_models.hpp; none at all
is how many drivers say "rectified"."""

RECTIFIED_ANGLE = 1e-3
"""Largest turn of the rectified camera against the sensor [rad]. Source: ours; one pixel at a focal
length of 1000, while the turn of a stereo pair is some ten times that."""

MAX_TRANSFORMS = 1000
"""Most transforms of one message. Source: ours; cars have some dozens."""


def to_intrinsics(info: Any, notices: Counter[str] | None = None) -> tuple[np.ndarray, int, int]:
    """`K_cam` [px] (first pixel's centre at 0.5), width and height of a camera's rectified images.

    The camera matrix is that of `p`, which belongs to the rectified picture; where `p` is not
    filled in, `k`, which is the same for a camera without distortion. Binning and a region are
    applied: the numbers are those of the images that are sent. Distortion is checked but not used.
    Rectification that turns the camera (`r`) is refused: the pose that is known is the sensor's.

    Args:
        info: sensor_msgs/CameraInfo.
        notices: Counts what was accepted although it needs a look: "distortion" (coefficients that
            are not zero), "p_differs" (p is not k's, and p is used).

    Raises:
        ConversionError: uncalibrated, intrinsics, focal_length, principal_point, size_zero, region,
            binning, distortion_model, distortion_length, rectification, rectification_turns.
    """
    notices = Counter() if notices is None else notices
    K_cam = _checked_matrix(info, notices)
    _check_distortion(info, notices)
    _check_rectification(info)
    K_cam[:2, 2] += PIXEL_CENTER_SHIFT
    roi, binning = info.roi, (max(1, int(info.binning_x)), max(1, int(info.binning_y)))
    width, height = int(roi.width or info.width), int(roi.height or info.height)
    if roi.x_offset + width > info.width or roi.y_offset + height > info.height:
        raise ConversionError(
            "region", f"camera info has a region beyond its {info.width} x {info.height} px"
        )
    # Counted from the corner of the first pixel, cutting and binning are shift and division.
    K_cam[:2, 2] -= (roi.x_offset, roi.y_offset)
    K_cam[:2] /= np.array(binning, np.float64)[:, None]
    width, height = width // binning[0], height // binning[1]
    if not (width and height):
        raise ConversionError(
            "binning", f"camera info has a binning of {binning}: no pixel is left"
        )
    return K_cam, width, height


def _checked_matrix(info: Any, notices: Counter[str]) -> np.ndarray:
    """Camera matrix of the rectified picture, as ROS counts pixels."""
    if not (info.width and info.height):
        raise ConversionError("size_zero", f"camera info says {info.width} x {info.height} px")
    matrices = {
        "k": np.array(info.k, np.float64).reshape(3, 3),
        "p": np.array(info.p, np.float64).reshape(3, 4)[:, :3],
    }
    if not matrices["k"].any():
        raise ConversionError("uncalibrated", "camera info has k = 0: the camera is not calibrated")
    if not matrices["p"].any():
        del matrices["p"]
    for name, K_cam in matrices.items():
        if fault := intrinsics_fault(K_cam, info.width, info.height):
            raise ConversionError(fault[0], f"{name} of camera info {fault[1]}")
        if not (0 <= K_cam[0, 2] < info.width and 0 <= K_cam[1, 2] < info.height):
            raise ConversionError(
                "principal_point", f"{name} of camera info has its principal point outside"
            )
    if not np.allclose(K_cam, matrices["k"], rtol=1e-6, atol=1e-6):
        notices["p_differs"] += 1
    return K_cam


def _check_distortion(info: Any, notices: Counter[str]) -> None:
    model, num = info.distortion_model, len(info.d)
    if model not in _DISTORTION:
        raise ConversionError(
            "distortion_model",
            f"distortion model is {model[:40]!r}, expected one of {list(_DISTORTION)}",
        )
    if num not in _DISTORTION[model]:
        raise ConversionError(
            "distortion_length",
            f"camera info has {num} coefficients, {model!r} has {_DISTORTION[model]}",
        )
    if any(info.d):
        notices["distortion"] += 1


def _check_rectification(info: Any) -> None:
    R = np.array(info.r, dtype=np.float64).reshape(3, 3)
    if not R.any():
        return  # not filled in
    if not rotation_error(R) <= ROTATION_TOLERANCE:
        raise ConversionError("rectification", f"camera info has r = {R.tolist()}: no rotation")
    sine = float(np.linalg.norm(R - R.T)) / np.sqrt(8)  # of the angle of the turn
    if sine > RECTIFIED_ANGLE or np.trace(R) < 2:
        raise ConversionError(
            "rectification_turns",
            f"camera info has r = {R.tolist()}, expected 1: publish it in a frame of the rectified "
            "camera",
        )


def to_T_global_ego(odometry: Any, base_frame: str) -> np.ndarray:  # noqa: N802 - a transform
    """Pose of the car in odometry's fixed frame, whichever that is.

    Args:
        odometry: nav_msgs/Odometry: pose of `child_frame_id` in `header.frame_id`.
        base_frame: Frame of the car; an empty `child_frame_id` counts as this one.

    Raises:
        ConversionError: child_frame: the pose is another frame's; or position, quaternion as
            `to_transforms`.
    """
    if odometry.child_frame_id not in ("", base_frame):
        raise ConversionError(
            "child_frame",
            f"odometry is of {odometry.child_frame_id[:40]!r}, expected {base_frame!r}",
        )
    pose = odometry.pose.pose
    return _transform(pose.position, pose.orientation)


def to_transforms(
    message: Any, on_error: Callable[[ConversionError], None] | None = None
) -> dict[str, tuple[str, np.ndarray]]:
    """Child frame -> its parent and `T_parent_child` [m], of the transforms that can be used.

    Stamps are not looked at: the newest message counts.

    Args:
        message: tf2_msgs/TFMessage.
        on_error: Called with what is wrong with a transform, and the others are used; None raises.

    Raises:
        ConversionError: tf_long: there are more than `MAX_TRANSFORMS`; else quaternion (not of unit
            length within 1e-3), position (not finite or beyond `MAX_POSITION`), tf_loop (a frame
            in itself), or what `to_frame_id` gives.
    """
    num = len(message.transforms)
    if num > MAX_TRANSFORMS:
        raise ConversionError("tf_long", f"TF message has {num} transforms, over {MAX_TRANSFORMS}")
    transforms = {}
    for stamped in message.transforms:
        try:
            child, parent, T_parent_child = _to_transform(stamped)
        except ConversionError as error:
            if on_error is None:
                raise
            on_error(error)
        else:
            transforms[child] = parent, T_parent_child
    return transforms


def _to_transform(stamped: Any) -> tuple[str, str, np.ndarray]:
    parent, child = to_frame_id(stamped.header.frame_id), to_frame_id(stamped.child_frame_id)
    if parent == child:
        raise ConversionError("tf_loop", f"transform of {child!r} is given in itself")
    transform = stamped.transform
    return child, parent, _transform(transform.translation, transform.rotation)


def _transform(position: Any, rotation: Any) -> np.ndarray:
    xyz = (position.x, position.y, position.z)
    if not all(abs(value) <= MAX_POSITION for value in xyz):  # false for NaN, too
        raise ConversionError("position", f"position is {xyz}, expected metres")
    try:
        return transform_from_quaternion((rotation.w, rotation.x, rotation.y, rotation.z), xyz)
    except ValueError as error:
        raise ConversionError("quaternion", str(error)) from error
