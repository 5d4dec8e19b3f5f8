"""Feeds a recorded log to the synchronizer, at the pace of its stamps or without a clock.

decoder thread --(messages read ahead)--> feeder thread --(newest frame)--> whoever iterates
  JPEG, points                             waits for each stamp's time,
                                           synchronizer
"""

import queue
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from perception.data.nuscenes_log import MissingFile, NuScenesLog
from perception.messages import CameraImage, SensorFrame, SensorMessage
from perception.taxonomy import LIDAR
from runtime.latency import LatencyRecorder
from runtime.synchronizer import Synchronizer, SynchronizerConfig

READ_AHEAD = 24
"""Messages decoded in advance: a quarter of a second of nuScenes, 100 MiB of images.
Source: ours."""

OVERTAKEN = "overtaken by a newer frame while the pipeline was busy"

Entry = tuple[str, SensorMessage | MissingFile]
"""Scene and what it delivers next."""

DecodedQueue = queue.Queue[Entry | Exception | None]
"""Entries in order, then None; or what went wrong while reading."""


@dataclass(frozen=True, kw_only=True)
class FedFrame:
    """A frame and when it came about, on `time.perf_counter` [s]; no times on the virtual clock."""

    scene: str
    frame: SensorFrame
    stamp_s: float | None = None
    """When the replay's clock stood at the frame's stamp."""
    complete_s: float | None = None
    """When the synchronizer emitted the frame."""


class LogFeed:
    """Frames of a log in time order, one scene after the other, and what happened on the way."""

    def __init__(
        self,
        log: NuScenesLog,
        scenes: Sequence[str],
        config: SynchronizerConfig,
        recorder: LatencyRecorder,
    ) -> None:
        """Prepare; nothing is read yet.

        Args:
            log: Where the messages come from.
            scenes: Which, in this order.
            config: How they become frames.
            recorder: Takes the time per file under "decode".
        """
        self.num_frames = 0
        """Frames that the synchronizer has emitted."""
        self.messages: Counter[str] = Counter()
        """Messages per sensor."""
        self.missing_files: list[MissingFile] = []
        self.dropped_frames: Counter[str] = Counter()
        """Frames never given out, by reason."""
        self.synchronizer_counters: Counter[str] = Counter()
        self.held_back_s = 0.0
        """How long the clock stood still because decoding was slower than the log [s]."""
        self._log = log
        self._scenes = scenes
        self._config = config
        self._recorder = recorder

    def virtual(self) -> Iterator[FedFrame]:
        """Every frame, as fast as the caller takes them; the same ones in every run."""
        for scene in self._scenes:
            synchronizer = self._synchronizer(scene)
            for _, item in self._entries(scene):
                frames = synchronizer.advance(item.stamp_ns) + self._push(synchronizer, item)
                for frame in frames:
                    yield self._count(FedFrame(scene=scene, frame=frame))
            for frame in synchronizer.flush():
                yield self._count(FedFrame(scene=scene, frame=frame))
            self.synchronizer_counters += synchronizer.counters

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
                    self._close_group(newest, pace, stop)
                    newest.wait_until_fetched(stop)  # the next scene overtakes nothing of this one
                    self.synchronizer_counters += pace.synchronizer.counters
                if entry is None:
                    break
                scene, item = entry
                if pace is None or scene != pace.scene:
                    pace = _PacedScene(scene, self._synchronizer(scene), item.stamp_ns, speed)
                elif starved:
                    self.held_back_s += pace.hold_back(item.stamp_ns)
                deadline_ns = pace.synchronizer.deadline_ns
                if deadline_ns is not None and deadline_ns < item.stamp_ns:
                    self._close_group(newest, pace, stop)
                pace.wait_until(item.stamp_ns, stop)
                frames = pace.synchronizer.advance(item.stamp_ns)
                self._give(newest, pace, frames + self._push(pace.synchronizer, item))
            newest.end(None)
        except Exception as error:  # goes to the thread that can tell the user
            newest.end(error)

    def _close_group(
        self, newest: "_NewestFrame", pace: "_PacedScene", stop: threading.Event
    ) -> None:
        """Wait until the open group, if any, has waited long enough, and emit it."""
        deadline_ns = pace.synchronizer.deadline_ns
        if deadline_ns is not None:
            pace.wait_until(deadline_ns, stop)
            self._give(newest, pace, pace.synchronizer.advance(deadline_ns))

    def _give(
        self, newest: "_NewestFrame", pace: "_PacedScene", frames: Sequence[SensorFrame]
    ) -> None:
        for frame in frames:
            fed = FedFrame(
                scene=pace.scene,
                frame=frame,
                stamp_s=pace.time_of(frame.stamp_ns),
                complete_s=time.perf_counter(),
            )
            newest.put(self._count(fed))

    def _synchronizer(self, scene: str) -> Synchronizer:
        return Synchronizer(self._config, self._log.calibration(scene))

    def _entries(self, scene: str) -> Iterator[Entry]:
        """The log's messages, each timed while it is read."""
        messages = self._log.messages(scene)
        while True:
            start = time.perf_counter()
            item = next(messages, None)
            if item is None:
                return
            if not isinstance(item, MissingFile):
                self._recorder.add("decode", (time.perf_counter() - start) * 1e3)
            yield scene, item

    def _push(
        self, synchronizer: Synchronizer, item: SensorMessage | MissingFile
    ) -> list[SensorFrame]:
        if isinstance(item, MissingFile):
            self.missing_files.append(item)
            return []
        self.messages[item.camera if isinstance(item, CameraImage) else LIDAR] += 1
        return synchronizer.push(item)

    def _count(self, fed: FedFrame) -> FedFrame:
        self.num_frames += 1
        return fed


class _PacedScene:
    """One scene's synchronizer on a clock that runs `speed` times as fast as its stamps."""

    def __init__(self, scene: str, synchronizer: Synchronizer, stamp_ns: int, speed: float) -> None:
        self.scene = scene
        self.synchronizer = synchronizer
        self._first_ns = stamp_ns
        self._start_s = time.perf_counter()
        self._speed = speed

    def time_of(self, stamp_ns: int) -> float:
        """When the clock stands at a stamp [s]."""
        return self._start_s + (stamp_ns - self._first_ns) * 1e-9 / self._speed

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
