"""Pixels of Image and CompressedImage messages. Sizes are checked before anything is allocated."""

import struct
import zlib
from collections import Counter
from typing import Any

import numpy as np

from runtime.decoding.message_header import ConversionError

_CHANNELS = {
    "rgb8": 3,
    "bgr8": 3,
    "rgba8": 4,
    "bgra8": 4,
    "mono8": 1,
    "rgb16": 3,
    "bgr16": 3,
    "rgba16": 4,
    "bgra16": 4,
    "mono16": 1,
}
"""Encoding -> channels of a pixel. Of 16 bits the upper 8 are taken."""

_CONVERSIONS = {
    "bayer_rggb8": (1, "COLOR_BayerBG2RGB"),
    "bayer_bggr8": (1, "COLOR_BayerRG2RGB"),
    "bayer_gbrg8": (1, "COLOR_BayerGR2RGB"),
    "bayer_grbg8": (1, "COLOR_BayerGB2RGB"),
    "yuv422": (2, "COLOR_YUV2RGB_UYVY"),
    "uyvy": (2, "COLOR_YUV2RGB_UYVY"),
    "yuv422_yuy2": (2, "COLOR_YUV2RGB_YUY2"),
    "yuyv": (2, "COLOR_YUV2RGB_YUY2"),
    "nv12": (1, "COLOR_YUV2RGB_NV12"),
}
"""Encoding -> bytes of a pixel (of nv12's brightness), and OpenCV's name of what makes it RGB: for
Bayer that of the second row's second and third pixel; YUV is that of BT.601, 16..235. Source:
OpenCV's documentation of color conversions, sensor_msgs/image_encodings.hpp."""

_NOT_TAKEN = ("bayer_", "yuv", "nv", "8UC", "8SC", "16UC", "16SC", "32SC", "32FC", "64FC")
"""How the other encodings begin: rare orders of YUV, 16 bits of Bayer, and numbers that do not say
what they mean. Source: sensor_msgs/image_encodings.hpp."""

MAX_PIXELS = 1 << 24
"""Largest picture [px]: 48 MB as RGB. Source: ours; 4096 x 4096, twice a 4K camera."""

MAX_PADDING = 1024
"""Longest filling at the end of a row [bytes]; more of it means that the encoding does not say how
many bytes a pixel has. Source: ours; drivers align rows to 512 bytes at most."""

MAX_HEADER = 1 << 16
"""Bytes in which EXIF data is looked for. Source: EXIF 2.3, the longest segment."""

MAX_SCANS = 64
"""Most scans of a progressive JPEG: each costs a pass over the picture. Source: ours; encoders
write about ten."""

_PNG_KEPT = (b"IHDR", b"PLTE", b"IDAT", b"IEND")
"""Chunks that make the picture; others (profiles, texts) may unpack to any size, or turn the
picture (EXIF)."""

_JPEG_NAMES = ("jpeg", "jpg")
_JPEG, _PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"


def to_rgb(image: Any, size_px: tuple[int, int] | None = None) -> np.ndarray:
    """Pixels of a raw image as RGB uint8 [h, w, 3].

    Of rgb, bgr, rgba, bgra and mono a view of the message's memory, never a copy; it may have any
    strides (padded rows, reversed channels, one channel three times). Bayer and YUV are converted.

    Args:
        image: sensor_msgs/Image.
        size_px: Width and height that the calibration says; None takes any.

    Raises:
        ConversionError: encoding_unsupported, encoding_unknown, image_empty, size_zero, size_huge,
            size_calibration, size_odd, step_short, step_long, data_short, data_long or
            decoder_missing.
    """
    encoding, step = image.encoding, int(image.step)
    if encoding not in _CHANNELS and encoding not in _CONVERSIONS:
        known = encoding.startswith(_NOT_TAKEN)
        raise ConversionError(
            "encoding_unsupported" if known else "encoding_unknown",
            f"image encoding is {encoding[:40]!r}, expected one of {[*_CHANNELS, *_CONVERSIONS]}",
        )
    num_bytes = len(image.data)
    if not num_bytes:
        raise ConversionError("image_empty", "image has no data")
    width, height = _checked_size(image.width, image.height, size_px)
    is_deep = encoding.endswith("16")
    num_channels = _CHANNELS.get(encoding, 0)
    row_bytes = width * (num_channels << is_deep or _CONVERSIONS[encoding][0])
    num_rows = height * 3 // 2 if encoding == "nv12" else height
    if not num_channels and (width % 2 or height % 2):
        raise ConversionError("size_odd", f"image is {width} x {height} px in {encoding}")
    if not 0 <= step - row_bytes <= MAX_PADDING:
        raise ConversionError(
            "step_short" if step < row_bytes else "step_long",
            f"image has a step of {step} bytes, expected {row_bytes} or at most {MAX_PADDING} more",
        )
    if num_bytes != step * num_rows:
        raise ConversionError(
            "data_short" if num_bytes < step * num_rows else "data_long",
            f"image has {num_bytes} bytes, expected {step * num_rows} (step x rows)",
        )
    rows = np.frombuffer(image.data, np.uint8).reshape(num_rows, step)[:, :row_bytes]
    if not num_channels:
        return _converted(rows, width, encoding)
    if is_deep:
        rows = rows[:, 0 if image.is_bigendian else 1 :: 2]
    pixels = rows.reshape(height, width, num_channels)
    if num_channels == 1:
        return np.broadcast_to(pixels, (height, width, 3))
    return pixels[:, :, 2::-1] if encoding.startswith("bgr") else pixels[:, :, :3]


def _converted(rows: np.ndarray, width: int, encoding: str) -> np.ndarray:
    try:
        import cv2  # not every car has such images
    except ImportError as error:
        raise ConversionError(
            "decoder_missing", f"{encoding} needs OpenCV: install python3-opencv"
        ) from error
    num_channels, name = _CONVERSIONS[encoding]
    pixels = rows.reshape(len(rows), width, num_channels)
    return np.asarray(cv2.cvtColor(pixels, getattr(cv2, name)))


def compressed_to_rgb(
    image: Any, size_px: tuple[int, int] | None = None, notices: Counter[str] | None = None
) -> np.ndarray:
    """Pixels of a compressed image (JPEG or PNG) as RGB uint8 [h, w, 3].

    The first bytes say what it is, not `format`, which drivers fill in as they like. An orientation
    in EXIF data is not obeyed: the calibration is that of the sensor.

    Args:
        image: sensor_msgs/CompressedImage.
        size_px: Width and height that the calibration says; None takes any.
        notices: Counts what was accepted although it needs a look: "format_differs" (the format is
            not what came), "exif_rotation" (an orientation that is not obeyed).

    Raises:
        ConversionError: image_empty, format_unknown, jpeg_damaged, jpeg_color, jpeg_scans,
            png_damaged, png_depth, decoder_missing, size_zero, size_huge or size_calibration.
    """
    content = bytes(image.data)
    if not content:
        raise ConversionError("image_empty", "compressed image has no data")
    is_jpeg = content.startswith(_JPEG)
    if is_jpeg or content.startswith(_PNG):
        rgb = (_decode_jpeg if is_jpeg else _decode_png)(content, size_px)
        if notices is not None:
            if any(name in image.format.lower() for name in (("png",) if is_jpeg else _JPEG_NAMES)):
                notices["format_differs"] += 1
            if is_jpeg and _exif_orientation(content) > 1:
                notices["exif_rotation"] += 1
        return rgb
    raise ConversionError(
        "format_unknown",
        f"compressed image begins with {content[:8].hex()}, expected a JPEG or PNG",
    )


def _exif_orientation(content: bytes) -> int:
    """Orientation in a JPEG's EXIF data, 1 for upright; 0 where it says none. Source: EXIF 2.3."""
    tiff = content[:MAX_HEADER].partition(b"Exif\0\0")[2]
    order = "<" if tiff.startswith(b"II") else ">"
    try:
        (start,) = struct.unpack_from(f"{order}I", tiff, 4)
        (num_entries,) = struct.unpack_from(f"{order}H", tiff, start)
        for entry in range(start + 2, start + 2 + 12 * num_entries, 12):
            tag, _, _, value = struct.unpack_from(f"{order}HHIH", tiff, entry)
            if tag == 0x112:
                return int(value)
    except struct.error:  # it ends early
        pass
    return 0


def _checked_size(width: int, height: int, size_px: tuple[int, int] | None) -> tuple[int, int]:
    width, height = int(width), int(height)
    if width <= 0 or height <= 0:
        raise ConversionError("size_zero", f"image is {width} x {height} px: no picture")
    if width * height > MAX_PIXELS:
        raise ConversionError(
            "size_huge", f"image is {width} x {height} px, more than {MAX_PIXELS} pixels"
        )
    if size_px is not None and (width, height) != tuple(size_px):
        raise ConversionError(
            "size_calibration",
            f"image is {width} x {height} px, the calibration says {size_px[0]} x {size_px[1]}",
        )
    return width, height


def _decode_jpeg(content: bytes, size_px: tuple[int, int] | None) -> np.ndarray:
    try:
        import simplejpeg  # not every car has compressed images
    except ImportError as error:
        raise ConversionError("decoder_missing", "JPEG needs simplejpeg: install it") from error
    try:
        height, width, color, _ = simplejpeg.decode_jpeg_header(content)
    except (ValueError, RuntimeError, KeyError) as error:  # KeyError: a subsampling without a name
        raise ConversionError("jpeg_damaged", f"compressed image is no JPEG: {error}") from error
    _checked_size(width, height, size_px)
    if color not in ("YCbCr", "RGB", "Gray"):
        raise ConversionError("jpeg_color", f"JPEG has the colours {color}, expected YCbCr or grey")
    if content.count(b"\xff\xda") > MAX_SCANS:
        raise ConversionError("jpeg_scans", f"JPEG has more than {MAX_SCANS} scans")
    try:
        return np.asarray(simplejpeg.decode_jpeg(content, colorspace="RGB", strict=True))
    except (ValueError, RuntimeError) as error:
        raise ConversionError("jpeg_damaged", f"compressed image is damaged: {error}") from error


def _decode_png(content: bytes, size_px: tuple[int, int] | None) -> np.ndarray:
    try:
        import cv2  # as above
    except ImportError as error:
        raise ConversionError(
            "decoder_missing", "PNG needs OpenCV: install python3-opencv"
        ) from error
    chunks = _png_chunks(content)
    if len(chunks[0]) != 25 or chunks[0][4:8] != b"IHDR" or chunks[-1][4:8] != b"IEND":
        raise ConversionError("png_damaged", "PNG does not begin with IHDR and end with IEND")
    width, height, depth = struct.unpack(">IIB", chunks[0][8:17])
    _checked_size(width, height, size_px)
    if depth > 8:
        raise ConversionError("png_depth", f"PNG has {depth} bits a channel, expected 8 or fewer")
    picture = np.frombuffer(_PNG + b"".join(chunks), np.uint8)
    try:
        bgr = cv2.imdecode(picture, cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise ConversionError("png_damaged", f"PNG is damaged: {error}") from error
    if bgr is None or bgr.shape != (height, width, 3):
        raise ConversionError("png_damaged", "PNG is damaged: its pixels cannot be unpacked")
    return np.asarray(bgr)[:, :, ::-1]


def _png_chunks(content: bytes) -> list[bytes]:
    """The chunks that make the picture, whole; the sum of each is checked."""
    chunks, start = [], len(_PNG)
    while start < len(content):
        end = start + 12 + int.from_bytes(content[start : start + 4], "big")
        chunk = content[start:end]
        if len(chunk) < 12 or len(chunk) != end - start:
            raise ConversionError("png_damaged", "PNG is cut off")
        if zlib.crc32(chunk[4:-4]) != int.from_bytes(chunk[-4:], "big"):
            raise ConversionError("png_damaged", f"PNG has a damaged chunk {chunk[4:8]!r}")
        if chunk[4:8] in _PNG_KEPT:
            chunks.append(chunk)
        if chunk[4:8] == b"IEND":
            return chunks
        start = end
    raise ConversionError("png_damaged", "PNG is cut off")
