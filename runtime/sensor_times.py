"""When sensors measure: their stamps against the frames that they are in, and how often they do."""

import statistics
from collections import defaultdict, deque
from functools import partial

from perception.messages import SensorFrame
from perception.taxonomy import LIDAR

MAX_SAMPLES = 100_000
"""Newest offsets and intervals that are kept per sensor: hours, in bounded memory. Source: ours."""


class SensorTimes:
    """Collects each sensor's offsets and intervals."""

    def __init__(self) -> None:
        """Start empty."""
        samples = partial(deque[int], maxlen=MAX_SAMPLES)
        self._offsets_ns: defaultdict[str, deque[int]] = defaultdict(samples)
        self._intervals_ns: defaultdict[str, deque[int]] = defaultdict(samples)
        self._last: dict[str, tuple[str, int]] = {}

    def add_message(self, scene: str, sensor: str, stamp_ns: int) -> None:
        """Take the stamp of a message of the recording, in its order."""
        last_scene, last_ns = self._last.get(sensor, (scene, stamp_ns))
        if last_scene == scene and stamp_ns > last_ns:
            self._intervals_ns[sensor].append(stamp_ns - last_ns)
        self._last[sensor] = scene, stamp_ns

    def add_frame(self, frame: SensorFrame) -> None:
        """Take the stamps of a frame's images and of its newest sweep."""
        stamps_ns = {name: image.stamp_ns for name, image in frame.images.items()}
        if frame.sweeps:
            stamps_ns[LIDAR] = frame.sweeps[0].stamp_ns
        for sensor, stamp_ns in stamps_ns.items():
            self._offsets_ns[sensor].append(stamp_ns - frame.stamp_ns)

    def table(self) -> dict[str, dict[str, float | None]]:
        """Sensor -> offset_min_ms, offset_median_ms, offset_max_ms, rate_hz; None: not known.

        An offset is the sensor's stamp minus that of the frame that it is in [ms]. The rate [Hz] is
        that of the median time between two messages of the recording, before any fault.
        """
        table: dict[str, dict[str, float | None]] = {}
        for sensor in sorted({*self._last, *self._offsets_ns}):
            offsets_ns, intervals_ns = self._offsets_ns[sensor], self._intervals_ns[sensor]
            table[sensor] = {
                f"offset_{name}_ms": choose(offsets_ns) * 1e-6 if offsets_ns else None
                for name, choose in (("min", min), ("median", statistics.median), ("max", max))
            }
            rate_hz = 1e9 / statistics.median(intervals_ns) if intervals_ns else None
            table[sensor]["rate_hz"] = rate_hz
        return table
