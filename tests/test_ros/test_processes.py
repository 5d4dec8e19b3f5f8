"""Player and node as two processes; the answers are compared with the runtime called directly."""

import dataclasses
import shutil
import signal
import subprocess
import sys
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
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage, PointCloud2
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
)

pytestmark = [pytest.mark.ros, pytest.mark.timeout(180)]

Start = Callable[..., Any]

SCENE = "scene-0103"
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
    config = SynchronizerConfig(cameras=inputs.cameras, max_sweeps=inputs.pillars.num_sweeps)
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
        self, start: Start, listener: Any, bundle: Path, log: Path, folder: Path, rate: float
    ) -> None:
        classes = load_bundle(bundle).card.map_classes
        self.boxes: list[Box3DArray] = listener.hear(Box3DArray, "/bev/output/boxes")
        self.markers: list[MarkerArray] = listener.hear(MarkerArray, "/bev/output/markers")
        self.maps: dict[str, list[OccupancyGrid]] = {
            name: listener.hear(OccupancyGrid, f"/bev/output/map/{name}") for name in classes
        }
        self.diagnostics: list[DiagnosticArray] = listener.hear(DiagnosticArray, "/diagnostics")
        # As in the launch file: the node waits for the rig that the player writes.
        rig = folder / "rig.json"
        self.node = start(
            "bev_node", *REMAPPINGS, bundle=bundle, calibration=rig, calibration_timeout_s=60,
            score_threshold=0, use_sim_time=True,
        )  # fmt: skip
        self.player = start("log_player", log=log, scene=SCENE, rate=rate, write_calibration=rig)
        ended = self.player.popen.poll
        listener.spin_until(lambda: ended() is not None, "the log has been played", 120)
        seen = len(self.diagnostics)
        listener.spin_until(lambda: len(self.diagnostics) > seen + 1, "diagnostics came twice more")
        self.exit_codes = (self.player.popen.returncode, self.node.interrupt())
        self.output = self.player.output + self.node.output

    def check(self, expected: dict[int, PerceptionResult]) -> None:
        """Half of the frames that both computed have the same numbers, and nothing is out of order.

        Which of two images a frame takes is decided by when they arrive: a loaded machine may
        group frames otherwise, or overtake them.
        """
        assert self.exit_codes == (0, 0), self.output
        assert "Traceback" not in self.output
        stamps = [convert.to_stamp_ns(message.header) for message in self.boxes]
        assert stamps == sorted(set(stamps))
        heard = dict(zip(stamps, self.boxes, strict=True))
        matches = [
            stamp_ns
            for stamp_ns, result in expected.items()
            if stamp_ns in heard and same_numbers(heard[stamp_ns], result)
        ]
        both = len(heard.keys() & expected.keys())
        assert len(matches) >= max(2, 0.5 * both), (len(matches), both, self.output)
        layers = {
            name: {convert.to_stamp_ns(grid.header): grid for grid in grids}
            for name, grids in self.maps.items()
        }
        compared = set()
        for stamp_ns in matches:
            check_sensors(heard[stamp_ns], expected[stamp_ns])
            grids = result_messages.to_map_layers(expected[stamp_ns], "base_link")
            for name, grid in grids.items():
                if stamp_ns not in layers[name]:
                    continue  # each layer is a topic, and each is found in its own time
                compared.add(name)
                assert layers[name][stamp_ns].info == grid.info
                # Percent is rounded: what differs by 1e-6 may fall to either side.
                difference = np.array(layers[name][stamp_ns].data) - np.array(grid.data)
                assert np.abs(difference).max() <= 1
        assert compared == set(layers)
        assert len(self.markers) >= len(matches)

    def values(self, part: str = "perception") -> dict[str, str]:
        """Of the newest diagnostics."""
        statuses = {status.name: status for status in self.diagnostics[-1].status}
        return {pair.key: pair.value for pair in statuses[f"/bev: {part}"].values}


def check_sensors(message: Box3DArray, result: PerceptionResult) -> None:
    expected = result_messages.to_boxes(result, "base_link")
    assert message.header == expected.header
    assert message.mode == expected.mode
    assert message.bundle == result.bundle_digest
    assert list(message.sensors_used) == list(result.sensors_used)
    assert {fault.sensor for fault in message.sensors_missing} == set(result.sensors_missing)


def same_numbers(message: Box3DArray, result: PerceptionResult) -> bool:
    expected = result_messages.to_boxes(result, "base_link")
    here, there = numbers(message), numbers(expected)
    return here.shape == there.shape and np.allclose(here, there, rtol=0, atol=1e-5)


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
    assert len(expected) >= 8
    played.check(expected)
    assert any(boxes.mode == Box3DArray.MODE_FUSION and boxes.boxes for boxes in played.boxes)
    shown = played.values("latency")
    assert {"engine p50_ms", "engine p99_ms", "sensor to output p95_ms"} <= set(shown)
    calibration = NuScenesLog(small_log_root).calibration(SCENE)
    written = read_calibration(tmp_path / "rig.json")
    np.testing.assert_array_equal(written.T_ego_lidar, calibration.T_ego_lidar)
    assert list(written.cameras) == list(calibration.cameras)


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
    played.check(direct_results(test_bundle, NuScenesLog(log), SCENE))
    assert all("CAM_BACK" not in boxes.sensors_used for boxes in played.boxes)
    modes = [boxes.mode for boxes in played.boxes]
    assert Box3DArray.MODE_FUSION in modes
    # The LiDAR ends first; after the log's end the cameras may be gone, too.
    assert modes.index(Box3DArray.MODE_CAMERA) > modes.index(Box3DArray.MODE_FUSION)
    assert modes[-1] in (Box3DArray.MODE_CAMERA, Box3DArray.MODE_INVALID)
    assert "CAM_BACK not played: " in played.player.output


@pytest.mark.nuscenes
def test_a_real_scene_with_missing_data_gives_what_the_runtime_gives(
    start: Start, listener: Any, test_bundle: Path, real_log_root: Path, tmp_path: Path
) -> None:
    # Some sweeps and keyframe files are missing: frames without a camera or without LiDAR.
    played = Played(start, listener, test_bundle, real_log_root, tmp_path, rate=0.5)
    expected = direct_results(test_bundle, NuScenesLog(real_log_root), SCENE)
    assert len(expected) >= 6
    assert any(set(result.sensors_missing) for result in expected.values())
    played.check(expected)


def test_signals_end_the_node_with_zero_and_a_second_one_changes_nothing(
    start: Start, listener: Any, test_bundle: Path, tmp_path: Path
) -> None:
    """One that is active, by SIGTERM, and one that still waits for its calibration, by SIGINT."""
    boxes = listener.hear(Box3DArray, "/bev/output/boxes")
    active = start("bev_node", bundle=test_bundle, self_test=False)
    waiting = start(
        "bev_node", "-r", "__node:=waiting", bundle=test_bundle, calibration=tmp_path / "never",
        calibration_timeout_s=100,
    )  # fmt: skip
    listener.spin_until(lambda: bool(boxes), "the first is active")
    listener.spin_until(lambda: "waiting" in listener.node.get_node_names(), "the second is up")
    for node, number in ((active, signal.SIGTERM), (waiting, signal.SIGINT)):
        node.popen.send_signal(number)
        assert node.interrupt(number) == 0
        assert "Traceback" not in node.output


def test_a_looping_compressed_player_sends_growing_stamps_and_a_clock_until_a_signal(
    start: Start, listener: Any, small_log_root: Path
) -> None:
    log = NuScenesLog(small_log_root)
    clouds, images, clocks = (
        listener.hear(kind, topic, qos_profile_sensor_data)
        for kind, topic in (
            (PointCloud2, "/pointcloud"), (CompressedImage, "/image0/compressed"),
            (Clock, "/clock"),
        )
    )  # fmt: skip
    player = start(
        "log_player", log=small_log_root, scene=SCENE, loop=True, rate=4.0, compressed=True,
        wait_for_subscribers=False,
    )  # fmt: skip
    num_sweeps = sum(name == "LIDAR_TOP" for _, name in log.stamps(SCENE))
    listener.spin_until(
        lambda: len(clouds) > num_sweeps + 2 and bool(images), "the second round began"
    )
    stamps = [convert.to_stamp_ns(cloud.header) for cloud in clouds]
    assert stamps == sorted(stamps)
    times = [clock.clock.sec * 10**9 + clock.clock.nanosec for clock in clocks]
    assert times == sorted(times)
    # At least every 10 ms of waiting, so in the 3 s gap of a loop at four times the speed 75 times.
    assert len(times) > 40
    sent = convert.compressed_to_rgb(images[-1]).astype(int)
    pictures = [m.rgb for m in log.messages(SCENE) if getattr(m, "camera", "") == "CAM_FRONT"]
    assert min(np.abs(sent - rgb).mean() for rgb in pictures) < 4  # grey levels; JPEG twice
    assert player.interrupt() == 0
    assert "Traceback" not in player.output


def test_the_player_says_whom_it_waits_for_and_starts_without_them(
    start: Start, listener: Any, small_log_root: Path
) -> None:
    """The bundle has one camera; and nobody at all is there for the second player."""
    clouds = listener.hear(PointCloud2, "/pointcloud", qos_profile_sensor_data)
    one = start("log_player", log=small_log_root, scene=SCENE, rate=4.0)
    none = start(
        "log_player", "-r", "__ns:=/other", log=small_log_root, scene=SCENE, rate=4.0, max_wait_s=6,
        publish_clock=False,
    )  # fmt: skip
    listener.spin_until(lambda: bool(clouds), "it starts for the one topic that has a listener")
    assert "starting without listeners on /camera_info0, " in one.output
    assert "/pointcloud" not in one.output
    listener.spin_until(lambda: "starting without listeners" in none.output, "it starts anyway")
    assert "waiting for listeners on /other/camera_info0" in none.output


@pytest.mark.parametrize(
    ("executable", "more", "words"),
    [
        ("log_player", (), "error: Parameter log is empty"),
        ("bev_node", ("--params-file", "/nowhere.yaml"), "error: The ROS arguments are wrong"),
    ],
)
def test_wrong_input_is_one_sentence_and_exit_code_2(
    start: Start, executable: str, more: tuple[str, ...], words: str
) -> None:
    process = start(executable, *more)
    assert process.popen.wait(60) == 2
    assert process.output.splitlines()[-1].startswith(words)
    assert "Traceback" not in process.output


def test_the_node_does_not_load_torch() -> None:
    code = "import sys, perception_ros.node; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
