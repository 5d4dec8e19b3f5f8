"""Points of PointCloud2 messages, by field name, offset and type; sizes are checked first."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from runtime.decoding.message_header import ConversionError

_TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 8: "f8"}
"""PointField.datatype -> numpy's name of it. Source: sensor_msgs/PointField."""

_FLOATS = (7, 8)
POINT_FIELDS = ("x", "y", "z", "intensity")

MAX_FIELDS = 64
"""Most fields of a point. Source: ours; drivers send up to about 15."""

MAX_RANGE = 10_000.0
"""Coordinates beyond this are no measurements [m]. Source: ours."""

INTENSITY_MAX = 255.0
"""Intensity is 0..255 in our points. Source: docs/conventions.md."""


@dataclass(frozen=True, kw_only=True)
class CloudRules:
    """What a cloud may be."""

    max_points: int = 2_000_000
    """Larger clouds are refused. Source: the capacity that is usual in vehicles; 32 MB."""
    intensity_scale: float = 1.0
    """Factor that makes the sensor's intensity 0..255."""
    allow_zero_row_step: bool = False
    """Take row_step 0, which some drivers send, for width x point_step."""


def to_points_lidar(
    cloud: Any, rules: CloudRules | None = None, notices: Counter[str] | None = None
) -> np.ndarray:
    """Points as float32 [4, n]: x, y, z [m] in the sensor's frame and intensity 0..255.

    Left out are points whose x, y or z is not finite or beyond `MAX_RANGE`. Intensity is cut to
    0..255; one that is no number becomes 0. Fields of other names are not looked at.

    Args:
        cloud: sensor_msgs/PointCloud2.
        rules: What is taken; by default `CloudRules()`.
        notices: Counts what was accepted although it is not as it should be: "row_step_zero",
            "points_dropped" (points), "intensity_cut" (points).

    Raises:
        ConversionError: no_points, points_overflow, too_many_points, too_many_fields,
            field_missing, field_duplicate, field_type, field_count, field_offset, field_overlap,
            point_step_zero, point_step_short, row_step_zero, row_step_short, data_short, data_long.
    """
    rules = rules or CloudRules()
    notices = Counter() if notices is None else notices
    width, height = _checked_size(cloud, rules)
    row_step = _checked_row_step(cloud, rules, notices)
    formats, offsets = _checked_layout(cloud)
    kind = np.dtype(
        {
            "names": POINT_FIELDS,
            "formats": formats,
            "offsets": offsets,
            "itemsize": cloud.point_step,
        }
    )
    strides = (row_step, int(cloud.point_step))
    table: np.ndarray = np.ndarray((height, width), kind, cloud.data, strides=strides)
    points = np.empty((4, height, width), np.float32)
    with np.errstate(over="ignore", invalid="ignore"):  # beyond float32: infinite, see below
        for row, name in enumerate(POINT_FIELDS):
            points[row] = table[name]
    return _cleaned(points.reshape(4, -1), rules, notices)


def _checked_size(cloud: Any, rules: CloudRules) -> tuple[int, int]:
    width, height = int(cloud.width), int(cloud.height)
    if width <= 0 or height <= 0:
        raise ConversionError("no_points", f"cloud is {width} x {height} points: it is empty")
    if width * height > rules.max_points:
        reason = "points_overflow" if width * height >= 1 << 32 else "too_many_points"
        raise ConversionError(
            reason, f"cloud has {width} x {height} points, the limit is {rules.max_points}"
        )
    return width, height


def _checked_row_step(cloud: Any, rules: CloudRules, notices: Counter[str]) -> int:
    """Bytes per row; the data has exactly so many rows."""
    row_step, filled = int(cloud.row_step), int(cloud.width) * int(cloud.point_step)
    if not cloud.point_step:
        raise ConversionError("point_step_zero", "cloud has point_step 0")
    if not row_step:
        if not rules.allow_zero_row_step:
            raise ConversionError(
                "row_step_zero", f"cloud has row_step 0, expected {filled}: allow it or mend it"
            )
        notices["row_step_zero"] += 1
        row_step = filled
    if row_step < filled:
        raise ConversionError(
            "row_step_short",
            f"cloud has row_step {row_step}, expected {filled} (width x point_step) or more",
        )
    num_bytes = len(cloud.data)
    if num_bytes != row_step * cloud.height:
        raise ConversionError(
            "data_short" if num_bytes < row_step * cloud.height else "data_long",
            f"cloud has {num_bytes} bytes, expected {row_step * cloud.height} (row_step x height)",
        )
    return row_step


def _checked_layout(cloud: Any) -> tuple[list[str], list[int]]:
    """Formats of numpy and byte offsets of `POINT_FIELDS`."""
    if len(cloud.fields) > MAX_FIELDS:
        raise ConversionError(
            "too_many_fields", f"cloud has {len(cloud.fields)} fields, the limit is {MAX_FIELDS}"
        )
    names = [field.name for field in cloud.fields]
    order = ">" if cloud.is_bigendian else "<"
    formats: list[str] = []
    offsets: list[int] = []
    taken: list[tuple[int, int]] = []
    for name in POINT_FIELDS:
        if names.count(name) != 1:
            shown = [other[:40] for other in names]
            raise ConversionError(
                "field_duplicate" if name in names else "field_missing",
                f"cloud has the fields {shown}, expected {name!r} once",
            )
        field = cloud.fields[names.index(name)]
        types = _TYPES if name == "intensity" else _FLOATS  # whole metres would be an unknown unit
        if field.datatype not in types:
            raise ConversionError(
                "field_type",
                f"cloud field {name!r} has datatype {field.datatype}, expected any of {[*types]}",
            )
        if field.count > 1:  # 0 is how old drivers write 1
            raise ConversionError(
                "field_count", f"cloud field {name!r} has count {field.count}, expected 1"
            )
        kind = _TYPES[field.datatype]
        span = (int(field.offset), int(field.offset) + int(kind[1:]))
        _check_span(name, span, taken, int(cloud.point_step))
        taken.append(span)
        formats.append(order + kind)
        offsets.append(span[0])
    return formats, offsets


def _check_span(
    name: str, span: tuple[int, int], taken: list[tuple[int, int]], point_step: int
) -> None:
    if span[1] > point_step:
        raise ConversionError(
            "field_offset" if span[0] >= point_step else "point_step_short",
            f"cloud field {name!r} takes bytes {span[0]} to {span[1]} of a point of {point_step}",
        )
    if any(span[0] < end and start < span[1] for start, end in taken):
        raise ConversionError("field_overlap", f"cloud field {name!r} overlaps another")


def _cleaned(points: np.ndarray, rules: CloudRules, notices: Counter[str]) -> np.ndarray:
    valid = (np.abs(points[:3]) <= MAX_RANGE).all(axis=0)  # false for NaN, too
    num_valid = int(np.count_nonzero(valid))
    if num_valid == 0:
        raise ConversionError("no_points", f"none of {len(valid)} points is a measurement")
    if num_valid < len(valid):
        notices["points_dropped"] += len(valid) - num_valid
        points = points[:, valid]
    if rules.intensity_scale != 1.0:
        points[3] *= np.float32(rules.intensity_scale)
    good = (points[3] >= 0.0) & (points[3] <= INTENSITY_MAX)
    if not good.all():
        notices["intensity_cut"] += int(good.size - np.count_nonzero(good))
        points[3] = np.nan_to_num(points[3], nan=0.0).clip(0.0, INTENSITY_MAX)
    return points
