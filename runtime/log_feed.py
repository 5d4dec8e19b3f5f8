"""Feeds a recording to the synchronizer, at the pace of its stamps or without a clock.

decoder thread --(messages read ahead)--> feeder thread --(newest frame)--> whoever iterates
  JPEG, points, faults                     waits for each message's time,
                                           synchronizer
"""

import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from perception.data.nuscenes_log import MissingFile
from perception.messages import SensorFrame
from runtime.latency import LatencyRecorder
from runtime.message_source import Arrival, MessageSource, sensor_of
from runtime.replay_faults import FaultPlan, with_faults
from runtime.sensor_times import SensorTimes
from runtime.synchronizer import Synchronizer, SynchronizerConfig

READ_AHEAD = 24
"""Messages decoded in advance: a quarter of a second of nuScenes, 100 MiB of images.
Source: ours."""

MAX_SILENCE_NS = 10_000_000_000
"""A recording that says nothing for longer was paused: the clock goes on where it goes on [ns].
Source: ours; shorter silences give frames without sensors, as in the car."""

OVERTAKEN = "overtaken by a newer frame while the pipeline was busy"

Entry = tuple[str, Arrival]
"""Scene and what arrives next."""

DecodedQueue = queue.Queue[Entry | Exception | None]
"""Entries in order, then None; or what went wrong while reading."""


@dataclass(frozen=True, kw_only=True)
class FedFrame:
    """A frame and when it came about; on the virtual clock there is only the stamps' time."""

    scene: str
    frame: SensorFrame
    emitted_ns: int
    """When the synchronizer gave it, on the clock of the stamps [ns]."""
    stamp_s: float | None = None
    """When the replay's clock stood at the frame's stamp, on `time.perf_counter` [s]."""
    complete_s: float | None = None
    """When the synchronizer gave the frame, on `time.perf_counter` [s]."""


class LogFeed:
    """Frames of a recording in time order, one scene after the other, and what happened."""

    def __init__(
        self,
        source: MessageSource,
        scenes: Sequence[str],
        config: SynchronizerConfig,
        recorder: LatencyRecorder,
        faults: FaultPlan | None = None,
    ) -> None:
        """Prepare; nothing is read yet.

        Args:
            source: Where the messages come from.
            scenes: Which, in this order.
            config: How they become frames.
            recorder: Takes the time per message under "decode".
            faults: What is done to the messages on the way; nothing by default.
        """
        self.num_frames = 0
        """Frames that the synchronizer has emitted."""
        self.messages: Counter[str] = Counter()
        """Messages per sensor that arrived."""
        self.missing_files: list[MissingFile] = []
        self.dropped_frames: Counter[str] = Counter()
        """Frames never given out, by reason."""
        self.faults: Counter[str] = Counter()
        """What was done to messages, as "SENSOR: kind"."""
        self.sensor_times = SensorTimes()
        """Gets every message of the recording."""
        self.held_back_s = 0.0
        """How long the clock stood still because decoding was slower than the log [s]."""
        self._source = source
        self._scenes = scenes
        self._config = config
        self._recorder = recorder
        self._plan = faults or FaultPlan()
        self._counters: list[Counter[str]] = []
        """Each scene's synchronizer's."""

    @property
    def synchronizer_counters(self) -> Counter[str]:
        """What the synchronizers of all scenes so far have dropped, as "SENSOR: cause"."""
        return sum(self._counters, Counter())

    def virtual(self) -> Iterator[FedFrame]:
        """Every frame, as fast as the caller takes them; the same ones in every run."""
        for scene in self._scenes:
            synchronizer = self._synchronizer(scene)
            last_ns: int | None = None
            for _, arrival in self._entries(scene):
                for now_ns, frame in self._steps(synchronizer, arrival, last_ns):
                    yield self._fed(scene, frame, now_ns)
                last_ns = arrival.now_ns
            for frame in synchronizer.flush():
                yield self._fed(scene, frame, last_ns or frame.stamp_ns)

    def paced(self, speed: float) -> Iterator[FedFrame]:
        """The newest frame whenever the caller asks; a frame that was overtaken is counted.

        Messages come with the offsets that they have in the log. Decoding runs ahead in its own
        thread; where it cannot keep up, the clock is held back, and for how long is counted.

        Args:
            speed: Seconds of the log per second, above 0.
        """
        stop = threading.Event()
        decoded: DecodedQueue = queue.Queue(READ_AHEAD)
        newest = _NewestFrame()
        threads = [
            threading.Thread(target=self._decode, args=(decoded, stop), daemon=True),
            threading.Thread(target=self._feed, args=(decoded, newest, speed, stop), daemon=True),
        ]
        for thread in threads:
            thread.start()
        try:
            yield from newest.frames()
        finally:
            stop.set()
            for thread in threads:
                thread.join()
            self.dropped_frames[OVERTAKEN] += newest.num_overtaken

    def _decode(self, decoded: DecodedQueue, stop: threading.Event) -> None:
        try:
            for scene in self._scenes:
                for entry in self._entries(scene):
                    if stop.is_set():
                        return
                    _put(decoded, entry, stop)
            _put(decoded, None, stop)
        except Exception as error:  # goes to the thread that can tell the user
            _put(decoded, error, stop)

    def _feed(
        self,
        decoded: DecodedQueue,
        newest: "_NewestFrame",
        speed: float,
        stop: threading.Event,
    ) -> None:
        pace: _PacedScene | None = None
        try:
            while not stop.is_set():
                starved = decoded.empty()
                entry = _get(decoded, stop)
                if isinstance(entry, Exception):
                    raise entry
                if pace is not None and (entry is None or entry[0] != pace.scene):
                    self._end_scene(newest, pace, stop)
                if entry is None:
                    break
                scene, arrival = entry
                if pace is None or scene != pace.scene:
                    pace = _PacedScene(scene, self._synchronizer(scene), arrival.now_ns, speed)
                elif arrival.now_ns - pace.last_ns > MAX_SILENCE_NS:
                    pace.skip(arrival.now_ns - pace.last_ns - self._config.period_ns)
                elif starved:
                    self.held_back_s += pace.hold_back(arrival.now_ns)
                self._feed_one(newest, pace, arrival, stop)
            newest.end(None)
        except Exception as error:  # goes to the thread that can tell the user
            newest.end(error)

    def _feed_one(
        self,
        newest: "_NewestFrame",
        pace: "_PacedScene",
        arrival: Arrival,
        stop: threading.Event,
    ) -> None:
        def wait(now_ns: int) -> None:
            pace.wait_until(now_ns, stop)

        for now_ns, frame in self._steps(pace.synchronizer, arrival, pace.last_ns, wait):
            self._give(newest, pace, frame, now_ns)
        pace.last_ns = arrival.now_ns

    def _end_scene(
        self, newest: "_NewestFrame", pace: "_PacedScene", stop: threading.Event
    ) -> None:
        for frame in pace.synchronizer.flush():
            self._give(newest, pace, frame, pace.last_ns)
        newest.wait_until_fetched(stop)  # the next scene overtakes nothing of this one

    def _give(
        self, newest: "_NewestFrame", pace: "_PacedScene", frame: SensorFrame, now_ns: int
    ) -> None:
        stamp_s, complete_s = pace.time_of(frame.stamp_ns), time.perf_counter()
        newest.put(self._fed(pace.scene, frame, now_ns, stamp_s, complete_s))

    def _synchronizer(self, scene: str) -> Synchronizer:
        synchronizer = Synchronizer(self._config, self._source.calibration(scene))
        self._counters.append(synchronizer.counters)
        return synchronizer

    def _steps(
        self,
        synchronizer: Synchronizer,
        arrival: Arrival,
        last_ns: int | None,
        wait: Callable[[int], None] = lambda now_ns: None,
    ) -> Iterator[tuple[int, SensorFrame]]:
        """Frames that are due before a message, and those that it completes, with their time."""
        until_ns, due_ns = arrival.now_ns, synchronizer.deadline_ns
        if last_ns is not None and until_ns - last_ns > MAX_SILENCE_NS:
            until_ns = last_ns + self._config.period_ns
        while due_ns is not None and due_ns < until_ns:
            wait(due_ns)
            for frame in synchronizer.advance(due_ns):
                yield due_ns, frame
            due_ns = synchronizer.deadline_ns
        wait(arrival.now_ns)
        for frame in self._push(synchronizer, arrival):
            yield arrival.now_ns, frame

    def _push(self, synchronizer: Synchronizer, arrival: Arrival) -> list[SensorFrame]:
        message, now_ns = arrival.message, arrival.now_ns
        if message is None or isinstance(message, MissingFile):
            if message is not None:
                self.missing_files.append(message)
                synchronizer.reject(message.sensor, message.reason)
            return synchronizer.advance(now_ns)
        self.messages[sensor_of(message)] += 1
        return synchronizer.push(message, now_ns)

    def _entries(self, scene: str) -> Iterator[Entry]:
        """What arrives, each message timed while it is read."""
        for arrival in with_faults(self._timed(scene), self._plan, scene, self.faults):
            yield scene, arrival

    def _timed(self, scene: str) -> Iterator[Arrival]:
        arrivals = self._source.arrivals(scene)
        while True:
            start = time.perf_counter()
            arrival = next(arrivals, None)
            if arrival is None:
                return
            message = arrival.message
            if not isinstance(message, MissingFile | None):
                self._recorder.add("decode", (time.perf_counter() - start) * 1e3)
                self.sensor_times.add_message(scene, sensor_of(message), message.stamp_ns)
            yield arrival

    def _fed(
        self,
        scene: str,
        frame: SensorFrame,
        emitted_ns: int,
        stamp_s: float | None = None,
        complete_s: float | None = None,
    ) -> FedFrame:
        self.num_frames += 1
        return FedFrame(
            scene=scene,
            frame=frame,
            emitted_ns=emitted_ns,
            stamp_s=stamp_s,
            complete_s=complete_s,
        )


class _PacedScene:
    """One scene's synchronizer on a clock that runs `speed` times as fast as its stamps."""

    def __init__(self, scene: str, synchronizer: Synchronizer, stamp_ns: int, speed: float) -> None:
        self.scene = scene
        self.synchronizer = synchronizer
        self.last_ns = stamp_ns
        """When the last message arrived [ns]."""
        self._first_ns = stamp_ns
        self._start_s = time.perf_counter()
        self._speed = speed

    def time_of(self, stamp_ns: int) -> float:
        """When the clock stands at a stamp [s]."""
        return self._start_s + (stamp_ns - self._first_ns) * 1e-9 / self._speed

    def skip(self, pause_ns: int) -> None:
        """Let a pause of the recording [ns] take no time."""
        self._start_s -= pause_ns * 1e-9 / self._speed

    def hold_back(self, stamp_ns: int) -> float:
        """Let the clock stand at `stamp_ns` if it is past it; gives by how much [s]."""
        late_s = max(0.0, time.perf_counter() - self.time_of(stamp_ns))
        self._start_s += late_s
        return late_s

    def wait_until(self, stamp_ns: int, stop: threading.Event) -> None:
        """Sleep until the clock stands at a stamp."""
        stop.wait(max(0.0, self.time_of(stamp_ns) - time.perf_counter()))


class _NewestFrame:
    """A place for one frame: a newer one takes the place of one that nobody has fetched."""

    def __init__(self) -> None:
        self.num_overtaken = 0
        self._changed = threading.Condition()
        self._fed: FedFrame | None = None
        self._ended = False
        self._error: Exception | None = None

    def put(self, fed: FedFrame) -> None:
        """Offer a frame."""
        with self._changed:
            self.num_overtaken += self._fed is not None
            self._fed = fed
            self._changed.notify()

    def wait_until_fetched(self, stop: threading.Event) -> None:
        """Wait until nobody has a frame to fetch any more."""
        with self._changed:
            while self._fed is not None and not stop.is_set():
                self._changed.wait(timeout=0.1)

    def end(self, error: Exception | None) -> None:
        """Say that no frame follows, and why if something went wrong."""
        with self._changed:
            self._ended, self._error = True, error
            self._changed.notify()

    def frames(self) -> Iterator[FedFrame]:
        """Frames until the end; waits for the next one."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._fed is not None or self._ended)
                fed, self._fed = self._fed, None
                self._changed.notify()
            if fed is None:
                break
            yield fed
        if self._error is not None:
            raise self._error


def _put(decoded: DecodedQueue, entry: Entry | Exception | None, stop: threading.Event) -> None:
    while not stop.is_set():
        try:
            decoded.put(entry, timeout=0.1)
            return
        except queue.Full:
            continue


def _get(decoded: DecodedQueue, stop: threading.Event) -> Entry | Exception | None:
    while not stop.is_set():
        try:
            return decoded.get(timeout=0.1)
        except queue.Empty:
            continue
    return None
