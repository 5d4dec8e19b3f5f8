import itertools

import numpy as np
import pytest

from perception.geometry.grid import BevGrid
from perception.messages import (
    Calibration,
    CameraImage,
    Detections,
    LidarSweep,
    MapMask,
    PerceptionResult,
    SensorFrame,
)
from perception.taxonomy import LIDAR
from runtime import output_times
from runtime.latency import LatencyRecorder
from runtime.log_feed import FedFrame
from runtime.output_times import OutputTimes

MS = 1_000_000


def fed(scene: str, used: tuple[str, ...], wait_ms: int, **clock: float) -> tuple:
    """A frame at 1000 ms with an image of 960 and sweeps of 990 and 940 ms, and its result."""
    image = CameraImage(
        camera="CAM_BACK", stamp_ns=960 * MS, rgb=np.zeros((1, 1, 3), np.uint8), T_global_ego=None
    )
    points = np.zeros((4, 1), np.float32)
    frame = SensorFrame(
        stamp_ns=1000 * MS, T_global_ego=None, images={"CAM_BACK": image}, missing={},
        sweeps=tuple(
            LidarSweep(stamp_ns=ms * MS, points_lidar=points, T_global_ego=None)
            for ms in (990, 940)
        ),
        calibration=Calibration(cameras={}, T_ego_lidar=np.eye(4)),
    )  # fmt: skip
    nothing = Detections(
        boxes_ego=np.zeros((0, 9), np.float32), scores=np.zeros(0, np.float32),
        labels=np.zeros(0, np.int64), classes=(),
    )  # fmt: skip
    grid = BevGrid(x_min=0.0, x_max=1.0, y_min=0.0, y_max=1.0, cell=1.0)
    result = PerceptionResult(
        stamp_ns=frame.stamp_ns, T_global_ego=None, detections=nothing, sensors_used=used,
        map_mask=MapMask(prob=np.zeros((0, 1, 1), np.float32), classes=(), grid=grid),
        sensors_missing={}, stage_ms={"engine": 7.0},
    )  # fmt: skip
    emitted_ns = frame.stamp_ns + wait_ms * MS
    return FedFrame(scene=scene, frame=frame, emitted_ns=emitted_ns, **clock), result


def recorded(monkeypatch: pytest.MonkeyPatch, speed: float, *outputs: tuple) -> dict:
    """Times after outputs of which each is ready 30 ms after its start, at 5.000, 6.000, ... s."""
    recorder = LatencyRecorder()
    times = OutputTimes(recorder, speed)
    ends = itertools.count(5)
    monkeypatch.setattr(output_times.time, "perf_counter", lambda: float(next(ends)))
    for i, (frame, result) in enumerate(outputs):
        times.add(frame, result, 5 + i - 0.03)
    return {stage: pytest.approx(values) for stage, values in recorder.samples.items()}


def test_on_the_virtual_clock_a_result_is_as_old_as_waiting_and_computing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    both, image, sweep = ("CAM_BACK", LIDAR), ("CAM_BACK",), (LIDAR,)
    outputs = [fed("a", both, 50), fed("a", sweep, 45), fed("b", image, 20), fed("b", (), 20)]
    assert recorded(monkeypatch, 0.0, *outputs) == {
        "waiting for sensors": [50, 45, 20, 20],
        "engine": [7, 7, 7, 7],
        "total": [80, 75, 50, 50],
        # the image is 40 ms older than the stamp, the newest sweep 10; nothing has no age
        "age of oldest sensor": [80 + 40, 75 + 10, 50 + 40],
        "jitter": [5, 0],  # within a scene only
    }


def test_on_the_wall_clock_the_time_in_the_queue_is_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # at double speed: stamp at 4.80, complete at 4.85, started at 4.97, ready at 5 s
    output = fed("a", ("CAM_BACK", LIDAR), 999, stamp_s=4.80, complete_s=4.85)
    assert recorded(monkeypatch, 2.0, output) == {
        "waiting for pipeline": [120],
        "waiting for sensors": [50],
        "engine": [7],
        "total": [200],
        "age of oldest sensor": [200 + 40 / 2],
    }
