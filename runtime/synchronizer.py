"""Groups stamped messages of many sensors into frames. No clock of its own: time is data.

time ->    FL  F  FR  BR   B   BL  LIDAR          FL  F  ...
           |   |   |   |   |   |     |            |
           `-- the group opens       `-- complete: emitted at once
           |........... wait_ns ...........|  emitted here at the latest, with what there is
"""

from collections import Counter, deque
from dataclasses import dataclass, field

from perception.errors import InputError
from perception.messages import Calibration, CameraImage, LidarSweep, SensorFrame, SensorMessage
from perception.taxonomy import LIDAR

JUMP_BACK_NS = 1_000_000_000
"""A stamp this much older than the newest one means that time was set back, e.g. a log that starts
over. Source: ours; ten times the longest useful wait."""


@dataclass(frozen=True, kw_only=True)
class SynchronizerConfig:
    """Which sensors make a frame and how long it waits for them."""

    cameras: tuple[str, ...]
    """Cameras of a complete frame; the LiDAR always belongs to it."""
    wait_ns: int = 120_000_000
    """Longest time from a group's first message to its frame [ns]. Source: ours; one period of the
    slowest sensor (12 Hz) and 37 ms for jitter: at 100 ms frames were seen to close a
    moment before their last image."""
    max_sweeps: int = 10
    """LiDAR sweeps kept for accumulation. Source: specs, base network section 1."""

    def __post_init__(self) -> None:
        """Refuse numbers that cannot work."""
        if len(set(self.cameras)) != len(self.cameras) or LIDAR in self.cameras:
            raise InputError(
                f"cameras are {self.cameras}, expected each camera once and no {LIDAR}."
            )
        if self.wait_ns < 0 or self.max_sweeps < 1:
            raise InputError(
                f"wait_ns is {self.wait_ns} and max_sweeps {self.max_sweeps}, expected 0 or more "
                "and 1 or more."
            )


@dataclass(kw_only=True)
class _State:
    """Everything that is forgotten when time is set back."""

    sweeps: deque[LidarSweep]
    images: dict[str, CameraImage] = field(default_factory=dict)
    last_ns: dict[str, int] = field(default_factory=dict)
    """Newest stamp per sensor."""
    group: dict[str, SensorMessage] = field(default_factory=dict)
    """Newest message per sensor of the open group."""
    opened_ns: int | None = None
    """Stamp of the open group's first message; None if no group is open."""
    emitted_ns: int | None = None
    """Stamp of the last frame."""
    now_ns: int | None = None


class Synchronizer:
    """Collects messages and emits a frame as soon as it is complete or has waited long enough.

    A message belongs to the open group if it was pushed after the last emission and its stamp is
    newer than the last frame's. The first such message opens the group. The group is emitted when
    every camera and the LiDAR have delivered, or when time (the newest stamp pushed, or `advance`)
    reaches the opening stamp + `wait_ns`. No sensor is the master.

    A frame holds the newest image per camera and the last sweeps, also such that are older than the
    group: whoever uses them judges their age. Its stamp is that of the group's newest sweep, else
    of the group's newest image, so stamps of frames always grow.

    Per sensor, a message that is not newer than the one before is dropped and counted. A stamp more
    than `JUMP_BACK_NS` behind the newest one emits the open group and starts over from nothing.
    Memory: one image per camera and `max_sweeps` sweeps.
    """

    def __init__(self, config: SynchronizerConfig, calibration: Calibration) -> None:
        """Start with no data.

        Args:
            config: Sensors and waiting time.
            calibration: Goes into each frame.
        """
        self.counters: Counter[str] = Counter()
        """Dropped messages by "SENSOR: reason", and "time jumped back"."""
        self._config = config
        self._calibration = calibration
        self._state = self._nothing()

    @property
    def deadline_ns(self) -> int | None:
        """Time at which the open group will be emitted at the latest; None if no group is open."""
        opened_ns = self._state.opened_ns
        return None if opened_ns is None else opened_ns + self._config.wait_ns

    def set_calibration(self, calibration: Calibration) -> None:
        """Use another calibration from the next frame on."""
        self._calibration = calibration

    def push(self, message: SensorMessage) -> list[SensorFrame]:
        """Take a message; give the frames that it closes or completes, oldest first."""
        sensor = message.camera if isinstance(message, CameraImage) else LIDAR
        if sensor != LIDAR and sensor not in self._config.cameras:
            self.counters[f"{sensor}: unknown sensor"] += 1
            return []
        frames: list[SensorFrame] = []
        # Against the stamps, not `now_ns`: a clock ahead of the stamps must not look like a jump.
        newest_ns = max(self._state.last_ns.values(), default=message.stamp_ns)
        if message.stamp_ns < newest_ns - JUMP_BACK_NS:
            self.counters["time jumped back"] += 1
            frames += self.flush()
            self._state = self._nothing()
        last_ns = self._state.last_ns.get(sensor)
        if last_ns is not None and message.stamp_ns <= last_ns:
            kind = "duplicate" if message.stamp_ns == last_ns else "out of order"
            self.counters[f"{sensor}: {kind}"] += 1
            return frames
        frames += self.advance(message.stamp_ns)
        self._store(sensor, message)
        if len(self._state.group) == len(self._config.cameras) + 1:
            return frames + self.flush()
        return frames + self._close_if_due()

    def advance(self, now_ns: int) -> list[SensorFrame]:
        """Let time pass without a message; time that goes back is ignored."""
        before_ns = self._state.now_ns
        self._state.now_ns = now_ns if before_ns is None else max(before_ns, now_ns)
        return self._close_if_due()

    def flush(self) -> list[SensorFrame]:
        """Emit the open group, if any, without waiting."""
        state, cameras = self._state, self._config.cameras
        if not state.group:
            return []
        newest = max(state.group.values(), key=lambda message: message.stamp_ns)
        reference = state.group.get(LIDAR, newest)
        frame = SensorFrame(
            stamp_ns=reference.stamp_ns,
            T_global_ego=reference.T_global_ego,
            images={name: state.images[name] for name in cameras if name in state.images},
            sweeps=tuple(state.sweeps),
            calibration=self._calibration,
            missing={n: "no data yet" for n in (*cameras, LIDAR) if n not in state.last_ns},
        )
        state.group = {}
        state.opened_ns = None
        state.emitted_ns = reference.stamp_ns
        return [frame]

    def _nothing(self) -> _State:
        return _State(sweeps=deque(maxlen=self._config.max_sweeps))

    def _store(self, sensor: str, message: SensorMessage) -> None:
        state = self._state
        state.last_ns[sensor] = message.stamp_ns
        if isinstance(message, CameraImage):
            state.images[sensor] = message
        else:
            state.sweeps.appendleft(message)
        if state.emitted_ns is None or message.stamp_ns > state.emitted_ns:
            state.group[sensor] = message
            if state.opened_ns is None:
                state.opened_ns = message.stamp_ns

    def _close_if_due(self) -> list[SensorFrame]:
        deadline_ns, now_ns = self.deadline_ns, self._state.now_ns
        if deadline_ns is None or now_ns is None or now_ns < deadline_ns:
            return []
        return self.flush()
