"""The lifecycle node inside the test's process: transitions, parameters, output without input."""

import hashlib
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed: run make test in .venv-ros")
pytest.importorskip("perception_ros", reason="the ROS workspace is not sourced")

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.msg import State, Transition
from lifecycle_msgs.srv import ChangeState, GetState
from nav_msgs.msg import OccupancyGrid
from perception_msgs.msg import Box3DArray
from perception_ros import convert, loading, result_messages
from perception_ros.node import BevNode
from rclpy.executors import SingleThreadedExecutor
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.qos import qos_profile_sensor_data
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2

from runtime.api import (
    Calibration,
    CameraCalibration,
    NuScenesLog,
    Pipeline,
    load_bundle,
    write_calibration,
)

pytestmark = [pytest.mark.ros, pytest.mark.timeout(120)]

SCENE = "scene-0103"
TIMEOUT_S = 30.0
SUCCESS, FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE


class InProcess:
    """A node `bev`, and another node that talks with it, in one executor."""

    def __init__(self, parameters: dict[str, Any]) -> None:
        pairs = [word for name, value in parameters.items() for word in ("-p", f"{name}:={value}")]
        rclpy.init(args=["--ros-args", *pairs], signal_handler_options=SignalHandlerOptions.NO)
        self.bev = BevNode()
        self.other = rclpy.create_node("other")
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self.bev)
        self._executor.add_node(self.other)

    def hear(self, kind: type, topic: str) -> list[Any]:
        heard: list[Any] = []
        self.other.create_subscription(kind, topic, heard.append, 100)
        return heard

    def spin_until(self, condition: Callable[[], bool], why: str) -> None:
        end = time.monotonic() + TIMEOUT_S
        while not condition():
            assert time.monotonic() < end, f"waited in vain until {why}"
            self._executor.spin_once(timeout_sec=0.02)

    def spin_for(self, time_s: float) -> None:
        end = time.monotonic() + time_s
        while time.monotonic() < end:
            self._executor.spin_once(timeout_sec=0.02)

    def call(self, kind: Any, service: str, request: Any) -> Any:
        client = self.other.create_client(kind, service)
        self.spin_until(client.service_is_ready, f"{service} is there")
        future = client.call_async(request)
        self.spin_until(future.done, f"{service} answers")
        self.other.destroy_client(client)
        return future.result()

    def change(self, transition: int) -> bool:
        """Ask from outside, as a lifecycle manager does."""
        request = ChangeState.Request(transition=Transition(id=transition))
        return bool(self.call(ChangeState, "/bev/change_state", request).success)

    def state(self) -> int:
        return int(self.call(GetState, "/bev/get_state", GetState.Request()).current_state.id)

    def close(self) -> None:
        self.bev.close()
        self._executor.shutdown()
        self.bev.destroy_node()
        self.other.destroy_node()
        rclpy.try_shutdown()


Start = Callable[..., InProcess]


def with_another_golden_answer(bundle: Path, path: Path) -> Path:
    """A copy whose manifest is right and whose golden frame was computed by somebody else."""
    shutil.copytree(bundle, path)
    with np.load(bundle / "golden.npz") as file:
        arrays = dict(file)
    (boxes,) = [name for name in arrays if name.endswith("boxes_ego")]
    arrays[boxes] = arrays[boxes] + 1.0
    np.savez(path / "golden.npz", **arrays)
    manifest = json.loads((path / "manifest.json").read_text())
    content = (path / "golden.npz").read_bytes()
    manifest["files"]["golden.npz"] = {
        "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest(),
    }  # fmt: skip
    (path / "manifest.json").write_text(json.dumps(manifest))
    return path


def flat_rig(bundle: Path, path: Path) -> Path:
    """A calibration file of cameras whose images are too flat for the network."""
    K_cam = np.array([[800.0, 0, 800], [0, 800, 50], [0, 0, 1]])
    camera = CameraCalibration(K_cam=K_cam, T_ego_cam=np.eye(4), width_px=1600, height_px=100)
    cameras = dict.fromkeys(load_bundle(bundle).card.inputs.cameras, camera)
    write_calibration(path, Calibration(cameras=cameras, T_ego_lidar=np.eye(4)))
    return path


@pytest.fixture
def start_here(ros_domain: int) -> Iterator[Start]:
    started: list[InProcess] = []

    def start(**parameters: Any) -> InProcess:
        started.append(InProcess(parameters))
        return started[-1]

    yield start
    for node in started:
        node.close()


@pytest.fixture
def rig(small_log_root: Path, tmp_path: Path) -> Path:
    path = tmp_path / "rig.json"
    write_calibration(path, NuScenesLog(small_log_root).calibration(SCENE))
    return path


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({}, "Parameter bundle is empty"),
        ({"bundle": "/nowhere"}, "/nowhere is no bundle"),
        ({"bundle": "TEST", "camera_bundle": "TEST"}, "uses the LiDAR"),
        ({"bundle": "TEST", "calibration": "/nowhere.json"}, "/nowhere.json"),
        ({"bundle": "TEST", "score_threshold": 2}, "threshold"),
        ({"bundle": "TEST", "engine": "abacus"}, "abacus"),
        ({"bundle": "TEST", "camera_offsets_ms": "[-1.0, -2.0]"}, "expected 1 or 6"),
        ({"bundle": "TEST", "extrinsics.LIDAR_TOP": "[1.0, 2.0]"}, "extrinsics.LIDAR_TOP"),
        ({"bundle": "x", "wait_ms": "soon"}, "expected a float"),
        ({"bundle": "x", "camera_offsets_ms": "soon"}, "expected a list of numbers"),
        ({"bundle": "x", "period_ms": -1}, "period_ms is -1.0, expected"),
        ({"bundle": "x", "wait_ms": 101}, "wait_ms is 101.0, expected a number from 0.0 to 100.0"),
        (
            {"bundle": "TEST", "frozen_after": 1, "self_test": "false"},
            "frozen_after is 1, expected",
        ),
        ({"bundle": "x", "window_ms": 5000}, "window_ms is 5000.0, expected"),
        ({"bundle": "x", "sensor_depth": 1000000000000}, "sensor_depth is 1000000000000, expected"),
        ({"bundle": "TEST", "calibration": "FLAT", "self_test": "false"}, "rows, expected"),
        ({"bundle": "FALSE", "num_threads": 1}, "golden frame"),
    ],
)
def test_what_is_wrong_fails_configure_with_one_sentence_and_the_node_stays(
    start_here: Start,
    test_bundle: Path,
    tmp_path: Path,
    parameters: dict[str, Any],
    words: str,
) -> None:
    known = {"TEST": test_bundle}
    if "FALSE" in parameters.values():
        known["FALSE"] = with_another_golden_answer(test_bundle, tmp_path / "false")
    if "FLAT" in parameters.values():
        known["FLAT"] = flat_rig(test_bundle, tmp_path / "flat.json")
    here = start_here(autostart="false", **{k: known.get(v, v) for k, v in parameters.items()})
    assert here.bev.trigger_configure() == FAILURE
    diagnostics = here.hear(DiagnosticArray, "/diagnostics")
    here.spin_until(lambda: bool(diagnostics), "diagnostics say so")
    message = diagnostics[-1].status[0].message
    assert message.startswith("unconfigured: ")
    assert words in message
    assert "\n" not in message
    assert "inference" not in [thread.name for thread in threading.enumerate()]


@pytest.mark.parametrize("broken", ["inputs", "outputs"])
def test_what_half_succeeds_is_given_back(
    start_here: Start, test_bundle: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    """The last topic cannot be made: no thread, topic or engine stays, and the next try works."""
    here = start_here(autostart="false", bundle=test_bundle, self_test="false")
    threads, made = set(threading.enumerate()), [0]
    topics = len(list(here.bev.subscriptions)), len(list(here.bev.publishers))
    if broken == "inputs":
        assert here.change(Transition.TRANSITION_CONFIGURE)
        name, transition = "create_subscription", Transition.TRANSITION_ACTIVATE
    else:
        name, transition = "create_lifecycle_publisher", Transition.TRANSITION_CONFIGURE
    make = getattr(here.bev, name)

    def make_some(*arguments: Any, **more: Any) -> Any:
        made[0] += 1
        if made[0] == 4:
            raise RuntimeError("no room")
        return make(*arguments, **more)

    with monkeypatch.context() as patch:
        patch.setattr(here.bev, name, make_some)
        assert not here.change(transition)
    here.spin_until(lambda: set(threading.enumerate()) <= threads, "all threads have ended")
    assert (len(list(here.bev.subscriptions)), len(list(here.bev.publishers))) == topics
    assert here.change(Transition.TRANSITION_CONFIGURE)
    assert here.change(Transition.TRANSITION_ACTIVATE)


def test_parameters_reach_the_synchroniser_and_the_outputs(
    start_here: Start, test_bundle: Path, rig: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[dict[str, Any]] = []

    def keep(*arguments: Any, **more: Any) -> Pipeline:
        made.append(more)
        return Pipeline(*arguments, **more)

    monkeypatch.setattr(loading, "Pipeline", keep)
    here = start_here(
        autostart="false", bundle=test_bundle, calibration=rig, self_test="false", period_ms=200,
        window_ms=70, wait_ms=30, camera_offsets_ms="[-20.0]", compensate_ego_motion="false",
        map_threshold=0.25, score_threshold=0.125,
    )  # fmt: skip
    assert here.change(Transition.TRANSITION_CONFIGURE)
    configured = here.bev._configured
    assert configured is not None
    config = configured.synchronizer
    assert (config.period_ns, config.window_ns, config.wait_ns) == (
        200_000_000, 70_000_000, 30_000_000,
    )  # fmt: skip
    assert config.offset_of("CAM_FRONT") == -20_000_000
    assert made[0]["compensate_ego_motion"] is False
    assert made[0]["score_threshold"] == 0.125
    seen: list[float] = []
    monkeypatch.setattr(
        result_messages, "to_map_mask",
        lambda result, frame, threshold: seen.append(threshold) or Image(),
    )  # fmt: skip
    here.hear(Image, "/bev/output/map_mask")
    assert here.change(Transition.TRANSITION_ACTIVATE)
    here.spin_until(lambda: bool(seen), "a mask is made")
    assert seen[0] == 0.25


def test_a_name_that_no_file_can_have_fails_configure_at_once(
    start_here: Start, test_bundle: Path
) -> None:
    here = start_here(bundle=test_bundle, calibration="x" * 5000, calibration_timeout_s=100)
    diagnostics = here.hear(DiagnosticArray, "/diagnostics")
    here.spin_until(
        lambda: bool(diagnostics) and "cannot be read" in diagnostics[-1].status[0].message,
        "it is said",
    )


def test_a_damaged_bundle_is_refused_at_configure(
    start_here: Start, test_bundle: Path, tmp_path: Path
) -> None:
    damaged = shutil.copytree(test_bundle, tmp_path / "damaged")
    content = bytearray((damaged / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (damaged / "model.onnx").write_bytes(content)
    here = start_here(autostart="false", bundle=damaged)
    assert not here.change(Transition.TRANSITION_CONFIGURE)
    assert here.state() == State.PRIMARY_STATE_UNCONFIGURED
    diagnostics = here.hear(DiagnosticArray, "/diagnostics")
    here.spin_until(lambda: bool(diagnostics), "diagnostics say so")
    assert "changed or damaged" in diagnostics[-1].status[0].message


def test_a_node_that_was_configured_wrongly_can_be_configured_again(
    start_here: Start, test_bundle: Path, rig: Path
) -> None:
    here = start_here(bundle="/nowhere", calibration=rig)  # autostart, which fails
    diagnostics = here.hear(DiagnosticArray, "/diagnostics")
    here.spin_until(
        lambda: bool(diagnostics) and "no bundle" in diagnostics[-1].status[0].message, "it failed"
    )
    here.bev.set_parameters([Parameter("bundle", value=str(test_bundle))])
    assert here.change(Transition.TRANSITION_CONFIGURE)
    assert here.change(Transition.TRANSITION_ACTIVATE)
    # What is read at configure cannot be changed behind its back.
    (refused,) = here.bev.set_parameters([Parameter("wait_ms", value=10.0)])
    assert not refused.successful
    assert "read at configure" in refused.reason


def test_through_the_states_and_back_with_output_only_while_active(
    start_here: Start, test_bundle: Path, rig: Path
) -> None:
    here = start_here(autostart="false", bundle=test_bundle, calibration=rig)
    boxes = here.hear(Box3DArray, "/bev/output/boxes")
    here.spin_for(0.3)
    assert here.state() == State.PRIMARY_STATE_UNCONFIGURED
    threads = set(threading.enumerate())
    for _ in range(2):
        assert here.change(Transition.TRANSITION_CONFIGURE)
        assert not here.change(Transition.TRANSITION_CONFIGURE)  # not possible from here
        assert here.change(Transition.TRANSITION_ACTIVATE)
        assert here.state() == State.PRIMARY_STATE_ACTIVE
        # No sensor has ever said anything: that, too, is said every period.
        boxes.clear()
        here.spin_until(lambda: len(boxes) >= 5, "results come without any input")
        assert here.change(Transition.TRANSITION_DEACTIVATE)
        here.spin_for(0.1)
        boxes.clear()
        here.spin_for(0.3)
        assert boxes == []
        assert here.change(Transition.TRANSITION_CLEANUP)
        assert here.state() == State.PRIMARY_STATE_UNCONFIGURED
        assert set(threading.enumerate()) <= threads
    assert here.change(Transition.TRANSITION_UNCONFIGURED_SHUTDOWN)


def test_without_any_input_the_results_are_explicitly_invalid_every_period(
    start_here: Start, test_bundle: Path, rig: Path
) -> None:
    here = start_here(bundle=test_bundle, calibration=rig)
    boxes = here.hear(Box3DArray, "/bev/output/boxes")
    grids = here.hear(OccupancyGrid, "/bev/output/map/drivable_area")
    masks = here.hear(Image, "/bev/output/map_mask")
    here.spin_until(lambda: len(boxes) >= 10 and bool(grids) and bool(masks), "results come")
    last = boxes[-1]
    assert last.mode == Box3DArray.MODE_INVALID
    assert (list(last.boxes), list(last.sensors_used)) == ([], [])
    assert last.bundle == ""  # none computed it
    reasons = {fault.sensor: fault.reason for fault in last.sensors_missing}
    assert set(reasons) == {*load_bundle(test_bundle).card.inputs.cameras, "LIDAR_TOP"}
    assert set(reasons.values()) == {"no data yet"}
    assert set(grids[0].data) == {-1}
    assert set(masks[0].data) == {0}
    stamps = np.diff([convert.to_stamp_ns(message.header) for message in boxes])
    # Every 100 ms; the tick is 5 ms, and a loaded machine may skip some.
    assert (stamps > 0).all()
    assert 95e6 < np.median(stamps) < 130e6


def test_compressed_images_and_camera_info_alone_make_a_calibrated_camera(
    start_here: Start, test_bundle: Path, small_log_root: Path
) -> None:
    """No calibration file: intrinsics from camera info, extrinsics by parameter."""
    simplejpeg = pytest.importorskip("simplejpeg")
    log = NuScenesLog(small_log_root)
    camera = log.calibration(SCENE).cameras["CAM_FRONT"]
    pose = convert.to_pose(camera.T_ego_cam)
    p, q = pose.position, pose.orientation
    place = [p.x, p.y, p.z, q.x, q.y, q.z, q.w]
    here = start_here(**{
        "bundle": test_bundle, "compressed": "true", "self_test": "false",
        "frozen_after": 0,  # it sends one picture all the time
        "extrinsics.CAM_FRONT": str(place),
    })  # fmt: skip
    boxes = here.hear(Box3DArray, "/bev/output/boxes")
    infos = here.other.create_publisher(
        CameraInfo, "/bev/input/camera_info0", qos_profile_sensor_data
    )
    images = here.other.create_publisher(
        CompressedImage, "/bev/input/image0/compressed", qos_profile_sensor_data
    )
    clouds = here.other.create_publisher(
        PointCloud2, "/bev/input/pointcloud", qos_profile_sensor_data
    )
    picture = np.full((camera.height_px, camera.width_px, 3), 90, np.uint8)
    jpeg = simplejpeg.encode_jpeg(picture)

    def camera_is_used() -> bool:
        header = convert.make_header(time.time_ns(), "camera")
        infos.publish(convert.to_camera_info(camera, header))
        images.publish(CompressedImage(header=header, format="jpeg", data=jpeg))
        clouds.publish(convert.to_cloud(np.ones((4, 5), np.float32), header))
        return any("CAM_FRONT" in message.sensors_used for message in boxes)

    here.spin_until(camera_is_used, "the camera is used")
    used = next(message for message in boxes if "CAM_FRONT" in message.sensors_used)
    assert used.mode == Box3DArray.MODE_CAMERA
    assert used.bundle == load_bundle(test_bundle).digest
    assert used.calibration_epoch >= 1
    # Nobody has said where the LiDAR is.
    reasons = {fault.sensor: fault.reason for fault in used.sensors_missing}
    assert "extrinsics" in reasons["LIDAR_TOP"]
