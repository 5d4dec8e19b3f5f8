"""Writes frames and results as an MCAP file that opens in Foxglove: layout in foxglove_layout.json.

/CAM_*/image, /CAM_*/calibration, /lidar    what the sensors gave, at their own stamps
/boxes, /map, /status, /log                 the result, at the frame's stamp
/tf                                         map -> base_link at every stamp, base_link -> sensors
"""

import base64
import json
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from perception.data.sensor_files import jpeg_decoder
from perception.drawing import CLASS_COLORS, GRAY, LAYER_COLORS
from perception.errors import InputError
from perception.geometry import boxes, rigid
from perception.messages import (
    CameraCalibration,
    CameraImage,
    LidarSweep,
    MapMask,
    PerceptionResult,
    SensorFrame,
)
from perception.taxonomy import LIDAR
from runtime.output_times import processing_ms
from runtime.writers import foxglove_schemas as foxglove

FIXED_FRAME, EGO_FRAME = "map", "base_link"

MAX_IMAGE_WIDTH_PX = 800
"""Wider images are made smaller: half of nuScenes' size. Source: ours."""
JPEG_QUALITY = 80
"""Source: ours."""
MAP_THRESHOLD = 0.5
"""Probability from which a layer is painted. Source: ours."""
MAP_ALPHA = 140
"""Opacity of a painted cell, 0..255. Source: ours."""
MIN_SPEED = 0.2
"""Slower boxes have no arrow [m/s]. Source: ours, as in `perception.drawing`."""


class McapWriter:
    """Keeps one scene's frames and their results; the file appears when it is closed."""

    def __init__(self, path: Path, *, min_score: float = 0.3) -> None:
        """Open a temporary file beside `path`.

        Args:
            path: The .mcap file.
            min_score: Boxes below are left out.

        Raises:
            InputError: mcap is not installed, or the file cannot be written.
        """
        try:
            from mcap.writer import Writer  # only this file needs it
        except ImportError as error:
            raise InputError(
                "Writing MCAP needs mcap: pip install 'bev-perception[viewer]'."
            ) from error
        self._path, self._min_score = path, min_score
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            self._file = self._temporary.open("wb")
        except OSError as error:
            raise InputError(f"Cannot write {path}: {error.strerror}; check its folder.") from error
        self._writer = Writer(self._file)
        self._writer.start(profile="", library="bev-perception")
        self._channels: dict[str, int] = {}
        self._written: dict[str, int] = {}
        """Newest stamp that is in the file, per topic: a frame may repeat an image."""
        self._mode: str | None = None
        self._missing: frozenset[str] = frozenset()

    def add(self, scene: str, frame: SensorFrame, result: PerceptionResult) -> None:
        """Take one frame."""
        self._add_transform(frame.stamp_ns, frame.T_global_ego)
        for camera, image in frame.images.items():
            calibration = frame.calibration.cameras.get(camera)
            if calibration is not None:
                self._add_image(image, calibration)
        if frame.sweeps:
            self._add_sweep(frame.sweeps[0], frame.calibration.T_ego_lidar)
        self._add_boxes(result)
        self._write("/map", "foxglove.Grid", result.stamp_ns, _grid(result))
        self._write("/status", "bev.Status", result.stamp_ns, _status(result))
        self._log_changes(scene, result)

    def close(self) -> None:
        """Finish the file; without a frame there is none, and an older one stays.

        Raises:
            InputError: It cannot be written.
        """
        try:
            with self._file:
                self._writer.finish()
            if self._channels:
                self._temporary.replace(self._path)
        except OSError as error:
            raise InputError(
                f"Cannot write {self._path}: {error.strerror}; check free space."
            ) from error
        finally:
            self._temporary.unlink(missing_ok=True)

    def _write(self, topic: str, schema: str, stamp_ns: int, content: dict[str, Any]) -> None:
        if topic not in self._channels:
            text = json.dumps({"title": schema, **foxglove.SCHEMAS[schema]}).encode()
            schema_id = self._writer.register_schema(schema, "jsonschema", text)
            self._channels[topic] = self._writer.register_channel(topic, "json", schema_id)
        self._writer.add_message(
            channel_id=self._channels[topic],
            log_time=stamp_ns,
            publish_time=stamp_ns,
            data=json.dumps(content).encode(),
        )

    def _is_new(self, topic: str, stamp_ns: int) -> bool:
        is_new = self._written.get(topic) != stamp_ns
        self._written[topic] = stamp_ns
        return is_new

    def _add_transform(
        self,
        stamp_ns: int,
        T_parent_child: np.ndarray | None,
        parent: str = FIXED_FRAME,
        child: str = EGO_FRAME,
    ) -> None:
        if T_parent_child is not None:
            content = {
                "timestamp": foxglove.time_of(stamp_ns),
                "parent_frame_id": parent,
                "child_frame_id": child,
                "translation": foxglove.xyz(T_parent_child[:3, 3]),
                "rotation": foxglove.quaternion(T_parent_child),
            }
            self._write("/tf", "foxglove.FrameTransform", stamp_ns, content)

    def _add_image(self, image: CameraImage, calibration: CameraCalibration) -> None:
        topic = f"/{image.camera}/image"
        if not self._is_new(topic, image.stamp_ns):
            return
        self._add_transform(image.stamp_ns, image.T_global_ego)
        self._add_transform(image.stamp_ns, calibration.T_ego_cam, EGO_FRAME, image.camera)
        height, width, _ = image.rgb.shape
        scale = min(1.0, MAX_IMAGE_WIDTH_PX / width)
        size = round(width * scale), round(height * scale)
        rgb = image.rgb
        if scale < 1.0:
            rgb = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)
        jpeg = jpeg_decoder().encode_jpeg(np.ascontiguousarray(rgb), quality=JPEG_QUALITY)
        head = {"timestamp": foxglove.time_of(image.stamp_ns), "frame_id": image.camera}
        picture = {**head, "data": base64.b64encode(jpeg).decode(), "format": "jpeg"}
        self._write(topic, "foxglove.CompressedImage", image.stamp_ns, picture)
        # Foxglove's image coordinates begin at the corner of the first pixel, as ours do
        K = np.diag([size[0] / width, size[1] / height, 1.0]) @ calibration.K_cam
        content = {
            **head,
            "width": size[0],
            "height": size[1],
            "distortion_model": "",
            "D": [],
            "K": K.ravel().tolist(),
            "R": np.eye(3).ravel().tolist(),
            "P": np.hstack([K, np.zeros((3, 1))]).ravel().tolist(),
        }
        topic = f"/{image.camera}/calibration"
        self._write(topic, "foxglove.CameraCalibration", image.stamp_ns, content)

    def _add_sweep(self, sweep: LidarSweep, T_ego_lidar: np.ndarray) -> None:
        if not self._is_new("/lidar", sweep.stamp_ns):
            return
        self._add_transform(sweep.stamp_ns, sweep.T_global_ego)
        self._add_transform(sweep.stamp_ns, T_ego_lidar, EGO_FRAME, LIDAR)
        content = {
            "timestamp": foxglove.time_of(sweep.stamp_ns),
            "frame_id": LIDAR,
            "pose": foxglove.pose(np.eye(4)),
            "point_stride": 16,
            "fields": foxglove.fields(("x", "y", "z", "intensity"), foxglove.FLOAT32, 4),
            "data": foxglove.packed(sweep.points_lidar.T.astype("<f4")),
        }
        self._write("/lidar", "foxglove.PointCloud", sweep.stamp_ns, content)

    def _add_boxes(self, result: PerceptionResult) -> None:
        found = result.detections
        stamp = foxglove.time_of(result.stamp_ns)
        entities = [
            _entity(f"{index}", stamp, result, index)
            for index in range(len(found.scores))
            if found.scores[index] >= self._min_score
        ]
        deletion = {"timestamp": stamp, "type": foxglove.DELETE_ALL, "id": ""}
        content = {"deletions": [deletion], "entities": entities}
        self._write("/boxes", "foxglove.SceneUpdate", result.stamp_ns, content)

    def _log_changes(self, scene: str, result: PerceptionResult) -> None:
        """A line whenever the mode or the set of missing sensors changes."""
        missing = frozenset(result.sensors_missing)
        if (result.mode, missing) == (self._mode, self._missing):
            return
        self._mode, self._missing = result.mode, missing
        reasons = "; ".join(f"{name}: {why}" for name, why in result.sensors_missing.items())
        content = {
            "timestamp": foxglove.time_of(result.stamp_ns),
            "level": foxglove.WARNING if missing else foxglove.INFO,
            "message": f"mode {result.mode}{f' ({reasons})' if reasons else ''}",
            "name": scene,
            "file": "",
            "line": 0,
        }
        self._write("/log", "foxglove.Log", result.stamp_ns, content)


def _entity(name: str, stamp: dict[str, Any], result: PerceptionResult, index: int) -> Any:
    """A box with its class and score, and where it moves within a second."""
    found = result.detections
    row = found.boxes_ego[index].astype(np.float64)
    label = found.classes[int(found.labels[index])]
    rgb = CLASS_COLORS.get(label, GRAY)
    yaw = rigid.quaternion_from_yaw(row[boxes.YAW])
    T_ego_box = rigid.transform_from_quaternion(yaw, row[boxes.CENTER])
    above = np.array([row[0], row[1], row[2] + row[boxes.SIZE][2] / 2 + 0.5])
    text = {
        "pose": foxglove.pose(rigid.transform_from_quaternion((1.0, 0.0, 0.0, 0.0), above)),
        "billboard": True,
        "font_size": 12.0,
        "scale_invariant": True,
        "color": foxglove.color(rgb, 1.0),
        "text": f"{label} {found.scores[index]:.2f}",
    }
    return {
        "timestamp": stamp,
        "frame_id": EGO_FRAME,
        "id": name,
        "lifetime": {"sec": 0, "nsec": 0},
        "frame_locked": False,  # stays where it was seen, as cloud and map do, while the car drives
        "metadata": [
            {"key": "class", "value": label},
            {"key": "score", "value": f"{found.scores[index]:.3f}"},
        ],
        "arrows": _arrows(row, rgb),
        "cubes": [
            {
                "pose": foxglove.pose(T_ego_box),
                "size": foxglove.xyz(row[boxes.SIZE]),
                "color": foxglove.color(rgb, 0.5),
            }
        ],
        "texts": [text],
    }


def _arrows(row: np.ndarray, rgb: tuple[int, int, int]) -> list[dict[str, Any]]:
    velocity = row[boxes.VELOCITY]
    speed = float(np.hypot(*velocity))
    if not MIN_SPEED < speed < np.inf:
        return []
    way = rigid.quaternion_from_yaw(np.arctan2(velocity[1], velocity[0]))
    return [
        {
            "pose": foxglove.pose(rigid.transform_from_quaternion(way, row[boxes.CENTER])),
            "shaft_length": speed,
            "shaft_diameter": 0.15,
            "head_length": 0.5,
            "head_diameter": 0.4,
            "color": foxglove.color(rgb, 1.0),
        }
    ]


def _grid(result: PerceptionResult) -> dict[str, Any]:
    """Colours of the layers for the eye, and each layer's probability 0..255 as a field."""
    mask: MapMask = result.map_mask
    rgba = np.zeros((mask.grid.ny, mask.grid.nx, 4), np.uint8)
    for name, prob in zip(mask.classes, mask.prob, strict=True):
        rgba[prob > MAP_THRESHOLD] = (*LAYER_COLORS.get(name, GRAY), MAP_ALPHA)
    layers = np.rint(np.moveaxis(mask.prob, 0, -1).clip(0, 1) * 255).astype(np.uint8)
    cells = np.concatenate([rgba, layers], axis=2)
    corner = np.eye(4)
    corner[:3, 3] = (mask.grid.x_min, mask.grid.y_min, 0.0)
    return {
        "timestamp": foxglove.time_of(result.stamp_ns),
        "frame_id": EGO_FRAME,
        "pose": foxglove.pose(corner),
        "column_count": mask.grid.nx,
        "cell_size": {"x": float(mask.grid.cell), "y": float(mask.grid.cell)},
        "row_stride": cells.strides[0],
        "cell_stride": cells.strides[1],
        "fields": foxglove.fields(
            ("red", "green", "blue", "alpha", *mask.classes), foxglove.UINT8, 1
        ),
        "data": foxglove.packed(cells),
    }


def _status(result: PerceptionResult) -> dict[str, Any]:
    return {
        "timestamp": foxglove.time_of(result.stamp_ns),
        "mode": result.mode,
        "sensors_used": list(result.sensors_used),
        "sensors_missing": dict(result.sensors_missing),
        "num_boxes": len(result.detections.scores),
        "calibration_epoch": result.calibration_epoch,
        "bundle": result.bundle_digest,
        "stage_ms": dict(result.stage_ms),
        "total_ms": processing_ms(result),
    }
