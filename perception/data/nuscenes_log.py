"""A nuScenes log as sensor messages and frames, in time order; needs neither torch nor the devkit.

Files that are missing or damaged are part of a log's life: they are named, never raised.
"""

import difflib
import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Float64, Int64

from perception.data.nuscenes_tables import (
    CalibratedSensor,
    Category,
    EgoPose,
    Instance,
    Log,
    Map,
    NuScenesTables,
    Sample,
    SampleAnnotation,
    SampleData,
    Scene,
    Sensor,
)
from perception.data.sensor_files import UnusableFileError, read_image, read_points
from perception.errors import InputError
from perception.geometry import boxes, rigid
from perception.messages import (
    Calibration,
    CameraCalibration,
    CameraImage,
    LidarSweep,
    SensorFrame,
    SensorMessage,
)
from perception.taxonomy import CAMERAS, LIDAR

NS_PER_US = 1000
MAX_VELOCITY_INTERVAL = 1.5
"""Boxes further apart in time than this [s] give no velocity; twice this where there is a box on
both sides. Source: nuscenes-devkit 1.2.0, `NuScenes.box_velocity`."""


@dataclass(frozen=True, kw_only=True)
class MissingFile:
    """A file that the tables list and that cannot be used."""

    sensor: str
    stamp_ns: int
    """When the data was taken [ns]."""
    reason: str
    """What is wrong, with the file's name."""


@dataclass(frozen=True, kw_only=True)
class KeyframeReading:
    """A keyframe, and what could not be read for it."""

    frame: SensorFrame
    unusable: tuple[MissingFile, ...]
    """Listed files that cannot be used, older sweeps among them."""


@dataclass(frozen=True, kw_only=True)
class Annotations:
    """Ground-truth boxes of one keyframe."""

    boxes_global: Float64[np.ndarray, "k 9"]
    """Columns as in `perception.geometry.boxes`, global frame; velocity NaN where not known."""
    categories: tuple[str, ...]
    """nuScenes' category of each box, such as "vehicle.car"."""
    tokens: tuple[str, ...]
    num_lidar_points: Int64[np.ndarray, " k"]
    num_radar_points: Int64[np.ndarray, " k"]


class NuScenesLog:
    """A log on disk. The six cameras and LIDAR_TOP are read, radars are not.

    Args:
        root: Folder that holds `v1.0-*/`, `samples/`, `sweeps/`, `maps/`.
        version: Folder of the tables, such as "v1.0-mini"; None takes the only one.

    Raises:
        InputError: The folder is no nuScenes log, or its tables are broken. Methods raise it too:
            tables are read when they are first needed.
    """

    def __init__(self, root: Path, version: str | None = None) -> None:
        self._tables = NuScenesTables(Path(root), version)

    @property
    def root(self) -> Path:
        """Folder of the log."""
        return self._tables.root

    @property
    def version(self) -> str:
        """Name of the folder of tables."""
        return self._tables.version

    @cached_property
    def scenes(self) -> tuple[str, ...]:
        """Names of the scenes in time order."""
        return tuple(self._samples_of_scene)

    def keyframe_tokens(self, scene: str | None = None) -> tuple[str, ...]:
        """Sample tokens in time order: of one scene, or of all, scene after scene.

        Raises:
            InputError: There is no such scene.
        """
        names = self.scenes if scene is None else (self._known(scene),)
        return tuple(sample.token for name in names for sample in self._samples_of_scene[name])

    def scene_of(self, token: str) -> str:
        """Name of a keyframe's scene."""
        return self._scene_name(self._tables.get(Sample, token))

    def location(self, scene: str) -> str:
        """Name of the place, such as "singapore-onenorth"."""
        return self._tables.get(Log, self._scene_of_name[self._known(scene)].log_token).location

    def map_mask_path(self, scene: str) -> Path | None:
        """PNG of the drivable area round a scene, 0.1 m per pixel; None where the log has none."""
        log_token = self._scene_of_name[self._known(scene)].log_token
        for record in self._tables.table(Map).values():
            if log_token in record.log_tokens and (self.root / record.filename).is_file():
                return self.root / record.filename
        return None

    def calibration(self, scene: str) -> Calibration:
        """The rig of a scene; a camera that the scene does not list is absent.

        Raises:
            InputError: There is no such scene, or it lists no LiDAR data.
        """
        first = {
            sensor: record for record, sensor in reversed(self._data_of_scene[self._known(scene)])
        }
        if LIDAR not in first:
            raise InputError(
                f"{self.root} lists no {LIDAR} data for {scene}: use a log that has LiDAR."
            )
        cameras = {name: self._camera_calibration(first[name]) for name in CAMERAS if name in first}
        lidar = self._tables.get(CalibratedSensor, first[LIDAR].calibrated_sensor_token)
        return Calibration(cameras=cameras, T_ego_lidar=self._pose(lidar))

    def keyframe(self, token: str, num_sweeps: int = 10) -> SensorFrame:
        """Images and LiDAR sweeps of a keyframe.

        Args:
            token: A sample token, see `keyframe_tokens`.
            num_sweeps: LiDAR revolutions to look at, the keyframe's included; an unusable one is
                left out.
        """
        return self.read_keyframe(token, num_sweeps, (*CAMERAS, LIDAR)).frame

    def read_keyframe(
        self, token: str, num_sweeps: int, sensors: Collection[str]
    ) -> KeyframeReading:
        """Like `keyframe`, of some sensors only; no other file is opened.

        Args:
            token: A sample token.
            num_sweeps: As in `keyframe`.
            sensors: Names of cameras, and LIDAR_TOP. The frame's stamp and pose are the LiDAR's in
                any case.
        """
        if num_sweeps < 1:
            raise ValueError(f"num_sweeps is {num_sweeps}, expected 1 or more")
        sample = self._tables.get(Sample, token)
        listed = self._keyframe_data.get(token, {})
        loaded = {s: self._load(record, s) for s, record in listed.items() if s in sensors}
        with_sweeps = LIDAR in listed and LIDAR in sensors
        older = self._records_before(listed[LIDAR], num_sweeps - 1) if with_sweeps else ()
        sweeps = [loaded.get(LIDAR), *(self._load(record, LIDAR) for record in older)]
        missing = {
            sensor: f"the tables list no {sensor} file for this keyframe"
            for sensor in (*CAMERAS, LIDAR)
            if sensor in sensors and sensor not in listed
        }
        missing |= {m.sensor: m.reason for m in loaded.values() if isinstance(m, MissingFile)}
        reference = listed.get(LIDAR) or next(iter(listed.values()), None)
        frame = SensorFrame(
            stamp_ns=(listed[LIDAR] if LIDAR in listed else sample).timestamp * NS_PER_US,
            T_global_ego=None if reference is None else self._T_global_ego(reference),
            images={m.camera: m for m in loaded.values() if isinstance(m, CameraImage)},
            sweeps=tuple(sweep for sweep in sweeps if isinstance(sweep, LidarSweep)),
            calibration=self.calibration(self._scene_name(sample)),
            missing=missing,
        )
        read = (*loaded.values(), *sweeps[1:])
        return KeyframeReading(
            frame=frame, unusable=tuple(m for m in read if isinstance(m, MissingFile))
        )

    def message_before(self, token: str, sensor: str) -> SensorMessage | None:
        """What a sensor gave just before a keyframe; None where there is nothing usable."""
        record = self._keyframe_data.get(token, {}).get(sensor)
        for before in self._records_before(record, 1) if record else ():
            message = self._load(before, sensor)
            return None if isinstance(message, MissingFile) else message
        return None

    def messages(self, scene: str) -> Iterator[SensorMessage | MissingFile]:
        """All camera and LiDAR data of a scene by time, keyframes and what lies between.

        A file is read when the iteration reaches it.
        """
        return (self._load(*entry) for entry in self._data_of_scene[self._known(scene)])

    def stamps(self, scene: str) -> list[tuple[int, str]]:
        """Time [ns] and sensor of each of `messages`, without reading a file."""
        return [
            (record.timestamp * NS_PER_US, sensor)
            for record, sensor in self._data_of_scene[self._known(scene)]
        ]

    def ego_poses(self, scene: str) -> list[tuple[int, Float64[np.ndarray, "4 4"]]]:
        """Time [ns] and `T_global_ego` of each of `messages`, in time order, each time once."""
        record_at = {
            record.timestamp * NS_PER_US: record
            for record, _ in self._data_of_scene[self._known(scene)]
        }
        return [(stamp_ns, self._T_global_ego(record)) for stamp_ns, record in record_at.items()]

    def annotations(self, token: str) -> Annotations:
        """Boxes of a keyframe, in the order of the table."""
        self._tables.get(Sample, token)
        records = self._annotations_of_sample.get(token, [])
        rows = [self._box_global(record) for record in records]
        instances = [self._tables.get(Instance, record.instance_token) for record in records]
        return Annotations(
            boxes_global=np.array(rows, dtype=np.float64).reshape(-1, boxes.NUM_COLUMNS),
            categories=tuple(self._tables.get(Category, i.category_token).name for i in instances),
            tokens=tuple(record.token for record in records),
            num_lidar_points=np.array([record.num_lidar_pts for record in records], dtype=np.int64),
            num_radar_points=np.array([record.num_radar_pts for record in records], dtype=np.int64),
        )

    def _load(self, record: SampleData, sensor: str) -> SensorMessage | MissingFile:
        stamp_ns = record.timestamp * NS_PER_US
        path = self.root / record.filename
        try:
            if sensor == LIDAR:
                return LidarSweep(
                    stamp_ns=stamp_ns,
                    points_lidar=read_points(path),
                    T_global_ego=self._T_global_ego(record),
                )
            return CameraImage(
                camera=sensor,
                stamp_ns=stamp_ns,
                rgb=read_image(path, record.width, record.height),
                T_global_ego=self._T_global_ego(record),
            )
        except UnusableFileError as error:
            return MissingFile(
                sensor=sensor, stamp_ns=stamp_ns, reason=f"{record.filename} {error}"
            )

    def _records_before(self, record: SampleData, number: int) -> Iterator[SampleData]:
        for _ in range(number):
            if not record.prev:
                return
            record = self._tables.get(SampleData, record.prev)
            yield record

    def _box_global(self, record: SampleAnnotation) -> list[float]:
        width, length, height = record.size
        yaw = rigid.yaw_of(self._pose(record))
        size = (length, width, height)
        return [*record.translation, *size, float(yaw), *self._velocity_global(record)]

    def _velocity_global(self, record: SampleAnnotation) -> tuple[float, float]:
        first, last = (
            self._tables.get(SampleAnnotation, token) if token else record
            for token in (record.prev, record.next)
        )
        times = [self._tables.get(Sample, end.sample_token).timestamp for end in (first, last)]
        interval = (times[1] - times[0]) * 1e-6
        limit = MAX_VELOCITY_INTERVAL * (2 if record.prev and record.next else 1)
        if not 0 < interval <= limit:
            return math.nan, math.nan
        vx, vy = ((last.translation[axis] - first.translation[axis]) / interval for axis in (0, 1))
        # a neighbour's damaged box makes this one's velocity unknown, no more
        return (vx, vy) if math.isfinite(vx) and math.isfinite(vy) else (math.nan, math.nan)

    def _camera_calibration(self, record: SampleData) -> CameraCalibration:
        sensor = self._tables.get(CalibratedSensor, record.calibrated_sensor_token)
        try:
            K_cam = np.array(sensor.camera_intrinsic, dtype=np.float64)
        except (TypeError, ValueError):
            K_cam = np.zeros(0)
        if K_cam.shape != (3, 3) or not (np.isfinite(K_cam).all() and np.linalg.det(K_cam)):
            raise InputError(
                f"{self.root} has the camera calibration {sensor.token!r} with intrinsics "
                f"{sensor.camera_intrinsic}, expected 3 x 3 numbers with an inverse: "
                "unpack the tables again."
            )
        return CameraCalibration(
            K_cam=K_cam,
            T_ego_cam=self._pose(sensor),
            width_px=record.width,
            height_px=record.height,
        )

    def _T_global_ego(self, record: SampleData) -> Float64[np.ndarray, "4 4"]:  # noqa: N802
        return self._pose(self._tables.get(EgoPose, record.ego_pose_token))

    def _pose(
        self, record: CalibratedSensor | EgoPose | SampleAnnotation
    ) -> Float64[np.ndarray, "4 4"]:
        try:
            return rigid.transform_from_quaternion(record.rotation, record.translation)
        except ValueError as error:
            raise InputError(
                f"{self.root} has the record {record.token!r} with a wrong pose, {error}: unpack "
                "the tables again."
            ) from error

    def _scene_name(self, sample: Sample) -> str:
        return self._tables.get(Scene, sample.scene_token).name

    def _known(self, scene: str) -> str:
        if scene not in self._scene_of_name:
            close = difflib.get_close_matches(scene, self.scenes, 1)
            hint = (
                f"did you mean {close[0]!r}?" if close else f"it has {', '.join(self.scenes[:5])}"
            )
            raise InputError(
                f"{self.root} has no scene {scene!r} among its {len(self.scenes)}: {hint}"
            )
        return scene

    @cached_property
    def _scene_of_name(self) -> dict[str, Scene]:
        return {scene.name: scene for scene in self._tables.table(Scene).values()}

    @cached_property
    def _samples_of_scene(self) -> dict[str, list[Sample]]:
        """Scenes by the time of their first keyframe, each with its keyframes by time."""
        samples: dict[str, list[Sample]] = {name: [] for name in self._scene_of_name}
        for sample in sorted(self._tables.table(Sample).values(), key=lambda s: s.timestamp):
            samples[self._scene_name(sample)].append(sample)
        start = {name: found[0].timestamp if found else 0 for name, found in samples.items()}
        return {name: samples[name] for name in sorted(samples, key=lambda name: start[name])}

    @cached_property
    def _sensor_of_calibration(self) -> dict[str, str]:
        """Channel of each calibrated sensor that is read."""
        channels = {
            token: self._tables.get(Sensor, record.sensor_token).channel
            for token, record in self._tables.table(CalibratedSensor).items()
        }
        return {token: name for token, name in channels.items() if name in (*CAMERAS, LIDAR)}

    @cached_property
    def _data_of_scene(self) -> dict[str, list[tuple[SampleData, str]]]:
        """Records with their sensor by time."""
        data: dict[str, list[tuple[SampleData, str]]] = {name: [] for name in self.scenes}
        for record in self._tables.table(SampleData).values():
            sensor = self._sensor_of_calibration.get(record.calibrated_sensor_token)
            if sensor is not None:
                scene = self._scene_name(self._tables.get(Sample, record.sample_token))
                data[scene].append((record, sensor))
        for records in data.values():
            records.sort(key=lambda entry: entry[0].timestamp)
        return data

    @cached_property
    def _keyframe_data(self) -> dict[str, dict[str, SampleData]]:
        """Keyframe record per sensor, by sample token."""
        keyframes: dict[str, dict[str, SampleData]] = {}
        for records in self._data_of_scene.values():
            for record, sensor in records:
                if record.is_key_frame:
                    keyframes.setdefault(record.sample_token, {})[sensor] = record
        return keyframes

    @cached_property
    def _annotations_of_sample(self) -> dict[str, list[SampleAnnotation]]:
        found: dict[str, list[SampleAnnotation]] = {}
        for record in self._tables.table(SampleAnnotation).values():
            found.setdefault(record.sample_token, []).append(record)
        return found
