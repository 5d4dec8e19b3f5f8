"""Where a replay's messages come from: one form for every kind of recording."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from perception.data.nuscenes_log import MissingFile, NuScenesLog
from perception.messages import Calibration, CameraImage, SensorMessage
from perception.taxonomy import LIDAR


@dataclass(frozen=True, kw_only=True)
class Arrival:
    """A message and when it reached the runtime."""

    now_ns: int
    """Time of arrival on the clock of the stamps [ns]."""
    message: SensorMessage | MissingFile | None
    """What came; a file that cannot be used; or None: nothing came, time passes."""


@runtime_checkable
class MessageSource(Protocol):
    """A recording."""

    @property
    def description(self) -> str:
        """Which recording, for reports."""

    @property
    def scenes(self) -> tuple[str, ...]:
        """Its parts, in the order of their time; each has its own rig and its own clock."""

    @property
    def damage(self) -> str | None:
        """Why reading ended before the recording did, as far as it has been read; or None."""

    def calibration(self, scene: str) -> Calibration:
        """The rig of a scene.

        Raises:
            InputError: There is no such scene, or its rig is not known.
        """

    def arrivals(self, scene: str) -> Iterator[Arrival]:
        """Messages in the order of their arrival; a file is read when the iteration reaches it."""


class NuScenesSource:
    """A nuScenes log: every message arrives at its stamp, with the offsets that were recorded."""

    def __init__(self, log: NuScenesLog) -> None:
        self._log = log

    @property
    def description(self) -> str:
        """Folder and tables."""
        return f"{self._log.root} {self._log.version}"

    @property
    def scenes(self) -> tuple[str, ...]:
        """The log's."""
        return self._log.scenes

    @property
    def damage(self) -> str | None:
        """None: a file that is lost is one `MissingFile`."""
        return None

    def calibration(self, scene: str) -> Calibration:
        """See `MessageSource`."""
        return self._log.calibration(scene)

    def arrivals(self, scene: str) -> Iterator[Arrival]:
        """See `MessageSource`."""
        for message in self._log.messages(scene):
            yield Arrival(now_ns=message.stamp_ns, message=message)


def sensor_of(message: SensorMessage | MissingFile) -> str:
    """Name of the sensor that a message is from."""
    if isinstance(message, MissingFile):
        return message.sensor
    return message.camera if isinstance(message, CameraImage) else LIDAR
