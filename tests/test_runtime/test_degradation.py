"""Synchroniser and ladder together, in virtual time: what results say while sensors come and go."""

import random
from collections.abc import Iterator

import numpy as np
import pytest
from sensor_schedule import MS, SECOND, schedule
from toy_bundle import write_toy_bundle
from toy_frames import HEIGHT, WIDTH, FakeEngine, calibration

from perception.bundle import load_bundle
from perception.messages import CameraImage, LidarSweep, PerceptionResult, SensorMessage
from perception.taxonomy import CAMERAS, LIDAR
from runtime.ladder import Ladder
from runtime.pipeline import Pipeline
from runtime.synchronizer import Synchronizer, SynchronizerConfig

PERIOD = 100 * MS
WAIT = 50 * MS
TICK = 10 * MS
SENSORS = (*CAMERAS, LIDAR)
RGB = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
POINTS = np.array([[5.0], [0.0], [0.0], [1.0]], np.float32)


@pytest.fixture(scope="module")
def ladder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ladder]:
    bundle = load_bundle(write_toy_bundle(tmp_path_factory.mktemp("toy") / "bundle"))
    ladder = Ladder(Pipeline(bundle, engine=FakeEngine()))
    yield ladder
    ladder.close()


def message(sensor: str, stamp_ns: int) -> SensorMessage:
    if sensor == LIDAR:
        return LidarSweep(stamp_ns=stamp_ns, points_lidar=POINTS, T_global_ego=None)
    return CameraImage(camera=sensor, stamp_ns=stamp_ns, rgb=RGB, T_global_ego=None)


def expected_mode(sensors: set[str]) -> str:
    if sensors in (set(), {LIDAR}):
        return "lidar" if sensors else "invalid"
    return "fusion" if LIDAR in sensors else "camera"


def test_after_each_of_128_changes_of_sensors_the_next_results_say_so(ladder: Ladder) -> None:
    subsets = [{s for i, s in enumerate(SENSORS) if n >> i & 1} for n in range(128)]
    random.Random(3).shuffle(subsets)
    dwell = 3 * PERIOD
    arrivals = [
        (stamp_ns, sensor)
        for stamp_ns, sensor in schedule(128 * dwell / SECOND, start_ms=100)
        if sensor in subsets[min(stamp_ns // dwell, 127)]
    ]
    config = SynchronizerConfig(cameras=CAMERAS, period_ns=PERIOD, wait_ns=WAIT, frozen_after=0)
    synchronizer = Synchronizer(config, calibration())
    results: list[tuple[int, PerceptionResult]] = []
    for now_ns in range(arrivals[0][0], 128 * dwell, TICK):
        frames = synchronizer.advance(now_ns)
        while arrivals and arrivals[0][0] <= now_ns:
            stamp_ns, sensor = arrivals.pop(0)
            frames += synchronizer.push(message(sensor, stamp_ns), now_ns)
        results += [(now_ns, ladder.process(frame)) for frame in frames]
    times = [now_ns for now_ns, _ in results]
    assert max(np.diff(times)) <= PERIOD + WAIT + TICK
    assert abs(len(results) - 128 * dwell / PERIOD) <= 3
    num_settled, num_aged = 0, 0
    for now_ns, result in results:
        used = set(result.sensors_used)
        assert result.mode == expected_mode(used)
        assert used.isdisjoint(result.sensors_missing)
        assert used | set(result.sensors_missing) == set(SENSORS)
        # A camera's period and half of the window: what came before the change is not used then.
        if now_ns % dwell > 150 * MS + WAIT:
            # Messages come up to a tick late here, so a frame that waits in vain may take the sweep
            # of t(k) + 38 ms; an image of t(k) - 62 ms is older than the bundle allows then.
            aged = {s for s, why in result.sensors_missing.items() if "the limit is 0.100 s" in why}
            assert used | aged == subsets[now_ns // dwell]
            num_settled, num_aged = num_settled + 1, num_aged + len(aged)
    assert num_settled >= 128
    assert num_aged < num_settled / 20
    assert ladder.counters["engine_failures"] == 0
