"""What the callbacks do with messages. Node and loop are recording stand-ins: there is no DDS."""

import types
from array import array
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed: run make test in .venv-ros")
pytest.importorskip("perception_ros", reason="the ROS workspace is not sourced")

from geometry_msgs.msg import TransformStamped
from nav_msgs.msg import Odometry
from perception_ros import convert, inputs
from perception_ros.inputs import Inputs
from perception_ros.rig import MAX_FRAMES, Rig
from perception_ros.settings import NodeSettings
from rclpy.qos import DurabilityPolicy, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image, PointCloud2

from runtime.api import Calibration, CameraCalibration, CameraImage, LidarSweep

pytestmark = pytest.mark.ros

CAMERAS = ("CAM_FRONT", "CAM_BACK")
K = np.array([[100.0, 0, 8.0], [0, 100.0, 4.0], [0, 0, 1]])


class StandInNode:
    """In place of the node: keeps what is subscribed to and what is logged."""

    def __init__(self) -> None:
        self.callbacks: dict[str, Callable[[Any], None]] = {}
        self.kinds: dict[str, type] = {}
        self.qos: dict[str, Any] = {}
        self.log: list[str] = []

    def create_subscription(self, kind: type, topic: str, callback: Any, qos: Any) -> str:
        self.kinds[topic], self.callbacks[topic], self.qos[topic] = kind, callback, qos
        return topic

    def destroy_subscription(self, topic: str) -> None:
        del self.callbacks[topic]

    def get_logger(self) -> Any:
        def keep(text: str, **_: Any) -> None:
            self.log.append(text)

        return types.SimpleNamespace(info=keep, warning=keep)


class StandInLoop:
    """In place of the PerceptionLoop: keeps what it is given."""

    def __init__(self) -> None:
        self.pushed: list[Any] = []
        self.rejected: list[tuple[str, str]] = []
        self.counted: Counter[str] = Counter()
        self.poses: list[int] = []
        self.num_calibrations = 0

    def push(self, message: Any) -> None:
        self.pushed.append(message)

    def reject(self, sensor: str, reason: str) -> None:
        self.rejected.append((sensor, reason))

    def count(self, reason: str, number: int = 1) -> None:
        self.counted[reason] += number

    def add_pose(self, stamp_ns: int, _: np.ndarray) -> None:
        self.poses.append(stamp_ns)

    def calibrate(self) -> None:
        self.num_calibrations += 1


class Bench:
    """Inputs between their stand-ins."""

    def __init__(self, calibrated: bool = True, **settings: Any) -> None:
        camera = CameraCalibration(K_cam=K, T_ego_cam=np.eye(4), width_px=16, height_px=8)
        rig = Calibration(cameras=dict.fromkeys(CAMERAS, camera), T_ego_lidar=np.eye(4))
        self.node, self.loop = StandInNode(), StandInLoop()
        self.rig = Rig(rig if calibrated else None, {})
        self.inputs = Inputs(
            self.node,  # type: ignore[arg-type]
            self.loop,  # type: ignore[arg-type]
            self.rig,
            CAMERAS,
            NodeSettings(bundle="x", **settings),
        )

    def send(self, topic: str, message: Any) -> None:
        self.node.callbacks[topic](message)


def header(frame_id: str = "sensor") -> Any:
    return convert.make_header(5_000_000_000, frame_id)


def picture() -> Image:
    return convert.to_image(np.full((8, 16, 3), 7, np.uint8), header())


def cloud() -> PointCloud2:
    return convert.to_cloud(np.ones((4, 3), np.float32), header("roof_lidar"))


def transforms(*chain: tuple[str, str, float]) -> Any:
    """A TFMessage: parent, child, shift along x [m]."""
    stamped = []
    for parent, child, x in chain:
        one = TransformStamped(header=header(parent), child_frame_id=child)
        one.transform.translation.x = x
        stamped.append(one)
    return types.SimpleNamespace(transforms=stamped)


def test_topics_and_qos_are_those_of_the_readme() -> None:
    bench = Bench(sensor_depth=3)
    images = {f"~/input/{kind}{i}" for kind in ("image", "camera_info") for i in (0, 1)}
    assert set(bench.node.kinds) >= {*images, "~/input/pointcloud", "~/input/odometry"}
    for topic in images:
        assert bench.node.qos[topic].depth == 3
        assert bench.node.qos[topic].reliability == ReliabilityPolicy.BEST_EFFORT
    assert bench.node.kinds["~/input/image1"] is Image
    bench.inputs.close()
    assert bench.node.callbacks == {}


def test_compressed_replaces_the_raw_topics() -> None:
    bench = Bench(compressed=True)
    assert bench.node.kinds["~/input/image0/compressed"] is CompressedImage
    assert "~/input/image0" not in bench.node.kinds


def test_images_and_clouds_go_on_with_their_stamp() -> None:
    bench = Bench()
    bench.send("~/input/image1", picture())
    bench.send("~/input/pointcloud", cloud())
    bench.send("~/input/odometry", Odometry(header=header(), child_frame_id="base_link"))
    image, sweep = bench.loop.pushed
    assert isinstance(image, CameraImage)
    assert isinstance(sweep, LidarSweep)
    assert (image.camera, image.stamp_ns, sweep.stamp_ns) == ("CAM_BACK", *[5_000_000_000] * 2)
    assert bench.loop.poses == [5_000_000_000]


def test_what_cannot_be_read_is_counted_by_its_source_and_reason() -> None:
    bench = Bench()
    bench.send("~/input/image0", Image())
    bench.send("~/input/pointcloud", PointCloud2(header=header()))
    bench.send("~/input/odometry", Odometry(header=header(), child_frame_id="trailer"))
    bench.send("~/input/camera_info1", convert.CameraInfo(header=header()))
    assert bench.loop.rejected == [("CAM_FRONT", "stamp_zero"), ("LIDAR_TOP", "no_points")]
    assert bench.loop.counted == {
        "odometry: child_frame": 1, "CAM_BACK camera info: size_zero": 1,
    }  # fmt: skip
    assert bench.loop.pushed == []
    assert len(bench.node.log) == 4


def test_a_frame_without_a_proper_name_is_refused() -> None:
    bench = Bench()
    picture_, cloud_ = picture(), cloud()
    picture_.header.frame_id, cloud_.header.frame_id = "", "/roof"
    bench.send("~/input/image0", picture_)
    bench.send("~/input/pointcloud", cloud_)
    assert bench.loop.rejected == [("CAM_FRONT", "frame_empty"), ("LIDAR_TOP", "frame_slash")]


def test_a_refused_message_has_one_diagnostic_and_none_for_what_else_it_was() -> None:
    bench = Bench(calibrated=False, allow_zero_row_step=True)
    short = cloud()
    short.row_step = 0
    short.data = short.data[:-1]
    unplaced = convert.to_cloud(np.array([[1, np.nan]] * 4, np.float32), header("roof_lidar"))
    bench.send("~/input/pointcloud", short)
    bench.send("~/input/pointcloud", unplaced)
    info = convert.CameraInfo(
        header=header(), width=16, height=8, distortion_model="plumb_bob", d=[0.1] * 5, k=K.ravel(),
        r=[2.0] * 9,
    )  # fmt: skip
    bench.send("~/input/camera_info0", info)
    assert bench.loop.rejected == [("LIDAR_TOP", "data_short"), ("LIDAR_TOP", "extrinsics")]
    assert bench.loop.counted == {"CAM_FRONT camera info: rectification": 1}


def test_an_image_of_another_size_than_the_calibration_is_refused() -> None:
    bench = Bench()
    bench.send("~/input/image0", convert.to_image(np.zeros((8, 15, 3), np.uint8), header()))
    assert bench.loop.rejected == [("CAM_FRONT", "size_calibration")]


def test_a_cloud_with_row_step_zero_is_taken_only_by_choice_and_then_counted() -> None:
    message = cloud()
    message.row_step = 0
    strict, lenient = Bench(), Bench(allow_zero_row_step=True)
    for bench in (strict, lenient, lenient):
        bench.send("~/input/pointcloud", message)
    assert strict.loop.rejected == [("LIDAR_TOP", "row_step_zero")]
    assert len(lenient.loop.pushed) == 2
    assert lenient.loop.counted == {"LIDAR_TOP: row_step_zero (used)": 2}


def test_camera_info_changes_the_calibration_once() -> None:
    bench = Bench()
    changed = K.copy()
    changed[0, 0] = 101.0
    camera = CameraCalibration(K_cam=changed, T_ego_cam=np.eye(4), width_px=16, height_px=8)
    for _ in range(3):
        bench.send("~/input/camera_info0", convert.to_camera_info(camera, header()))
    assert bench.loop.num_calibrations == 1
    np.testing.assert_allclose(bench.rig.calibration().cameras["CAM_FRONT"].K_cam, changed)


@pytest.fixture
def tf2_msgs(monkeypatch: pytest.MonkeyPatch) -> type:
    """A stand-in for tf2_msgs/TFMessage, which no registry of Python packages has."""
    stand_in = type("TFMessage", (), {})
    monkeypatch.setattr(inputs, "TFMessage", stand_in)
    return stand_in


def test_tf_places_a_sensor_by_the_frame_of_its_messages(tf2_msgs: type) -> None:
    bench = Bench(calibrated=False)
    assert bench.node.kinds["/tf"] is bench.node.kinds["/tf_static"] is tf2_msgs
    assert bench.node.qos["/tf_static"].durability == DurabilityPolicy.TRANSIENT_LOCAL
    bench.send("~/input/pointcloud", cloud())
    assert bench.loop.rejected == [("LIDAR_TOP", "extrinsics")]  # nobody has said where it is
    # The roof is 1 m ahead of base_link, the LiDAR 0.25 m ahead of the roof.
    bench.send("/tf_static", transforms(("roof", "roof_lidar", 0.25)))
    bench.send("/tf_static", transforms(("base_link", "roof", 1.0)))
    assert bench.loop.num_calibrations == 1
    assert bench.rig.calibration().T_ego_lidar[0, 3] == 1.25
    bench.send("~/input/pointcloud", cloud())
    assert len(bench.loop.pushed) == 1
    bench.send("/tf", transforms(("base_link", "roof", 1.0)))  # the same again
    assert bench.loop.num_calibrations == 1
    bench.send("/tf", transforms(("base_link", "roof", 2.0)))
    assert bench.loop.num_calibrations == 2
    assert bench.rig.calibration().T_ego_lidar[0, 3] == 2.25


def test_one_bad_transform_is_counted_and_the_others_are_used(tf2_msgs: type) -> None:
    bench = Bench(calibrated=False)
    message = transforms(("base_link", "roof_lidar", 1.0), ("base_link", "bad", float("nan")))
    bench.send("~/input/pointcloud", cloud())
    bench.send("/tf", message)
    assert bench.loop.counted == {"tf: position": 1}
    assert bench.rig.knows_place_of("LIDAR_TOP")


def test_frames_beyond_the_bound_are_counted_and_dropped(tf2_msgs: type) -> None:
    bench = Bench()
    for start in (0, MAX_FRAMES - 2):
        names = [f"f{start + i}" for i in range(MAX_FRAMES - 2)]
        bench.send("/tf", transforms(*(("base_link", name, 1.0) for name in names[:900])))
        bench.send("/tf", transforms(*(("base_link", name, 1.0) for name in names[900:])))
    # There is room for two of the second 998.
    assert bench.loop.counted == {"tf: tf_full": MAX_FRAMES - 4}


def test_use_tf_false_leaves_tf_alone(tf2_msgs: type) -> None:
    assert not {"/tf", "/tf_static"} & set(Bench(use_tf=False).node.kinds)


def test_a_jpeg_is_decoded() -> None:
    simplejpeg = pytest.importorskip("simplejpeg")
    bench = Bench(compressed=True)
    content = simplejpeg.encode_jpeg(np.full((8, 16, 3), 200, np.uint8))
    message = CompressedImage(header=header(), format="jpeg", data=array("B", content))
    bench.send("~/input/image0/compressed", message)
    assert np.abs(bench.loop.pushed[0].rgb.astype(int) - 200).max() <= 2
