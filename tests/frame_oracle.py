"""The synchroniser's rules once more: each step from the whole history, nothing carried along."""

from collections import Counter
from dataclasses import dataclass, field
from itertools import takewhile

from perception.taxonomy import LIDAR
from runtime.frame_grid import MOST_WAITING
from runtime.sensor_track import RECENT_STAMPS
from runtime.synchronizer import PATIENCE_FRAMES, SynchronizerConfig
from runtime.time_steps import JUMP_NS

Push = tuple[str, int, int | None]
"""Sensor, stamp, and time of arrival, None for the stamp. Sensor "time": no message, only time."""


@dataclass(frozen=True)
class OracleFrame:
    stamp: int
    used: dict[str, int]
    sweeps: tuple[int, ...]
    missing: dict[str, str]


@dataclass
class Oracle:
    """Feed it `step`; frames and counters are what the synchroniser should have given."""

    config: SynchronizerConfig
    frames: list[OracleFrame] = field(default_factory=list)
    counters: Counter[str] = field(default_factory=Counter)
    time: int | None = None
    times: list[int] = field(default_factory=list)
    """Every time since the last jump, in order of arrival."""
    start: int | None = None
    """t(0)"""
    start_is_sample: bool = False
    waiting: list[tuple[str, int, int]] = field(default_factory=list)
    """Sensor, stamp and time of messages that came before t(0) was set by one."""
    epoch: list[OracleFrame] = field(default_factory=list)
    """Frames since the last jump, of them `old` before t(0) was set by a message."""
    old: int = 0
    kept: dict[str, list[int]] = field(default_factory=dict)
    """Every stamp since the last jump that was not dropped, in order of arrival."""
    attempts: dict[str, list[str]] = field(default_factory=dict)
    """Per sensor: "hit" or "miss" for each frame, "almost" for a message that came too late only
    because the frame had not waited."""
    last_fault: dict[str, str] = field(default_factory=dict)
    unfit: set[tuple[str, int]] = field(default_factory=set)
    """What was not dropped and yet in no window of a frame to come."""

    def __post_init__(self) -> None:
        self.sensors = (*self.config.cameras, LIDAR)
        self.offsets = {sensor: self.config.offset_of(sensor) for sensor in self.sensors}

    def instant(self, ahead: int = 0) -> int:
        assert self.start is not None
        return self.start + (len(self.epoch) - self.old + ahead) * self.config.period_ns

    def window(self, sensor: str, ahead: int = 0) -> range:
        """Stamps that are usable for the next frame, or for one further ahead."""
        expected, most = self.instant(ahead) + self.offsets[sensor], self.config.window_ns
        return range(expected - most, expected + most + 1)

    def fits(self, sensor: str, stamp: int, ahead: int = 0) -> bool:
        return stamp in self.window(sensor, ahead)

    def step(self, push: Push) -> None:
        sensor, stamp, now = push
        if sensor not in (*self.sensors, "time"):
            self.counters[f"{sensor}: unknown sensor"] += 1
            return
        self.pass_time(stamp if now is None else now)
        assert self.time is not None
        if sensor != "time":
            self.emit_due(self.time - 1)
            if fault := self.fault(sensor, stamp):
                self.drop(sensor, fault)
            else:
                self.last_fault[sensor] = ""
                self.waiting.append((sensor, stamp, self.time))
                if self.start_is_sample or sensor == LIDAR or len(self.waiting) == MOST_WAITING:
                    self.settle()
        self.emit_due(self.time)

    def drop(self, sensor: str, fault: str) -> None:
        self.last_fault[sensor] = fault
        self.counters[f"{sensor}: {fault}"] += 1

    def fault(self, sensor: str, stamp: int) -> str:
        """Why a message is of no use to any grid."""
        assert self.time is not None
        if stamp > self.time + self.config.max_ahead_ns:
            return "early"
        oldest = self.time - self.config.wait_ns - self.config.window_ns + self.offsets[sensor]
        return "stale" if stamp < oldest and not self.start_is_sample else ""

    def settle(self) -> None:
        """Set t(0), if it is not, and take what has waited for it."""
        if not self.start_is_sample:
            self.start, self.start_is_sample, self.old = self.first(), True, len(self.epoch)
        for sensor, stamp, time in self.waiting:
            if fault := self.grid_fault(sensor, stamp, time):
                self.drop(sensor, fault)
            else:
                self.kept.setdefault(sensor, []).append(stamp)
        self.waiting = []

    def first(self) -> int:
        """t(0): when the LiDAR's sweep came, if one has, else by the first message."""
        sweeps = [entry for entry in self.waiting if entry[0] == LIDAR]
        sensor, stamp, time = (sweeps or self.waiting)[0]
        expected = stamp - self.offsets[sensor]
        if not sweeps:
            return expected
        come = max(expected, time) + self.config.jitter_ns
        return min(come, expected + self.config.window_ns)

    def pass_time(self, now: int) -> None:
        self.times.append(now)
        back = self.is_set_back()
        end = self.end()
        ahead = end is not None and now > end + JUMP_NS
        if back or ahead:
            self.counters["time jumped back" if back else "time jumped ahead"] += 1
            self.flush()
            self.start = None if end is None else now
            self.start_is_sample, self.old, self.time, self.times = False, 0, now, [now]
            self.epoch, self.kept, self.attempts, self.last_fault = [], {}, {}, {}
            self.waiting = []
        self.time = now if self.time is None else max(self.time, now)

    def end(self) -> int | None:
        """When the next frame goes out or t(0) is set, at the latest."""
        if self.waiting:
            return self.waiting[0][2] + self.config.period_ns
        return None if self.start is None else self.instant() + self.config.wait_ns

    def is_set_back(self) -> bool:
        """Whether the last times are all more than half a period behind, and for a period."""
        *_, now = self.times
        near = max(self.times) - min(self.config.period_ns // 2, JUMP_NS)
        behind = list(takewhile(lambda time: time < near, reversed(self.times)))
        far = now < max(self.times) - JUMP_NS
        return far or bool(behind and now - min(behind) >= self.config.period_ns)

    def grid_fault(self, sensor: str, stamp: int, time: int) -> str:
        config, offset = self.config, self.offsets[sensor]
        if stamp in self.kept.get(sensor, [])[-RECENT_STAMPS:]:
            return "duplicate"
        furthest = 2 + (config.max_ahead_ns + config.wait_ns + JUMP_NS) // config.period_ns
        possible = [i for i in range(furthest) if self.fits(sensor, stamp, i)]
        newer = [other for other in self.kept.get(sensor, []) if other > stamp]
        if possible:
            replaced = all(any(self.fits(sensor, n, i) for n in newer) for i in possible)
            return "out of order" if replaced else ""
        if stamp - offset < self.instant():
            if stamp - offset < self.instant(-1) - config.window_ns:
                return "stale"
            in_time = time <= self.instant(-1) + config.wait_ns
            if in_time and self.fits(sensor, stamp, -1):
                self.attempts.setdefault(sensor, []).append("almost")
            had_older = bool(self.epoch) and sensor in self.epoch[-1].used
            if stamp - offset <= self.instant(-1) and not (in_time and had_older):
                return "late"
        recent = self.kept.get(sensor, [])[-RECENT_STAMPS:]
        if any(other > stamp for other in recent):
            return "out of order"
        self.unfit.add((sensor, stamp))
        return ""

    def unexplained(self) -> list[tuple[str, int]]:
        """Messages since the last jump that were neither counted, nor used, nor replaced."""
        found = []
        for sensor, stamps in self.kept.items():
            used = [f.used[sensor] for f in self.epoch if sensor in f.used]
            found += [(sensor, stamp) for stamp in stamps if stamp > max(used, default=stamp - 1)]
        return [entry for entry in found if entry not in self.unfit]

    def best(self) -> dict[str, int]:
        newest = {}
        for sensor, stamps in self.kept.items():
            window = self.window(sensor)
            if usable := [stamp for stamp in stamps if stamp in window]:
                newest[sensor] = max(usable)
        return newest

    def is_awaited(self, sensor: str) -> bool:
        return self.attempts.get(sensor, [])[-PATIENCE_FRAMES:] != ["miss"] * PATIENCE_FRAMES

    def emit_due(self, now: int) -> None:
        while (end := self.end()) is not None:
            if self.waiting:
                if now < end:
                    return
                self.settle()
                continue
            best = self.best()
            complete = all(s in best or not self.is_awaited(s) for s in self.sensors)
            if now < (self.instant() if complete else end):
                return
            self.emit()

    def emit(self) -> None:
        best, last = self.best(), self.epoch[-1].stamp if self.epoch else -(10**30)
        images = [stamp for sensor, stamp in best.items() if sensor != LIDAR]
        wanted = [best.get(LIDAR, last), max(images, default=last), self.instant(), last + 1]
        limit = self.config.max_sweeps
        recent = sorted(self.kept.get(LIDAR, []))[-2 * limit :]
        older = [stamp for stamp in recent if LIDAR in best and stamp < best[LIDAR]]
        sweeps = [best[LIDAR], *reversed(older)][:limit] if LIDAR in best else []
        frame = OracleFrame(
            stamp=next(stamp for stamp in wanted if stamp > last),
            used=best,
            sweeps=tuple(sweeps),
            missing={s: self.why_missing(s) for s in self.sensors if s not in best},
        )
        for sensor in self.sensors:
            self.attempts.setdefault(sensor, []).append("hit" if sensor in best else "miss")
        self.last_fault = {}
        self.epoch.append(frame)
        self.frames.append(frame)

    def why_missing(self, sensor: str) -> str:
        if self.last_fault.get(sensor):
            return f"message dropped: {self.last_fault[sensor]}"
        return "no data in time" if self.kept.get(sensor) else "no data yet"

    def flush(self) -> None:
        if self.waiting:
            self.settle()
        while self.start is not None and self.has_unused():
            self.emit()

    def has_unused(self) -> bool:
        horizon = 2 + (self.config.max_ahead_ns + JUMP_NS) // self.config.period_ns
        return any(
            self.fits(sensor, stamp, ahead)
            and all(stamp > frame.used.get(sensor, stamp - 1) for frame in self.epoch)
            for sensor, stamps in self.kept.items()
            for stamp in stamps
            for ahead in range(horizon)
        )
