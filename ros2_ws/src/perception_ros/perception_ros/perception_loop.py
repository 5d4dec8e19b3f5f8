"""From sensor messages to results: synchroniser, ego poses, calibration, one inference worker.

No ROS in it. All but `state` and what `publish` does is called by one thread, the executor's.
"""

import dataclasses
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from perception_ros.newest_worker import NewestWorker
from perception_ros.rig import Rig
from runtime.api import (
    LIDAR,
    CalibrationEpochs,
    CameraImage,
    EgoPoseBuffer,
    Ladder,
    LatencyRecorder,
    LatencySummary,
    PerceptionResult,
    SensorFrame,
    SensorMessage,
    Synchronizer,
    SynchronizerConfig,
)

POSE_WAIT_S = 0.02
"""Longest wait for odometry that is younger than the frame's newest data [s]. Source: ours; one
period of 50 Hz."""

POSE_ALIVE_NS = 200_000_000
"""Odometry older than this against the frame is not waited for [ns]. Source: ours."""

CALIBRATION_S = 0.5
"""Shortest time between two changes of the rig that are prepared [s]. Source: ours; a link that
jitters would have a pool table made with each of its messages."""

NUM_LATENCIES = 600
"""Times per stage that percentiles are taken of. Source: ours; one minute at 10 Hz."""


@dataclass(frozen=True, kw_only=True)
class LoopState:
    """What there is to report about a running loop."""

    result: PerceptionResult | None
    """The newest result; None before the first."""
    silent_s: float
    """Time since the newest result, or since the start [s]."""
    now_ns: int
    """Time on the clock of the stamps [ns]."""
    newest_ns: Mapping[str, int]
    """Stamp of the newest message per sensor [ns]."""
    latency: Mapping[str, LatencySummary]
    """Per stage, over the last frames."""
    counters: Mapping[str, int]
    """Everything that was dropped or overtaken, by reason, since the start."""
    calibration_epoch: int
    """Which calibration new frames get."""
    calibration_fault: str | None
    """Why the newest refused calibration was refused; None where none was."""


@dataclass(frozen=True, kw_only=True)
class _Job:
    frame: SensorFrame
    complete_s: float


class PerceptionLoop:
    """Callbacks store and return; the worker computes the newest frame and publishes its result."""

    def __init__(
        self,
        ladder: Ladder,
        rig: Rig,
        config: SynchronizerConfig,
        *,
        clock_ns: Callable[[], int],
        publish: Callable[[PerceptionResult], None],
        on_error: Callable[[Exception], None],
    ) -> None:
        """Start the worker; what raises leaves no thread behind.

        Args:
            ladder: Computes frames; not closed here.
            rig: The calibration; `calibrate` is called when it has changed.
            config: Sensors, period and waiting time.
            clock_ns: The clock that stamps are of [ns]; 0 while it is not known.
            publish: Called in the worker with each result.
            on_error: Called in the worker with our own mistakes.
        """
        self._ladder, self._rig = ladder, rig
        self._clock_ns, self._publish, self._report = clock_ns, publish, on_error
        self._epoch, self._calibration = 0, rig.calibration()
        self._calibrated_s, self._rig_has_changed = -math.inf, False
        self._synchronizer = Synchronizer(config, self._calibration)
        self._config = config
        self._last_reading_ns, self._empty_ns = 0, 0
        self._settled_ns: int | None = None
        self._lock = threading.Condition()
        """Guards what the worker and the executor's thread share: the fields below."""
        self._poses = EgoPoseBuffer()
        self._pose_ns = 0
        self._newest_ns: dict[str, int] = {}
        self._counters: Counter[str] = Counter()
        self._ladder_counters: Counter[str] = Counter()
        self._latency = LatencyRecorder(NUM_LATENCIES)
        self._result: PerceptionResult | None = None
        self._result_s = time.monotonic()
        # Last: a thread keeps the process alive when something above raises.
        self._epochs = CalibrationEpochs(self._calibration, ladder.prepare_calibration)
        self._worker: NewestWorker[_Job] = NewestWorker(self._compute, self._on_error, "inference")

    def close(self) -> None:
        """Let the worker finish its frame and give the threads back."""
        self._worker.stop()
        self._epochs.close()

    def push(self, message: SensorMessage) -> None:
        """Take an image or a sweep."""
        sensor = message.camera if isinstance(message, CameraImage) else LIDAR
        clock_ns = self._clock_ns()
        if clock_ns == 0:
            self.count(f"{sensor}: no clock yet")
            return
        with self._lock:
            self._newest_ns[sensor] = message.stamp_ns
        # Not simply the clock: after a pause of the process other messages of this instant still
        # wait to be read. What is certain is the last tick, and what the stamp itself proves.
        known_ns = clock_ns if self._settled_ns is None else self._settled_ns
        self._submit(
            self._synchronizer.push(message, max(known_ns, min(message.stamp_ns, clock_ns)))
        )

    def reject(self, sensor: str, reason: str) -> None:
        """Count a message of a camera or the LiDAR that could not be read, by its own reason."""
        self._synchronizer.reject(sensor, reason)
        self.count(f"{sensor}: {reason}")

    def count(self, reason: str, number: int = 1) -> None:
        """Count something else that was dropped or needs a look."""
        with self._lock:
            self._counters[reason] += number

    def add_pose(self, stamp_ns: int, T_global_ego: np.ndarray) -> None:
        """Take a pose of the car."""
        with self._lock:
            self._poses.add(stamp_ns, T_global_ego)
            self._pose_ns = stamp_ns
            self._lock.notify()

    @property
    def knows_lidar(self) -> bool:
        """Whether the calibration that frames carry says where the LiDAR sits."""
        return self._calibration.knows_lidar

    def size_fault(self, camera: str, width_px: int, height_px: int) -> str | None:
        """Why a camera's images of this size fit a network of the ladder not; None: they do."""
        specs = [pipeline.bundle.card.inputs for pipeline in self._ladder.pipelines]
        try:
            for spec in specs:
                if camera in spec.cameras:
                    spec.image.A_img_aug_img(width_px, height_px)
        except ValueError as error:
            return str(error)
        return None

    def calibrate(self) -> None:
        """The rig has changed: prepare it beside the running frames, then use it.

        Changes that follow each other sooner than `CALIBRATION_S` are prepared together.
        """
        self._rig_has_changed = True
        self._prepare_changes()

    def _prepare_changes(self) -> None:
        now_s = time.monotonic()
        if self._rig_has_changed and now_s - self._calibrated_s >= CALIBRATION_S:
            self._rig_has_changed, self._calibrated_s = False, now_s
            self._epochs.submit(self._rig.calibration())

    def tick(self) -> None:
        """Look at the clock: frames that have waited long enough go out, whole or not.

        Time that passed is the lower of this reading and the one before: after a pause of the
        process the clock has run on while messages lay waiting, and they come before the next tick.
        """
        self._prepare_changes()
        epoch, calibration = self._epochs.current()
        if epoch != self._epoch:
            self._epoch, self._calibration = epoch, calibration
            self._synchronizer.set_calibration(calibration, epoch)
        reading_ns = self._clock_ns()
        before_ns, self._last_reading_ns = self._last_reading_ns, reading_ns
        if reading_ns and before_ns:
            self._settled_ns = min(reading_ns, before_ns)
            if self._synchronizer.deadline_ns is None:
                self._submit(self._nothing_yet(self._settled_ns))
            else:
                self._submit(self._synchronizer.advance(self._settled_ns))

    def state(self) -> LoopState:
        """A snapshot for the diagnostics."""
        with self._lock:
            counters = self._counters + self._poses.counters + self._ladder_counters
            # Its "malformed" is the sum of what `reject` has counted one by one.
            dropped = self._synchronizer.counters
            counters += Counter(
                {why: num for why, num in dropped.items() if not why.endswith(": malformed")}
            )
            counters += Counter(
                {f"calibration: {what}": num for what, num in self._epochs.counters.items()}
            )
            counters["frame: overtaken"] = self._worker.num_overtaken
            return LoopState(
                result=self._result,
                silent_s=time.monotonic() - self._result_s,
                now_ns=self._clock_ns(),
                newest_ns=dict(self._newest_ns),
                latency=self._latency.summaries(),
                counters=counters,
                calibration_epoch=self._epoch,
                calibration_fault=self._epochs.newest_fault,
            )

    def _nothing_yet(self, now_ns: int) -> list[SensorFrame]:
        """Before the first message: an empty frame every period, as the synchroniser's later."""
        config = self._config
        stamp_ns = now_ns - config.wait_ns
        if 0 <= stamp_ns - self._empty_ns < config.period_ns:
            return []
        self._empty_ns = stamp_ns
        return [
            SensorFrame(
                stamp_ns=stamp_ns,
                T_global_ego=None,
                images={},
                sweeps=(),
                calibration=self._calibration,
                missing=dict.fromkeys((*config.cameras, LIDAR), "no data yet"),
                calibration_epoch=self._epoch,
            )
        ]

    def _submit(self, frames: list[SensorFrame]) -> None:
        for frame in frames:
            if frame.stamp_ns <= 0:  # simulated time may start at 0: no stamp lies before it
                continue
            self._worker.submit(_Job(frame=frame, complete_s=time.monotonic()))

    def _compute(self, job: _Job) -> None:
        """In the worker: one frame from poses to topics."""
        start_s = time.monotonic()
        frame = self._with_poses(job.frame)
        posed_s = time.monotonic()
        result = self._ladder.process(frame)
        done_s = time.monotonic()
        self._publish(result)
        end_s = time.monotonic()
        age_ns = self._clock_ns() - result.stamp_ns
        with self._lock:
            self._result, self._result_s = result, end_s
            self._ladder_counters = Counter(self._ladder.counters)
            add = self._latency.add
            add("queue", (start_s - job.complete_s) * 1e3)
            add("wait for odometry", (posed_s - start_s) * 1e3)
            self._latency.add_all(result.stage_ms)
            add("publish", (end_s - done_s) * 1e3)
            add("frame to output", (end_s - job.complete_s) * 1e3)
            add("sensor to output", age_ns * 1e-6)

    def _with_poses(self, frame: SensorFrame) -> SensorFrame:
        """Ego poses as late as possible: odometry often comes just after the data it belongs to."""
        newest_ns = max([frame.stamp_ns, *(image.stamp_ns for image in frame.images.values())])
        with self._lock:
            if 0 < newest_ns - self._pose_ns < POSE_ALIVE_NS:
                self._lock.wait_for(lambda: self._pose_ns >= newest_ns, POSE_WAIT_S)
            at = self._poses.at
            return dataclasses.replace(
                frame,
                T_global_ego=at(frame.stamp_ns),
                images={
                    name: dataclasses.replace(image, T_global_ego=at(image.stamp_ns))
                    for name, image in frame.images.items()
                },
                sweeps=tuple(
                    dataclasses.replace(sweep, T_global_ego=at(sweep.stamp_ns))
                    for sweep in frame.sweeps
                ),
            )

    def _on_error(self, error: Exception) -> None:
        self.count(f"frame: {type(error).__name__}")
        self._report(error)
