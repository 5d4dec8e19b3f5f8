"""ROS messages of a bag as the runtime's types, without ROS: any object with their fields will do.

Recorded data is taken strictly: what does not fit its own header is refused with a reason.
"""

from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, UInt8

from perception.data.sensor_files import jpeg_decoder
from perception.geometry import rigid
from perception.messages import CameraCalibration

PIXEL_CENTER_SHIFT = 0.5
"""ROS counts principal points from the centre of the first pixel, we from its corner [px].
Source: docs/conventions.md."""

CHANNELS = {
    "rgb8": (3, (0, 1, 2)),
    "bgr8": (3, (2, 1, 0)),
    "rgba8": (4, (0, 1, 2)),
    "bgra8": (4, (2, 1, 0)),
    "mono8": (1, (0, 0, 0)),
}
"""Encoding -> bytes per pixel, and where red, green and blue are."""

POINT_TYPES = {2: "u1", 4: "u2", 7: "f4", 8: "f8"}
"""PointField.datatype -> numpy's name. Source: sensor_msgs/PointField."""


class UnusableMessageError(ValueError):
    """What is wrong with a message; a replay names it and goes on."""


def stamp_ns(message: Any) -> int:
    """Acquisition time of a message with a header [ns].

    Raises:
        UnusableMessageError: It was never set.
    """
    stamp = message.header.stamp
    time_ns = int(stamp.sec) * 1_000_000_000 + int(stamp.nanosec)
    if time_ns <= 0:
        raise UnusableMessageError(f"header.stamp is {time_ns} ns, expected a time")
    return time_ns


def rgb_of(message: Any) -> UInt8[np.ndarray, "h w 3"]:
    """Picture of an Image or a CompressedImage (JPEG).

    Raises:
        UnusableMessageError: Encoding, sizes and data do not fit each other, or it is no JPEG.
    """
    if not hasattr(message, "encoding"):
        try:
            rgb = jpeg_decoder().decode_jpeg(bytes(message.data), colorspace="RGB", strict=True)
        except (ValueError, RuntimeError) as error:
            raise UnusableMessageError(f"compressed image is no valid JPEG: {error}") from error
        return np.asarray(rgb)
    if message.encoding not in CHANNELS:
        raise UnusableMessageError(
            f"encoding is {message.encoding!r}, expected one of {', '.join(CHANNELS)}"
        )
    num_channels, order = CHANNELS[message.encoding]
    height, width, step = int(message.height), int(message.width), int(message.step)
    data = np.frombuffer(message.data, np.uint8)
    if not (height and width and step >= width * num_channels and len(data) == step * height):
        raise UnusableMessageError(
            f"image has {width} x {height} px, a step of {step} and {len(data)} bytes: they do not "
            "fit each other"
        )
    pixels = data.reshape(height, step)[:, : width * num_channels]
    return np.ascontiguousarray(pixels.reshape(height, width, num_channels)[:, :, list(order)])


def points_of(message: Any) -> Float32[np.ndarray, "4 n"]:
    """Points of a PointCloud2: x, y, z [m] in the sensor's frame and intensity 0..255.

    Points with a number that is not finite are left out.

    Raises:
        UnusableMessageError: A field is missing or of another type, or sizes and data do not fit.
    """
    fields = {field.name: field for field in message.fields}
    names, order = ("x", "y", "z", "intensity"), ">" if message.is_bigendian else "<"
    if missing := [n for n in names if n not in fields or fields[n].datatype not in POINT_TYPES]:
        raise UnusableMessageError(f"cloud lacks {missing} of a known type, it has {[*fields]}")
    height, width = int(message.height), int(message.width)
    step, row_step, data = int(message.point_step), int(message.row_step), message.data
    formats = [order + POINT_TYPES[fields[name].datatype] for name in names]
    offsets = [int(fields[name].offset) for name in names]
    try:
        kind = np.dtype({"names": names, "formats": formats, "offsets": offsets, "itemsize": step})
        if row_step < width * step or len(data) != row_step * height:
            raise ValueError(f"{len(data)} bytes, row_step {row_step}, {width} x {height} points")
        table: np.ndarray = np.ndarray((height, width), kind, data, strides=(row_step, step))
    except (TypeError, ValueError) as error:
        raise UnusableMessageError(f"cloud does not fit its header: {error}") from error
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite and is left out
        points = np.stack([table[name].ravel().astype(np.float32) for name in names])
    return points[:, np.isfinite(points).all(axis=0)]


def camera_of(message: Any, T_ego_cam: Float64[np.ndarray, "4 4"]) -> CameraCalibration:
    """A camera's calibration from its CameraInfo and where it sits; distortion is not read.

    Raises:
        UnusableMessageError: The camera is not calibrated.
    """
    K_cam = np.array(message.k, np.float64).reshape(3, 3)
    if not (np.isfinite(K_cam).all() and K_cam[0, 0] > 0 and K_cam[1, 1] > 0):
        raise UnusableMessageError(f"camera info has k = {K_cam.tolist()}: not calibrated")
    K_cam[:2, 2] += PIXEL_CENTER_SHIFT
    return CameraCalibration(
        K_cam=K_cam,
        T_ego_cam=T_ego_cam,
        width_px=int(message.width),
        height_px=int(message.height),
    )


def transform_of(position: Any, rotation: Any) -> Float64[np.ndarray, "4 4"]:
    """Rigid transform of a pose's or transform's two parts [m].

    Raises:
        UnusableMessageError: It is no rotation and translation.
    """
    try:
        return rigid.transform_from_quaternion(
            (rotation.w, rotation.x, rotation.y, rotation.z), (position.x, position.y, position.z)
        )
    except ValueError as error:
        raise UnusableMessageError(f"pose: {error}") from error
