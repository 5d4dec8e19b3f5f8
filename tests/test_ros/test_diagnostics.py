from typing import Any

import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed: run make test in .venv-ros")
pytest.importorskip("perception_ros", reason="the ROS workspace is not sourced")

import numpy as np
from diagnostic_msgs.msg import DiagnosticStatus
from perception_ros.diagnostics import NodeState, to_diagnostics
from perception_ros.perception_loop import LoopState

from perception.geometry.grid import BevGrid
from runtime.api import Detections, LatencyRecorder, MapMask, PerceptionResult

pytestmark = pytest.mark.ros

CAMERAS = ("CAM_FRONT", "CAM_BACK")
STAMP_NS = 1_533_151_603_547_590_000


def result(used: tuple[str, ...], missing: dict[str, str]) -> PerceptionResult:
    return PerceptionResult(
        stamp_ns=STAMP_NS,
        T_global_ego=None,
        detections=Detections(
            boxes_ego=np.zeros((0, 9), np.float32), scores=np.zeros(0, np.float32),
            labels=np.zeros(0, np.int64), classes=("car",),
        ),
        map_mask=MapMask(
            prob=np.zeros((1, 2, 3), np.float32), classes=("walkway",),
            grid=BevGrid(x_min=-1.5, x_max=1.5, y_min=-4, y_max=-2, cell=1),
        ),
        sensors_used=used, sensors_missing=missing, stage_ms={}, bundle_digest="0123456789abcdef",
    )  # fmt: skip


ALL = result((*CAMERAS, "LIDAR_TOP"), {})
ONE_DEAD = result(("CAM_FRONT", "LIDAR_TOP"), {"CAM_BACK": "no data in time"})
NONE = result((), dict.fromkeys((*CAMERAS, "LIDAR_TOP"), "no data in time"))


def loop(
    newest: PerceptionResult | None, silent_s: float = 0.1, now_ns: int = STAMP_NS + 30_000_000
) -> LoopState:
    recorder = LatencyRecorder()
    for time_ms in range(1, 101):
        recorder.add("engine", float(time_ms))
        recorder.add("sensor to output", 2.0 * time_ms)
    return LoopState(
        result=newest, silent_s=silent_s, now_ns=now_ns,
        newest_ns={"CAM_FRONT": STAMP_NS - 10_000_000, "CAM_BACK": STAMP_NS - 500_000_000},
        latency=recorder.summaries(),
        counters={"CAM_BACK: data_short": 3, "frame: overtaken": 1}, calibration_epoch=2,
        calibration_fault="K_cam of CAM_BACK is odd",
    )  # fmt: skip


def statuses(
    state: LoopState | None, lifecycle: str = "active", problem: str = ""
) -> dict[str, Any]:
    node = NodeState(
        name="/bev", lifecycle=lifecycle, problem=problem, bundle_digest="0123456789abcdef",
        cameras=CAMERAS, map_classes=("drivable_area", "walkway"), max_silent_s=1.0, loop=state,
    )  # fmt: skip
    return {status.name: status for status in to_diagnostics(node, STAMP_NS).status}


def values(status: Any) -> dict[str, str]:
    return {pair.key: pair.value for pair in status.values}


@pytest.mark.parametrize(
    ("state", "lifecycle", "problem", "level", "text"),
    [
        (None, "unconfigured", "", DiagnosticStatus.STALE, "unconfigured"),
        (None, "unconfigured", "no bundle", DiagnosticStatus.ERROR, "unconfigured: no bundle"),
        (loop(None, 0.9), "active", "", DiagnosticStatus.STALE, "waiting"),
        (loop(None, 9.0), "active", "", DiagnosticStatus.ERROR, "no result for 9.0 s"),
        (loop(None, 0.9, 0), "active", "", DiagnosticStatus.STALE, "no /clock yet"),
        (loop(None, 9.0, 0), "active", "", DiagnosticStatus.ERROR, "no /clock yet"),
        (loop(ALL), "active", "", DiagnosticStatus.OK, "fusion"),
        (loop(ONE_DEAD), "active", "", DiagnosticStatus.WARN, "fusion, without CAM_BACK"),
        (loop(ONE_DEAD, 2.0), "active", "", DiagnosticStatus.ERROR, "no result for 2.0 s"),
        (loop(NONE), "active", "", DiagnosticStatus.ERROR, "no usable sensor: CAM_FRONT"),
    ],
)
def test_the_first_status_judges_the_node(
    state: LoopState | None, lifecycle: str, problem: str, level: bytes, text: str
) -> None:
    status = statuses(state, lifecycle, problem)["/bev: perception"]
    assert status.level == level
    assert status.message.startswith(text)


def test_a_node_that_is_not_active_has_one_status() -> None:
    assert list(statuses(None, "inactive")) == ["/bev: perception"]


def test_the_node_names_mode_bundle_epoch_drops_and_the_bits_of_the_mask() -> None:
    status = statuses(loop(ONE_DEAD))["/bev: perception"]
    shown = values(status)
    assert shown["mode"] == "fusion"
    assert shown["bundle"] == shown["computed by bundle"] == "0123456789abcdef"
    assert shown["calibration_epoch"] == "2"
    assert shown["calibration refused"] == "K_cam of CAM_BACK is odd"
    assert shown["count: CAM_BACK: data_short"] == "3"
    assert shown["map_mask bit 0x02"] == "walkway"
    assert shown["map_mask bit 0x80"] == "known"
    assert status.hardware_id == "0123456789ab"


def test_each_sensor_has_a_state_an_age_and_its_own_drops() -> None:
    shown = statuses(loop(ONE_DEAD))
    front, back, lidar = (shown[f"/bev: {name}"] for name in (*CAMERAS, "LIDAR_TOP"))
    assert (front.level, front.message) == (DiagnosticStatus.OK, "used")
    assert values(front) == {"age_ms": "40.0"}  # 30 + 10 ms
    assert (back.level, back.message) == (DiagnosticStatus.WARN, "no data in time")
    assert values(back) == {"age_ms": "530.0", "count: CAM_BACK: data_short": "3"}
    # No message of the LiDAR has been seen, whatever the result says.
    assert (lidar.level, lidar.message) == (DiagnosticStatus.STALE, "no message yet")


def test_a_silent_node_uses_no_sensor() -> None:
    front = statuses(loop(ONE_DEAD, 2.0))["/bev: CAM_FRONT"]
    assert (front.level, front.message) == (DiagnosticStatus.STALE, "no new result")


def test_latencies_are_percentiles_per_stage() -> None:
    status = statuses(loop(ALL))["/bev: latency"]
    # Of 1..100 ms the 50th, 95th and 99th; sensor to output is twice that.
    assert [values(status)[f"engine p{p}_ms"] for p in (50, 95, 99)] == ["50.0", "95.0", "99.0"]
    assert status.message == "sensor to output p99 198 ms"
