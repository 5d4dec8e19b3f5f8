"""Turns stamped messages of many sensors into one frame per period. No clock: time is data.

            t(k-1)                         t(k)         t(k) + wait     t(k+1)
time        --|-----------------------------|--------------|--------------|--->
camera  x     |                  o          |            x |              |
  window      [    t(k) - 40 ms, 60 ms each way   ]        |              |
LiDAR         |      x              o       |      x       |     x        |
  window      |           [        t(k), 60 ms each way       ]           |
                                            |______________|
      frame k takes o, here or, if it has to wait for a sensor, within this time
"""

import bisect
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from perception.errors import InputError
from perception.messages import Calibration, CameraImage, LidarSweep, SensorFrame, SensorMessage
from perception.taxonomy import LIDAR
from runtime.frame_grid import FrameGrid, TimedMessage
from runtime.sensor_track import SensorTrack
from runtime.time_steps import JUMP_NS, SetBack

CAMERA_OFFSET_NS = -40_000_000
"""Source: ours; a camera's newest image is half a period of 12 Hz old on average."""

PATIENCE_FRAMES = 3
"""Frames in a row that wait for a sensor in vain before the next ones do without. Source: ours."""


@dataclass(frozen=True, kw_only=True)
class SynchronizerConfig:
    """Which sensors make a frame, how often, and how long it waits for them.

    A sensor is in every frame if its window, plus the wait, covers one of its periods and the delay
    of its messages.
    """

    cameras: tuple[str, ...]
    """Cameras of a complete frame; the LiDAR always belongs to it."""
    period_ns: int = 100_000_000
    """Time from one frame's instant to the next one's [ns]."""
    wait_ns: int = 50_000_000
    """Longest time from a frame's instant to its emission, at most the period [ns]. Source: ours;
    one period of a 20 Hz LiDAR."""
    window_ns: int = 60_000_000
    """Largest difference of a stamp from the expected one, before or after [ns]. Source: ours; 12
    Hz cameras are 0 to 83 ms behind the instant, so 43 ms from -40 ms at most, and 17 ms are left
    for jitter."""
    offset_ns: Mapping[str, int] = field(default_factory=dict)
    """Sensor -> expected stamp of its sample minus the frame's instant [ns]. What is not named has
    `CAMERA_OFFSET_NS`, or 0 for the LiDAR."""
    jitter_ns: int = 5_000_000
    """How much later than the first the LiDAR's later sweeps may come, against the beginning of a
    period [ns]: a frame that is due before its sweep takes the one before it. Source: ours; a
    message on a busy computer."""
    max_ahead_ns: int = 100_000_000
    """A stamp further ahead of now is a clock's error [ns]. Source: ours; one period."""
    max_sweeps: int = 10
    """LiDAR sweeps kept for accumulation. Source: specs, base network section 1."""
    frozen_after: int = 3
    """The so many-th message of a sensor in a row with the same content, and those after it, are
    dropped; 0: never, e.g. for a simulator that has no noise. Source: ours; a sensor of the real
    world never repeats itself, a driver that hangs does."""

    def __post_init__(self) -> None:
        """Refuse numbers that cannot work."""
        if len(set(self.cameras)) != len(self.cameras) or LIDAR in self.cameras:
            raise InputError(
                f"cameras are {self.cameras}, expected each camera once and no {LIDAR}."
            )
        limits = {
            "period_ns": (1, None),
            "wait_ns": (0, self.period_ns),
            "window_ns": (0, JUMP_NS),
            "jitter_ns": (0, JUMP_NS),
            "max_ahead_ns": (0, JUMP_NS),
            "max_sweeps": (1, None),
        }
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if value < low or (high is not None and value > high):
                bound = f"{low} or more" if high is None else f"{low}..{high}"
                raise InputError(f"{name} is {value}, expected {bound}.")
        if self.frozen_after < 0 or self.frozen_after == 1:
            raise InputError(f"frozen_after is {self.frozen_after}, expected 0 (never), 2 or more.")
        if strangers := set(self.offset_ns) - {*self.cameras, LIDAR}:
            raise InputError(
                f"offset_ns names {sorted(strangers)}, expected only {LIDAR} and the cameras "
                f"{self.cameras}."
            )

    def offset_of(self, sensor: str) -> int:
        """Expected stamp of a sensor's sample minus the frame's instant [ns]."""
        return self.offset_ns.get(sensor, 0 if sensor == LIDAR else CAMERA_OFFSET_NS)


@dataclass(kw_only=True)
class _State:
    """Everything that is forgotten when time jumps."""

    tracks: dict[str, SensorTrack]
    grid: FrameGrid
    sweeps: list[LidarSweep] = field(default_factory=list)
    """For accumulation, oldest first."""
    index: int = 0
    """Number of the next frame."""
    stamp_ns: int | None = None
    """Stamp of the last frame."""


class Synchronizer:
    """Gives a frame every period, made of the newest usable message per sensor.

    Frame k has the instant t(k) = t(0) + k * period; `FrameGrid` says how the first messages set
    t(0), and what they wait for. A message is usable for frame k if its stamp is within the window
    round t(k) + offset; no sensor is the master. The frame goes out as soon as time has reached
    t(k) and every sensor has a usable message, and at t(k) + wait with what there is, be it
    nothing. A sensor that `PATIENCE_FRAMES` frames in a row have missed is not waited for, until
    one of its messages is in a frame or would have been, had the frame waited.

    A frame's stamp is that of its LiDAR message, else of its newest image, else its instant: the
    first of them that is newer than the frame before, so stamps always grow.

    Dropped and counted, each message for one reason:

    - unknown sensor, malformed (`reject`);
    - early: the stamp is further ahead of now than `max_ahead_ns`;
    - duplicate: the sensor has sent this stamp before;
    - frozen: the sensor repeats itself under fresh stamps (`frozen_after`);
    - late: meant for the last frame, which had waited in full or had nothing of this sensor;
    - stale: too old even for the frame that went out last;
    - out of order: a newer message has come before it and serves every frame that it could.

    Not counted, because normal where a sensor is faster than the frames: a message that a newer one
    replaces, one that comes in time for a frame that an older one has completed, and one that falls
    between two frames, too old for the next and newer than the last one's instant. If they are
    sweeps, they are kept for accumulation.

    Time is the largest `now_ns` so far. If it is set back (`SetBack`), or steps past the next
    frame's end by more than `JUMP_NS`, that is counted, what is there is emitted, and everything
    starts over, so that no frame mixes the two times. A step ahead that is smaller looks like
    sensors that were silent, and frames go on. Memory: per sensor one message for each frame that
    begins within `wait_ns` + `max_ahead_ns`, twice `max_sweeps` sweeps, and `MOST_WAITING` messages
    until t(0) is set.
    """

    def __init__(self, config: SynchronizerConfig, calibration: Calibration) -> None:
        """Start with no data.

        Args:
            config: Sensors, period and windows.
            calibration: Goes into each frame.
        """
        self.counters: Counter[str] = Counter()
        """Dropped messages by "SENSOR: reason", "time jumped back" and "time jumped ahead"."""
        self._config = config
        self._calibration = calibration
        self._calibration_epoch = 0
        self._sensors = (*config.cameras, LIDAR)
        self._state = self._nothing()
        self._clock = SetBack(config.period_ns)

    @property
    def deadline_ns(self) -> int | None:
        """When to `advance` if no message comes [ns]; None before the first message.

        The next frame goes out then, or its instant gets known.
        """
        state, latest_ns = self._state, self._state.grid.latest_ns
        if latest_ns is None or state.grid.is_waiting:
            return latest_ns
        is_complete = all(
            state.index in track.candidates or track.num_missed >= PATIENCE_FRAMES
            for track in state.tracks.values()
        )
        return latest_ns - (self._config.wait_ns if is_complete else 0)

    def set_calibration(self, calibration: Calibration, epoch: int = 0) -> None:
        """Use another calibration from the next frame on.

        Args:
            calibration: Goes into each frame.
            epoch: Its number.
        """
        self._calibration, self._calibration_epoch = calibration, epoch

    def push(self, message: SensorMessage, now_ns: int | None = None) -> list[SensorFrame]:
        """Take a message; give the frames that went out before it and those it completes.

        Args:
            message: What a sensor sent.
            now_ns: When it came, on the clock of the stamps [ns]; its stamp by default, as in a
                log that is read in order.
        """
        sensor = message.camera if isinstance(message, CameraImage) else LIDAR
        if sensor not in self._state.tracks:
            self.counters[f"{sensor}: unknown sensor"] += 1
            return []
        frames = self._set_time(message.stamp_ns if now_ns is None else now_ns)
        now_ns = self._now_ns()
        frames += self._emit_due(now_ns - 1)  # who comes at the very last moment is not too late
        self._receive(sensor, message, now_ns)
        return frames + self._emit_due(now_ns)

    def advance(self, now_ns: int) -> list[SensorFrame]:
        """Let time pass without a message; a small step back is ignored."""
        frames = self._set_time(now_ns)
        return frames + self._emit_due(self._now_ns())

    def reject(self, sensor: str, reason: str) -> None:
        """Count a message that could not be read, and say so in the next frame.

        Args:
            sensor: Who sent it.
            reason: What is wrong with it.
        """
        self.counters[f"{sensor}: malformed"] += 1
        if sensor in self._state.tracks:
            self._state.tracks[sensor].fault = f"malformed, {reason}"

    def flush(self) -> list[SensorFrame]:
        """Emit what has not been in a frame yet, without waiting."""
        frames = []
        self._store_all(self._state.grid.set())
        while any(
            track.used_ns is None or message.stamp_ns > track.used_ns
            for track in self._state.tracks.values()
            for message in track.candidates.values()
        ):
            frames.append(self._emit())
        return frames

    def _nothing(self, instant_ns: int | None = None) -> _State:
        config = self._config
        grid = FrameGrid(
            period_ns=config.period_ns,
            wait_ns=config.wait_ns,
            window_ns=config.window_ns,
            jitter_ns=config.jitter_ns,
            instant_ns=instant_ns,
        )
        tracks = {name: SensorTrack(offset_ns=config.offset_of(name)) for name in self._sensors}
        return _State(tracks=tracks, grid=grid)

    def _now_ns(self) -> int:
        """Time; there is one as soon as it has been set."""
        return self._clock.newest_ns or 0

    def _set_time(self, now_ns: int) -> list[SensorFrame]:
        """Go on to a time, or start over if that is too far away."""
        frames, latest_ns = [], self._state.grid.latest_ns
        is_back = self._clock.take(now_ns)
        if is_back or (latest_ns is not None and now_ns > latest_ns + JUMP_NS):
            self.counters["time jumped back" if is_back else "time jumped ahead"] += 1
            frames = self.flush()
            # Frames go on, empty ones too, until messages say where they belong.
            self._state = self._nothing(None if latest_ns is None else now_ns)
        return frames

    def _emit_due(self, now_ns: int) -> list[SensorFrame]:
        frames = []
        while (deadline_ns := self.deadline_ns) is not None and now_ns >= deadline_ns:
            if waiting := self._state.grid.set():
                self._store_all(waiting)
            else:
                frames.append(self._emit())
        return frames

    def _receive(self, sensor: str, message: SensorMessage, now_ns: int) -> None:
        """Take a message for the frames to come, or drop it."""
        grid, track = self._state.grid, self._state.tracks[sensor]
        timed = TimedMessage(
            sensor=sensor,
            message=message,
            now_ns=now_ns,
            instant_ns=message.stamp_ns - track.offset_ns,
        )
        if message.stamp_ns > now_ns + self._config.max_ahead_ns:
            self._drop(sensor, "early")
        elif grid.is_outdated(timed):
            self._drop(sensor, "stale")
        else:
            track.fault = ""
            self._store_all(grid.add(timed))

    def _store_all(self, messages: list[TimedMessage]) -> None:
        for timed in messages:
            fault = self._store(self._state.tracks[timed.sensor], timed)
            if fault is not None:
                self._drop(timed.sensor, fault)

    def _drop(self, sensor: str, fault: str) -> None:
        self.counters[f"{sensor}: {fault}"] += 1
        self._state.tracks[sensor].fault = fault

    def _store(self, track: SensorTrack, timed: TimedMessage) -> str | None:
        """Put a message where its frame will find it; give the reason if it is dropped."""
        state, config, message = self._state, self._config, timed.message
        stamp_ns, period_ns, window_ns = message.stamp_ns, config.period_ns, config.window_ns
        if stamp_ns in track.recent_ns:
            return "duplicate"
        if 0 < config.frozen_after <= track.count_alike(message):
            return "frozen"
        error_ns = timed.instant_ns - (state.grid.instant_ns or 0)
        if error_ns < -window_ns:
            fault = self._why_too_old(track, error_ns + period_ns, timed.now_ns)
            if fault is not None:
                return fault
        frames_ahead = max(0, -((window_ns - error_ns) // period_ns))
        if error_ns - frames_ahead * period_ns < -window_ns:  # in no frame's window
            if any(stamp_ns < recent_ns for recent_ns in track.recent_ns):
                return "out of order"
        else:
            held = track.candidates.get(state.index + frames_ahead)
            if held is not None and stamp_ns < held.stamp_ns:
                return "out of order"
            track.candidates[state.index + frames_ahead] = message
        track.recent_ns.append(stamp_ns)
        if isinstance(message, LidarSweep):
            bisect.insort(state.sweeps, message, key=lambda sweep: sweep.stamp_ns)
            del state.sweeps[: -2 * config.max_sweeps]
        return None

    def _why_too_old(self, track: SensorTrack, error_ns: int, now_ns: int) -> str | None:
        """Say what a message is that is too old for the next frame, from its error in the last."""
        config, instant_ns = self._config, self._state.grid.instant_ns or 0
        had_come_in_time = now_ns <= instant_ns - config.period_ns + config.wait_ns
        if had_come_in_time and abs(error_ns) <= config.window_ns:
            track.num_missed = 0  # the last frame would have had it, had it waited
        if error_ns < -config.window_ns:
            return "stale"
        is_late = error_ns <= 0 and not (had_come_in_time and track.was_used)
        return "late" if is_late else None

    def _emit(self) -> SensorFrame:
        """Make the next frame of what there is."""
        state = self._state
        instant_ns = state.grid.instant_ns or 0
        found = {
            name: track.candidates[state.index]
            for name, track in state.tracks.items()
            if state.index in track.candidates
        }
        images = {n: message for n, message in found.items() if isinstance(message, CameraImage)}
        stamp_ns, reference = self._reference(found, images, instant_ns)
        frame = SensorFrame(
            stamp_ns=stamp_ns,
            T_global_ego=None if reference is None else reference.T_global_ego,
            images=images,
            sweeps=self._sweeps(found.get(LIDAR)),
            calibration=self._calibration,
            missing={
                name: track.why_missing()
                for name, track in state.tracks.items()
                if name not in found
            },
            calibration_epoch=self._calibration_epoch,
        )
        state.stamp_ns = stamp_ns
        state.grid.move_on()
        oldest_ns = instant_ns + self._config.period_ns - self._config.window_ns
        state.index += 1
        for track in state.tracks.values():
            track.move_on(state.index, oldest_ns + track.offset_ns)
        return frame

    def _reference(
        self,
        found: Mapping[str, SensorMessage],
        images: Mapping[str, CameraImage],
        instant_ns: int,
    ) -> tuple[int, SensorMessage | None]:
        """Stamp of a frame, and the message that has it, if any."""
        last_ns = self._state.stamp_ns
        newest = max(images.values(), key=lambda image: image.stamp_ns, default=None)
        for message in (found.get(LIDAR), newest):
            if message is not None and (last_ns is None or message.stamp_ns > last_ns):
                return message.stamp_ns, message
        return instant_ns if last_ns is None else max(instant_ns, last_ns + 1), None

    def _sweeps(self, newest: SensorMessage | None) -> tuple[LidarSweep, ...]:
        """The LiDAR's message and those before it, newest first."""
        if not isinstance(newest, LidarSweep):
            return ()
        older = [sweep for sweep in self._state.sweeps if sweep.stamp_ns < newest.stamp_ns]
        return (newest, *reversed(older))[: self._config.max_sweeps]
