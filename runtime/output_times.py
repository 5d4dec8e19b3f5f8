"""How old a result is when it comes out, and how evenly results come."""

import time

from perception.messages import PerceptionResult
from perception.taxonomy import LIDAR
from runtime.latency import LatencyRecorder
from runtime.log_feed import FedFrame

WALL_MEANING = "wall clock at speed {speed:g}"
VIRTUAL_MEANING = "stamps until the frame is given, then processing time, as if always free"


def processing_ms(result: PerceptionResult) -> float:
    """How long a frame was computed [ms]: its stages, without the parts "stage/..." of them."""
    return sum(ms for stage, ms in result.stage_ms.items() if "/" not in stage)


class OutputTimes:
    """Adds the times of each output to a recorder, under fixed names.

    waiting for sensors   from the frame's stamp to its emission by the synchronizer
    waiting for pipeline  from there to its turn (wall clock only: the virtual one never waits)
    total                 from the frame's stamp to its result
    age of oldest sensor  from the oldest image or newest sweep in it to its result
    jitter                difference of `total` to the frame before

    Decoding of the recording is in none of them.
    """

    def __init__(self, recorder: LatencyRecorder, speed: float) -> None:
        """Prepare.

        Args:
            recorder: Takes the times.
            speed: Of the wall clock; 0 for the virtual one.
        """
        self._recorder, self._speed = recorder, speed
        self._last: tuple[str, float] | None = None

    @property
    def meaning(self) -> str:
        """What `total` is, in one line."""
        clock = WALL_MEANING.format(speed=self._speed) if self._speed else VIRTUAL_MEANING
        return f"total: from the frame's sensor stamp to its result ({clock}); decode is not in it"

    def add(self, fed: FedFrame, result: PerceptionResult, start_s: float) -> None:
        """Take a frame whose processing began at `start_s` (`time.perf_counter`) and ends now."""
        end_s, speed = time.perf_counter(), self._speed or 1.0
        frame = fed.frame
        if fed.stamp_s is None or fed.complete_s is None:
            waited_ms = (fed.emitted_ns - frame.stamp_ns) * 1e-6
            total_ms = waited_ms + (end_s - start_s) * 1e3
        else:
            waited_ms = (fed.complete_s - fed.stamp_s) * 1e3
            total_ms = (end_s - fed.stamp_s) * 1e3
            self._recorder.add("waiting for pipeline", (start_s - fed.complete_s) * 1e3)
        self._recorder.add("waiting for sensors", waited_ms)
        self._recorder.add_all(result.stage_ms)
        self._recorder.add("total", total_ms)
        stamps = [frame.images[n].stamp_ns for n in result.sensors_used if n in frame.images]
        if LIDAR in result.sensors_used:
            stamps.append(frame.sweeps[0].stamp_ns)
        if stamps:
            older_ms = (frame.stamp_ns - min(stamps)) * 1e-6 / speed
            self._recorder.add("age of oldest sensor", total_ms + older_ms)
        if self._last is not None and self._last[0] == fed.scene:
            self._recorder.add("jitter", abs(total_ms - self._last[1]))
        self._last = fed.scene, total_ms
