"""The JSON tables of a nuScenes log as typed, indexed records.

Only the columns that are used are kept: the tables of the full data set hold millions of rows.
"""

import json
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from perception.errors import InputError

Vector = tuple[float, float, float]
Quaternion = tuple[float, float, float, float]
"""w, x, y, z."""


class Sensor(NamedTuple):
    """A kind of sensor, by its place on the car."""

    token: str
    channel: str


class CalibratedSensor(NamedTuple):
    """A sensor of one drive: where it sits and, for a camera, how it projects."""

    token: str
    sensor_token: str
    translation: Vector
    rotation: Quaternion
    camera_intrinsic: list[Any]


class EgoPose(NamedTuple):
    """Ego to global."""

    token: str
    translation: Vector
    rotation: Quaternion


class Log(NamedTuple):
    """One drive."""

    token: str
    location: str


class Map(NamedTuple):
    """A map mask, and the drives that it belongs to."""

    token: str
    filename: str
    log_tokens: list[Any]


class Scene(NamedTuple):
    """About 20 s of a drive."""

    token: str
    name: str
    log_token: str


class Sample(NamedTuple):
    """A keyframe."""

    token: str
    timestamp: int
    """Microseconds."""
    scene_token: str


class SampleData(NamedTuple):
    """One file of one sensor."""

    token: str
    sample_token: str
    ego_pose_token: str
    calibrated_sensor_token: str
    timestamp: int
    """Microseconds."""
    is_key_frame: bool
    height: int
    width: int
    filename: str
    """Relative to the log's root."""
    prev: str
    """Token of the sensor's file before this one, or empty."""


class SampleAnnotation(NamedTuple):
    """A box of a keyframe."""

    token: str
    sample_token: str
    instance_token: str
    translation: Vector
    size: Vector
    """Width, length, height [m]."""
    rotation: Quaternion
    prev: str
    """Token of the same object's box one keyframe earlier, or empty."""
    next: str
    """Token of the same object's box one keyframe later, or empty."""
    num_lidar_pts: int
    num_radar_pts: int


class Instance(NamedTuple):
    """An object through a scene."""

    token: str
    category_token: str


class Category(NamedTuple):
    """A kind of object."""

    token: str
    name: str


Record = TypeVar(
    "Record",
    Sensor,
    CalibratedSensor,
    EgoPose,
    Log,
    Map,
    Scene,
    Sample,
    SampleData,
    SampleAnnotation,
    Instance,
    Category,
)

_TABLES: dict[type, str] = {
    Sensor: "sensor",
    CalibratedSensor: "calibrated_sensor",
    EgoPose: "ego_pose",
    Log: "log",
    Map: "map",
    Scene: "scene",
    Sample: "sample",
    SampleData: "sample_data",
    SampleAnnotation: "sample_annotation",
    Instance: "instance",
    Category: "category",
}


class NuScenesTables:
    """The tables of `root`/`version`, each read once, when it is first asked for.

    Args:
        root: Folder of the log: it holds `v1.0-*/`, `samples/`, `sweeps/`, `maps/`.
        version: Name of the folder of tables, such as "v1.0-mini"; None takes the only one.

    Raises:
        InputError: The folder is no nuScenes log, or a table is missing.
    """

    def __init__(self, root: Path, version: str | None = None) -> None:
        self.root = root
        self.version = version if version is not None else _only_version(root)
        self._tables: dict[type, dict[str, Any]] = {}
        folder = root / self.version
        if not folder.is_dir():
            raise InputError(
                f"{root} has no folder {self.version!r}, it has {_versions(root)}: "
                "give one of these as the version."
            )
        for name in _TABLES.values():
            if not (folder / f"{name}.json").is_file():
                raise InputError(
                    f"{folder} has no table {name}.json: it is no complete nuScenes log, "
                    "unpack its metadata again."
                )

    def table(self, kind: type[Record]) -> dict[str, Record]:
        """All records of a kind by token, in the order of the file.

        Raises:
            InputError: The table is no list of records in JSON, or a record lacks a column.
        """
        if kind not in self._tables:
            self._tables[kind] = _read_table(self._path(kind), kind)
        return self._tables[kind]

    def get(self, kind: type[Record], token: str) -> Record:
        """The record with a token.

        Raises:
            InputError: There is none.
        """
        record = self.table(kind).get(token)
        if record is None:
            raise InputError(
                f"{self._path(kind)} has no record {token!r}: ask for a listed token, or "
                "unpack the tables again if they point to each other wrongly."
            )
        return record

    def _path(self, kind: type) -> Path:
        return self.root / self.version / f"{_TABLES[kind]}.json"


def _versions(root: Path) -> list[str]:
    return sorted(path.name for path in root.glob("v1.0-*") if path.is_dir())


def _only_version(root: Path) -> str:
    if not root.is_dir():
        raise InputError(f"{root} is no folder: give the root of a nuScenes log.")
    versions = _versions(root)
    if not versions:
        raise InputError(
            f"{root} has no folder of tables 'v1.0-*': give the root of a nuScenes log, the folder "
            "that holds samples/, sweeps/ and maps/."
        )
    if len(versions) > 1:
        raise InputError(f"{root} has the versions {versions}: say which one to use.")
    return versions[0]


def _read_table(path: Path, kind: type[Record]) -> dict[str, Record]:
    columns = [(name, _checker(hint)) for name, hint in typing.get_type_hints(kind).items()]

    def record(values: dict[str, Any]) -> Record:
        for name, is_valid in columns:
            if name not in values:
                raise InputError(
                    f"{path} has the record {values.get('token')!r} without the key {name!r}: the "
                    "table is damaged or of another format, unpack it again."
                )
            if not is_valid(values[name]):
                raise InputError(
                    f"{path} has the record {values.get('token')!r} with {name} = "
                    f"{values[name]!r}, expected {kind.__annotations__[name]}: unpack it again."
                )
        return kind(*[values[name] for name, _ in columns])

    try:
        records = json.loads(path.read_bytes(), object_hook=record)
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is no valid JSON ({error}): unpack the table again.") from error
    if not isinstance(records, list) or not all(isinstance(entry, kind) for entry in records):
        raise InputError(f"{path} is no list of records: unpack the table again.")
    return {entry.token: entry for entry in records}


def _checker(hint: Any) -> Callable[[Any], bool]:
    """Say what a JSON value must be to fit a column."""
    if typing.get_origin(hint) is tuple:
        length = len(typing.get_args(hint))
        return lambda value: (
            isinstance(value, list)
            and len(value) == length
            and all(type(number) in (int, float) for number in value)
        )
    kind = typing.get_origin(hint) or hint
    return lambda value: type(value) is kind
