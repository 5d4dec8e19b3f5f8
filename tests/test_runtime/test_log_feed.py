import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from perception.data.nuscenes_log import MissingFile
from perception.messages import Calibration, LidarSweep
from perception.taxonomy import LIDAR
from runtime.latency import LatencyRecorder
from runtime.log_feed import OVERTAKEN, LogFeed
from runtime.synchronizer import SynchronizerConfig

MS = 1_000_000


class FakeLog:
    """Sweeps at the given times [ms] of each scene; None instead of a time is a lost file."""

    def __init__(self, decode_s: float = 0.0, **stamps_ms: list[int]) -> None:
        self.stamps_ms = stamps_ms
        self.decode_s = decode_s

    def calibration(self, scene: str) -> Calibration:
        return Calibration(cameras={}, T_ego_lidar=np.eye(4))

    def messages(self, scene: str) -> Iterator[LidarSweep | MissingFile]:
        for stamp_ms in self.stamps_ms[scene]:
            time.sleep(self.decode_s)
            if stamp_ms < 0:
                yield MissingFile(sensor=LIDAR, stamp_ns=-stamp_ms * MS, reason="lost")
            else:
                points = np.zeros((4, 0), np.float32)
                yield LidarSweep(stamp_ns=stamp_ms * MS, points_lidar=points, T_global_ego=None)


def feed(log: FakeLog, cameras: tuple[str, ...] = ()) -> LogFeed:
    config = SynchronizerConfig(cameras=cameras, wait_ns=100 * MS)
    return LogFeed(log, list(log.stamps_ms), config, LatencyRecorder())


def test_group_is_emitted_on_its_own_time_though_the_next_message_is_far() -> None:
    # CAM_FRONT never comes: the sweep at 0 waits 100 ms, which are 50 ms at double speed.
    started = feed(FakeLog(one=[0, 600]), ("CAM_FRONT",))
    first, last = list(started.paced(2.0))
    for fed in (first, last):
        assert 0.049 <= fed.complete_s - fed.stamp_s < 0.15
    assert last.stamp_s - first.stamp_s == pytest.approx(0.3)


def test_slow_decoding_holds_the_clock_back_and_is_no_latency() -> None:
    started = feed(FakeLog(decode_s=0.05, one=[0, 10, 20, 30]))
    fed = list(started.paced(1.0))
    assert len(fed) == 4
    # Three files of 50 ms where the log has 10 ms each: 0.12 s late at the last, if not held.
    assert max(f.complete_s - f.stamp_s for f in fed) < 0.1
    assert started.held_back_s > 0.1


def test_scenes_follow_each_other_each_on_its_own_clock() -> None:
    # The second scene is an hour earlier: neither a jump back in time nor an hour's wait.
    started = feed(FakeLog(one=[3_600_000, 3_600_010], two=[0, 10]))
    assert [f.frame.stamp_ns // MS for f in started.virtual()] == [3_600_000, 3_600_010, 0, 10]
    assert [f.scene for f in started.paced(1.0)] == ["one", "one", "two", "two"]
    assert not started.synchronizer_counters


def test_lost_files_are_kept_by_name_and_let_time_pass() -> None:
    started = feed(FakeLog(one=[0, -100, 150]), ("CAM_FRONT",))
    (first, _) = list(started.virtual())
    assert first.frame.stamp_ns == 0
    assert [lost.reason for lost in started.missing_files] == ["lost"]
    assert started.messages == {LIDAR: 2}


def test_whoever_stops_listening_leaves_no_thread_behind() -> None:
    before = threading.active_count()
    frames = feed(FakeLog(one=list(range(0, 100_000, 10)))).paced(1.0)
    next(frames)
    assert threading.active_count() == before + 2
    frames.close()
    assert threading.active_count() == before


def test_a_slow_listener_gets_the_newest_frame() -> None:
    started = feed(FakeLog(one=list(range(0, 200, 10))))
    stamps = []
    for fed in started.paced(1.0):
        stamps.append(fed.frame.stamp_ns // MS)
        time.sleep(0.05)
    assert stamps[-1] == 190
    assert len(stamps) + started.dropped_frames[OVERTAKEN] == started.num_frames == 20
    assert len(stamps) <= 6
