"""The loop between topics and runtime, with a clock in the test's hand and no ROS."""

import threading
import time
import types
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("perception_ros", reason="the ROS workspace is not sourced")

from perception_ros import perception_loop
from perception_ros.perception_loop import PerceptionLoop
from perception_ros.rig import Rig

from perception.geometry.grid import BevGrid
from perception.geometry.image_crop import ImageCrop
from runtime.api import (
    Calibration,
    CameraImage,
    Detections,
    LidarSweep,
    MapMask,
    PerceptionResult,
    SensorFrame,
    SynchronizerConfig,
)

pytestmark = pytest.mark.ros

MS = 1_000_000
START_NS = 10**18
CAMERAS = ("CAM_FRONT", "CAM_BACK")
CONFIG = SynchronizerConfig(cameras=CAMERAS, jitter_ns=0, frozen_after=0)


class StandInLadder:
    """In place of a Ladder: answers with the sensors of the frame, as slowly as it is told."""

    def __init__(self) -> None:
        self.counters: Counter[str] = Counter()
        self.frames: list[SensorFrame] = []
        self.may_go = threading.Event()
        self.may_go.set()
        self.prepared: list[Calibration] = []

    @property
    def pipelines(self) -> list[Any]:
        """Two networks; the second has only the back camera and wants more rows."""
        specs = [(CAMERAS, 32), (CAMERAS[1:], 64)]
        inputs = [
            types.SimpleNamespace(cameras=c, image=ImageCrop(height_px=h, width_px=64))
            for c, h in specs
        ]
        card = types.SimpleNamespace
        return [types.SimpleNamespace(bundle=card(card=card(inputs=i))) for i in inputs]

    def prepare_calibration(self, calibration: Calibration) -> None:
        self.prepared.append(calibration)

    def process(self, frame: SensorFrame) -> PerceptionResult:
        assert self.may_go.wait(10)
        self.frames.append(frame)
        self.counters["frames"] += 1
        used = (*frame.images, *(("LIDAR_TOP",) if frame.sweeps else ()))
        return PerceptionResult(
            stamp_ns=frame.stamp_ns, T_global_ego=frame.T_global_ego,
            detections=Detections(
                boxes_ego=np.zeros((0, 9), np.float32), scores=np.zeros(0, np.float32),
                labels=np.zeros(0, np.int64), classes=("car",),
            ),
            map_mask=MapMask(
                prob=np.zeros((1, 1, 1), np.float32), classes=("walkway",),
                grid=BevGrid(x_min=0, x_max=1, y_min=0, y_max=1, cell=1),
            ),
            sensors_used=used, sensors_missing=frame.missing, stage_ms={"engine": 1.0},
            calibration_epoch=frame.calibration_epoch,
        )  # fmt: skip


class Bench:
    """A loop, its clock, and what came out."""

    def __init__(self, calibrated: bool = True, ladder: StandInLadder | None = None) -> None:
        self.now_ns = START_NS
        self.ladder = ladder or StandInLadder()
        file = Calibration(cameras={}, T_ego_lidar=np.eye(4))
        self.rig = Rig(file if calibrated else None, {})
        self.results: list[PerceptionResult] = []
        self.errors: list[Exception] = []
        self.loop = PerceptionLoop(
            self.ladder,  # type: ignore[arg-type]
            self.rig,
            CONFIG,
            clock_ns=lambda: self.now_ns,
            publish=self.results.append,
            on_error=self.errors.append,
        )

    def run_until(self, end_ms: float, step_ms: float = 5.0) -> None:
        """Tick as the node's timer does; each frame is computed before time goes on."""
        while self.now_ns < START_NS + end_ms * MS:
            self.now_ns += int(step_ms * MS)
            self.loop.tick()
            self.settle()

    def settle(self) -> None:
        """Wait until the worker has nothing left to do."""
        wait_until(lambda: not self.loop._worker._waiting)

    def push_all(self, at_ms: float) -> None:
        stamp_ns = START_NS + int(at_ms * MS)
        for camera in CAMERAS:
            self.loop.push(image(camera, stamp_ns - 40 * MS))
        self.loop.push(sweep(stamp_ns))


def wait_until(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def image(camera: str, stamp_ns: int) -> CameraImage:
    rgb = np.zeros((2, 2, 3), np.uint8)
    return CameraImage(camera=camera, stamp_ns=stamp_ns, rgb=rgb, T_global_ego=None)


def sweep(stamp_ns: int) -> LidarSweep:
    return LidarSweep(
        stamp_ns=stamp_ns, points_lidar=np.zeros((4, 1), np.float32), T_global_ego=None
    )


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.ladder.may_go.set()
    made.loop.close()


def test_before_any_message_there_is_an_empty_frame_every_period(bench: Bench) -> None:
    bench.run_until(1000)
    wait_until(lambda: len(bench.results) >= 10)
    stamps = np.array([result.stamp_ns for result in bench.results])
    # The second tick is the first that counts; then every 100 ms: at 10, 110, ..., 910 ms.
    np.testing.assert_array_equal(np.diff(stamps), 100 * MS)
    assert len(stamps) == 10
    assert all(result.mode == "invalid" for result in bench.results)
    assert set(bench.results[0].sensors_missing) == {*CAMERAS, "LIDAR_TOP"}


def test_a_frame_that_is_whole_goes_out_with_its_last_message(bench: Bench) -> None:
    bench.push_all(0)
    wait_until(lambda: bench.results)
    (result,) = bench.results
    assert (result.stamp_ns, result.mode) == (START_NS, "fusion")
    assert bench.loop.state().newest_ns == {
        "CAM_FRONT": START_NS - 40 * MS, "CAM_BACK": START_NS - 40 * MS, "LIDAR_TOP": START_NS,
    }  # fmt: skip


def test_messages_that_waited_during_a_pause_of_the_process_are_not_late(bench: Bench) -> None:
    bench.loop.tick()
    bench.loop.tick()
    bench.push_all(0)
    wait_until(lambda: len(bench.results) == 1)
    # The process stands still for 250 ms; the messages of 100 and 200 ms lie in the queues. Would
    # the clock count at once, the frame of 100 ms would go out before its own messages are read.
    bench.now_ns = START_NS + 250 * MS
    bench.loop.tick()
    bench.push_all(100)
    wait_until(lambda: len(bench.results) == 2)
    bench.push_all(200)
    wait_until(lambda: len(bench.results) == 3)
    assert [result.mode for result in bench.results] == ["fusion"] * 3
    assert not [why for why in bench.loop.state().counters if "late" in why or "stale" in why]


def test_without_a_clock_messages_are_counted_and_nothing_happens(bench: Bench) -> None:
    bench.now_ns = 0  # /clock has not come yet
    bench.loop.tick()
    bench.push_all(0)
    bench.loop.tick()
    counters = bench.loop.state().counters
    assert counters["LIDAR_TOP: no clock yet"] == 1
    assert counters["CAM_BACK: no clock yet"] == 1
    assert bench.results == []


def test_the_newest_frame_overtakes_those_that_wait_for_a_slow_engine(bench: Bench) -> None:
    bench.ladder.may_go.clear()
    for at_ms in (0, 100, 200, 300):
        bench.now_ns = START_NS + at_ms * MS
        bench.push_all(at_ms)
        if at_ms == 0:
            wait_until(lambda: not bench.loop._worker._waiting)  # the engine has the first
    bench.ladder.may_go.set()
    wait_until(lambda: len(bench.results) == 2)
    # While it computed the first, the second and the third were overtaken.
    assert [result.stamp_ns - START_NS for result in bench.results] == [0, 300 * MS]
    assert bench.loop.state().counters["frame: overtaken"] == 2


def test_a_message_that_could_not_be_read_is_counted_once_by_its_reason(bench: Bench) -> None:
    bench.loop.reject("CAM_BACK", "data_short")
    counters = bench.loop.state().counters
    assert {why: num for why, num in counters.items() if "CAM_BACK" in why} == {
        "CAM_BACK: data_short": 1
    }


def test_a_changed_calibration_is_used_from_a_later_frame_on(bench: Bench) -> None:
    bench.push_all(0)
    wait_until(lambda: len(bench.results) == 1)
    T_ego_lidar = np.eye(4)
    T_ego_lidar[0, 3] = 1.0
    assert bench.rig.set_extrinsics("LIDAR_TOP", T_ego_lidar, "lidar")
    bench.loop.calibrate()
    wait_until(lambda: bench.loop._epochs.current()[0] == 1)
    bench.loop.tick()
    bench.now_ns += 100 * MS
    bench.push_all(100)
    wait_until(lambda: len(bench.results) == 2)
    first, second = bench.ladder.frames
    assert (first.calibration_epoch, first.calibration.T_ego_lidar[0, 3]) == (0, 0.0)
    assert (second.calibration_epoch, second.calibration.T_ego_lidar[0, 3]) == (1, 1.0)
    assert [result.calibration_epoch for result in bench.results] == [0, 1]
    assert bench.loop.state().counters["calibration: swapped"] == 1


def test_poses_of_odometry_reach_the_frame(bench: Bench) -> None:
    T = np.eye(4)
    T[0, 3] = 5.0
    bench.loop.add_pose(START_NS - 40 * MS, np.eye(4))
    bench.loop.add_pose(START_NS, T)
    bench.push_all(0)
    wait_until(lambda: bench.results)
    (frame,) = bench.ladder.frames
    np.testing.assert_array_equal(frame.T_global_ego, T)
    np.testing.assert_array_equal(frame.images["CAM_BACK"].T_global_ego, np.eye(4))
    np.testing.assert_array_equal(frame.sweeps[0].T_global_ego, T)


def test_latencies_are_measured_on_the_way(bench: Bench) -> None:
    bench.now_ns = START_NS + 30 * MS  # messages come 30 ms after their stamps
    bench.push_all(0)
    # t(0) is when the sweep came; the frame goes out with the next tick.
    bench.run_until(40)
    wait_until(lambda: bench.loop.state().latency)
    latency = bench.loop.state().latency
    assert latency["sensor to output"].p50_ms == 35.0
    assert latency["engine"].p50_ms == 1.0
    assert {"queue", "wait for odometry", "publish", "frame to output"} <= set(latency)


def test_our_own_mistake_costs_one_frame(bench: Bench) -> None:
    publish = bench.loop._publish
    bench.loop._publish = lambda result: 1 / 0  # type: ignore[assignment]
    bench.push_all(0)
    wait_until(lambda: bench.errors)
    bench.loop._publish = publish
    bench.now_ns += 100 * MS
    bench.push_all(100)
    wait_until(lambda: bench.results)
    assert bench.loop.state().counters["frame: ZeroDivisionError"] == 1


def test_a_size_is_judged_by_the_networks_that_have_the_camera(bench: Bench) -> None:
    # 128 x 80 px at a width of 64 are 40 rows: enough for the first network, not for the second.
    assert bench.loop.size_fault("CAM_FRONT", 128, 80) is None
    assert "40 rows, expected 64" in (bench.loop.size_fault("CAM_BACK", 128, 80) or "")


def test_frames_know_the_lidar_only_once_its_calibration_is_in_use() -> None:
    bench = Bench(calibrated=False)
    try:
        assert not bench.loop.knows_lidar
        bench.rig.set_extrinsics("LIDAR_TOP", np.eye(4), "base_link")  # at the origin, and known
        bench.loop.calibrate()
        wait_until(lambda: bench.loop._epochs.current()[0] == 1)
        assert not bench.loop.knows_lidar  # frames still carry epoch 0
        bench.loop.tick()
        assert bench.loop.knows_lidar
    finally:
        bench.loop.close()


def test_a_link_that_jitters_is_prepared_now_and_then(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = [1000.0]
    monkeypatch.setattr(perception_loop, "time", types.SimpleNamespace(monotonic=lambda: now_s[0]))
    T_ego_lidar = np.eye(4)
    for step in range(100):  # 1 s of /tf at 100 Hz
        T_ego_lidar = T_ego_lidar.copy()
        T_ego_lidar[0, 3] += 1e-3
        bench.rig.set_extrinsics("LIDAR_TOP", T_ego_lidar, "lidar")
        bench.loop.calibrate()
        now_s[0] += 0.01
        if step == 0:
            wait_until(lambda: bench.loop._epochs.current()[0] == 1)
    wait_until(lambda: bench.loop._epochs.current()[0] == 2)
    now_s[0] += 1.0
    bench.loop.tick()  # the last one is not forgotten
    wait_until(lambda: bench.loop._epochs.current()[0] == 3)
    np.testing.assert_array_equal(bench.loop._epochs.current()[1].T_ego_lidar, T_ego_lidar)
    assert len(bench.ladder.prepared) == 4  # the first, and those of 0, 0.5 and 2 s
    assert "calibration: superseded" not in bench.loop.state().counters


def test_nothing_goes_out_with_a_stamp_before_time_began(bench: Bench) -> None:
    bench.now_ns = 5 * MS  # simulated time, just started; an output waits 50 ms
    for _ in range(100):
        bench.now_ns += 5 * MS
        bench.loop.tick()
        bench.settle()
    wait_until(lambda: len(bench.results) >= 4)
    assert all(result.stamp_ns > 0 for result in bench.results)


def test_a_loop_that_cannot_be_made_leaves_no_thread() -> None:
    before = set(threading.enumerate())

    def refuse(_: Calibration) -> None:
        raise ValueError("no table")

    ladder = StandInLadder()
    ladder.prepare_calibration = refuse  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="no table"):
        Bench(ladder=ladder)
    assert set(threading.enumerate()) <= before


def test_a_frame_waits_for_odometry_that_is_on_its_way(bench: Bench) -> None:
    bench.loop.add_pose(START_NS - 50 * MS, np.eye(4))
    T = np.eye(4)
    T[0, 3] = 5.0
    bench.push_all(0)  # at 50 Hz the pose of its stamp is a few milliseconds late
    time.sleep(0.004)
    bench.loop.add_pose(START_NS, T)
    wait_until(lambda: bench.results)
    np.testing.assert_array_equal(bench.ladder.frames[0].T_global_ego, T)
