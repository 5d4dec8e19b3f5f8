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
PLACE = np.array([[1.0, 0, 0, 0.9], [0, 1, 0, 0], [0, 0, 1, 1.8], [0, 0, 0, 1]])
"""Of the LiDAR, by the calibration file."""


class StandInNode:
    """In place of the node: keeps what is subscribed to and what is logged."""

    def __init__(self) -> None:
        self.callbacks: dict[str, Callable[[Any], None]] = {}
        self.kinds: dict[str, type] = {}
        self.qos: dict[str, list[Any]] = {}
        self.log: list[str] = []

    def create_subscription(self, kind: type, topic: str, callback: Any, qos: Any) -> str:
        self.kinds[topic], self.callbacks[topic] = kind, callback
        self.qos.setdefault(topic, []).append(qos)
        return topic

    def destroy_subscription(self, topic: str) -> None:
        self.callbacks.pop(topic, None)

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
        self.knows_lidar = True
        self.min_rows = 0

    def size_fault(self, camera: str, width_px: int, height_px: int) -> str | None:
        return None if height_px >= self.min_rows else "too few rows"

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
        camera = CameraCalibration(K_cam=K, T_ego_cam=PLACE, width_px=16, height_px=8)
        rig = Calibration(cameras=dict.fromkeys(CAMERAS, camera), T_ego_lidar=PLACE)
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


def picture(frame_id: str = "sensor") -> Image:
    return convert.to_image(np.full((8, 16, 3), 7, np.uint8), header(frame_id))


def cloud(frame_id: str = "roof_lidar") -> PointCloud2:
    return convert.to_cloud(np.ones((4, 3), np.float32), header(frame_id))


def camera_info(K_cam: np.ndarray, width_px: int = 16, height_px: int = 8) -> convert.CameraInfo:
    camera = CameraCalibration(
        K_cam=K_cam, T_ego_cam=np.eye(4), width_px=width_px, height_px=height_px
    )
    return convert.to_camera_info(camera, header())


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
        assert bench.node.qos[topic][0].depth == 3
        assert bench.node.qos[topic][0].reliability == ReliabilityPolicy.BEST_EFFORT
    # A publisher that says it once, latched, and one that says it with each image: both are heard.
    (_, latched) = bench.node.qos["~/input/camera_info1"]
    assert latched.durability == DurabilityPolicy.TRANSIENT_LOCAL
    assert latched.reliability == ReliabilityPolicy.RELIABLE
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
    for _ in range(3):
        bench.send("~/input/camera_info0", camera_info(changed))
    assert bench.loop.num_calibrations == 1
    np.testing.assert_allclose(bench.rig.calibration().cameras["CAM_FRONT"].K_cam, changed)


def test_a_camera_info_that_no_network_can_use_costs_that_camera_only() -> None:
    bench = Bench()
    bench.loop.min_rows = 8
    before = bench.rig.calibration().cameras["CAM_FRONT"]
    bench.send("~/input/camera_info0", camera_info(K, 16, 7))
    assert bench.loop.counted == {"CAM_FRONT camera info: size_network": 1}
    assert bench.loop.num_calibrations == 0
    bench.send("~/input/camera_info1", camera_info(1.5 * K / [[1.0], [1.0], [1.5]]))
    assert bench.loop.num_calibrations == 1
    after = bench.rig.calibration().cameras
    np.testing.assert_array_equal(after["CAM_FRONT"].K_cam, before.K_cam)
    assert after["CAM_FRONT"].height_px == 8
    assert after["CAM_BACK"].K_cam[0, 0] == 150.0


def test_what_a_camera_info_is_used_in_spite_of_is_counted() -> None:
    bench = Bench()
    message = camera_info(K)
    message.d = [0.1, 0.0, 0.0, 0.0, 0.0]
    message.p[0] = 90.0
    bench.send("~/input/camera_info1", message)
    assert bench.loop.counted == {
        "CAM_BACK camera info: distortion (used)": 1,
        "CAM_BACK camera info: p_differs (used)": 1,
    }


def test_intensity_is_scaled_by_the_parameter() -> None:
    bench = Bench(intensity_scale=255.0)
    bench.send("~/input/pointcloud", cloud())
    np.testing.assert_array_equal(bench.loop.pushed[0].points_lidar[3], [255.0] * 3)


@pytest.mark.parametrize("use_tf", [True, False])
def test_messages_in_the_base_frame_leave_the_calibration_file_alone(
    tf2_msgs: type, use_tf: bool
) -> None:
    bench = Bench(use_tf=use_tf)
    bench.send("~/input/pointcloud", cloud("base_link"))
    bench.send("~/input/image0", picture("base_link"))
    assert len(bench.loop.pushed) == 2
    assert bench.loop.num_calibrations == 0
    calibration = bench.rig.calibration()
    np.testing.assert_array_equal(calibration.T_ego_lidar, PLACE)
    np.testing.assert_array_equal(calibration.cameras["CAM_FRONT"].T_ego_cam, PLACE)


def test_a_cloud_in_the_base_frame_places_a_lidar_of_which_nothing_else_is_known(
    tf2_msgs: type,
) -> None:
    bench = Bench(calibrated=False)
    bench.send("~/input/camera_info0", camera_info(K))
    bench.send("~/input/image0", picture("base_link"))
    bench.send("~/input/pointcloud", cloud("base_link"))
    assert bench.loop.rejected == [("CAM_FRONT", "extrinsics")]  # no camera looks like that
    assert len(bench.loop.pushed) == 1
    calibration = bench.rig.calibration()
    assert calibration.knows_lidar
    np.testing.assert_array_equal(calibration.T_ego_lidar, np.eye(4))


def test_use_tf_false_looks_at_no_frame() -> None:
    bench = Bench(calibrated=False, use_tf=False)
    bench.send("~/input/pointcloud", cloud("base_link"))
    assert bench.loop.rejected == [("LIDAR_TOP", "extrinsics")]
    assert not bench.rig.calibration().knows_lidar


def test_no_cloud_is_taken_before_the_frames_know_where_the_lidar_is(tf2_msgs: type) -> None:
    bench = Bench(calibrated=False)
    bench.loop.knows_lidar = False  # the new calibration is still being prepared
    bench.send("/tf", transforms(("base_link", "roof_lidar", 1.0)))
    bench.send("~/input/pointcloud", cloud())
    assert bench.rig.calibration().knows_lidar
    assert bench.loop.rejected == [("LIDAR_TOP", "extrinsics")]
    bench.loop.knows_lidar = True
    bench.send("~/input/pointcloud", cloud())
    assert len(bench.loop.pushed) == 1


def test_a_frame_with_a_new_name_is_masked_until_tf_places_it(tf2_msgs: type) -> None:
    bench = Bench()
    bench.send("/tf", transforms(("base_link", "roof_lidar", 1.0), ("base_link", "eye", 2.0)))
    for frame in ("eye", "left_eye"):
        bench.send("~/input/image0", picture(frame))
    for frame in ("roof_lidar", "top_lidar", "base_link", "roof_lidar"):
        bench.send("~/input/pointcloud", cloud(frame))
    assert bench.loop.rejected == [
        ("CAM_FRONT", "extrinsics"), ("LIDAR_TOP", "extrinsics"), ("LIDAR_TOP", "extrinsics"),
    ]  # fmt: skip
    assert len(bench.loop.pushed) == 3
    bench.send("/tf", transforms(("base_link", "left_eye", 3.0)))
    bench.send("~/input/image0", picture("left_eye"))
    assert len(bench.loop.pushed) == 4
    assert bench.rig.calibration().cameras["CAM_FRONT"].T_ego_cam[0, 3] == 3.0


def test_publishers_that_disagree_are_counted_and_the_newest_counts(tf2_msgs: type) -> None:
    bench = Bench()
    bench.send("~/input/pointcloud", cloud())
    for x in (1.0, 2.0, 1.0, 1.0):  # there, elsewhere, back again
        bench.send("/tf", transforms(("base_link", "roof_lidar", x)))
    assert bench.loop.counted == {"tf: disputed (used)": 1}
    assert "disagree about 'roof_lidar'" in bench.node.log[-2]
    bench.send("/tf", transforms(("roof", "roof_lidar", 5.0)))  # now it hangs elsewhere
    assert bench.loop.counted == {"tf: disputed (used)": 2}
    assert bench.rig.calibration().T_ego_lidar[0, 3] == 1.0


def test_transforms_of_other_frames_are_not_looked_through(
    tf2_msgs: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench()
    bench.send("~/input/pointcloud", cloud())
    found: list[str] = []
    find = bench.inputs._tree.find
    monkeypatch.setattr(
        bench.inputs._tree, "find", lambda base, frame: [found.append(frame), find(base, frame)][1]
    )
    bench.send("/tf", transforms(("base_link", "wheel", 1.0)))
    assert found == []
    bench.send("/tf", transforms(("base_link", "roof_lidar", 1.0)))
    bench.send("/tf", transforms(("base_link", "roof_lidar", 1.0 + 1e-9)))  # rounding
    assert found == ["roof_lidar"]


@pytest.fixture
def tf2_msgs(monkeypatch: pytest.MonkeyPatch) -> type:
    """A stand-in for tf2_msgs/TFMessage, which no registry of Python packages has."""
    stand_in = type("TFMessage", (), {})
    monkeypatch.setattr(inputs, "TFMessage", stand_in)
    return stand_in


def test_tf_places_a_sensor_by_the_frame_of_its_messages(tf2_msgs: type) -> None:
    bench = Bench(calibrated=False)
    assert bench.node.kinds["/tf"] is bench.node.kinds["/tf_static"] is tf2_msgs
    (static_qos,) = bench.node.qos["/tf_static"]
    assert static_qos.durability == DurabilityPolicy.TRANSIENT_LOCAL
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


def test_a_compressed_image_of_another_format_is_used_and_noted() -> None:
    simplejpeg = pytest.importorskip("simplejpeg")
    bench = Bench(compressed=True)
    content = simplejpeg.encode_jpeg(np.zeros((8, 16, 3), np.uint8))
    message = CompressedImage(header=header(), format="png", data=array("B", content))
    bench.send("~/input/image0/compressed", message)
    assert len(bench.loop.pushed) == 1
    assert [*bench.loop.counted] == ["CAM_FRONT: format_differs (used)"]
