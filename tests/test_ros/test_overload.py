"""An engine five times slower than the sensors: the newest frame is computed, the rest counted."""

import time
from pathlib import Path

import numpy as np
import pytest
from perception_ros.perception_loop import PerceptionLoop
from perception_ros.rig import Rig

from perception.messages import Calibration, CameraImage, LidarSweep, PerceptionResult, SensorFrame
from perception.taxonomy import CAMERAS, LIDAR
from runtime.api import Ladder, Pipeline, SynchronizerConfig, load_bundle

PERIOD_S = 0.05
ENGINE_S = 5 * PERIOD_S
NUM_PERIODS = 60
POINTS = np.array([[5.0], [0.0], [0.0], [1.0]], np.float32)
RGB = np.zeros((90, 160, 3), np.uint8)


class SlowLadder(Ladder):
    """Takes its time, and says how much it was."""

    took_s: float = 0.0

    def process(self, frame: SensorFrame) -> PerceptionResult:
        start = time.monotonic()
        time.sleep(ENGINE_S)
        result = super().process(frame)
        self.took_s = time.monotonic() - start
        return result


def test_the_newest_frame_is_computed_and_no_queue_grows(tmp_path: Path) -> None:
    pytest.importorskip("onnx", reason="onnx is not installed: the toy bundle needs it")
    from toy_bundle import write_toy_bundle
    from toy_frames import FakeEngine, calibration

    results: list[PerceptionResult] = []
    waited_s: list[float] = []
    errors: list[Exception] = []
    bundle = load_bundle(write_toy_bundle(tmp_path / "bundle"))
    ladder = SlowLadder(Pipeline(bundle, engine=FakeEngine()))
    rig: Calibration = calibration()

    def publish(result: PerceptionResult) -> None:
        results.append(result)
        waited_s.append((time.time_ns() - result.stamp_ns) * 1e-9 - ladder.took_s)

    loop = PerceptionLoop(
        ladder,
        Rig(rig, {}),
        SynchronizerConfig(
            cameras=CAMERAS, period_ns=int(PERIOD_S * 1e9), wait_ns=20_000_000,
            window_ns=20_000_000, offset_ns=dict.fromkeys((*CAMERAS, LIDAR), 0),
            frozen_after=0,
        ),
        clock_ns=time.time_ns,
        publish=publish,
        on_error=errors.append,
    )  # fmt: skip
    depths = []
    start = time.monotonic()
    for index in range(NUM_PERIODS):
        time.sleep(max(0.0, start + index * PERIOD_S - time.monotonic()))
        stamp_ns = time.time_ns()
        for camera in CAMERAS:
            loop.push(CameraImage(camera=camera, stamp_ns=stamp_ns, rgb=RGB, T_global_ego=None))
        loop.push(LidarSweep(stamp_ns=stamp_ns, points_lidar=POINTS, T_global_ego=None))
        loop.tick()
        depths.append(len(loop._worker._waiting))
    overtaken = loop.state().counters["frame: overtaken"]
    loop.close()
    ladder.close()
    assert not errors
    assert max(depths) <= 1
    stamps = [result.stamp_ns for result in results]
    assert stamps == sorted(set(stamps))
    # 60 periods of 50 ms are 3 s: 12 results of 250 ms, the last one may be unfinished.
    assert 8 <= len(results) <= 13
    assert NUM_PERIODS - 6 <= overtaken + len(results) <= NUM_PERIODS + 2
    assert 0.7 <= overtaken / (overtaken + len(results)) <= 0.9  # 4 of 5 frames are dropped
    # Age: the engine's time and at most one period before it; 50 ms where the machine is busy.
    assert np.median(waited_s) <= PERIOD_S + 0.05
