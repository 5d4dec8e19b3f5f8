"""A rosbag2 recording (sqlite3 or MCAP) as the source of a replay; ROS itself is not needed."""

import statistics
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from perception.data.nuscenes_log import MissingFile
from perception.errors import InputError
from perception.messages import (
    Calibration,
    CameraCalibration,
    CameraImage,
    LidarSweep,
    SensorMessage,
)
from perception.taxonomy import LIDAR
from runtime.decoding.cloud_decoding import to_points_lidar
from runtime.decoding.image_decoding import compressed_to_rgb, to_rgb
from runtime.decoding.message_header import ConversionError, to_frame_id, to_stamp_ns
from runtime.decoding.pose_decoding import to_intrinsics, to_T_global_ego, to_transforms
from runtime.ego_motion import EgoPoseBuffer
from runtime.message_source import Arrival

ODOMETRY = "odometry"
"""Name of the car's pose among the topics."""

CLOCK_TOLERANCE_NS = 1_000_000_000
"""A recorder's clock this far from the stamps is another clock, such as that of a log played years
later: it is moved by what most messages say [ns]. Source: ours."""

NUM_CLOCK_MESSAGES = 50
"""Messages with a stamp that tell the recorder's clock from the stamps': their median, so that an
old message that a late subscriber was sent moves nothing. Source: ours; half a second."""

POSE_DELAY_NS = 100_000_000
"""Longest time that a message waits for a pose newer than its stamp [ns]. Source: ours; odometry
comes at 10 Hz or faster."""

IMAGE_TYPES = ("sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage")
CLOUD_TYPES = ("sensor_msgs/msg/PointCloud2",)
INFO_TYPES = ("sensor_msgs/msg/CameraInfo",)
ODOMETRY_TYPES = ("nav_msgs/msg/Odometry",)
STATIC_TF_TOPIC = "/tf_static"


class BagSource:
    """Messages of a bag in the order in which they were recorded; it has one scene, its name.

    Topics are those of the node, `image{i}` (or `image{i}/compressed`), `camera_info{i}`,
    `pointcloud` and `odometry`, in any namespace, unless others are named. The time from a stamp to
    its recording is kept. The rig comes from a calibration file, or from `camera_info` and
    `/tf_static` where there is none.
    """

    def __init__(
        self,
        path: Path,
        *,
        cameras: Sequence[str],
        calibration: Calibration | None = None,
        topics: Mapping[str, str] | None = None,
        base_frame: str = "base_link",
    ) -> None:
        """Open the bag and find its topics.

        Args:
            path: Folder of a bag, or a single .mcap or .db3 file.
            cameras: Names of image0, image1, ...: those of the bundle, in its order.
            calibration: The rig; None takes it from the bag.
            topics: Sensor (a camera, LIDAR_TOP, a camera's name + ".info", "odometry") -> topic.
            base_frame: Frame of the car: odometry's child, and the root of `/tf_static`.

        Raises:
            InputError: rosbags is not installed, the bag cannot be read, or a topic is not in it.
        """
        self._path, self._cameras, self._base_frame = path, tuple(cameras), base_frame
        self._given = calibration
        self._damage: str | None = None
        with self._open() as reader:
            types = {c.topic: c.msgtype for c in reader.connections}
        self._sensor_of_topic = self._find_topics(types, dict(topics or {}))

    @property
    def description(self) -> str:
        """The bag's path."""
        return str(self._path)

    @property
    def scenes(self) -> tuple[str, ...]:
        """The bag's name."""
        return (self._path.stem,)

    @property
    def damage(self) -> str | None:
        """See `MessageSource`."""
        return self._damage

    def calibration(self, scene: str) -> Calibration:
        """See `MessageSource`."""
        self._check(scene)
        return self._given or self._recorded_calibration

    def arrivals(self, scene: str) -> Iterator[Arrival]:
        """See `MessageSource`; a message waits, in reading only, for the pose after its stamp.

        A message that cannot be used, odometry included, comes as a `MissingFile` whose reason is
        that of the `ConversionError`.
        """
        self._check(scene)
        poses = EgoPoseBuffer()
        waiting: deque[tuple[Arrival, int, int]] = deque()
        """With stamp and time of recording."""
        has_odometry = ODOMETRY in self._sensor_of_topic.values()
        newest_pose_ns = 0
        with self._open() as reader:
            for sensor, recorded_ns, message in self._messages(
                reader, (ODOMETRY, LIDAR, *self._cameras)
            ):
                now_ns = stamp_ns = recorded_ns + self._clock_shift_ns
                content: SensorMessage | MissingFile | None = None
                try:
                    stamp_ns = _stamp_ns(message)
                    if sensor == ODOMETRY:
                        poses.add(stamp_ns, to_T_global_ego(message, self._base_frame))
                        newest_pose_ns = max(newest_pose_ns, stamp_ns)
                    else:
                        content = _decoded(sensor, stamp_ns, message)
                except ConversionError as error:
                    content = MissingFile(sensor=sensor, stamp_ns=stamp_ns, reason=error.reason)
                if content is not None:
                    arrival = Arrival(now_ns=now_ns, message=content)
                    waiting.append((arrival, stamp_ns, recorded_ns))
                while waiting and (
                    not has_odometry
                    or waiting[0][1] <= newest_pose_ns
                    or recorded_ns - waiting[0][2] > POSE_DELAY_NS
                ):
                    yield _with_pose(waiting.popleft()[0], poses)
            while waiting:
                yield _with_pose(waiting.popleft()[0], poses)

    def _check(self, scene: str) -> None:
        if scene not in self.scenes:
            raise InputError(f"{self._path} has no scene {scene!r}: its only one is {self.scenes}.")

    def _find_topics(self, types: Mapping[str, str], named: dict[str, str]) -> dict[str, str]:
        """Sensor of each topic that is read."""
        wanted: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
            LIDAR: (("pointcloud",), CLOUD_TYPES),
            ODOMETRY: (("odometry",), ODOMETRY_TYPES),
        }
        for index, camera in enumerate(self._cameras):
            wanted[camera] = ((f"image{index}", f"image{index}/compressed"), IMAGE_TYPES)
            wanted[f"{camera}.info"] = ((f"camera_info{index}",), INFO_TYPES)
        if unknown := sorted(set(named) - set(wanted)):
            raise InputError(f"--topic names {unknown[0]!r}, expected one of {', '.join(wanted)}.")
        sensor_of_topic: dict[str, str] = {}
        for sensor, (ends, accepted) in wanted.items():
            found = [
                topic
                for topic, kind in types.items()
                if kind in accepted
                and (topic == named[sensor] if sensor in named else _ends_with(topic, ends))
            ]
            if len(found) > 1:
                raise InputError(
                    f"{self._path} has {', '.join(found)} for {sensor}: choose with --topic."
                )
            if not found and sensor in named:
                raise InputError(
                    f"{self._path} has no {named[sensor]} of type {' or '.join(accepted)}, it has "
                    f"{', '.join(types)}."
                )
            sensor_of_topic |= dict.fromkeys(found, sensor)
        if not {LIDAR, *self._cameras} & set(sensor_of_topic.values()):
            raise InputError(
                f"{self._path} has no image or cloud among {', '.join(types)}: name them with "
                "--topic SENSOR=TOPIC."
            )
        return sensor_of_topic

    def _messages(
        self, reader: Any, sensors: Collection[str]
    ) -> Iterator[tuple[str, int, Any | None]]:
        """Sensor, time of recording [ns] and message; None where it cannot be unpacked."""
        connections = [
            c for c in reader.connections if self._sensor_of_topic.get(c.topic) in sensors
        ]
        for connection, recorded_ns, data in self._records(reader, connections):
            message = _unpacked(reader, connection, data)
            yield self._sensor_of_topic[connection.topic], int(recorded_ns), message

    def _records(self, reader: Any, connections: list[Any]) -> Iterator[tuple[Any, int, bytes]]:
        """Connection, time of recording [ns] and bytes; ends where the bag cannot be read on."""
        if not connections:  # rosbags takes none for all
            return
        try:
            yield from reader.messages(connections=connections)
        except Exception as error:  # damaged bytes fail in as many ways as there are parts of a bag
            self._damage = f"{self._path} cannot be read on: {_words(error)}"

    @cached_property
    def _clock_shift_ns(self) -> int:
        """What is added to the times of recording, see `CLOCK_TOLERANCE_NS`."""
        shifts_ns: list[int] = []
        with self._open() as reader:
            for _, recorded_ns, message in self._messages(reader, (LIDAR, *self._cameras)):
                with suppress(ConversionError):
                    shifts_ns.append(_stamp_ns(message) - recorded_ns)
                if len(shifts_ns) == NUM_CLOCK_MESSAGES:
                    break
        shift_ns = statistics.median_high(shifts_ns or [0])
        return shift_ns if abs(shift_ns) > CLOCK_TOLERANCE_NS else 0

    @cached_property
    def _recorded_calibration(self) -> Calibration:
        """The rig of `camera_info` and `/tf_static`: the first message of each."""
        T_parent_child, info, frame_of = self._read_rig()
        cameras = {}
        for camera, message in info.items():
            T_ego_cam = self._to_base(frame_of[camera], T_parent_child)
            try:
                K_cam, width_px, height_px = to_intrinsics(message)
            except ConversionError as error:
                raise self._no_rig(camera, error) from error
            cameras[camera] = CameraCalibration(
                K_cam=K_cam, T_ego_cam=T_ego_cam, width_px=width_px, height_px=height_px
            )
        if not cameras and LIDAR not in frame_of:
            raise InputError(
                f"{self._path} has neither camera info nor a cloud: pass --calibration FILE."
            )
        T_ego_lidar = (
            self._to_base(frame_of[LIDAR], T_parent_child) if LIDAR in frame_of else np.eye(4)
        )
        return Calibration(cameras=cameras, T_ego_lidar=T_ego_lidar)

    def _read_rig(self) -> tuple[dict[str, tuple[str, np.ndarray]], dict[str, Any], dict[str, str]]:
        """Child frame -> parent and `T_parent_child`; camera -> its info; sensor -> its frame."""
        transforms: dict[str, tuple[str, np.ndarray]] = {}
        info: dict[str, Any] = {}
        frame_of: dict[str, str] = {}
        wanted = {f"{name}.info" for name in self._cameras} & {*self._sensor_of_topic.values()}
        wanted |= {LIDAR} & {*self._sensor_of_topic.values()}
        with self._open() as reader:
            static = [c for c in reader.connections if c.topic == STATIC_TF_TOPIC]
            for connection, _, data in self._records(reader, static):
                try:
                    transforms |= to_transforms(_checked(_unpacked(reader, connection, data)))
                except ConversionError as error:
                    raise self._no_rig(STATIC_TF_TOPIC, error) from error
            for sensor, _, message in self._messages(reader, wanted):
                if sensor in wanted and message is not None:
                    wanted.remove(sensor)
                    name = sensor.removesuffix(".info")
                    frame_of[name] = message.header.frame_id
                    if name != LIDAR:
                        info[name] = message
                if not wanted:
                    break
        return transforms, info, frame_of

    def _no_rig(self, what: str, error: ConversionError) -> InputError:
        return InputError(f"{self._path}: {what}: {error}: pass --calibration FILE.")

    def _to_base(self, frame: str, T_parent_child: dict[str, tuple[str, np.ndarray]]) -> np.ndarray:
        """`T_ego_frame` by way of the frames between."""
        T, at = np.eye(4), frame
        for _ in range(len(T_parent_child) + 1):
            if at == self._base_frame:
                return T
            if at not in T_parent_child:
                break
            at, T_step = T_parent_child[at]
            T = T_step @ T
        raise InputError(
            f"{self._path} has no way from {frame!r} to {self._base_frame!r} in {STATIC_TF_TOPIC}: "
            "pass --calibration FILE, or --base-frame."
        )

    def _open(self) -> Any:
        """A reader, to be used in a `with` statement."""
        try:
            from rosbags.highlevel import AnyReader  # only bags need it
            from rosbags.typesys import Stores, get_typestore
        except ImportError as error:
            raise InputError(
                "Reading a bag needs rosbags: pip install 'bev-perception[replay]'."
            ) from error
        try:
            store = get_typestore(Stores.ROS2_HUMBLE)  # bags without definitions; types are stable
            reader = AnyReader([self._path], default_typestore=store)
            reader.open()
            reader.close()
        except Exception as error:  # as in `_records`
            raise InputError(
                f"{self._path} cannot be read as a bag ({_words(error)}): pass the folder of a "
                "rosbag2 recording or its .mcap or .db3 file."
            ) from error
        return reader


def _ends_with(topic: str, ends: Sequence[str]) -> bool:
    return any(topic == end or topic.endswith(f"/{end}") for end in ends)


def _words(error: Exception) -> str:
    """An error in one line, with its kind where it says little."""
    return " ".join(f"{type(error).__name__} {error}".split())


def _unpacked(reader: Any, connection: Any, data: bytes) -> Any | None:
    try:
        return reader.deserialize(data, connection.msgtype)
    except Exception:  # damaged bytes fail in as many ways as there are types
        return None


def _checked(message: Any | None) -> Any:
    if message is None:
        raise ConversionError("not_unpacked", "its bytes are no message of its type")
    return message


def _stamp_ns(message: Any | None) -> int:
    return to_stamp_ns(_checked(message).header)


def _decoded(sensor: str, stamp_ns: int, message: Any) -> SensorMessage:
    """The runtime's message without its pose, read as the node reads it."""
    to_frame_id(message.header.frame_id)
    if sensor == LIDAR:
        points_lidar = to_points_lidar(message)
        return LidarSweep(stamp_ns=stamp_ns, points_lidar=points_lidar, T_global_ego=None)
    rgb = to_rgb(message) if hasattr(message, "encoding") else compressed_to_rgb(message)
    return CameraImage(camera=sensor, stamp_ns=stamp_ns, rgb=rgb, T_global_ego=None)


def _with_pose(arrival: Arrival, poses: EgoPoseBuffer) -> Arrival:
    message = arrival.message
    if message is None or isinstance(message, MissingFile):
        return arrival
    return replace(arrival, message=replace(message, T_global_ego=poses.at(message.stamp_ns)))
