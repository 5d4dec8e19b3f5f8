"""Results as messages: boxes, markers for RViz, map layers. Pure functions, no node."""

import math
from array import array

import numpy as np
from geometry_msgs.msg import Point, Pose, Quaternion, Vector3
from nav_msgs.msg import MapMetaData, OccupancyGrid
from perception_msgs.msg import Box3D, Box3DArray, SensorFault
from sensor_msgs.msg import Image
from std_msgs.msg import ColorRGBA, Header
from visualization_msgs.msg import Marker, MarkerArray

from perception_ros.convert import make_header
from runtime.api import Mode, PerceptionResult

MODES: dict[Mode, int] = {
    "invalid": Box3DArray.MODE_INVALID,
    "camera": Box3DArray.MODE_CAMERA,
    "lidar": Box3DArray.MODE_LIDAR,
    "fusion": Box3DArray.MODE_FUSION,
}
"""The result's mode -> `Box3DArray.mode`."""

UNKNOWN = -1
"""OccupancyGrid's value for a cell nothing is known about. Source: nav_msgs/OccupancyGrid."""

KNOWN_BIT = 0x80
"""Set in every cell of the map mask about which something is known. Source: ours; nuScenes has six
map classes, so a byte has room for it."""

MAX_MASK_CLASSES = 7
"""Classes for which a byte has a bit; further ones are in the OccupancyGrids only."""

_COLORS = (
    (0.12, 0.47, 0.71), (1.00, 0.50, 0.05), (0.55, 0.34, 0.29), (0.17, 0.63, 0.17),
    (0.58, 0.40, 0.74), (0.50, 0.50, 0.50), (0.84, 0.15, 0.16), (0.89, 0.47, 0.76),
    (0.09, 0.75, 0.81), (0.74, 0.74, 0.13),
)  # fmt: skip
"""One colour a class, repeated where there are more. Source: ours (ten hues that stay apart)."""


def to_boxes(result: PerceptionResult, frame_id: str) -> Box3DArray:
    """Boxes with what they were made from; none where no sensor contributed."""
    message = Box3DArray(
        header=make_header(result.stamp_ns, frame_id),
        mode=MODES[result.mode],
        sensors_used=list(result.sensors_used),
        sensors_missing=[
            SensorFault(sensor=sensor, reason=reason)
            for sensor, reason in result.sensors_missing.items()
        ],
        calibration_epoch=result.calibration_epoch,
        bundle=result.bundle_digest,
    )
    if result.mode != "invalid":
        detections = result.detections
        rows = zip(
            detections.boxes_ego.tolist(), detections.scores.tolist(), detections.labels.tolist(),
            strict=True,
        )  # fmt: skip
        message.boxes = [
            _box(row, score, label, detections.classes[label]) for row, score, label in rows
        ]
    return message


def _box(row: list[float], score: float, label: int, class_name: str) -> Box3D:
    x, y, z, length, width, height, yaw, vx, vy = row
    return Box3D(
        class_name=class_name,
        label=label,
        score=score,
        pose=Pose(
            position=Point(x=x, y=y, z=z),
            orientation=Quaternion(z=math.sin(yaw / 2), w=math.cos(yaw / 2)),
        ),
        size=Vector3(x=length, y=width, z=height),
        velocity=Vector3(x=vx, y=vy, z=0.0),
    )


def to_markers(boxes: Box3DArray) -> MarkerArray:
    """Everything old deleted, then a cube, a heading and a text per box."""
    markers = [Marker(header=boxes.header, action=Marker.DELETEALL)]
    for index, box in enumerate(boxes.boxes):
        red, green, blue = _COLORS[box.label % len(_COLORS)]
        color = ColorRGBA(r=red, g=green, b=blue, a=1.0)
        cube = _marker(boxes.header, "box", index, Marker.CUBE, box.pose, box.size)
        cube.color = ColorRGBA(r=red, g=green, b=blue, a=0.4)
        heading = _marker(
            boxes.header, "heading", index, Marker.ARROW, box.pose,
            Vector3(x=0.5 * box.size.x + 0.5, y=0.1, z=0.1),
        )  # fmt: skip
        heading.color = color
        center = box.pose.position
        above = Pose(position=Point(x=center.x, y=center.y, z=center.z + 0.5 * box.size.z + 0.5))
        text = _marker(boxes.header, "text", index, Marker.TEXT_VIEW_FACING, above, Vector3(z=0.6))
        text.color = color
        text.text = f"{box.class_name} {box.score:.2f}"
        markers += [cube, heading, text]
    return MarkerArray(markers=markers)


def _marker(
    header: Header, namespace: str, index: int, kind: int, pose: Pose, scale: Vector3
) -> Marker:
    return Marker(
        header=header, ns=namespace, id=index, type=kind, action=Marker.ADD, pose=pose, scale=scale
    )


def to_map_layers(result: PerceptionResult, frame_id: str) -> dict[str, OccupancyGrid]:
    """One grid per map class: probability in percent, unknown where no sensor contributed.

    The origin is the corner of the first cell; rows run along y, the cells of a row along x, as in
    the network's raster, so nothing is flipped.
    """
    mask = result.map_mask
    percent = np.full(mask.prob.shape, UNKNOWN, np.int8)
    if result.mode != "invalid":
        known = np.isfinite(mask.prob)
        percent[known] = np.rint(100 * np.clip(mask.prob[known], 0, 1)).astype(np.int8)
    header = make_header(result.stamp_ns, frame_id)
    info = MapMetaData(
        map_load_time=header.stamp,
        resolution=mask.grid.cell,
        width=mask.grid.nx,
        height=mask.grid.ny,
        origin=Pose(position=Point(x=mask.grid.x_min, y=mask.grid.y_min, z=0.0)),
    )
    return {
        name: OccupancyGrid(header=header, info=info, data=array("b", layer.tobytes()))
        for name, layer in zip(mask.classes, percent, strict=True)
    }


def to_map_mask(result: PerceptionResult, frame_id: str, threshold: float) -> Image:
    """All map classes in one mono8 image: bit i for the class i of the bundle, overlaps and all.

    Row 0 is the lowest y and column 0 the lowest x, as in the OccupancyGrids. `KNOWN_BIT` tells
    "nothing there" from "not known"; without any sensor every cell is 0.

    Args:
        result: One frame's answer.
        frame_id: Frame of the car.
        threshold: Probability from which a bit is set, 0..1.
    """
    mask = result.map_mask
    bits = np.zeros((mask.grid.ny, mask.grid.nx), np.uint8)
    if result.mode != "invalid":
        bits[np.isfinite(mask.prob).all(axis=0)] = KNOWN_BIT
        for index, layer in enumerate(mask.prob[:MAX_MASK_CLASSES]):
            bits |= (layer >= threshold).astype(np.uint8) << np.uint8(index)
    return Image(
        header=make_header(result.stamp_ns, frame_id),
        height=mask.grid.ny,
        width=mask.grid.nx,
        encoding="mono8",
        step=mask.grid.nx,
        data=array("B", bits.tobytes()),
    )
