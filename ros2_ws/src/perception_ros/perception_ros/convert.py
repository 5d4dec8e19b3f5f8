"""Sensor messages to the runtime's types and back: pure functions, no node.

A message that cannot be used raises `ConversionError`; the node drops it and counts its reason.
"""

from array import array

import numpy as np
from builtin_interfaces.msg import Time
from geometry_msgs.msg import Point, Pose, Quaternion
from nav_msgs.msg import Odometry
from sensor_msgs.msg import CameraInfo, Image, PointCloud2, PointField
from std_msgs.msg import Header

from runtime.api import (
    CameraCalibration,
    quaternion_from_transform,
    transform_from_quaternion,
)

_CHANNELS = {
    "rgb8": (3, (0, 1, 2)),
    "bgr8": (3, (2, 1, 0)),
    "rgba8": (4, (0, 1, 2)),
    "bgra8": (4, (2, 1, 0)),
    "mono8": (1, (0, 0, 0)),
}
"""Encoding -> channels per pixel, and where red, green and blue are."""

_FLOATS = {PointField.FLOAT32: "f4", PointField.FLOAT64: "f8"}
_POINT_TYPES = {
    "x": _FLOATS,
    "y": _FLOATS,
    "z": _FLOATS,
    "intensity": {PointField.FLOAT32: "f4", PointField.UINT8: "u1"},
}
"""Field name -> accepted PointField datatype -> numpy's name of it."""

PIXEL_CENTER_SHIFT = 0.5
"""Principal points of ROS and OpenCV count from the centre of the first pixel, ours from its corner
[px]. Source: docs/conventions.md; OpenCV's calibration puts pixel centres at whole numbers."""


class ConversionError(ValueError):
    """A message that cannot be used.

    `reason` is one of a few fixed words, to be counted; the message says the details.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def to_stamp_ns(header: Header) -> int:
    """Time stamp of a header [ns].

    Raises:
        ConversionError: The stamp was never set (zero) or is negative.
    """
    stamp_ns = int(header.stamp.sec) * 1_000_000_000 + int(header.stamp.nanosec)
    if stamp_ns <= 0:
        raise ConversionError("stamp", f"header.stamp is {stamp_ns} ns, expected a time")
    return stamp_ns


def make_header(stamp_ns: int, frame_id: str) -> Header:
    """Header with a stamp [ns] and a frame."""
    sec, nanosec = divmod(stamp_ns, 1_000_000_000)
    return Header(stamp=Time(sec=sec, nanosec=nanosec), frame_id=frame_id)


def to_rgb(image: Image) -> np.ndarray:
    """Pixels of an image as RGB uint8 [h, w, 3], contiguous; may share the message's memory.

    Raises:
        ConversionError: The encoding is unknown, or sizes, step and data do not match.
    """
    if image.encoding not in _CHANNELS:
        raise ConversionError(
            "encoding", f"image encoding is {image.encoding!r}, expected one of {list(_CHANNELS)}"
        )
    num_channels, order = _CHANNELS[image.encoding]
    height, width, step = image.height, image.width, image.step
    if height == 0 or width == 0 or step < width * num_channels:
        raise ConversionError(
            "size", f"image is {width} x {height} px with a step of {step} bytes: no picture"
        )
    if len(image.data) < step * height:
        raise ConversionError(
            "length", f"image has {len(image.data)} bytes, expected {step * height} (step x height)"
        )
    rows = np.frombuffer(image.data, np.uint8, count=step * height).reshape(height, step)
    pixels = rows[:, : width * num_channels].reshape(height, width, num_channels)
    if order != (0, 1, 2) or num_channels != 3:
        pixels = pixels[:, :, order]
    return np.ascontiguousarray(pixels)


def to_image(rgb: np.ndarray, header: Header) -> Image:
    """Image message (rgb8) of RGB uint8 [h, w, 3]."""
    height, width, _ = rgb.shape
    data = array("B")  # anything else is copied element by element: 250 ms for a camera image
    data.frombytes(np.ascontiguousarray(rgb).data)
    return Image(
        header=header, height=height, width=width, encoding="rgb8", step=3 * width, data=data
    )


def to_points_lidar(cloud: PointCloud2) -> np.ndarray:
    """Points as float32 [4, n]: x, y, z [m] in the sensor's frame and intensity 0..255.

    Fields are found by name, offset and type; points with a number that is not finite are left out.

    Raises:
        ConversionError: A field is missing or of another type, or sizes and data do not match.
    """
    order = ">" if cloud.is_bigendian else "<"
    fields = {field.name: field for field in cloud.fields}
    formats, offsets = [], []
    for name, types in _POINT_TYPES.items():
        if name not in fields:
            raise ConversionError(
                "fields", f"cloud has the fields {list(fields)}, expected {name!r}"
            )
        field = fields[name]
        if field.datatype not in types or field.count > 1:
            raise ConversionError(
                "fields",
                f"cloud field {name!r} has datatype {field.datatype} and count {field.count}, "
                f"expected one of {list(types)} and count 1",
            )
        formats.append(order + types[field.datatype])
        offsets.append(field.offset)
    ends = [offset + np.dtype(kind).itemsize for offset, kind in zip(offsets, formats, strict=True)]
    if max(ends) > cloud.point_step or cloud.width * cloud.point_step > cloud.row_step:
        raise ConversionError(
            "size",
            f"cloud has fields up to byte {max(ends)}, point_step {cloud.point_step}, width "
            f"{cloud.width} and row_step {cloud.row_step}: they do not fit into each other",
        )
    if len(cloud.data) < cloud.row_step * cloud.height:
        raise ConversionError(
            "length",
            f"cloud has {len(cloud.data)} bytes, expected {cloud.row_step * cloud.height} "
            "(row_step x height)",
        )
    num_points = cloud.height * cloud.width
    points = np.empty((4, num_points), np.float32)
    if num_points:
        kind = np.dtype({
            "names": list(_POINT_TYPES), "formats": formats, "offsets": offsets,
            "itemsize": cloud.point_step,
        })  # fmt: skip
        shape, strides = (cloud.height, cloud.width), (cloud.row_step, cloud.point_step)
        table: np.ndarray = np.ndarray(shape, kind, cloud.data, strides=strides)
        with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite, see below
            for row, name in enumerate(_POINT_TYPES):
                points[row] = table[name].ravel()
    finite = np.isfinite(points).all(axis=0)
    return points if finite.all() else points[:, finite]


def to_cloud(points_lidar: np.ndarray, header: Header) -> PointCloud2:
    """Cloud message with float32 x, y, z, intensity of points [4, n]."""
    num_points = points_lidar.shape[1]
    data = array("B")
    data.frombytes(points_lidar.T.astype("<f4").tobytes())
    fields = [
        PointField(name=name, offset=4 * index, datatype=PointField.FLOAT32, count=1)
        for index, name in enumerate(_POINT_TYPES)
    ]
    return PointCloud2(
        header=header, height=1, width=num_points, fields=fields, is_bigendian=False, point_step=16,
        row_step=16 * num_points, data=data, is_dense=True,
    )  # fmt: skip


def to_intrinsics(info: CameraInfo) -> tuple[np.ndarray, int, int]:
    """`K_cam` [px] (first pixel's centre at 0.5), width and height of a camera.

    Distortion is not read: images are expected rectified.

    Raises:
        ConversionError: The camera is not calibrated, or its image is not the whole sensor's.
    """
    K_cam = np.array(info.k, dtype=np.float64).reshape(3, 3)
    bottom_right = np.array_equal(K_cam[2], (0.0, 0.0, 1.0))
    if not (np.isfinite(K_cam).all() and bottom_right and K_cam[0, 0] > 0 and K_cam[1, 1] > 0):
        raise ConversionError("intrinsics", f"camera info has k = {K_cam.tolist()}: not calibrated")
    if info.width == 0 or info.height == 0:
        raise ConversionError("size", f"camera info says {info.width} x {info.height} px")
    roi = info.roi
    whole = (roi.x_offset, roi.y_offset) == (0, 0) and roi.width in (0, info.width) \
        and roi.height in (0, info.height)  # fmt: skip
    if info.binning_x > 1 or info.binning_y > 1 or not whole:
        raise ConversionError("region", "camera info has binning or a region: publish whole images")
    K_cam[:2, 2] += PIXEL_CENTER_SHIFT
    return K_cam, int(info.width), int(info.height)


def to_camera_info(calibration: CameraCalibration, header: Header) -> CameraInfo:
    """CameraInfo of a rectified camera; the inverse of `to_intrinsics`."""
    K_ros = np.array(calibration.K_cam)
    K_ros[:2, 2] -= PIXEL_CENTER_SHIFT
    return CameraInfo(
        header=header,
        width=calibration.width_px,
        height=calibration.height_px,
        distortion_model="plumb_bob",
        d=[0.0] * 5,
        k=K_ros.ravel().tolist(),
        r=np.eye(3).ravel().tolist(),
        p=np.hstack([K_ros, np.zeros((3, 1))]).ravel().tolist(),
    )


def to_T_global_ego(odometry: Odometry, base_frame: str) -> np.ndarray:  # noqa: N802 - a transform
    """Pose of the car in odometry's fixed frame, whichever that is.

    Args:
        odometry: Pose of `child_frame_id` in `header.frame_id`.
        base_frame: Frame of the car; an empty `child_frame_id` counts as this one.

    Raises:
        ConversionError: The pose is another frame's, or is no rotation and translation.
    """
    if odometry.child_frame_id not in ("", base_frame):
        raise ConversionError(
            "frame", f"odometry is of {odometry.child_frame_id!r}, expected {base_frame!r}"
        )
    position, rotation = odometry.pose.pose.position, odometry.pose.pose.orientation
    try:
        return transform_from_quaternion(
            (rotation.w, rotation.x, rotation.y, rotation.z), (position.x, position.y, position.z)
        )
    except ValueError as error:
        raise ConversionError("pose", f"odometry: {error}") from error


def to_odometry(T_global_ego: np.ndarray, header: Header, base_frame: str) -> Odometry:
    """Odometry message of a pose; the inverse of `to_T_global_ego`."""
    message = Odometry(header=header, child_frame_id=base_frame)
    message.pose.pose = to_pose(T_global_ego)
    return message


def to_pose(T: np.ndarray) -> Pose:
    """Pose message of a rigid transform 4x4."""
    w, x, y, z = quaternion_from_transform(T).tolist()
    position = Point(**dict(zip("xyz", T[:3, 3].tolist(), strict=True)))
    return Pose(position=position, orientation=Quaternion(x=x, y=y, z=z, w=w))
