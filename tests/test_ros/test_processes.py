"""Player and node as two processes; the answers are compared with the runtime called directly."""

import dataclasses
import shutil
import signal
import subprocess
import sys
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed: run make test in .venv-ros")
pytest.importorskip("perception_ros", reason="the ROS workspace is not sourced")

from diagnostic_msgs.msg import DiagnosticArray
from nav_msgs.msg import OccupancyGrid
from perception_msgs.msg import Box3DArray
from perception_ros import convert, result_messages
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import Image, PointCloud2
from visualization_msgs.msg import MarkerArray

from runtime.api import (
    CameraImage,
    LidarSweep,
    NuScenesLog,
    PerceptionResult,
    Pipeline,
    SensorMessage,
    Synchronizer,
    SynchronizerConfig,
    load_bundle,
    read_calibration,
    write_calibration,
)

pytestmark = [pytest.mark.ros, pytest.mark.timeout(180)]

Start = Callable[..., Any]

SCENE = "scene-0103"
WAIT_NS = 130_000_000
"""Not 100 ms: the log's frames are complete 0.2 ms before that, a race between data and time."""
INPUTS = [f"{kind}{i}" for i in range(6) for kind in ("image", "camera_info")]
REMAPPINGS = [
    word
    for name in [*INPUTS, "pointcloud", "odometry"]
    for word in ("-r", f"~/input/{name}:=/{name}")
]


def as_sent(message: SensorMessage) -> SensorMessage:
    """The message with its pose as odometry carries it: the quaternion rounds differently."""
    header = convert.make_header(message.stamp_ns, "map")
    sent = convert.to_odometry(message.T_global_ego, header, "base_link")
    T_global_ego = convert.to_T_global_ego(sent, "base_link")
    return dataclasses.replace(message, T_global_ego=T_global_ego)


def direct_results(bundle_path: Path, log: NuScenesLog, scene: str) -> dict[int, PerceptionResult]:
    """What the runtime answers without ROS, by stamp."""
    bundle = load_bundle(bundle_path)
    inputs = bundle.card.inputs
    config = SynchronizerConfig(
        cameras=inputs.cameras, wait_ns=WAIT_NS, max_sweeps=inputs.pillars.num_sweeps
    )
    synchronizer = Synchronizer(config, log.calibration(scene))
    frames = []
    for message in log.messages(scene):
        frames += synchronizer.advance(message.stamp_ns)
        if isinstance(message, CameraImage | LidarSweep):
            frames += synchronizer.push(as_sent(message))
    frames += synchronizer.flush()
    pipeline = Pipeline(bundle)
    results = {frame.stamp_ns: pipeline.process(frame) for frame in frames}
    pipeline.close()
    return results


class Played:
    """What was heard while a scene was played into the node."""

    def __init__(
        self, start: Start, listener: Any, bundle: Path, log: Path, folder: Path,
        rate: float,
    ) -> None:  # fmt: skip
        classes = load_bundle(bundle).card.map_classes
        self.boxes: list[Box3DArray] = listener.hear(Box3DArray, "/bev/output/boxes")
        self.markers: list[MarkerArray] = listener.hear(MarkerArray, "/bev/output/markers")
        self.maps: dict[str, list[OccupancyGrid]] = {
            name: listener.hear(OccupancyGrid, f"/bev/output/map/{name}") for name in classes
        }
        self.diagnostics: list[DiagnosticArray] = listener.hear(DiagnosticArray, "/diagnostics")
        calibration = folder / "rig.json"
        write_calibration(calibration, NuScenesLog(log).calibration(SCENE))
        self.node = start(
            "bev_node", *REMAPPINGS, bundle=bundle, calibration=calibration, score_threshold=0,
            stamp_rate=rate, wait_ms=WAIT_NS * 1e-6,
        )  # fmt: skip
        # Its last publisher is heard, so all others are matched: nothing of the start is lost.
        listener.spin_until(lambda: bool(self.diagnostics), "the node is up")
        self.player = start("log_player", log=log, scene=SCENE, rate=rate)
        listener.spin_until(lambda: self.player.popen.poll() is not None, "the log has been played")
        seen = len(self.diagnostics)
        listener.spin_until(lambda: len(self.diagnostics) > seen + 1, "diagnostics came twice more")
        self.exit_codes = (self.player.popen.returncode, self.node.interrupt())
        self.output = self.player.output + self.node.output

    def check(self, expected: dict[int, PerceptionResult], exact: bool) -> None:
        """What was expected was heard with the same numbers, but for frames that were overtaken.

        Frames that lack a sensor are closed by time, so a loaded machine may group them otherwise:
        then, not `exact`, only half of them have to be those expected.
        """
        assert self.exit_codes == (0, 0), self.output
        assert "Traceback" not in self.output
        stamps = [convert.to_stamp_ns(message.header) for message in self.boxes]
        assert stamps == sorted(set(stamps))
        matches = [
            (index, expected[stamp_ns])
            for index, stamp_ns in enumerate(stamps)
            if stamp_ns in expected
            and (exact or same_numbers(self.boxes[index], expected[stamp_ns]))
        ]
        num_due = len(expected) - int(self.last_values()["count: frame: overtaken"])
        assert len(matches) >= max(3, 0.5 * num_due), self.output
        if exact:
            assert len(stamps) == len(matches) == num_due, self.output
        for index, result in matches:
            check_boxes(self.boxes[index], result)
            grids = result_messages.to_map_layers(result, "base_link")
            for name, heard in self.maps.items():
                assert heard[index].header == grids[name].header
                assert heard[index].info == grids[name].info
                # Percent is rounded: what differs by 1e-6 may fall to either side.
                difference = np.array(heard[index].data) - np.array(grids[name].data)
                assert np.abs(difference).max() <= 1
        assert len(self.markers) == len(self.boxes)

    def last_values(self) -> dict[str, str]:
        return {pair.key: pair.value for pair in self.diagnostics[-1].status[0].values}


def check_boxes(message: Box3DArray, result: PerceptionResult) -> None:
    expected = result_messages.to_boxes(result, result_cameras(result), "base_link")
    assert message.header == expected.header
    assert message.mode == expected.mode
    assert list(message.sensors_used) == list(result.sensors_used)
    assert {fault.sensor for fault in message.sensors_missing} == set(result.sensors_missing)
    assert set(message.sensors_used) | {fault.sensor for fault in message.sensors_missing} == {
        *result_cameras(result),
        "LIDAR_TOP",
    }
    np.testing.assert_allclose(numbers(message), numbers(expected), rtol=0, atol=1e-5)


def same_numbers(message: Box3DArray, result: PerceptionResult) -> bool:
    expected = result_messages.to_boxes(result, result_cameras(result), "base_link")
    here, there = numbers(message), numbers(expected)
    return here.shape == there.shape and np.allclose(here, there, rtol=0, atol=1e-5)


def result_cameras(result: PerceptionResult) -> set[str]:
    return {name for name in (*result.sensors_used, *result.sensors_missing) if "CAM" in name}


def numbers(message: Box3DArray) -> np.ndarray:
    rows = [
        [
            box.label, box.score, box.pose.position.x, box.pose.position.y, box.pose.position.z,
            box.pose.orientation.z, box.pose.orientation.w, box.size.x, box.size.y, box.size.z,
            box.velocity.x, box.velocity.y,
        ]
        for box in message.boxes
    ]  # fmt: skip
    return np.array(rows).reshape(-1, 12)


def test_a_played_log_gives_what_the_runtime_gives(
    start: Start,
    listener: Any,
    test_bundle: Path,
    small_log_root: Path,
    tmp_path: Path,
) -> None:
    played = Played(start, listener, test_bundle, small_log_root, tmp_path, rate=0.25)
    expected = direct_results(test_bundle, NuScenesLog(small_log_root), SCENE)
    assert len(expected) >= 10
    assert any(boxes.mode == Box3DArray.MODE_FUSION and boxes.boxes for boxes in played.boxes)
    played.check(expected, exact=True)


def test_sensors_that_die_are_named_and_the_others_go_on(
    start: Start,
    listener: Any,
    test_bundle: Path,
    small_log_root: Path,
    tmp_path: Path,
) -> None:
    log = shutil.copytree(small_log_root, tmp_path / "log")
    for folder in ("samples", "sweeps"):
        shutil.rmtree(log / folder / "CAM_BACK")
    sweeps = log.glob(f"*/LIDAR_TOP/*{SCENE}*")
    for path in sorted(sweeps, key=lambda path: path.name)[6:]:
        path.unlink()
    played = Played(start, listener, test_bundle, log, tmp_path, rate=0.25)
    played.check(direct_results(test_bundle, NuScenesLog(log), SCENE), exact=False)
    assert all("CAM_BACK" not in boxes.sensors_used for boxes in played.boxes)
    modes = [boxes.mode for boxes in played.boxes]
    assert Box3DArray.MODE_FUSION in modes
    assert modes[-1] == Box3DArray.MODE_CAMERA
    assert "CAM_BACK not played: " in played.player.output
    assert {"missing: CAM_BACK", "missing: LIDAR_TOP"} <= set(played.last_values())


@pytest.mark.nuscenes
def test_a_real_scene_with_missing_data_gives_what_the_runtime_gives(
    start: Start, listener: Any, test_bundle: Path, real_log_root: Path, tmp_path: Path
) -> None:
    # Some sweeps and keyframe files are missing: frames without a camera or without LiDAR.
    played = Played(start, listener, test_bundle, real_log_root, tmp_path, rate=0.5)
    expected = direct_results(test_bundle, NuScenesLog(real_log_root), SCENE)
    assert len(expected) >= 6
    assert any(set(result.sensors_missing) for result in expected.values())
    played.check(expected, exact=False)


@pytest.fixture
def rig(small_log_root: Path, tmp_path: Path) -> Path:
    path = tmp_path / "rig.json"
    write_calibration(path, NuScenesLog(small_log_root).calibration(SCENE))
    return path


def test_malformed_messages_are_counted_by_reason_and_the_node_stays_up(
    start: Start, listener: Any, test_bundle: Path, rig: Path
) -> None:
    diagnostics = listener.hear(DiagnosticArray, "/diagnostics")
    boxes = listener.hear(Box3DArray, "/bev/output/boxes")
    node = start("bev_node", bundle=test_bundle, calibration=rig)
    header = convert.make_header(1_000_000_000, "")
    images = listener.node.create_publisher(Image, "/bev/input/image0", qos_profile_sensor_data)
    clouds = listener.node.create_publisher(
        PointCloud2, "/bev/input/pointcloud", qos_profile_sensor_data
    )
    wanted = {
        "count: CAM_FRONT: bad stamp": (images, Image()),
        "count: CAM_FRONT: bad encoding": (images, Image(header=header, encoding="h264")),
        "count: CAM_FRONT: bad length": (
            images,
            Image(header=header, encoding="rgb8", width=3, height=2, step=9, data=array("B", [1])),
        ),
        "count: pointcloud: bad fields": (clouds, PointCloud2(header=header)),
    }

    def all_counted() -> bool:
        for publisher, message in wanted.values():
            publisher.publish(message)
        counted = {pair.key for array in diagnostics for pair in array.status[0].values}
        return set(wanted) <= counted

    listener.spin_until(all_counted, "every reason was counted")
    # A picture of the wrong size is well formed: it makes a frame, which names it.
    good = convert.to_image(np.zeros((4, 6, 3), np.uint8), header)

    def answered() -> bool:
        images.publish(good)
        return bool(boxes)

    listener.spin_until(answered, "a frame came out")
    assert boxes[0].mode == Box3DArray.MODE_NONE
    reasons = {fault.sensor: fault.reason for fault in boxes[0].sensors_missing}
    assert "6 x 4 px" in reasons["CAM_FRONT"]
    assert node.interrupt() == 0
    assert "Traceback" not in node.output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_the_node_with_zero_and_a_second_one_changes_nothing(
    start: Start, listener: Any, test_bundle: Path, rig: Path, number: int
) -> None:
    diagnostics = listener.hear(DiagnosticArray, "/diagnostics")
    node = start("bev_node", bundle=test_bundle, calibration=rig)
    listener.spin_until(lambda: bool(diagnostics), "the node is up")
    node.popen.send_signal(number)
    assert node.interrupt(number) == 0
    assert "Traceback" not in node.output


def test_a_signal_ends_the_wait_for_a_calibration(
    start: Start, test_bundle: Path, tmp_path: Path, listener: Any
) -> None:
    node = start(
        "bev_node", bundle=test_bundle, calibration=tmp_path / "never", calibration_timeout_s=100
    )
    listener.spin_until(lambda: "bev" in listener.node.get_node_names(), "the node is up")
    assert node.interrupt() == 0
    assert "Traceback" not in node.output


def test_a_signal_ends_a_looping_player(
    start: Start, listener: Any, small_log_root: Path, tmp_path: Path
) -> None:
    clouds: list[PointCloud2] = []
    listener.node.create_subscription(
        PointCloud2, "/pointcloud", clouds.append, qos_profile_sensor_data
    )
    player = start(
        "log_player", log=small_log_root, scene=SCENE, loop=True, rate=4.0,
        wait_for_subscribers=False, shift_to_now=True, write_calibration=tmp_path / "rig.json",
    )  # fmt: skip
    num_sweeps = sum(name == "LIDAR_TOP" for _, name in NuScenesLog(small_log_root).stamps(SCENE))
    listener.spin_until(lambda: len(clouds) > num_sweeps + 2, "the second round began")
    stamps = [convert.to_stamp_ns(cloud.header) for cloud in clouds]
    assert stamps == sorted(stamps)
    assert player.interrupt() == 0
    assert "Traceback" not in player.output
    written = read_calibration(tmp_path / "rig.json")
    expected = NuScenesLog(small_log_root).calibration(SCENE)
    np.testing.assert_array_equal(written.T_ego_lidar, expected.T_ego_lidar)
    assert list(written.cameras) == list(expected.cameras)


def test_the_node_starts_when_the_calibration_appears(
    start: Start, listener: Any, test_bundle: Path, rig: Path
) -> None:
    later = rig.with_name("later.json")
    diagnostics = listener.hear(DiagnosticArray, "/diagnostics")
    node = start("bev_node", bundle=test_bundle, calibration=later, calibration_timeout_s=100)
    listener.spin_until(lambda: "bev" in listener.node.get_node_names(), "the node waits")
    assert not diagnostics
    rig.rename(later)
    listener.spin_until(lambda: bool(diagnostics), "the node is up")
    assert node.interrupt() == 0


@pytest.mark.parametrize(
    ("executable", "parameters", "words"),
    [
        ("bev_node", {}, "Parameter bundle is empty"),
        ("bev_node", {"bundle": "/nowhere", "calibration": "x"}, "/nowhere is no bundle"),
        ("bev_node", {"bundle": "TEST", "calibration": "/nowhere.json"}, "/nowhere.json"),
        ("bev_node", {"bundle": "x", "calibration": "x", "wait_ms": "soon"}, "expected a float"),
        ("bev_node", {"bundle": "x", "calibration": "x", "wait_ms": -1}, "a positive number"),
        ("bev_node", {"bundle": "TEST", "calibration": "RIG", "score_threshold": 2}, "threshold"),
        ("log_player", {}, "Parameter log is empty"),
        ("log_player", {"log": "/nowhere"}, "/nowhere"),
        ("log_player", {"log": "LOG", "scene": "scene-0104"}, "scene-0103"),
    ],
)
def test_wrong_input_is_one_sentence_and_exit_code_2(
    start: Start,
    test_bundle: Path,
    small_log_root: Path,
    rig: Path,
    executable: str,
    parameters: dict[str, Any],
    words: str,
) -> None:
    known = {"TEST": test_bundle, "RIG": rig, "LOG": small_log_root}
    process = start(executable, **{name: known.get(v, v) for name, v in parameters.items()})
    assert process.popen.wait(30) == 2
    (line,) = process.output.strip().splitlines()
    assert line.startswith("error: ")
    assert words in line


def test_a_parameter_file_that_is_missing_is_one_sentence(start: Start) -> None:
    process = start("bev_node", "--params-file", "/nowhere.yaml")
    assert process.popen.wait(30) == 2
    assert process.output.splitlines()[-1].startswith("error: The ROS arguments are wrong")
    assert "Traceback" not in process.output


def test_the_node_does_not_load_torch() -> None:
    code = "import sys, perception_ros.node; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
