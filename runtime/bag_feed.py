"""A rosbag2 recording (sqlite3 or MCAP) as the source of a replay; ROS itself is not needed."""

from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from perception.data.nuscenes_log import MissingFile
from perception.errors import InputError
from perception.messages import Calibration, CameraImage, LidarSweep, SensorMessage
from perception.taxonomy import LIDAR
from runtime.bag_messages import (
    UnusableMessageError,
    camera_of,
    points_of,
    rgb_of,
    stamp_ns,
    transform_of,
)
from runtime.ego_motion import EgoPoseBuffer
from runtime.message_source import Arrival

ODOMETRY = "odometry"
"""Name of the car's pose among the topics."""

CLOCK_TOLERANCE_NS = 1_000_000_000
"""A recorder's clock this far from the stamps is another clock, such as that of a log played years
later: it is moved so that the first message arrives at its stamp [ns]. Source: ours."""

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
        self.unusable_poses: Counter[str] = Counter()
        """Odometry messages that were not used, by reason."""
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

    def calibration(self, scene: str) -> Calibration:
        """See `MessageSource`."""
        self._check(scene)
        return self._given or self._recorded_calibration

    def arrivals(self, scene: str) -> Iterator[Arrival]:
        """See `MessageSource`; a message waits, in reading only, for the pose after its stamp."""
        self._check(scene)
        poses = EgoPoseBuffer()
        waiting: deque[tuple[Arrival, int, int]] = deque()
        """With stamp and time of recording."""
        has_odometry = ODOMETRY in self._sensor_of_topic.values()
        shift_ns: int | None = None
        with self._open() as reader:
            newest_pose_ns = 0
            for sensor, recorded_ns, message in self._messages(reader):
                if sensor == ODOMETRY:
                    newest_pose_ns = max(newest_pose_ns, self._add_pose(poses, message))
                elif sensor == LIDAR or sensor in self._cameras:
                    content, taken_ns = self._decode(sensor, recorded_ns, message)
                    if shift_ns is None:
                        shift_ns = taken_ns - recorded_ns
                        shift_ns = shift_ns if abs(shift_ns) > CLOCK_TOLERANCE_NS else 0
                    arrival = Arrival(now_ns=recorded_ns + shift_ns, message=content)
                    waiting.append((arrival, taken_ns, recorded_ns))
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
        self, reader: Any, sensors: Sequence[str] | None = None
    ) -> Iterator[tuple[str, int, Any]]:
        """Sensor, time of recording [ns] and message; the raw bytes where it cannot be unpacked."""
        connections = [
            c
            for c in reader.connections
            if c.topic in self._sensor_of_topic
            and (sensors is None or self._sensor_of_topic[c.topic] in sensors)
        ]
        if not connections:
            return
        for connection, recorded_ns, data in reader.messages(connections=connections):
            try:
                message = reader.deserialize(data, connection.msgtype)
            except Exception:  # damaged bytes fail in as many ways as there are types
                message = data
            yield self._sensor_of_topic[connection.topic], int(recorded_ns), message

    def _decode(
        self, sensor: str, recorded_ns: int, message: Any
    ) -> tuple[SensorMessage | MissingFile, int]:
        """The runtime's message without its pose, and its stamp [ns]."""
        taken_ns = recorded_ns
        try:
            if isinstance(message, bytes | memoryview):
                raise UnusableMessageError("message cannot be unpacked")
            taken_ns = stamp_ns(message)
            if sensor == LIDAR:
                points_lidar = points_of(message)
                sweep = LidarSweep(stamp_ns=taken_ns, points_lidar=points_lidar, T_global_ego=None)
                return sweep, taken_ns
            rgb = rgb_of(message)
            image = CameraImage(camera=sensor, stamp_ns=taken_ns, rgb=rgb, T_global_ego=None)
            return image, taken_ns
        except UnusableMessageError as error:
            return MissingFile(sensor=sensor, stamp_ns=taken_ns, reason=str(error)), taken_ns

    def _add_pose(self, poses: EgoPoseBuffer, message: Any) -> int:
        """Keep a pose; gives its stamp [ns], 0 if it cannot be used."""
        try:
            if isinstance(message, bytes | memoryview):
                raise UnusableMessageError("message cannot be unpacked")
            if message.child_frame_id not in ("", self._base_frame):
                raise UnusableMessageError(f"odometry is of {message.child_frame_id!r}")
            pose, taken_ns = message.pose.pose, stamp_ns(message)
            poses.add(taken_ns, transform_of(pose.position, pose.orientation))
            return taken_ns
        except UnusableMessageError as error:
            self.unusable_poses[str(error)] += 1
            return 0

    @cached_property
    def _recorded_calibration(self) -> Calibration:
        """The rig of `camera_info` and `/tf_static`: the first message of each."""
        advice = "pass --calibration FILE"
        T_parent_child, info, frame_of = self._read_rig()
        cameras = {}
        for camera in self._cameras:
            if camera in info:
                T_ego_cam = self._to_base(info[camera].header.frame_id, T_parent_child)
                try:
                    cameras[camera] = camera_of(info[camera], T_ego_cam)
                except UnusableMessageError as error:
                    raise InputError(f"{self._path}: {camera}: {error}: {advice}.") from error
        if not cameras and LIDAR not in frame_of:
            raise InputError(f"{self._path} has neither camera info nor a cloud: {advice}.")
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
            for connection, _, data in reader.messages(connections=static) if static else ():
                for stamped in reader.deserialize(data, connection.msgtype).transforms:
                    part = stamped.transform
                    transforms[stamped.child_frame_id] = (
                        stamped.header.frame_id,
                        transform_of(part.translation, part.rotation),
                    )
            for sensor, _, message in self._messages(reader, tuple(wanted)):
                if sensor in wanted and hasattr(message, "header"):
                    wanted.remove(sensor)
                    frame_of[sensor] = message.header.frame_id
                    if sensor != LIDAR:
                        info[sensor.removesuffix(".info")] = message
                if not wanted:
                    break
        return transforms, info, frame_of

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
            from rosbags.highlevel import AnyReader, AnyReaderError  # only bags need it
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
        except (AnyReaderError, OSError, ValueError) as error:
            raise InputError(
                f"{self._path} cannot be read as a bag ({error}): pass the folder of a rosbag2 "
                "recording or its .mcap or .db3 file."
            ) from error
        return reader


def _ends_with(topic: str, ends: Sequence[str]) -> bool:
    return any(topic == end or topic.endswith(f"/{end}") for end in ends)


def _with_pose(arrival: Arrival, poses: EgoPoseBuffer) -> Arrival:
    message = arrival.message
    if message is None or isinstance(message, MissingFile):
        return arrival
    return replace(arrival, message=replace(message, T_global_ego=poses.at(message.stamp_ns)))
