"""Topics in: each callback converts a message, hands it on and returns."""

from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

from nav_msgs.msg import Odometry
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2

from perception_ros import convert
from perception_ros.perception_loop import PerceptionLoop
from perception_ros.rig import FrameTree, Rig
from perception_ros.settings import NodeSettings
from runtime.api import LIDAR, CameraImage, LidarSweep

try:
    from tf2_msgs.msg import TFMessage
except ImportError:  # not among the wheels
    TFMessage = None

ODOMETRY_DEPTH = 100
"""Poses kept until they are read. Source: ours; two seconds at 50 Hz."""

WARNING_S = 5.0
"""A sensor's dropped messages are logged at most this often [s]; the diagnostics count all."""


class Inputs:
    """Subscriptions of the active node. Best effort, so that either kind of publisher is heard."""

    def __init__(
        self,
        node: Node,
        loop: PerceptionLoop,
        rig: Rig,
        cameras: tuple[str, ...],
        settings: NodeSettings,
    ) -> None:
        """Connect the topics.

        Args:
            node: Whose topics they are.
            loop: Gets images, sweeps and poses, and what could not be read.
            rig: Is brought up to date by camera info and TF.
            cameras: Cameras of image0, image1, ...
            settings: The node's parameters.
        """
        self._node, self._loop, self._rig, self._settings = node, loop, rig, settings
        self._tree = FrameTree()
        self._frame_of: dict[str, str] = {}
        """Sensor -> `frame_id` of its newest message."""
        self._links_used: set[str] = set()
        """Frames whose transforms decide where sensors sit."""
        self._cloud_rules = convert.CloudRules(
            intensity_scale=settings.intensity_scale,
            allow_zero_row_step=settings.allow_zero_row_step,
        )
        self._subscriptions: list[Any] = []
        with ExitStack() as on_error:
            on_error.callback(self.close)
            self._connect(cameras)
            on_error.pop_all()

    def close(self) -> None:
        """Disconnect the topics."""
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        self._subscriptions = []

    def _connect(self, cameras: tuple[str, ...]) -> None:
        settings = self._settings
        # First, as the executor serves in this order: a pose is there when its frame is complete.
        self._subscribe(Odometry, "~/input/odometry", self._on_odometry, ODOMETRY_DEPTH)
        self._subscribe_to_tf()
        depth = settings.sensor_depth
        for index, camera in enumerate(cameras):
            info, image, kind = f"~/input/camera_info{index}", f"~/input/image{index}", Image
            self._subscribe(CameraInfo, info, partial(self._on_info, camera), depth)
            self._subscribe_latched(CameraInfo, info, partial(self._on_info, camera), 1)
            if settings.compressed:
                image, kind = f"{image}/compressed", CompressedImage
            self._subscribe(kind, image, partial(self._on_image, camera), depth)
        self._subscribe(PointCloud2, "~/input/pointcloud", self._on_cloud, depth)

    def _subscribe(
        self, kind: Any, topic: str, callback: Callable[[Any], None], depth: int
    ) -> None:
        qos = QoSProfile(depth=depth, reliability=ReliabilityPolicy.BEST_EFFORT)
        self._subscriptions.append(self._node.create_subscription(kind, topic, callback, qos))

    def _subscribe_latched(
        self, kind: Any, topic: str, callback: Callable[[Any], None], depth: int
    ) -> None:
        """Hear what was said before we came; a publisher that keeps nothing is not heard so."""
        qos = QoSProfile(depth=depth, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self._subscriptions.append(self._node.create_subscription(kind, topic, callback, qos))

    def _subscribe_to_tf(self) -> None:
        if self._settings.use_tf and TFMessage is not None:
            self._subscribe(TFMessage, "/tf", self._on_tf, ODOMETRY_DEPTH)
            self._subscribe_latched(TFMessage, "/tf_static", self._on_tf, ODOMETRY_DEPTH)

    def _on_odometry(self, message: Odometry) -> None:
        try:
            stamp_ns = convert.to_stamp_ns(message.header)
            T_global_ego = convert.to_T_global_ego(message, self._settings.base_frame)
        except convert.ConversionError as error:
            self._dropped("odometry", error)
        else:
            self._loop.add_pose(stamp_ns, T_global_ego)

    def _on_tf(self, message: Any) -> None:
        try:
            transforms = convert.to_transforms(message, partial(self._dropped, "tf"))
        except convert.ConversionError as error:
            self._dropped("tf", error)
            return
        news = self._tree.update(transforms)
        for frame in news.refused:
            error = convert.ConversionError("tf_full", f"there is no room for {frame!r}")
            self._dropped("tf", error)
        for frame in news.disputed:
            self._note("tf", Counter(["disputed"]))
            self._node.get_logger().warning(
                f"tf: two publishers disagree about {frame!r}, the newest is used",
                throttle_duration_sec=WARNING_S,
            )
        if not news.changed.isdisjoint(self._links_used):
            self._place(*self._frame_of)

    def _on_info(self, camera: str, message: CameraInfo) -> None:
        notices: Counter[str] = Counter()
        try:
            K_cam, width_px, height_px = convert.to_intrinsics(message, notices)
            # Alone and before it is stored: one camera's mistake must not cost the others' news.
            fault = self._loop.size_fault(camera, width_px, height_px)
            if fault is not None:
                raise convert.ConversionError("size_network", fault)
        except convert.ConversionError as error:
            self._dropped(f"{camera} camera info", error)
            return
        self._note(f"{camera} camera info", notices)
        if self._rig.set_intrinsics(camera, K_cam, width_px, height_px):
            self._node.get_logger().info(f"{camera}: intrinsics taken from camera info")
            self._loop.calibrate()

    def _on_image(self, camera: str, message: Image | CompressedImage) -> None:
        notices: Counter[str] = Counter()
        size_px = self._rig.size_px(camera)
        try:
            stamp_ns = convert.to_stamp_ns(message.header)
            frame_id = convert.to_frame_id(message.header.frame_id)
            if isinstance(message, CompressedImage):
                rgb = convert.compressed_to_rgb(message, size_px, notices)
            else:
                rgb = convert.to_rgb(message, size_px)
            self._learn_frame(camera, frame_id)
            self._require_place(self._rig.knows_place_of(camera, frame_id), frame_id)
        except convert.ConversionError as error:
            self._rejected(camera, error)
            return
        self._note(camera, notices)
        self._loop.push(CameraImage(camera=camera, stamp_ns=stamp_ns, rgb=rgb, T_global_ego=None))

    def _on_cloud(self, message: PointCloud2) -> None:
        notices: Counter[str] = Counter()
        try:
            stamp_ns = convert.to_stamp_ns(message.header)
            frame_id = convert.to_frame_id(message.header.frame_id)
            points_lidar = convert.to_points_lidar(message, self._cloud_rules, notices)
            self._learn_frame(LIDAR, frame_id)
            # The calibration that frames carry follows the rig's a little later.
            known = self._rig.knows_place_of(LIDAR, frame_id) and self._loop.knows_lidar
            self._require_place(known, frame_id)
        except convert.ConversionError as error:
            self._rejected(LIDAR, error)
            return
        self._note(LIDAR, notices)
        self._loop.push(LidarSweep(stamp_ns=stamp_ns, points_lidar=points_lidar, T_global_ego=None))

    def _require_place(self, known: bool, frame_id: str) -> None:
        if not known:
            raise convert.ConversionError(
                "extrinsics",
                f"where {frame_id!r} sits in {self._settings.base_frame!r} is not known",
            )

    def _learn_frame(self, sensor: str, frame_id: str) -> None:
        """TF finds a sensor by the frame of its messages; the calibration file needs no frame."""
        if self._settings.use_tf and self._frame_of.get(sensor) != frame_id:
            self._frame_of[sensor] = frame_id
            self._place(sensor)

    def _place(self, *sensors: str) -> None:
        """Take the extrinsics that TF gives for these sensors."""
        changed, base = [], self._settings.base_frame
        for sensor in sensors:
            frame = self._frame_of[sensor]
            if frame == base and (sensor != LIDAR or self._rig.knows_place_of(sensor)):
                continue  # says nothing of a camera, and of a LiDAR no more than what is known
            T = self._tree.find(base, frame)
            if T is not None and self._rig.set_extrinsics(sensor, T, frame):
                changed.append(sensor)
        self._links_used = {
            link for frame in self._frame_of.values() for link in self._tree.chain(base, frame)
        }
        if changed:
            self._node.get_logger().info(
                f"{', '.join(changed)}: extrinsics taken from /tf", throttle_duration_sec=WARNING_S
            )
            self._loop.calibrate()

    def _note(self, source: str, notices: Counter[str]) -> None:
        """Count what was used although it is not as it should be."""
        for what, number in notices.items():
            self._loop.count(f"{source}: {what} (used)", number)

    def _rejected(self, sensor: str, error: convert.ConversionError) -> None:
        self._loop.reject(sensor, error.reason)
        self._warn(sensor, error)

    def _dropped(self, source: str, error: convert.ConversionError) -> None:
        self._loop.count(f"{source}: {error.reason}")
        self._warn(source, error)

    def _warn(self, source: str, error: convert.ConversionError) -> None:
        self._node.get_logger().warning(
            f"{source}: message dropped, {error}", throttle_duration_sec=WARNING_S
        )
