"""The node `bev`: wiring between topics and the runtime, nothing else.

Callbacks only convert and store; one worker thread computes the newest frame and publishes it.
"""

import dataclasses
import threading
import time
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray
from nav_msgs.msg import OccupancyGrid, Odometry
from perception_msgs.msg import Box3DArray
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, Image, PointCloud2
from visualization_msgs.msg import MarkerArray

from perception_ros import convert, result_messages
from perception_ros.diagnostics import NodeState, to_diagnostics
from perception_ros.newest_worker import NewestWorker
from perception_ros.process import Stopped, parameter, read_parameters, run_node
from perception_ros.stamp_clock import StampClock
from runtime.api import (
    Calibration,
    CameraCalibration,
    CameraImage,
    EgoPoseBuffer,
    InputError,
    LidarSweep,
    PerceptionResult,
    Pipeline,
    SensorFrame,
    SensorMessage,
    Synchronizer,
    SynchronizerConfig,
    load_bundle,
    open_engine,
    read_calibration,
    run_command,
)


@dataclass(frozen=True, kw_only=True)
class NodeSettings:
    """The node's ROS parameters: facts of the deployment; all else is in the bundle."""

    bundle: str = parameter("", "Folder that 'python export/to_onnx.py' wrote.")
    calibration: str = parameter("", "JSON file of the rig, as the log player writes it.")
    calibration_timeout_s: float = parameter(
        0.0, "How long to wait for the calibration file to appear [s]."
    )
    score_threshold: float = parameter(0.3, "Boxes below this score are left out, 0..1.")
    engine: str = parameter("onnx", "What runs the model: onnx or tensorrt.")
    num_threads: int = parameter(0, "Threads of ONNX Runtime; 0 for one per core.")
    bev_pool: str = parameter(
        "auto", "BEV pool in ONNX Runtime: native, function (of the model file), or auto."
    )
    wait_ms: float = parameter(
        120.0, "Longest time a frame waits for its sensors, from its first message on [ms]."
    )
    base_frame: str = parameter("base_link", "Frame of the results and of odometry.")
    sensor_depth: int = parameter(5, "Messages kept per sensor until they are read.")
    stamp_rate: float = parameter(
        1.0, "Seconds of stamps per second: the rate of a log that is played."
    )
    max_silent_s: float = parameter(1.0, "Longer than this without a result is an error [s].")

    def __post_init__(self) -> None:
        """Refuse what cannot work; the bundle's and the pipeline's own are checked by them."""
        for name in ("bundle", "calibration"):
            if not getattr(self, name):
                raise InputError(f"Parameter {name} is empty: pass -p {name}:=PATH.")
        for name in ("wait_ms", "sensor_depth", "stamp_rate", "max_silent_s"):
            if not 0 < getattr(self, name) < float("inf"):
                raise InputError(
                    f"Parameter {name} is {getattr(self, name)}, expected a positive number."
                )


TICK_S = 0.02
"""How often time is looked at for frames that have waited long enough [s]."""

DIAGNOSTICS_S = 1.0
"""Period of /diagnostics [s]. Source: the usual rate of ROS diagnostics."""

POSE_WAIT_S = 0.02
"""Longest wait for odometry that is younger than the frame's newest data [s]. Source: ours; one
period of 50 Hz."""

POSE_ALIVE_NS = 200_000_000
"""Odometry older than this against the frame is not waited for [ns]. Source: ours."""

SAME_INTRINSICS_PX = 1e-6
"""Intrinsics that differ by less are the same ones, rounded [px]. Source: ours."""

LIDAR, ODOMETRY = "pointcloud", "odometry"
"""What these inputs are called in the counters, as their topics."""


class BevNode(Node):
    """3D boxes and map layers from cameras and a LiDAR.

    Raises:
        InputError: A parameter, the bundle or the calibration is wrong.
    """

    def __init__(self, stop: threading.Event) -> None:
        """Open the bundle and connect the topics.

        Args:
            stop: Set when the process is asked to end.
        """
        super().__init__("bev")
        self.finished = threading.Event()
        self._settings = settings = read_parameters(self, NodeSettings)
        self._bundle = load_bundle(Path(settings.bundle))
        card = self._bundle.card
        self._cameras = card.inputs.cameras
        self._calibration = self._read_calibration(stop)
        self._pipeline = Pipeline(
            self._bundle,
            engine=open_engine(
                self._bundle, settings.engine, settings.num_threads, settings.bev_pool
            ),
            score_threshold=settings.score_threshold,
        )
        self._synchronizer = Synchronizer(
            SynchronizerConfig(
                cameras=self._cameras,
                wait_ns=int(settings.wait_ms * 1e6),
                max_sweeps=card.inputs.pillars.num_sweeps,
            ),
            self._calibration,
        )
        warm_up_ms = self._pipeline.warm_up()
        self._lock = threading.Condition()
        """Guards what the worker thread and the callbacks share."""
        self._poses = EgoPoseBuffer()
        self._pose_ns = 0
        self._dropped: Counter[str] = Counter()
        self._pipeline_counters: Counter[str] = Counter()
        self._result: PerceptionResult | None = None
        self._result_at = time.monotonic()
        self._latency_ms = 0.0
        self._stamp_clock = StampClock(settings.stamp_rate, time.monotonic_ns)
        self._make_publishers()
        self._make_subscriptions(settings.sensor_depth)
        steady = Clock(clock_type=ClockType.STEADY_TIME)  # ticks also where /clock stands still
        self.create_timer(TICK_S, self._on_tick, clock=steady)
        self.create_timer(DIAGNOSTICS_S, self._on_diagnostics, clock=steady)
        # Last: a thread keeps the process alive when something above raises.
        self._worker: NewestWorker[tuple[SensorFrame, float]] = NewestWorker(
            self._compute, self._on_error, "inference"
        )
        self.get_logger().info(
            f"bundle {self._bundle.digest[:12]} ready after {warm_up_ms:.0f} ms, "
            f"{len(self._cameras)} cameras"
        )

    def close(self) -> None:
        """Let the worker finish its frame and give all threads back."""
        self._worker.stop()
        self._pipeline.close()

    def _read_calibration(self, stop: threading.Event) -> Calibration:
        path = Path(self._settings.calibration)
        end = time.monotonic() + self._settings.calibration_timeout_s
        while not path.exists() and time.monotonic() < end:
            if stop.wait(0.1):
                raise Stopped
        calibration = read_calibration(path)
        unknown = [camera for camera in self._cameras if camera not in calibration.cameras]
        if unknown:
            self.get_logger().warning(f"{path} lacks {', '.join(unknown)}: they will not be used")
        return calibration

    def _make_publishers(self) -> None:
        self._boxes = self.create_publisher(Box3DArray, "~/output/boxes", 5)
        self._markers = self.create_publisher(MarkerArray, "~/output/markers", 1)
        self._layers = {
            name: self.create_publisher(OccupancyGrid, f"~/output/map/{name}", 1)
            for name in self._bundle.card.map_classes
        }
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 5)

    def _make_subscriptions(self, depth: int) -> None:
        sensor = QoSProfile(depth=depth, reliability=ReliabilityPolicy.BEST_EFFORT)
        # First, as the executor serves in this order: a pose is there when its frame is complete.
        odometry = QoSProfile(depth=100, reliability=ReliabilityPolicy.BEST_EFFORT)
        self.create_subscription(Odometry, "~/input/odometry", self._on_odometry, odometry)
        for index, camera in enumerate(self._cameras):
            self.create_subscription(
                CameraInfo, f"~/input/camera_info{index}", partial(self._on_info, camera), sensor
            )
            self.create_subscription(
                Image, f"~/input/image{index}", partial(self._on_image, camera), sensor
            )
        self.create_subscription(PointCloud2, "~/input/pointcloud", self._on_cloud, sensor)

    def _on_odometry(self, message: Odometry) -> None:
        try:
            stamp_ns = convert.to_stamp_ns(message.header)
            T_global_ego = convert.to_T_global_ego(message, self._settings.base_frame)
        except convert.ConversionError as error:
            self._drop(ODOMETRY, error)
            return
        with self._lock:
            self._poses.add(stamp_ns, T_global_ego)
            self._pose_ns = stamp_ns
            self._lock.notify()

    def _on_info(self, camera: str, message: CameraInfo) -> None:
        """CameraInfo overrides the intrinsics of the calibration file."""
        known = self._calibration.cameras.get(camera)
        if known is None:
            return  # without its place on the car the camera is of no use
        try:
            K_cam, width_px, height_px = convert.to_intrinsics(message)
        except convert.ConversionError as error:
            self._drop(camera, error)
            return
        same_size = (known.width_px, known.height_px) == (width_px, height_px)
        if same_size and np.allclose(known.K_cam, K_cam, rtol=0, atol=SAME_INTRINSICS_PX):
            return
        changed = CameraCalibration(
            K_cam=K_cam, T_ego_cam=known.T_ego_cam, width_px=width_px, height_px=height_px
        )
        self._calibration = dataclasses.replace(
            self._calibration, cameras={**self._calibration.cameras, camera: changed}
        )
        self._synchronizer.set_calibration(self._calibration)
        self.get_logger().info(f"{camera}: intrinsics taken from camera info")

    def _on_image(self, camera: str, message: Image) -> None:
        try:
            stamp_ns, rgb = convert.to_stamp_ns(message.header), convert.to_rgb(message)
        except convert.ConversionError as error:
            self._drop(camera, error)
            return
        self._push(CameraImage(camera=camera, stamp_ns=stamp_ns, rgb=rgb, T_global_ego=None))

    def _on_cloud(self, message: PointCloud2) -> None:
        try:
            stamp_ns = convert.to_stamp_ns(message.header)
            points_lidar = convert.to_points_lidar(message)
        except convert.ConversionError as error:
            self._drop(LIDAR, error)
            return
        self._push(LidarSweep(stamp_ns=stamp_ns, points_lidar=points_lidar, T_global_ego=None))

    def _push(self, message: SensorMessage) -> None:
        self._stamp_clock.observe(message.stamp_ns)
        self._submit(self._synchronizer.push(message))

    def _on_tick(self) -> None:
        now_ns = self._stamp_clock.settled_ns()
        if now_ns is not None:
            self._submit(self._synchronizer.advance(now_ns))

    def _submit(self, frames: list[SensorFrame]) -> None:
        for frame in frames:
            self._worker.submit((frame, time.monotonic()))

    def _drop(self, sensor: str, error: convert.ConversionError) -> None:
        with self._lock:
            self._dropped[f"{sensor}: bad {error.reason}"] += 1
        self.get_logger().warning(f"{sensor}: message dropped, {error}", throttle_duration_sec=5.0)

    def _compute(self, item: tuple[SensorFrame, float]) -> None:
        """In the worker thread: one frame from poses to topics."""
        frame, complete_at = item
        result = self._pipeline.process(self._with_poses(frame))
        boxes = result_messages.to_boxes(result, self._cameras, self._settings.base_frame)
        self._boxes.publish(boxes)
        for name, grid in result_messages.to_map_layers(result, self._settings.base_frame).items():
            self._layers[name].publish(grid)
        if self._markers.get_subscription_count():
            self._markers.publish(result_messages.to_markers(boxes))
        with self._lock:
            self._result, self._result_at = result, time.monotonic()
            self._latency_ms = (self._result_at - complete_at) * 1e3
            self._pipeline_counters = Counter(self._pipeline.counters)

    def _with_poses(self, frame: SensorFrame) -> SensorFrame:
        """Ego poses as late as possible: odometry often comes just after the data it belongs to."""
        newest_ns = max([frame.stamp_ns, *(image.stamp_ns for image in frame.images.values())])
        with self._lock:
            if 0 < newest_ns - self._pose_ns < POSE_ALIVE_NS:
                self._lock.wait_for(lambda: self._pose_ns >= newest_ns, POSE_WAIT_S)
            at = self._poses.at
            return dataclasses.replace(
                frame,
                T_global_ego=at(frame.stamp_ns),
                images={
                    name: dataclasses.replace(image, T_global_ego=at(image.stamp_ns))
                    for name, image in frame.images.items()
                },
                sweeps=tuple(
                    dataclasses.replace(sweep, T_global_ego=at(sweep.stamp_ns))
                    for sweep in frame.sweeps
                ),
            )

    def _on_error(self, error: Exception) -> None:
        with self._lock:
            self._dropped[f"frame: {type(error).__name__}"] += 1
        self.get_logger().error(f"frame lost: {error!r}", throttle_duration_sec=5.0)

    def _on_diagnostics(self) -> None:
        with self._lock:
            counters = self._dropped + self._poses.counters + self._pipeline_counters
            result, result_at, latency_ms = self._result, self._result_at, self._latency_ms
        counters += self._synchronizer.counters
        counters["frame: overtaken"] = self._worker.num_overtaken
        state = NodeState(
            name=self.get_fully_qualified_name(),
            bundle_digest=self._bundle.digest,
            cameras=self._cameras,
            result=result,
            silent_s=time.monotonic() - result_at,
            max_silent_s=self._settings.max_silent_s,
            latency_ms=latency_ms,
            counters=counters,
        )
        self._diagnostics.publish(to_diagnostics(state, self.get_clock().now().nanoseconds))


def main() -> None:
    """Run the node; the process ends with 0 on a signal and with 2 on wrong input."""
    run_command(lambda: run_node(BevNode))


if __name__ == "__main__":
    main()
