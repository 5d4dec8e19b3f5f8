"""The node `log_player`: plays one scene of a nuScenes log with its true relative times.

It publishes `/clock`, so that nodes with `use_sim_time` live in the log's time at any rate.

What the tables list but the disk lacks is not published: to its receivers that sensor is silent, as
it would be in a car.
"""

import queue
import threading
import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nav_msgs.msg import Odometry
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2

from perception_ros import convert
from perception_ros.parameters import declare_parameters, parameter, read_parameters
from perception_ros.process import run_node
from runtime.api import (
    CameraImage,
    InputError,
    LidarSweep,
    NuScenesLog,
    SensorMessage,
    run_command,
    write_calibration,
)


@dataclass(frozen=True, kw_only=True)
class PlayerSettings:
    """The player's ROS parameters; README.md holds the same table."""

    log: str = parameter("", "folder of the log: `v1.0-*/`, `samples/`, `sweeps/`")
    version: str = parameter("", "folder of the tables; empty: the only one")
    scene: str = parameter("", "name of the scene; empty: the first")
    cameras: str = parameter(
        "CAM_FRONT CAM_FRONT_RIGHT CAM_FRONT_LEFT CAM_BACK CAM_BACK_LEFT CAM_BACK_RIGHT",
        "cameras of image0, image1, ...: those of the bundle, in its order",
    )
    rate: float = parameter(1.0, "seconds of the log per second")
    loop: bool = parameter(False, "start over at the end, with stamps that go on growing")
    compressed: bool = parameter(False, "send images as JPEG on `image{i}/compressed`")
    publish_clock: bool = parameter(True, "send the log's time on `/clock`")
    shift_to_now: bool = parameter(False, "move all stamps so that the first is the start's")
    wait_for_subscribers: bool = parameter(
        True, "start when every topic has a listener, or no further one comes for 5 s"
    )
    max_wait_s: float = parameter(300.0, "longest wait for listeners [s]; then it starts anyway")
    settle_s: float = parameter(
        1.0, "pause between the last listener's arrival and the start, and at the end [s]"
    )
    num_ahead: int = parameter(24, "messages read and decoded before their time")
    write_calibration: str = parameter("", "file to write the scene's rig to before playing")
    base_frame: str = parameter("base_link", "frame of the car, odometry's child")
    fixed_frame: str = parameter("map", "frame of odometry")

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        if not self.log:
            raise InputError("Parameter log is empty: pass -p log:=FOLDER.")
        for name in ("rate", "num_ahead"):
            if not 0 < getattr(self, name) < float("inf"):
                raise InputError(
                    f"Parameter {name} is {getattr(self, name)}, expected a positive number."
                )
        for name in ("settle_s", "max_wait_s"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise InputError(f"Parameter {name} is {getattr(self, name)}, expected 0 or more.")


LOOP_GAP_NS = 3_000_000_000
"""Silence between two rounds of a loop [ns]: longer than sweeps and poses are kept, so that nothing
is carried from a scene's end to its start. Source: ours."""

CLOCK_S = 0.01
"""Longest time between two messages on /clock [s]. Source: ours; a tenth of a period."""

LISTENERS_S = 5.0
"""How often it is said who is waited for; and the time after which no further listener is expected,
such as those of cameras that the bundle does not use [s]. Source: ours; discovery takes 3 s."""

JPEG_QUALITY = 95
"""Of compressed images, 1..100. Source: ours; as most camera drivers."""


_Item = tuple[int, SensorMessage, bytes]
"""Time since the start [ns], the message, and its JPEG where images are sent compressed."""


class LogPlayer(Node):
    """Publishes image{i}, camera_info{i}, pointcloud and odometry in the node's namespace.

    Raises:
        InputError: A parameter or the log is wrong.
    """

    def __init__(self) -> None:
        """Open the log, write the calibration, start to play."""
        super().__init__("log_player")
        self.finished = threading.Event()
        declare_parameters(self, PlayerSettings)
        self._settings = settings = read_parameters(self, PlayerSettings)
        self._log = NuScenesLog(Path(settings.log), settings.version or None)
        if not self._log.scenes:
            raise InputError(f"{settings.log} has no scenes: unpack its tables again.")
        self._scene = settings.scene or self._log.scenes[0]
        self._calibration = self._log.calibration(self._scene)
        if settings.write_calibration:
            write_calibration(Path(settings.write_calibration), self._calibration)
        stamps = [stamp_ns for stamp_ns, _ in self._log.stamps(self._scene)]
        self._first_ns, self._duration_ns = stamps[0], stamps[-1] - stamps[0]
        self._make_publishers()
        self._closing = threading.Event()
        self._errors: list[Exception] = []
        self._ready: queue.Queue[_Item | None] = queue.Queue(settings.num_ahead)
        self._threads = [
            threading.Thread(target=self._guarded, args=(work,), name=name)
            for name, work in (("decode", self._decode), ("play", self._play))
        ]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Stop playing.

        Raises:
            InputError: The log could not be read to its end.
        """
        self._closing.set()
        for thread in self._threads:
            thread.join()
        if self._errors:
            raise self._errors[0]

    def _make_publishers(self) -> None:
        # A car's drivers are best effort too; deep enough for a scene's busiest moment.
        qos = QoSProfile(depth=20, reliability=ReliabilityPolicy.BEST_EFFORT)
        deep = QoSProfile(depth=100, reliability=ReliabilityPolicy.BEST_EFFORT)
        self._odometry = self.create_publisher(Odometry, "odometry", deep)
        self._infos: dict[str, Publisher] = {}
        self._images: dict[str, Publisher] = {}
        for index, camera in enumerate(self._settings.cameras.split()):
            if camera in self._calibration.cameras:
                self._infos[camera] = self.create_publisher(CameraInfo, f"camera_info{index}", qos)
                self._images[camera] = (
                    self.create_publisher(CompressedImage, f"image{index}/compressed", qos)
                    if self._settings.compressed
                    else self.create_publisher(Image, f"image{index}", qos)
                )
        self._clouds = self.create_publisher(PointCloud2, "pointcloud", qos)
        self._clock = (
            self.create_publisher(Clock, "/clock", deep) if self._settings.publish_clock else None
        )

    def _guarded(self, work: Callable[[], None]) -> None:
        """Run a thread's work; its failure ends the process with its reason."""
        try:
            work()
        except Exception as error:
            self._errors.append(error)
            self.finished.set()

    def _decode(self) -> None:
        """Read and decode ahead of time: messages with their time since the start [ns]."""
        shift_ns = -self._first_ns
        while True:
            for message in self._log.messages(self._scene):
                if not isinstance(message, CameraImage | LidarSweep):
                    self.get_logger().warning(f"{message.sensor} not played: {message.reason}")
                elif not self._put((message.stamp_ns + shift_ns, message, self._jpeg(message))):
                    return
            if not self._settings.loop:
                self._put(None)
                return
            shift_ns += self._duration_ns + LOOP_GAP_NS

    def _jpeg(self, message: SensorMessage) -> bytes:
        if not (self._settings.compressed and isinstance(message, CameraImage)):
            return b""
        import simplejpeg  # of the extra `replay`; raw images are played without it

        content = simplejpeg.encode_jpeg(message.rgb, JPEG_QUALITY, "RGB", "420")
        return bytes(content)

    def _put(self, item: _Item | None) -> bool:
        while not self._closing.is_set():
            try:
                self._ready.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def _get(self) -> _Item | None:
        while not self._closing.is_set():
            try:
                return self._ready.get(timeout=0.1)
            except queue.Empty:
                continue
        return None

    def _play(self) -> None:
        """Publish each message at its time."""
        self._wait_for_subscribers()
        first_ns = time.time_ns() if self._settings.shift_to_now else self._first_ns
        start, num_played, held_back, now_ns = time.monotonic(), 0, 0.0, first_ns
        while True:
            starved = self._ready.empty()
            item = self._get()
            if item is None:
                break
            offset_ns, message, jpeg = item
            due = start + offset_ns * 1e-9 / self._settings.rate
            early = due - time.monotonic()
            if early > 0 and not self._wait_until(due, first_ns + offset_ns):
                return
            if early < 0 and starved:  # hold time back: hurrying would falsify what follows
                start -= early
                held_back -= early
            now_ns = first_ns + offset_ns
            self._publish_clock(now_ns)
            self._publish(message, now_ns, jpeg)
            num_played += 1
        self.get_logger().info(
            f"{self._scene}: {num_played} messages played, held back by reading {held_back:.2f} s"
        )
        settle_s = self._settings.settle_s
        self._wait_until(
            time.monotonic() + settle_s, now_ns + int(settle_s * self._settings.rate * 1e9)
        )
        self.finished.set()

    def _wait_until(self, due_s: float, due_ns: int) -> bool:
        """Let time pass on /clock up to `due_ns`; false where the player is closed before."""
        while (left_s := due_s - time.monotonic()) > 0:
            if self._closing.wait(min(left_s, CLOCK_S)):
                return False
            left_s = max(0.0, due_s - time.monotonic())
            self._publish_clock(due_ns - int(left_s * self._settings.rate * 1e9))
        return True

    def _publish_clock(self, now_ns: int) -> None:
        if self._clock is not None:
            self._clock.publish(Clock(clock=convert.make_header(now_ns, "").stamp))

    def _wait_for_subscribers(self) -> None:
        if not self._settings.wait_for_subscribers:
            return
        publishers = [*self._infos.values(), *self._images.values(), self._clouds]
        start_s = said_s = grown_s = time.monotonic()
        num_heard = 0
        while deaf := [p.topic_name for p in publishers if not p.get_subscription_count()]:
            now_s, before = time.monotonic(), num_heard
            num_heard = len(publishers) - len(deaf)
            if num_heard > before:
                grown_s = now_s
            settled = num_heard > 0 and now_s - grown_s > LISTENERS_S
            if settled or now_s - start_s > self._settings.max_wait_s:
                self.get_logger().warning(f"starting without listeners on {', '.join(deaf)}")
                break
            if now_s - said_s > LISTENERS_S:
                said_s = now_s
                self.get_logger().info(f"waiting for listeners on {', '.join(deaf)}")
            if self._closing.wait(0.05):
                return
        # The other side may not have matched yet: what is sent before is lost to it.
        self._closing.wait(self._settings.settle_s)

    def _publish(self, message: SensorMessage, stamp_ns: int, jpeg: bytes) -> None:
        """Send a message, and before it the car's pose at its time."""
        settings = self._settings
        if message.T_global_ego is not None:
            header = convert.make_header(stamp_ns, settings.fixed_frame)
            self._odometry.publish(
                convert.to_odometry(message.T_global_ego, header, settings.base_frame)
            )
        if isinstance(message, LidarSweep):
            header = convert.make_header(stamp_ns, "lidar")
            self._clouds.publish(convert.to_cloud(message.points_lidar, header))
        elif message.camera in self._images:
            header = convert.make_header(stamp_ns, f"{message.camera.lower()}_optical")
            camera = self._calibration.cameras[message.camera]
            self._infos[message.camera].publish(convert.to_camera_info(camera, header))
            image = (
                CompressedImage(header=header, format="jpeg", data=array("B", jpeg))
                if jpeg
                else convert.to_image(message.rgb, header)
            )
            self._images[message.camera].publish(image)


def main() -> None:
    """Run the player; the process ends with 0 at the scene's end or on a signal."""
    run_command(lambda: run_node(LogPlayer))


if __name__ == "__main__":
    main()
