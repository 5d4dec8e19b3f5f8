"""The options of `runtime/replay.py` together, as an integrator gives them."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from mcap.reader import make_reader
from replay_command import ACCEPT_WITH, GOLDEN, GOLDEN_RUN, run_cli
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore
from toy_bundle import toy_card, write_toy_bundle

from perception.data.nuscenes_log import NuScenesLog
from perception.messages import CameraImage
from perception.taxonomy import CAMERAS, LIDAR
from runtime.budgets import STAGES
from runtime.latency import LatencySummary
from runtime.message_source import NuScenesSource

BUDGETS = Path(__file__).with_name("budgets.json")
SCENE = "scene-0061"


@pytest.fixture(scope="module")
def camera_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("camera") / "bundle"
    return write_toy_bundle(folder, toy_card("camera", use_lidar=False))


@pytest.fixture(scope="module")
def lidar_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_bundle(
        tmp_path_factory.mktemp("lidar") / "bundle", toy_card("lidar", cameras=())
    )


def test_ladder_faults_and_recordings_in_one_run(
    toy_bundle: Path, camera_bundle: Path, lidar_bundle: Path, small_log_root: Path, tmp_path: Path
) -> None:
    done = run_cli(
        toy_bundle, "--camera-bundle", camera_bundle, "--lidar-bundle", lidar_bundle,
        "--log", small_log_root, "--scene", SCENE, "--speed", 0, "--period", 200, "--threads", 1,
        "--fault", "LIDAR_TOP:dead:0.3-0.7", "--fault", "CAMERAS:dead:1.0-9", "ALL:dead:1.3-9",
        "--mcap", tmp_path / "drive.mcap", "--video", tmp_path / "drive.mp4", "--out", tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    frames = json.loads((tmp_path / "detections.json").read_text())["frames"]
    # Times since the first image; frames are 40 ms later: 0.04, 0.24, ... Images come each 0.1 s,
    # sweeps each 0.05 s from 0.043 s on. The frame at 0.24 has the sweep of 0.293, those at 0.44
    # and 0.64 have none up to 0.06 + their instant; the one at 1.04 has no image after 0.94, and
    # that is 0.06 older than expected (1.00): the last one in its window. 1.44 has nothing.
    assert [frame["mode"] for frame in frames] == [
        "fusion", "fusion", "camera", "camera", "fusion", "lidar", "lidar", "invalid",
    ]  # fmt: skip
    report = json.loads((tmp_path / "replay.json").read_text())
    # all three folders have the same name; the invalid frame is no bundle's
    assert [(b["name"], b["recipe"], b["frames"]) for b in report["bundles"]] == [
        ("bundle", "toy", 3), ("bundle", "camera", 2), ("bundle", "lidar", 2),
    ]  # fmt: skip
    assert [len(frame["labels"]) for frame in frames] == [7, 7, 6, 6, 7, 1, 1, 0]
    with (tmp_path / "drive.mcap").open("rb") as file:
        status = [m.data for _, _, m in make_reader(file).iter_messages(topics=["/status"])]
    assert [json.loads(data)["mode"] for data in status] == [frame["mode"] for frame in frames]
    video = cv2.VideoCapture(str(tmp_path / "drive.mp4"))
    assert video.get(cv2.CAP_PROP_FPS) == pytest.approx(5.0)
    assert sum(iter(lambda: video.read()[0], False)) == len(frames)


def test_a_bundle_on_the_wrong_rung_is_one_sentence(
    toy_bundle: Path, camera_bundle: Path, lidar_bundle: Path, small_log_root: Path
) -> None:
    for option, bundle, words in (
        ("--camera-bundle", lidar_bundle, "expected a bundle of the cameras alone"),
        ("--lidar-bundle", camera_bundle, "expected a bundle of the LiDAR alone"),
    ):
        done = run_cli(toy_bundle, option, bundle, "--log", small_log_root, "--speed", 0)
        assert done.returncode == 2
        assert words in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1


def test_the_toy_bundle_finds_what_was_accepted(toy_bundle: Path, small_log_root: Path) -> None:
    run = [toy_bundle, "--log", small_log_root, "--scene", SCENE, *GOLDEN_RUN]
    done = run_cli(*run)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}if this is right: {ACCEPT_WITH}"
    # complete frames at 0 and 0.3 s, and one without CAM_BACK, which takes the sweep of 0.65 s
    # because it waits until then for the camera: 7 + 7 + 6; three without LiDAR: 6
    assert "equal: 6 frames and 38 boxes compared" in done.stdout
    other = run_cli(*run, "--fault", "CAM_FRONT:dead:0-9")
    assert other.returncode == 1
    # its box and its name in each of the six frames
    assert other.stdout.count("accepted [") >= 6
    assert f"--golden {GOLDEN} " in other.stdout.splitlines()[-1]
    assert other.stdout.rstrip().endswith("--fault CAM_FRONT:dead:0-9 --accept")


def write_bag_of(log_root: Path, bag: Path) -> Path:
    """The small log's scene as the node would hear it, but for the rig."""
    store = get_typestore(Stores.ROS2_HUMBLE)
    types = store.types

    def header(stamp_ns: int, frame: str) -> object:
        sec, nanosec = divmod(stamp_ns, 1_000_000_000)
        stamp = types["builtin_interfaces/msg/Time"](sec=sec, nanosec=nanosec)
        return types["std_msgs/msg/Header"](stamp=stamp, frame_id=frame)

    def image(message: CameraImage) -> object:
        height, width, _ = message.rgb.shape
        return types["sensor_msgs/msg/Image"](
            header=header(message.stamp_ns, message.camera), height=height, width=width,
            encoding="rgb8", is_bigendian=0, step=3 * width, data=message.rgb.ravel(),
        )  # fmt: skip

    def cloud(stamp_ns: int, points_lidar: np.ndarray) -> object:
        fields = [
            types["sensor_msgs/msg/PointField"](name=name, offset=4 * i, datatype=7, count=1)
            for i, name in enumerate(("x", "y", "z", "intensity"))
        ]
        points = np.ascontiguousarray(points_lidar[:4].T, "<f4")
        return types["sensor_msgs/msg/PointCloud2"](
            header=header(stamp_ns, LIDAR), height=1, width=len(points), fields=fields,
            is_bigendian=False, point_step=16, row_step=points.nbytes,
            data=points.view(np.uint8).ravel(), is_dense=True,
        )  # fmt: skip

    with Writer(bag, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        connections = {}
        for arrival in NuScenesSource(NuScenesLog(log_root)).arrivals(SCENE):
            source = arrival.message
            if isinstance(source, CameraImage):
                topic, message = f"/bev/image{CAMERAS.index(source.camera)}", image(source)
            else:
                topic, message = "/bev/pointcloud", cloud(source.stamp_ns, source.points_lidar)
            kind = message.__msgtype__
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, kind, typestore=store)
            data = store.serialize_cdr(message, kind)
            writer.write(connections[topic], arrival.now_ns, data)
    return bag


def test_a_bag_of_a_drive_gives_what_its_log_gives(
    toy_bundle: Path, small_log_root: Path, tmp_path: Path
) -> None:
    bag = write_bag_of(small_log_root, tmp_path / SCENE)  # a bag's scene is its name
    rig = tmp_path / "rig.json"
    run_cli("--log", small_log_root, "--scene", SCENE, "--write-calibration", rig)
    done = run_cli(toy_bundle, "--bag", bag, "--calibration", rig, *GOLDEN_RUN)
    # There is no odometry, so a camera's points stay where it was mounted, and sweeps are not
    # added up: the toy network's velocities count them. All else is that of the log.
    assert "6 frames and 38 boxes compared" in done.stdout, done.stderr
    differences = [line for line in done.stdout.splitlines() if line.startswith(f"  {SCENE}")]
    assert differences
    assert all(": velocity of " in line for line in differences)


def test_wall_clock_latencies_and_drops_are_within_the_budget(
    toy_bundle: Path, small_log_root: Path, tmp_path: Path
) -> None:
    done = run_cli(
        toy_bundle, "--log", small_log_root, "--scene", SCENE, "--speed", 1, "--threads", 1,
        "--budget", BUDGETS, "--out", tmp_path,
    )  # fmt: skip
    # Times are judged on the hardware that the file names, shares and counts everywhere.
    assert done.returncode == 0, done.stdout
    report = json.loads((tmp_path / "replay.json").read_text())
    assert (report["clock"], report["frames_in"]) == ("wall", 16)
    assert report["frames_out"] + sum(report["frames_dropped"].values()) == 16
    latency = {name: LatencySummary(**times) for name, times in report["latency"].items()}
    outputs = ("preprocess", "engine", "postprocess", "total", "waiting for sensors",
               "waiting for pipeline", "age of oldest sensor")  # fmt: skip
    for name in outputs:
        assert latency[name].count == report["frames_out"], name
    assert latency.keys() == set(STAGES)
    assert latency["jitter"].count == report["frames_out"] - 1
    for times in latency.values():
        assert 0 <= times.p50_ms <= times.p95_ms <= times.p99_ms <= times.max_ms
    # A sensor's image is as old as the frame's stamp or older, and a frame waits before it is done.
    total, age = latency["total"], latency["age of oldest sensor"]
    assert latency["waiting for sensors"].p50_ms <= total.p50_ms <= age.p50_ms
    page = (tmp_path / "replay.md").read_text()
    assert all(f"| {name} |" in page for name in latency)
    assert "budget    0 of" in page
