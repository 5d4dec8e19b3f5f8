import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import simplejpeg
from rosbags.highlevel import AnyReader
from rosbags.rosbag2 import ReaderError, StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from perception.data.nuscenes_log import MissingFile
from perception.errors import InputError
from perception.messages import Calibration, CameraImage, LidarSweep
from perception.taxonomy import LIDAR
from runtime.bag_feed import BagSource

MS = 1_000_000
START_NS = 5_000_000_000
STORE = get_typestore(Stores.ROS2_HUMBLE)
T = STORE.types
PICTURE = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)


def header(stamp_ms: int, frame: str) -> object:
    sec, nanosec = divmod(START_NS + stamp_ms * MS, 1_000_000_000)
    stamp = T["builtin_interfaces/msg/Time"](sec=sec, nanosec=nanosec)
    return T["std_msgs/msg/Header"](stamp=stamp, frame_id=frame)


def image(stamp_ms: int, encoding: str = "bgr8") -> object:
    """PICTURE with a padding byte after each row."""
    pixels = PICTURE[:, :, ::-1] if encoding == "bgr8" else PICTURE
    rows = np.pad(pixels.reshape(2, 9), ((0, 0), (0, 1)))
    return T["sensor_msgs/msg/Image"](
        header=header(stamp_ms, "cam"), height=2, width=3, encoding=encoding, is_bigendian=0,
        step=10, data=rows.ravel(),
    )  # fmt: skip


def compressed(stamp_ms: int, data: bytes) -> object:
    return T["sensor_msgs/msg/CompressedImage"](
        header=header(stamp_ms, "cam"), format="jpeg", data=np.frombuffer(data, np.uint8)
    )


def cloud(stamp_ms: int) -> object:
    """Points (1, 2, 3) with intensity 4 and one that is not a number; intensity lies in front."""
    points = np.array([[4, 1, 2, 3], [4, np.nan, 2, 3]], "<f4")
    names = ("intensity", "x", "y", "z")
    fields = [
        T["sensor_msgs/msg/PointField"](name=name, offset=4 * i, datatype=7, count=1)
        for i, name in enumerate(names)
    ]
    return T["sensor_msgs/msg/PointCloud2"](
        header=header(stamp_ms, "lidar"), height=1, width=2, fields=fields, is_bigendian=False,
        point_step=16, row_step=32, data=points.view(np.uint8).ravel(), is_dense=False,
    )  # fmt: skip


def vector(x: float, y: float, z: float) -> object:
    return T["geometry_msgs/msg/Vector3"](x=x, y=y, z=z)


UPRIGHT = T["geometry_msgs/msg/Quaternion"](x=0.0, y=0.0, z=0.0, w=1.0)


def odometry(stamp_ms: int, x: float) -> object:
    point = T["geometry_msgs/msg/Point"](x=x, y=0.0, z=0.0)
    pose = T["geometry_msgs/msg/Pose"](position=point, orientation=UPRIGHT)
    no = np.zeros(36)
    twist = T["geometry_msgs/msg/Twist"](linear=vector(0, 0, 0), angular=vector(0, 0, 0))
    return T["nav_msgs/msg/Odometry"](
        header=header(stamp_ms, "map"), child_frame_id="base_link",
        pose=T["geometry_msgs/msg/PoseWithCovariance"](pose=pose, covariance=no),
        twist=T["geometry_msgs/msg/TwistWithCovariance"](twist=twist, covariance=no),
    )  # fmt: skip


def camera_info() -> object:
    roi = T["sensor_msgs/msg/RegionOfInterest"](
        x_offset=0, y_offset=0, height=0, width=0, do_rectify=False
    )
    k = np.array([2.0, 0, 1, 0, 2, 0.5, 0, 0, 1])
    return T["sensor_msgs/msg/CameraInfo"](
        header=header(0, "cam"), height=2, width=3, distortion_model="plumb_bob", d=np.zeros(5),
        k=k, r=np.eye(3).ravel(), p=np.zeros(12), binning_x=0, binning_y=0, roi=roi,
    )  # fmt: skip


def static_tf() -> object:
    """base_link -> roof (1, 0, 2) -> lidar (0, 0, 0.5); base_link -> cam (1.5, 0, 1)."""
    steps = (("base_link", "roof", (1, 0, 2)), ("roof", "lidar", (0, 0, 0.5)),
             ("base_link", "cam", (1.5, 0, 1)))  # fmt: skip
    return T["tf2_msgs/msg/TFMessage"](
        transforms=[
            T["geometry_msgs/msg/TransformStamped"](
                header=header(0, parent),
                child_frame_id=child,
                transform=T["geometry_msgs/msg/Transform"](
                    translation=vector(*map(float, at)), rotation=UPRIGHT
                ),
            )
            for parent, child, at in steps
        ]
    )


def write_bag(path: Path, entries: list[tuple[str, int, object]], plugin: StoragePlugin) -> Path:
    """Topic, time of recording [ms] and message of each entry."""
    with Writer(path, version=9, storage_plugin=plugin) as writer:
        connections = {}
        for topic, recorded_ms, message in entries:
            kind = message.__msgtype__
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, kind, typestore=STORE)
            data = STORE.serialize_cdr(message, kind)
            writer.write(connections[topic], START_NS + recorded_ms * MS, data)
    return path


ENTRIES = [
    ("/tf_static", 0, static_tf()),
    ("/bev/camera_info0", 1, camera_info()),
    ("/bev/odometry", 2, odometry(0, 0.0)),
    ("/bev/image0", 35, image(20)),
    ("/bev/pointcloud", 60, cloud(40)),
    ("/bev/odometry", 101, odometry(100, 10.0)),
    ("/bev/image0", 140, image(120, "nv21")),
    ("/bev/image1/compressed", 141, compressed(130, b"no jpeg")),
]


@pytest.mark.parametrize("plugin", [StoragePlugin.SQLITE3, StoragePlugin.MCAP])
def test_a_bag_gives_messages_with_their_delay_their_pose_and_their_faults(
    tmp_path: Path, plugin: StoragePlugin
) -> None:
    path = write_bag(tmp_path / "drive", ENTRIES, plugin)
    source = BagSource(path, cameras=("CAM_FRONT", "CAM_BACK"))
    assert source.scenes == ("drive",)
    first, second, bad, worse = source.arrivals("drive")
    assert isinstance(first.message, CameraImage)
    assert (first.now_ns, first.message.stamp_ns) == (START_NS + 35 * MS, START_NS + 20 * MS)
    np.testing.assert_array_equal(first.message.rgb, PICTURE)
    # 10 m in 100 ms: 2 m at 20 ms, 4 m at 40 ms
    assert first.message.T_global_ego[0, 3] == pytest.approx(2.0)
    assert isinstance(second.message, LidarSweep)
    np.testing.assert_array_equal(second.message.points_lidar, np.float32([[1], [2], [3], [4]]))
    assert second.message.T_global_ego[0, 3] == pytest.approx(4.0)
    for arrival, sensor, reason in (
        (bad, "CAM_FRONT", "encoding_unsupported"),
        (worse, "CAM_BACK", "format_unknown"),
    ):
        assert isinstance(arrival.message, MissingFile)
        assert (arrival.message.sensor, arrival.message.reason) == (sensor, reason)


def test_the_rig_comes_from_camera_info_and_static_transforms(tmp_path: Path) -> None:
    path = write_bag(tmp_path / "drive", ENTRIES, StoragePlugin.MCAP)
    single = next(path.glob("*.mcap"))
    rig = BagSource(single, cameras=("CAM_FRONT",)).calibration(single.stem)
    # 0 + 0.5 + 2 up, 1 ahead; ROS counts pixels from the first one's centre, we from its corner
    np.testing.assert_allclose(rig.T_ego_lidar[:3, 3], (1, 0, 2.5))
    np.testing.assert_allclose(rig.cameras["CAM_FRONT"].T_ego_cam[:3, 3], (1.5, 0, 1))
    np.testing.assert_allclose(rig.cameras["CAM_FRONT"].K_cam[:2, 2], (1.5, 1.0))
    with pytest.raises(InputError, match="no way from"):
        BagSource(path, cameras=("CAM_FRONT",), base_frame="car").calibration("drive")


def test_another_clock_is_moved_and_compressed_pictures_and_named_topics_are_read(
    tmp_path: Path,
) -> None:
    jpeg = simplejpeg.encode_jpeg(np.full((8, 8, 3), 100, np.uint8))
    late_ms = 3_600_000  # recorded an hour after its stamps
    entries = [("/left/jpeg", late_ms + i * 100 + 7 * i, compressed(i * 100, jpeg)) for i in (0, 1)]
    path = write_bag(tmp_path / "bag", entries, StoragePlugin.SQLITE3)
    source = BagSource(path, cameras=("CAM_FRONT",), topics={"CAM_FRONT": "/left/jpeg"})
    first, second = source.arrivals("bag")
    # the first arrives at its stamp, the second 7 ms later after its own
    assert first.now_ns == first.message.stamp_ns
    assert second.now_ns - second.message.stamp_ns == 7 * MS
    assert abs(int(first.message.rgb[4, 4, 0]) - 100) <= 2
    assert first.message.T_global_ego is None
    assert LIDAR not in {getattr(a.message, "camera", None) for a in (first, second)}


def test_one_old_message_moves_no_clock(tmp_path: Path) -> None:
    # a cloud that a late subscriber was sent: an hour old, the first in the bag
    hour_ms = 3_600_000
    images = [("/bev/image0", hour_ms + ms + 5, image(hour_ms + ms)) for ms in (10, 20, 30)]
    entries = [("/bev/pointcloud", hour_ms, cloud(0)), *images]
    path = write_bag(tmp_path / "bag", entries, StoragePlugin.MCAP)
    arrivals = list(BagSource(path, cameras=("CAM_FRONT",)).arrivals("bag"))
    delays_ms = [(a.now_ns - a.message.stamp_ns) // MS for a in arrivals]
    assert delays_ms == [hour_ms, 5, 5, 5]


def test_a_damaged_bag_is_one_sentence_or_gives_what_can_be_read(tmp_path: Path) -> None:
    entries = [("/bev/image0", ms, image(ms)) for ms in range(0, 1000, 10)]
    random = np.random.default_rng(0)
    ends = []
    for plugin in (StoragePlugin.MCAP, StoragePlugin.SQLITE3):
        bag = write_bag(tmp_path / plugin.name, entries, plugin)
        (file,) = (path for path in bag.iterdir() if path.suffix != ".yaml")
        whole = np.frombuffer(file.read_bytes(), np.uint8)
        for _ in range(12):
            damaged, at = whole.copy(), random.integers(len(whole), size=10)
            damaged[at] ^= np.uint8(1) << random.integers(8, size=10, dtype=np.uint8)
            file.write_bytes(damaged.tobytes())
            try:
                source = BagSource(bag, cameras=("CAM_FRONT",))
                num = len(list(source.arrivals(plugin.name)))
            except InputError as error:
                ends.append("refused" if "cannot be read as a bag (" in str(error) else str(error))
            else:
                assert num <= len(entries)
                ends.append("whole" if source.damage is None else "early")
    assert set(ends) == {"refused", "early", "whole"}


@pytest.mark.parametrize("error", [ReaderError("broken\nchunk"), MemoryError(), KeyError(7)])
def test_what_was_read_before_the_damage_counts_and_the_reason_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def damaged(*arguments: Any, **named: Any) -> Iterator[Any]:
        yield from itertools.islice(messages(*arguments, **named), 2)
        raise error

    messages = AnyReader.messages
    path = write_bag(tmp_path / "bag", [("/bev/image0", ms, image(ms)) for ms in range(4)],
                     StoragePlugin.MCAP)  # fmt: skip
    source = BagSource(path, cameras=("CAM_FRONT",))
    assert (len(list(source.arrivals("bag"))), source.damage) == (4, None)
    monkeypatch.setattr(AnyReader, "messages", damaged)
    assert len(list(source.arrivals("bag"))) == 2
    assert f"cannot be read on: {type(error).__name__}" in source.damage
    assert "\n" not in source.damage


def test_a_recorders_small_delay_is_kept_and_a_given_rig_goes_first(tmp_path: Path) -> None:
    # 900 ms after its stamp is a slow recorder, not another clock
    path = write_bag(tmp_path / "bag", [("/bev/image0", 900, image(0))], StoragePlugin.MCAP)
    given = Calibration(cameras={}, T_ego_lidar=np.diag([1.0, 1, 1, 1]))
    source = BagSource(path, cameras=("CAM_FRONT",), calibration=given)
    (arrival,) = source.arrivals("bag")
    assert arrival.now_ns - arrival.message.stamp_ns == 900 * MS
    assert source.calibration("bag") is given


def test_the_way_to_the_lidar_turns_where_its_mount_turns(tmp_path: Path) -> None:
    # base_link -> roof: (1, 0, 2) and a quarter turn to the left; roof -> lidar: 0.5 ahead, 0.5 up
    tf = static_tf()
    tf.transforms[0].transform.rotation = T["geometry_msgs/msg/Quaternion"](
        x=0.0, y=0.0, z=np.sqrt(0.5), w=np.sqrt(0.5)
    )
    tf.transforms[1].transform.translation.x = 0.5
    entries = [(t, at, tf if t == "/tf_static" else m) for t, at, m in ENTRIES]
    path = write_bag(tmp_path / "drive", entries, StoragePlugin.MCAP)
    T_ego_lidar = BagSource(path, cameras=("CAM_FRONT",)).calibration("drive").T_ego_lidar
    np.testing.assert_allclose(T_ego_lidar[:3, 3], (1, 0.5, 2.5), atol=1e-9)
    np.testing.assert_allclose(T_ego_lidar[:3, 0], (0, 1, 0), atol=1e-9)


def test_odometry_of_another_base_frame_is_read_where_it_is_named(tmp_path: Path) -> None:
    poses = [odometry(0, 0.0), odometry(100, 10.0)]
    for pose in poses:
        pose.child_frame_id = "rear_axle"
    entries = [("/bev/odometry", 0, poses[0]), ("/bev/image0", 60, image(50)),
               ("/bev/odometry", 101, poses[1])]  # fmt: skip
    path = write_bag(tmp_path / "bag", entries, StoragePlugin.MCAP)
    (arrival,) = BagSource(path, cameras=("CAM_FRONT",), base_frame="rear_axle").arrivals("bag")
    assert arrival.message.T_global_ego[0, 3] == pytest.approx(5.0)


def test_a_lossless_compressed_picture_is_read_exactly(tmp_path: Path) -> None:
    done, png = cv2.imencode(".png", PICTURE[:, :, ::-1])
    assert done
    entries = [("/bev/image0/compressed", 0, compressed(0, png.tobytes()))]
    path = write_bag(tmp_path / "bag", entries, StoragePlugin.MCAP)
    (arrival,) = BagSource(path, cameras=("CAM_FRONT",)).arrivals("bag")
    np.testing.assert_array_equal(arrival.message.rgb, PICTURE)


def test_what_cannot_be_used_comes_with_its_reason_and_moves_no_clock(tmp_path: Path) -> None:
    hour_ms = 3_600_000
    nameless = image(10)
    nameless.header.frame_id = ""
    trailer = odometry(20, 0.0)
    trailer.child_frame_id = "trailer"
    unset = image(0)
    unset.header.stamp.sec = unset.header.stamp.nanosec = 0
    entries = [
        ("/bev/image0", hour_ms, unset),
        ("/bev/image0", hour_ms + 10, nameless),
        ("/bev/odometry", hour_ms + 20, trailer),
        ("/bev/image0", hour_ms + 30, image(30)),
    ]
    path = write_bag(tmp_path / "bag", entries, StoragePlugin.SQLITE3)
    *unusable, last = BagSource(path, cameras=("CAM_FRONT",)).arrivals("bag")
    assert [(a.message.sensor, a.message.reason) for a in unusable] == [
        ("CAM_FRONT", "stamp_zero"), ("CAM_FRONT", "frame_empty"), ("odometry", "child_frame"),
    ]  # fmt: skip
    # recorded an hour late: all are moved by what the usable stamps say
    assert [(a.now_ns - START_NS) // MS for a in (*unusable, last)] == [0, 10, 20, 30]
    assert isinstance(last.message, CameraImage)


def test_a_rig_that_cannot_be_used_is_one_sentence(tmp_path: Path) -> None:
    for name, topic, spoilt, words in (
        ("info", "/bev/camera_info0", camera_info(), "CAM_FRONT: camera info has k"),
        ("tf", "/tf_static", static_tf(), "/tf_static: position is"),
    ):
        if name == "info":
            spoilt.k[:] = 0.0
        else:
            spoilt.transforms[0].transform.translation.x = float("nan")
        entries = [(t, at, spoilt if t == topic else m) for t, at, m in ENTRIES]
        path = write_bag(tmp_path / name, entries, StoragePlugin.MCAP)
        with pytest.raises(InputError, match=words):
            BagSource(path, cameras=("CAM_FRONT",)).calibration(name)


def test_a_wrong_bag_or_topic_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read as a bag"):
        BagSource(tmp_path, cameras=())
    path = write_bag(tmp_path / "drive", ENTRIES, StoragePlugin.MCAP)
    for topics, words in (
        ({"CAM_BACK": "/nowhere"}, "has no /nowhere"),
        ({"CAM_TOP": "/bev/image0"}, "--topic names 'CAM_TOP'"),
    ):
        with pytest.raises(InputError, match=words):
            BagSource(path, cameras=("CAM_FRONT", "CAM_BACK"), topics=topics)
    twice = [*ENTRIES, ("/other/pointcloud", 150, cloud(140))]
    with pytest.raises(InputError, match="choose with --topic"):
        BagSource(write_bag(tmp_path / "twice", twice, StoragePlugin.MCAP), cameras=())
