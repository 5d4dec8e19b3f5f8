"""The files of a nuScenes log's sensors: JPEG pictures and binary point lists."""

import types
from pathlib import Path

import numpy as np
from jaxtyping import Float32, UInt8

from perception.errors import InputError

LIDAR_POINT_BYTES = 20
"""float32 x, y, z, intensity, ring. Source: nuScenes, LIDAR_TOP file format."""


class UnusableFileError(Exception):
    """What is wrong with a sensor's file; a log names it and goes on."""


def jpeg_decoder() -> types.ModuleType:
    """The library that decodes pictures.

    Raises:
        InputError: It is not installed.
    """
    try:
        import simplejpeg  # only logs need it: a car's cameras give raw images
    except ImportError as error:
        raise InputError(
            "Reading a log's images needs simplejpeg: pip install 'bev-perception[replay]'."
        ) from error
    return simplejpeg


def read_points(path: Path) -> Float32[np.ndarray, "4 n"]:
    """Points of a LiDAR revolution: rows x, y, z [m] in the sensor's frame, intensity 0..255.

    Raises:
        UnusableFileError: The file is missing, empty or cut off.
    """
    content = _read(path)
    if len(content) % LIDAR_POINT_BYTES:
        raise UnusableFileError(
            f"is truncated: {len(content)} bytes is no multiple of {LIDAR_POINT_BYTES}"
        )
    points = np.frombuffer(content, dtype="<f4").reshape(-1, LIDAR_POINT_BYTES // 4)
    return np.ascontiguousarray(points[:, :4].T)


def read_image(path: Path, width: int, height: int) -> UInt8[np.ndarray, "h w 3"]:
    """Picture of a camera, RGB.

    Args:
        path: A JPEG file.
        width: Columns that the tables say [px].
        height: Rows that the tables say [px].

    Raises:
        UnusableFileError: The file is missing, no whole JPEG, or of another size.
        InputError: The decoder is not installed.
    """
    decoder = jpeg_decoder()
    content = _read(path)
    try:
        rgb = decoder.decode_jpeg(content, colorspace="RGB", strict=True)
    except (ValueError, RuntimeError) as error:
        raise UnusableFileError(f"is no valid JPEG: {error}") from error
    if rgb.shape != (height, width, 3):
        raise UnusableFileError(
            f"is {rgb.shape[1]} x {rgb.shape[0]} px, the tables say {width} x {height}"
        )
    return np.asarray(rgb)


def _read(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UnusableFileError("is listed but missing") from None
    except OSError as error:
        raise UnusableFileError(f"cannot be read: {error.strerror}") from error
    if not content:
        raise UnusableFileError("is empty")
    return content
