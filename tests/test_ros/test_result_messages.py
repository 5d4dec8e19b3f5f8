import dataclasses
import importlib
import sys
import types
from array import array
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed: run make test in .venv-ros")
pytest.importorskip("perception_ros", reason="the ROS workspace is not sourced")

from perception_msgs.msg import Box3DArray
from perception_ros import convert, result_messages
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from visualization_msgs.msg import Marker

from perception.geometry.grid import BevGrid
from runtime.api import Detections, MapMask, PerceptionResult

pytestmark = pytest.mark.ros

STAMP_NS = 1_533_151_603_547_590_000


def result(
    used: tuple[str, ...] = ("CAM_FRONT", "LIDAR_TOP"), missing: dict[str, str] | None = None
) -> PerceptionResult:
    # A raster of two rows (y) and three columns (x): the value tells the cell.
    prob = np.array([[[0.0, 0.1, 0.2], [0.5, 0.996, 1.0]]], np.float32)
    return PerceptionResult(
        stamp_ns=STAMP_NS,
        T_global_ego=None,
        detections=Detections(
            boxes_ego=np.array([[10, 2, 1, 4.5, 1.9, 1.6, np.pi / 2, 3, -1]], np.float32),
            scores=np.array([0.75], np.float32),
            labels=np.array([1], np.int64),
            classes=("car", "truck"),
        ),
        map_mask=MapMask(
            prob=prob,
            classes=("walkway",),
            grid=BevGrid(x_min=-1.5, x_max=1.5, y_min=-4, y_max=-2, cell=1),
        ),
        sensors_used=used,
        sensors_missing={"CAM_BACK": "no data"} if missing is None else missing,
        stage_ms={"engine": 12.5},
        calibration_epoch=3,
        bundle_digest="0123456789abcdef",
    )


def test_a_box_carries_its_class_size_heading_and_velocity() -> None:
    message = result_messages.to_boxes(result(), "base_link")
    (box,) = message.boxes
    assert (box.class_name, box.label, box.score) == ("truck", 1, 0.75)
    assert (box.pose.position.x, box.pose.position.y, box.pose.position.z) == (10, 2, 1)
    assert (box.size.x, box.size.y, box.size.z) == pytest.approx((4.5, 1.9, 1.6))
    # A quarter turn counter-clockwise: w = z = cos 45 degrees.
    assert (box.pose.orientation.z, box.pose.orientation.w) == pytest.approx((0.5**0.5,) * 2)
    assert (box.velocity.x, box.velocity.y, box.velocity.z) == (3, -1, 0)


def test_boxes_carry_stamp_frame_and_sensors() -> None:
    message = result_messages.to_boxes(result(), "base_link")
    assert (message.header.stamp.sec, message.header.stamp.nanosec) == (1533151603, 547590000)
    assert message.header.frame_id == "base_link"
    assert list(message.sensors_used) == ["CAM_FRONT", "LIDAR_TOP"]
    assert [(f.sensor, f.reason) for f in message.sensors_missing] == [("CAM_BACK", "no data")]
    assert (message.calibration_epoch, message.bundle) == (3, "0123456789abcdef")


@pytest.mark.parametrize(
    ("used", "mode", "num_boxes"),
    [
        (("CAM_FRONT", "LIDAR_TOP"), Box3DArray.MODE_FUSION, 1),
        (("CAM_BACK",), Box3DArray.MODE_CAMERA, 1),
        (("LIDAR_TOP",), Box3DArray.MODE_LIDAR, 1),
        ((), Box3DArray.MODE_INVALID, 0),
    ],
)
def test_the_mode_says_what_contributed(used: tuple[str, ...], mode: int, num_boxes: int) -> None:
    message = result_messages.to_boxes(result(used), "base_link")
    assert (message.mode, len(message.boxes)) == (mode, num_boxes)


def test_a_map_layer_keeps_the_order_of_the_raster() -> None:
    grid = result_messages.to_map_layers(result(), "base_link")["walkway"]
    assert (grid.info.width, grid.info.height, grid.info.resolution) == (3, 2, 1)
    assert (grid.info.origin.position.x, grid.info.origin.position.y) == (-1.5, -4)
    assert grid.info.origin.orientation.w == 1
    # x runs fastest; 0.996 is nearer to 100 % than to 99 %.
    assert grid.data == array("b", [0, 10, 20, 50, 100, 100])


def test_a_map_layer_without_any_sensor_is_unknown() -> None:
    grid = result_messages.to_map_layers(result(used=()), "base_link")["walkway"]
    assert grid.data == array("b", [-1] * 6)


def test_the_map_mask_has_a_bit_per_class_and_one_for_known() -> None:
    one = result()
    # The second class: 0.5 and more in the first row only, and one cell that is not known.
    other = np.array([[0.9, 0.5, 0.0], [0.0, 0.49, np.nan]], np.float32)
    mask = dataclasses.replace(
        one.map_mask, prob=np.stack([one.map_mask.prob[0], other]), classes=("walkway", "divider")
    )
    image = result_messages.to_map_mask(
        dataclasses.replace(one, map_mask=mask), "base_link", threshold=0.5
    )
    assert (image.encoding, image.width, image.height, image.step) == ("mono8", 3, 2, 3)
    assert image.header.frame_id == "base_link"
    # walkway [[0, .1, .2], [.5, .996, 1]] is bit 1, divider bit 2, known 0x80.
    assert image.data == array("B", [0x82, 0x82, 0x80, 0x81, 0x81, 0x01])


def test_the_map_mask_of_no_sensor_knows_nothing() -> None:
    image = result_messages.to_map_mask(result(used=()), "base_link", threshold=0.5)
    assert image.data == array("B", [0] * 6)


def test_the_map_mask_leaves_out_classes_for_which_it_has_no_bit() -> None:
    one = result()
    prob = np.ones((9, 2, 3), np.float32)
    mask = dataclasses.replace(one.map_mask, prob=prob, classes=tuple("abcdefghi"))
    image = result_messages.to_map_mask(
        dataclasses.replace(one, map_mask=mask), "base_link", threshold=0.5
    )
    assert set(image.data) == {0xFF}  # seven classes and "known"


@pytest.fixture
def vision_msgs(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A stand-in for vision_msgs, which no registry of Python packages has: fields, no checks."""
    stand_in = types.ModuleType("vision_msgs.msg")
    for name in (
        "BoundingBox3D", "Detection3D", "Detection3DArray", "LabelInfo", "ObjectHypothesis",
        "ObjectHypothesisWithPose", "VisionClass",
    ):  # fmt: skip
        setattr(stand_in, name, type(name, (types.SimpleNamespace,), {}))
    monkeypatch.setitem(sys.modules, "vision_msgs", types.ModuleType("vision_msgs"))
    monkeypatch.setitem(sys.modules, "vision_msgs.msg", stand_in)
    package = importlib.import_module("perception_ros")
    for name in ("vision_messages", "outputs"):  # imported anew, and as they were afterwards
        monkeypatch.setattr(package, name, None, raising=False)
        monkeypatch.setitem(sys.modules, f"perception_ros.{name}", stand_in)
        del sys.modules[f"perception_ros.{name}"]
    return stand_in


def test_boxes_as_vision_msgs(vision_msgs: types.ModuleType) -> None:
    # Field names as in vision_msgs 4: Detection3D{header, results, bbox, id}.
    to_detections = importlib.import_module("perception_ros.vision_messages").to_detections
    boxes = result_messages.to_boxes(result(), "base_link")
    message = to_detections(boxes)
    assert message.header == boxes.header
    (detection,), (box,) = message.detections, boxes.boxes
    assert (detection.bbox.center, detection.bbox.size) == (box.pose, box.size)
    (hypothesis,) = detection.results
    assert (hypothesis.hypothesis.class_id, hypothesis.hypothesis.score) == ("truck", 0.75)
    assert hypothesis.pose.pose == box.pose


def test_label_info_names_the_bits_of_the_map_mask(vision_msgs: types.ModuleType) -> None:
    # Field names as in vision_msgs 4: LabelInfo{header, class_map, threshold}.
    to_label_info = importlib.import_module("perception_ros.vision_messages").to_label_info
    header = convert.make_header(STAMP_NS, "base_link")
    message = to_label_info(tuple("abcdefghi"), 0.4, header)
    assert (message.header, message.threshold) == (header, 0.4)
    # Seven bits below "known" (0x80); the eighth and ninth class have none.
    pairs = [(entry.class_id, entry.class_name) for entry in message.class_map]
    assert pairs == [(1, "a"), (2, "b"), (4, "c"), (8, "d"), (16, "e"), (32, "f"), (64, "g")]


class RecordedNode:
    """What `Outputs` asks of its node: publishers that note what they were made for and given."""

    def __init__(self) -> None:
        self.made: dict[str, types.SimpleNamespace] = {}
        self.destroyed: list[types.SimpleNamespace] = []
        self.destroy_lifecycle_publisher = self.destroyed.append

    def create_publisher(
        self, kind: type, topic: str, qos: QoSProfile | int, *, lifecycle: bool = False
    ) -> types.SimpleNamespace:
        sent: list[Any] = []
        self.made[topic] = types.SimpleNamespace(
            kind=kind, qos=qos, lifecycle=lifecycle, sent=sent, publish=sent.append
        )
        return self.made[topic]

    def create_lifecycle_publisher(self, *of_topic: Any) -> types.SimpleNamespace:
        return self.create_publisher(*of_topic, lifecycle=True)

    def get_clock(self) -> types.SimpleNamespace:
        return types.SimpleNamespace(now=lambda: types.SimpleNamespace(nanoseconds=STAMP_NS))


def test_label_info_is_said_at_configure_and_kept_for_who_comes_later(
    vision_msgs: types.ModuleType,
) -> None:
    node = RecordedNode()
    outputs = importlib.import_module("perception_ros.outputs").Outputs(
        node, ("walkway", "divider"), base_frame="car", map_threshold=0.4
    )
    info = node.made["~/output/map_mask/label_info"]
    assert info.kind is vision_msgs.LabelInfo
    assert info.qos.durability == DurabilityPolicy.TRANSIENT_LOCAL
    assert info.qos.reliability == ReliabilityPolicy.RELIABLE
    assert not info.lifecycle  # one that is would swallow it: the node is not active yet
    (message,) = info.sent
    assert (message.header.frame_id, message.threshold) == ("car", 0.4)
    assert message.header.stamp.sec == STAMP_NS // 10**9
    assert [entry.class_name for entry in message.class_map] == ["walkway", "divider"]
    assert all(not other.sent for other in node.made.values() if other is not info)
    outputs.close()
    assert node.destroyed == list(node.made.values())


def test_markers_delete_the_old_ones_then_draw_cube_heading_and_text() -> None:
    boxes = result_messages.to_boxes(result(), "base_link")
    first, cube, heading, text = result_messages.to_markers(boxes).markers
    assert first.action == Marker.DELETEALL
    assert (cube.type, cube.scale.x) == (Marker.CUBE, 4.5)
    assert (heading.type, heading.pose.orientation) == (Marker.ARROW, cube.pose.orientation)
    # 1 m + half of 1.6 m + 0.5 m
    assert text.pose.position.z == pytest.approx(2.3)
    assert text.text == "truck 0.75"
    assert len({(m.ns, m.id) for m in (cube, heading, text)}) == 3
