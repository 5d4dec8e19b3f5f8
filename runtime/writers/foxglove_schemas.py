"""Foxglove's messages as JSON: their schemas, and the small parts that they are made of.

Source: the public definitions at docs.foxglove.dev/docs/visualization/message-schemas; written down
here are the fields that are used.
"""

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from perception.geometry import rigid

Json = dict[str, Any]

UINT8, FLOAT32 = 1, 7
"""Numeric types of a packed field."""
INFO, WARNING = 2, 3
"""Levels of a log message."""
DELETE_ALL = 1
"""Type of a scene's deletion."""


def _object(**properties: Json) -> Json:
    return {"type": "object", "properties": properties}


def _array(items: Json) -> Json:
    return {"type": "array", "items": items}


_NUMBER: Json = {"type": "number"}
_INTEGER: Json = {"type": "integer"}
_STRING: Json = {"type": "string"}
_BOOLEAN: Json = {"type": "boolean"}
_BYTES: Json = {"type": "string", "contentEncoding": "base64"}
_TIME = _object(sec=_INTEGER, nsec=_INTEGER)
_XYZ = _object(x=_NUMBER, y=_NUMBER, z=_NUMBER)
_QUATERNION = _object(x=_NUMBER, y=_NUMBER, z=_NUMBER, w=_NUMBER)
_POSE = _object(position=_XYZ, orientation=_QUATERNION)
_COLOR = _object(r=_NUMBER, g=_NUMBER, b=_NUMBER, a=_NUMBER)
_FIELDS = _array(_object(name=_STRING, offset=_INTEGER, type=_INTEGER))
_CUBE = _object(pose=_POSE, size=_XYZ, color=_COLOR)
_ARROW = _object(
    pose=_POSE,
    shaft_length=_NUMBER,
    shaft_diameter=_NUMBER,
    head_length=_NUMBER,
    head_diameter=_NUMBER,
    color=_COLOR,
)
_TEXT = _object(
    pose=_POSE,
    billboard=_BOOLEAN,
    font_size=_NUMBER,
    scale_invariant=_BOOLEAN,
    color=_COLOR,
    text=_STRING,
)
_ENTITY = _object(
    timestamp=_TIME,
    frame_id=_STRING,
    id=_STRING,
    lifetime=_TIME,
    frame_locked=_BOOLEAN,
    metadata=_array(_object(key=_STRING, value=_STRING)),
    arrows=_array(_ARROW),
    cubes=_array(_CUBE),
    texts=_array(_TEXT),
)

SCHEMAS: Mapping[str, Json] = {
    "foxglove.CompressedImage": _object(
        timestamp=_TIME, frame_id=_STRING, data=_BYTES, format=_STRING
    ),
    "foxglove.CameraCalibration": _object(
        timestamp=_TIME,
        frame_id=_STRING,
        width=_INTEGER,
        height=_INTEGER,
        distortion_model=_STRING,
        D=_array(_NUMBER),
        K=_array(_NUMBER),
        R=_array(_NUMBER),
        P=_array(_NUMBER),
    ),
    "foxglove.PointCloud": _object(
        timestamp=_TIME,
        frame_id=_STRING,
        pose=_POSE,
        point_stride=_INTEGER,
        fields=_FIELDS,
        data=_BYTES,
    ),
    "foxglove.SceneUpdate": _object(
        deletions=_array(_object(timestamp=_TIME, type=_INTEGER, id=_STRING)),
        entities=_array(_ENTITY),
    ),
    "foxglove.Grid": _object(
        timestamp=_TIME,
        frame_id=_STRING,
        pose=_POSE,
        column_count=_INTEGER,
        cell_size=_object(x=_NUMBER, y=_NUMBER),
        row_stride=_INTEGER,
        cell_stride=_INTEGER,
        fields=_FIELDS,
        data=_BYTES,
    ),
    "foxglove.FrameTransform": _object(
        timestamp=_TIME,
        parent_frame_id=_STRING,
        child_frame_id=_STRING,
        translation=_XYZ,
        rotation=_QUATERNION,
    ),
    "foxglove.Log": _object(
        timestamp=_TIME,
        level=_INTEGER,
        message=_STRING,
        name=_STRING,
        file=_STRING,
        line=_INTEGER,
    ),
    # Ours, for plots: what a result was made from and how long it took.
    "bev.Status": _object(
        timestamp=_TIME,
        mode=_STRING,
        sensors_used=_array(_STRING),
        sensors_missing={"type": "object", "additionalProperties": _STRING},
        num_boxes=_INTEGER,
        calibration_epoch=_INTEGER,
        bundle=_STRING,
        stage_ms={"type": "object", "additionalProperties": _NUMBER},
        total_ms=_NUMBER,
    ),
}
"""Name -> JSON schema of every message that is written."""


def time_of(stamp_ns: int) -> Json:
    """A stamp [ns] as seconds and nanoseconds."""
    sec, nsec = divmod(stamp_ns, 1_000_000_000)
    return {"sec": sec, "nsec": nsec}


def xyz(values: Sequence[float] | np.ndarray) -> Json:
    """A vector of three [m]."""
    return {name: float(value) for name, value in zip("xyz", values, strict=True)}


def quaternion(T: np.ndarray) -> Json:
    """Rotation of a rigid transform 4x4."""
    w, x, y, z = (float(value) for value in rigid.quaternion_from_transform(T))
    return {"x": x, "y": y, "z": z, "w": w}


def pose(T: np.ndarray) -> Json:
    """A rigid transform 4x4 as a pose."""
    return {"position": xyz(T[:3, 3]), "orientation": quaternion(T)}


def color(rgb: Sequence[int], alpha: float) -> Json:
    """A colour of 0..255 as 0..1, with its opacity 0..1."""
    red, green, blue = (channel / 255 for channel in rgb)
    return {"r": red, "g": green, "b": blue, "a": alpha}


def fields(names: Sequence[str], kind: int, size: int) -> list[Json]:
    """Packed fields of one type that follow each other.

    Args:
        names: In their order.
        kind: `UINT8` or `FLOAT32`.
        size: Bytes of one.
    """
    return [{"name": n, "offset": i * size, "type": kind} for i, n in enumerate(names)]


def packed(values: np.ndarray) -> str:
    """Bytes of an array as text."""
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()
