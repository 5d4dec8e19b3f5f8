"""What the recordings show: one frame made by hand, in which nothing is symmetric."""

import base64
import dataclasses
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from mcap.reader import make_reader

from perception.drawing import CLASS_COLORS, GRAY, LAYER_COLORS, draw_frame
from perception.geometry.grid import BevGrid
from perception.messages import (
    Calibration,
    CameraCalibration,
    CameraImage,
    Detections,
    LidarSweep,
    MapMask,
    PerceptionResult,
    SensorFrame,
)
from perception.taxonomy import CAMERAS, LIDAR
from runtime.writers import mcap_writer
from runtime.writers.mcap_writer import MAP_ALPHA, McapWriter
from runtime.writers.video_writer import BAR_COLORS, BAR_HEIGHT_PX, VideoWriter

MS = 1_000_000
STAMP_NS = 1_532_402_927_647_951_000
IMAGE_NS, OLD_SWEEP_NS = STAMP_NS - 40 * MS, STAMP_NS - 50 * MS
YAW = 0.5

Messages = dict[str, list[tuple[int, dict[str, Any]]]]
"""Topic -> time of log and content."""


def transform(x: float, y: float, z: float, rotation: Any = None) -> np.ndarray:
    T = np.eye(4)
    T[:3, 3] = x, y, z
    if rotation is not None:
        T[:3, :3] = rotation
    return T


def turned(yaw: float) -> np.ndarray:
    cos, sin = np.cos(yaw), np.sin(yaw)
    return np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])


LOOKING_AHEAD = np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])
"""Columns: the camera's right, down and forward in the ego frame."""
T_EGO_CAM = transform(1.5, 0.2, 1.6, turned(0.1) @ LOOKING_AHEAD)
T_EGO_LIDAR = transform(0.9, 0.1, 1.8, turned(-np.pi / 2))
T_GLOBAL_EGO = {ns: transform(50 + i, 60, 0, turned(0.3 + i / 10)) for i, ns in enumerate(
    (OLD_SWEEP_NS, IMAGE_NS, STAMP_NS))}  # fmt: skip
K_CAM = np.array([[1200.0, 0, 790], [0, 1210, 460], [0, 0, 1]])
RED = (230, 20, 10)


def frame() -> SensorFrame:
    rgb = np.full((900, 1600, 3), RED, np.uint8)
    points = np.array([[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]], np.float32).T
    sweeps = tuple(
        LidarSweep(stamp_ns=ns, points_lidar=points + i, T_global_ego=T_GLOBAL_EGO[ns])
        for i, ns in enumerate((STAMP_NS, OLD_SWEEP_NS))
    )
    rig = CameraCalibration(K_cam=K_CAM, T_ego_cam=T_EGO_CAM, width_px=1600, height_px=900)
    image = CameraImage(
        camera="CAM_FRONT", stamp_ns=IMAGE_NS, rgb=rgb, T_global_ego=T_GLOBAL_EGO[IMAGE_NS]
    )
    return SensorFrame(
        stamp_ns=STAMP_NS, T_global_ego=T_GLOBAL_EGO[STAMP_NS], images={"CAM_FRONT": image},
        sweeps=sweeps, calibration=Calibration(cameras={"CAM_FRONT": rig}, T_ego_lidar=T_EGO_LIDAR),
        missing={"CAM_BACK": "dead"},
    )  # fmt: skip


def result(**changes: Any) -> PerceptionResult:
    """A car that drives to the left, a slow pedestrian, and a car that is too weak to show."""
    found = Detections(
        boxes_ego=np.array(
            [[10, 2, 1, 4, 2, 1.5, YAW, 0, 3], [5, -4, 1, 1, 0.5, 1.8, 0, 0.1, 0],
             [8, 8, 1, 4, 2, 1.5, 0, 0, 0]], np.float32,
        ),
        scores=np.array([0.9, 0.5, 0.2], np.float32),
        labels=np.array([0, 1, 0]),
        classes=("car", "pedestrian"),
    )  # fmt: skip
    grid = BevGrid(x_min=-2.0, x_max=4.0, y_min=-1.0, y_max=3.0, cell=1.0)
    prob = np.zeros((2, 4, 6), np.float32)
    prob[0, 0, 5], prob[1, 3, 1], prob[:, 1, 2] = 1.0, 0.6, 0.8
    values: dict[str, Any] = {
        "stamp_ns": STAMP_NS, "T_global_ego": T_GLOBAL_EGO[STAMP_NS], "detections": found,
        "map_mask": MapMask(prob=prob, classes=("drivable_area", "divider"), grid=grid),
        "sensors_used": ("CAM_FRONT", LIDAR), "sensors_missing": {"CAM_BACK": "dead"},
        "stage_ms": {"preprocess": 3.0, "preprocess/images": 2.0, "engine": 4.0},
    }  # fmt: skip
    return PerceptionResult(**{**values, **changes})


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Messages:
    """The frame, and 100 ms later the same images and sweeps again, without any sensor missing."""
    path = tmp_path_factory.mktemp("mcap") / "drive.mcap"
    writer = McapWriter(path)
    writer.add("scene", frame(), result())
    again = dataclasses.replace(frame(), stamp_ns=STAMP_NS + 100 * MS)
    writer.add("scene", again, result(stamp_ns=STAMP_NS + 100 * MS, sensors_missing={}))
    later = STAMP_NS + 200 * MS
    writer.add(
        "scene",
        dataclasses.replace(frame(), stamp_ns=later),
        result(stamp_ns=later, sensors_missing={}),
    )
    writer.close()
    topics: Messages = {}
    with path.open("rb") as file:
        for _, channel, message in make_reader(file).iter_messages():
            content = json.loads(message.data)
            topics.setdefault(channel.topic, []).append((message.log_time, content))
    return topics


def stamp_of(content: dict[str, Any]) -> int:
    return content["timestamp"]["sec"] * 1_000_000_000 + content["timestamp"]["nsec"]


def matrix(at: dict[str, float], rotation: dict[str, float]) -> np.ndarray:
    """4x4 of a translation and a unit quaternion, by the textbook."""
    x, y, z, w = (rotation[name] for name in "xyzw")
    R = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    return transform(at["x"], at["y"], at["z"], np.array(R))


def pose(content: dict[str, Any]) -> np.ndarray:
    return matrix(content["position"], content["orientation"])


def test_every_message_is_logged_at_the_stamp_that_it_carries(written: Messages) -> None:
    for topic, entries in written.items():
        for log_time, content in entries:
            stamps = [stamp_of(e) for e in content["entities"]] if topic == "/boxes" else []
            assert {log_time} == {*(stamps or [stamp_of(content)])}, topic
    # an image or sweep that stays in the next frames is written once, a result every time
    num = {topic: len(entries) for topic, entries in written.items()}
    assert num["/CAM_FRONT/image"] == num["/CAM_FRONT/calibration"] == num["/lidar"] == 1
    assert num["/boxes"] == num["/map"] == num["/status"] == 3
    assert written["/CAM_FRONT/image"][0][0] == IMAGE_NS
    assert written["/lidar"][0][0] == STAMP_NS
    # two changes: at the start, and when CAM_BACK is no longer missing
    log = [(content["level"], content["message"]) for _, content in written["/log"]]
    assert log == [(3, "mode fusion (CAM_BACK: dead)"), (2, "mode fusion")]


def test_the_tree_of_frames_is_that_of_the_car(written: Messages) -> None:
    tree: dict[tuple[str, str], dict[int, np.ndarray]] = {}
    for log_time, content in written["/tf"]:
        ends = content["parent_frame_id"], content["child_frame_id"]
        T = matrix(content["translation"], content["rotation"])
        tree.setdefault(ends, {})[log_time] = T
    assert tree.keys() == {
        ("map", "base_link"), ("base_link", "CAM_FRONT"), ("base_link", LIDAR)
    }  # fmt: skip
    for stamp_ns in (IMAGE_NS, STAMP_NS):
        np.testing.assert_allclose(
            tree["map", "base_link"][stamp_ns], T_GLOBAL_EGO[stamp_ns], atol=1e-9
        )
    # and for every later result, though its image and sweep are the old ones
    assert {STAMP_NS + 100 * MS, STAMP_NS + 200 * MS} <= tree["map", "base_link"].keys()
    np.testing.assert_allclose(tree["base_link", "CAM_FRONT"][IMAGE_NS], T_EGO_CAM, atol=1e-9)
    np.testing.assert_allclose(tree["base_link", LIDAR][STAMP_NS], T_EGO_LIDAR, atol=1e-9)
    frames = {topic: entries[0][1].get("frame_id") for topic, entries in written.items()}
    assert (frames["/CAM_FRONT/image"], frames["/CAM_FRONT/calibration"]) == ("CAM_FRONT",) * 2
    assert (frames["/lidar"], frames["/map"]) == (LIDAR, "base_link")
    assert {e["frame_id"] for _, c in written["/boxes"] for e in c["entities"]} == {"base_link"}


def test_boxes_have_their_place_heading_size_colour_and_way(written: Messages) -> None:
    _, content = written["/boxes"][0]
    assert [deletion["type"] for deletion in content["deletions"]] == [1]  # all of the frame before
    car, walker = content["entities"]  # the third is weaker than 0.3
    (cube,) = car["cubes"]
    np.testing.assert_allclose(pose(cube["pose"]), transform(10, 2, 1, turned(YAW)), atol=1e-6)
    assert cube["size"] == {"x": 4.0, "y": 2.0, "z": 1.5}
    for entity, name in ((car, "car"), (walker, "pedestrian")):
        color = entity["cubes"][0]["color"]
        assert CLASS_COLORS[name] != GRAY
        assert tuple(round(color[c] * 255) for c in "rgb") == CLASS_COLORS[name]
        assert entity["texts"][0]["text"].startswith(f"{name} 0.")
        assert {"key": "class", "value": name} in entity["metadata"]
    (arrow,) = car["arrows"]  # 3 m/s to the left
    np.testing.assert_allclose(
        pose(arrow["pose"]), transform(10, 2, 1, turned(np.pi / 2)), atol=1e-6
    )
    assert arrow["shaft_length"] == pytest.approx(3.0)
    assert walker["arrows"] == []  # 0.1 m/s
    # while the car drives on, boxes stay where they were seen
    assert not car["frame_locked"]


def test_the_time_of_a_frame_is_that_of_its_stages_and_not_of_their_parts(
    written: Messages,
) -> None:
    assert written["/status"][0][1]["total_ms"] == 3.0 + 4.0


def test_the_map_lies_where_the_mask_says(written: Messages) -> None:
    _, content = written["/map"][0]
    assert content["fields"] == [
        {"name": name, "offset": i, "type": 1}
        for i, name in enumerate(("red", "green", "blue", "alpha", "drivable_area", "divider"))
    ]
    np.testing.assert_allclose(pose(content["pose"]), transform(-2, -1, 0))
    assert content["cell_size"] == {"x": 1.0, "y": 1.0}
    data = np.frombuffer(base64.b64decode(content["data"]), np.uint8)

    def cell(x: float, y: float) -> list[int]:
        """As a reader finds it: rows are y, from the pose on."""
        column, row = int(x + 2), int(y + 1)
        assert 0 <= column < content["column_count"]
        start = row * content["row_stride"] + column * content["cell_stride"]
        return data[start : start + content["cell_stride"]].tolist()

    assert len(data) == 4 * content["row_stride"]
    # prob[layer, y, x]; 0.6 x 255 = 153, 0.8 x 255 = 204; the later layer is on top
    assert cell(3.5, -0.5) == [*LAYER_COLORS["drivable_area"], MAP_ALPHA, 255, 0]
    assert cell(-0.5, 2.5) == [*LAYER_COLORS["divider"], MAP_ALPHA, 0, 153]
    assert cell(0.5, 0.5) == [*LAYER_COLORS["divider"], MAP_ALPHA, 204, 204]
    assert cell(-1.5, -0.5) == [0] * 6


def test_cloud_and_picture_are_what_the_sensors_gave(written: Messages) -> None:
    _, cloud = written["/lidar"][0]
    assert cloud["fields"] == [
        {"name": name, "offset": 4 * i, "type": 7}
        for i, name in enumerate(("x", "y", "z", "intensity"))
    ]
    assert cloud["point_stride"] == 16
    np.testing.assert_allclose(pose(cloud["pose"]), np.eye(4))
    points = np.frombuffer(base64.b64decode(cloud["data"]), "<f4").reshape(-1, 4)
    np.testing.assert_array_equal(points, np.arange(1, 13).reshape(3, 4))  # the newest sweep's
    _, picture = written["/CAM_FRONT/image"][0]
    assert picture["format"] == "jpeg"
    jpeg = np.frombuffer(base64.b64decode(picture["data"]), np.uint8)
    bgr = cv2.imdecode(jpeg, cv2.IMREAD_COLOR)
    assert bgr.shape == (450, 800, 3)
    assert np.abs(bgr[200, 400, ::-1].astype(int) - RED).max() < 12
    _, camera = written["/CAM_FRONT/calibration"][0]
    assert (camera["width"], camera["height"]) == (800, 450)
    # half the size; both count pixels from the first one's corner
    K = [[600, 0, 395], [0, 605, 230], [0, 0, 1]]
    np.testing.assert_allclose(np.reshape(camera["K"], (3, 3)), K)
    np.testing.assert_allclose(np.reshape(camera["P"], (3, 4)), np.column_stack([K, [0, 0, 0]]))


def test_every_panel_of_the_layout_finds_what_it_shows(written: Messages) -> None:
    layout = json.loads(Path(mcap_writer.__file__).with_name("foxglove_layout.json").read_text())

    def leaves(node: Any) -> list[str]:
        return [node] if isinstance(node, str) else leaves(node["first"]) + leaves(node["second"])

    panels = layout["configById"]
    assert sorted(leaves(layout["layout"])) == sorted(panels)
    # names under which Foxglove knows its panels
    assert {name.split("!")[0] for name in panels} == {
        "3D", "Image", "Plot", "StateTransitions", "RosOut"
    }  # fmt: skip
    for camera in CAMERAS:
        shown = panels[f"Image!{camera}"]["imageMode"]
        assert shown["imageTopic"] == f"/{camera}/image"
        assert shown["calibrationTopic"] == f"/{camera}/calibration"
    view = panels["3D!bev"]
    assert view["followTf"] == "base_link"
    assert view["topics"]["/map"]["colorMode"] == "rgba-fields"
    fields = [field["name"] for field in written["/lidar"][0][1]["fields"]]
    assert view["topics"]["/lidar"]["colorField"] in fields
    for panel in ("Plot!latency", "StateTransitions!mode"):
        for path in panels[panel]["paths"]:
            assert path["timestampMethod"] == "receiveTime"  # a status has no ROS header
            topic, *names = path["value"].split(".")
            value = written[topic][0][1]
            for name in names:
                value = value[name]
            assert isinstance(value, float if panel.startswith("Plot") else str)


def test_pictures_and_video_show_boxes_map_colours_and_mode(tmp_path: Path) -> None:
    seen, blind = frame(), result(sensors_used=("CAM_FRONT",), sensors_missing={LIDAR: "dead"})
    folder = VideoWriter(tmp_path / "pictures", fps=10.0)
    video = VideoWriter(tmp_path / "drive.mp4", fps=10.0)
    for found in (result(), blind, result(sensors_used=("CAM_FRONT",), sensors_missing={})):
        folder.add("scene", seen, found)
        video.add("scene", seen, found)
    folder.close()
    video.close()
    shown, dark, unsaid = (
        cv2.imread(str(tmp_path / "pictures" / f"{i:05d}.png"))[..., ::-1] for i in range(3)
    )
    expected = draw_frame(seen, result().detections, result().map_mask, min_score=0.3)
    np.testing.assert_array_equal(shown[BAR_HEIGHT_PX:], expected)
    for picture, mode in ((shown, "fusion"), (dark, "camera")):
        assert tuple(picture[2, -2].tolist()) == BAR_COLORS[mode]
    # the bar says what is missing
    assert (dark[:BAR_HEIGHT_PX] != unsaid[:BAR_HEIGHT_PX]).any()
    done, bgr = cv2.VideoCapture(str(tmp_path / "drive.mp4")).read()
    assert done
    scale = bgr.shape[1] / shown.shape[1]
    row, column = round((BAR_HEIGHT_PX + 300) * scale), round((640 + 320) * scale)  # CAM_FRONT's
    assert np.abs(bgr[row, column, ::-1].astype(int) - RED).max() < 40


def test_pictures_of_a_longer_run_before_go_and_without_a_frame_nothing_is_made(
    tmp_path: Path,
) -> None:
    folder, mcap = tmp_path / "pictures", tmp_path / "drive.mcap"
    for num in (3, 1, 0):
        writers = [VideoWriter(folder, fps=10.0), McapWriter(mcap)]
        for writer in writers:
            for _ in range(num):
                writer.add("scene", frame(), result())
            writer.close()
        (folder / "notes.png").touch()
    # the run without a frame leaves what the one before it made
    assert sorted(path.name for path in folder.iterdir()) == ["00000.png", "notes.png"]
    with mcap.open("rb") as file:
        assert len(list(make_reader(file).iter_messages(topics=["/status"]))) == 1
    assert sorted(tmp_path.iterdir()) == [mcap, folder]
