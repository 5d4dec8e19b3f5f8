from array import array

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed: run make test in .venv-ros")
pytest.importorskip("perception_ros", reason="the ROS workspace is not sourced")

from diagnostic_msgs.msg import DiagnosticStatus
from perception_msgs.msg import Box3DArray
from perception_ros import result_messages
from perception_ros.diagnostics import NodeState, to_diagnostics
from visualization_msgs.msg import Marker

from perception.geometry.grid import BevGrid
from runtime.api import Detections, MapMask, PerceptionResult

pytestmark = pytest.mark.ros

CAMERAS = ("CAM_FRONT", "CAM_BACK")
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
    )


def test_a_box_carries_its_class_size_heading_and_velocity() -> None:
    message = result_messages.to_boxes(result(), CAMERAS, "base_link")
    (box,) = message.boxes
    assert (box.class_name, box.label, box.score) == ("truck", 1, 0.75)
    assert (box.pose.position.x, box.pose.position.y, box.pose.position.z) == (10, 2, 1)
    assert (box.size.x, box.size.y, box.size.z) == pytest.approx((4.5, 1.9, 1.6))
    # A quarter turn counter-clockwise: w = z = cos 45 degrees.
    assert (box.pose.orientation.z, box.pose.orientation.w) == pytest.approx((0.5**0.5,) * 2)
    assert (box.velocity.x, box.velocity.y, box.velocity.z) == (3, -1, 0)


def test_boxes_carry_stamp_frame_and_sensors() -> None:
    message = result_messages.to_boxes(result(), CAMERAS, "base_link")
    assert (message.header.stamp.sec, message.header.stamp.nanosec) == (1533151603, 547590000)
    assert message.header.frame_id == "base_link"
    assert list(message.sensors_used) == ["CAM_FRONT", "LIDAR_TOP"]
    assert [(f.sensor, f.reason) for f in message.sensors_missing] == [("CAM_BACK", "no data")]


@pytest.mark.parametrize(
    ("used", "mode", "num_boxes"),
    [
        (("CAM_FRONT", "LIDAR_TOP"), Box3DArray.MODE_FUSION, 1),
        (("CAM_BACK",), Box3DArray.MODE_CAMERA, 1),
        (("LIDAR_TOP",), Box3DArray.MODE_LIDAR, 1),
        ((), Box3DArray.MODE_NONE, 0),
    ],
)
def test_the_mode_says_what_contributed(used: tuple[str, ...], mode: int, num_boxes: int) -> None:
    message = result_messages.to_boxes(result(used), CAMERAS, "base_link")
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


def test_markers_delete_the_old_ones_then_draw_cube_heading_and_text() -> None:
    boxes = result_messages.to_boxes(result(), CAMERAS, "base_link")
    first, cube, heading, text = result_messages.to_markers(boxes).markers
    assert first.action == Marker.DELETEALL
    assert (cube.type, cube.scale.x) == (Marker.CUBE, 4.5)
    assert (heading.type, heading.pose.orientation) == (Marker.ARROW, cube.pose.orientation)
    # 1 m + half of 1.6 m + 0.5 m
    assert text.pose.position.z == pytest.approx(2.3)
    assert text.text == "truck 0.75"
    assert len({(m.ns, m.id) for m in (cube, heading, text)}) == 3


def state(newest: PerceptionResult | None, silent_s: float = 0.1) -> NodeState:
    return NodeState(
        name="/bev", bundle_digest="0123456789abcdef", cameras=CAMERAS, result=newest,
        silent_s=silent_s, max_silent_s=1.0, latency_ms=20.0,
        counters={"CAM_BACK: bad length": 3},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("newest", "silent_s", "level", "text"),
    [
        (None, 9.0, DiagnosticStatus.STALE, "waiting"),
        (result(missing={}), 0.1, DiagnosticStatus.OK, "fusion"),
        (result(), 0.1, DiagnosticStatus.WARN, "fusion, without CAM_BACK"),
        (result(), 2.0, DiagnosticStatus.ERROR, "no result for 2.0 s"),
        (result(used=()), 0.1, DiagnosticStatus.ERROR, "no usable sensor: CAM_BACK"),
    ],
)
def test_diagnostics_judge(
    newest: PerceptionResult | None, silent_s: float, level: bytes, text: str
) -> None:
    (status,) = to_diagnostics(state(newest, silent_s), STAMP_NS).status
    assert status.level == level
    assert status.message.startswith(text)


def test_diagnostics_name_reasons_times_and_counts() -> None:
    (status,) = to_diagnostics(state(result()), STAMP_NS).status
    values = {pair.key: pair.value for pair in status.values}
    assert values["missing: CAM_BACK"] == "no data"
    assert values["engine_ms"] == "12.5"
    assert values["count: CAM_BACK: bad length"] == "3"
    assert values["bundle"] == "0123456789ab"
