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
from runtime.message_source import Arrival
from runtime.synchronizer import SynchronizerConfig

MS = 1_000_000


class FakeSource:
    """Sweeps at the given times [ms] of each scene; a negative time is a lost file."""

    description = "fake"

    def __init__(self, decode_s: float = 0.0, **stamps_ms: list[int]) -> None:
        self.stamps_ms = stamps_ms
        self.scenes = tuple(stamps_ms)
        self.decode_s = decode_s

    def calibration(self, scene: str) -> Calibration:
        return Calibration(cameras={}, T_ego_lidar=np.eye(4))

    def arrivals(self, scene: str) -> Iterator[Arrival]:
        for stamp_ms in self.stamps_ms[scene]:
            time.sleep(self.decode_s)
            stamp_ns = abs(stamp_ms) * MS
            if stamp_ms < 0:
                message = MissingFile(sensor=LIDAR, stamp_ns=stamp_ns, reason="lost")
            else:
                points = np.zeros((4, 0), np.float32)
                message = LidarSweep(stamp_ns=stamp_ns, points_lidar=points, T_global_ego=None)
            yield Arrival(now_ns=stamp_ns, message=message)


def feed(source: FakeSource, cameras: tuple[str, ...] = ()) -> LogFeed:
    config = SynchronizerConfig(cameras=cameras, wait_ns=50 * MS, jitter_ns=0, frozen_after=0)
    return LogFeed(source, source.scenes, config, LatencyRecorder())


def test_frames_come_on_their_own_time_though_the_next_message_is_far() -> None:
    # CAM_FRONT never comes and the LiDAR is silent from 0 to 600: frames 0 to 2 wait 50 ms for
    # the camera, frame 3 for the LiDAR alone, then neither is waited for; the sweep ends frame 6.
    fed = list(feed(FakeSource(one=[0, 600]), ("CAM_FRONT",)).virtual())
    assert [f.emitted_ns // MS for f in fed] == [50, 150, 250, 350, 400, 500, 600]
    assert [bool(f.frame.sweeps) for f in fed] == [True, *[False] * 5, True]


def test_paced_frames_come_when_the_clock_says_so() -> None:
    first, *_, last = feed(FakeSource(one=[0, 600]), ("CAM_FRONT",)).paced(2.0)
    assert 0.024 <= first.complete_s - first.stamp_s < 0.15  # 50 ms at double speed
    assert last.stamp_s - first.stamp_s == pytest.approx(0.3)


def test_slow_decoding_holds_the_clock_back_and_is_no_latency() -> None:
    started = feed(FakeSource(decode_s=0.05, one=[0, 100, 200, 300]))
    fed = list(started.paced(10.0))
    assert len(fed) == 4
    # Three files of 50 ms where the log has 10 ms each: 0.12 s late at the last, if not held.
    assert max(f.complete_s - f.stamp_s for f in fed) < 0.1
    assert started.held_back_s > 0.1


def test_scenes_follow_each_other_each_on_its_own_clock() -> None:
    # The second scene is an hour earlier: neither a jump back in time nor an hour's wait.
    started = feed(FakeSource(one=[3_600_000, 3_600_100], two=[0, 100]))
    stamps = [f.frame.stamp_ns // MS for f in started.virtual()]
    assert stamps == [3_600_000, 3_600_100, 0, 100]
    assert [f.scene for f in started.paced(5.0)] == ["one", "one", "two", "two"]
    assert not started.synchronizer_counters


@pytest.mark.parametrize("speed", [0, 100])
def test_a_pause_of_the_recording_takes_no_time_and_makes_no_frames(speed: float) -> None:
    # An hour: 36 s at a hundredfold speed, 36000 empty frames if it counted. Frame 1 at 100 waits
    # in vain, as it would in the car; then time jumps.
    started = feed(FakeSource(one=[0, 3_600_000]))
    began_s = time.perf_counter()
    fed = list(started.paced(speed) if speed else started.virtual())
    assert time.perf_counter() - began_s < 10.0
    # at a hundredfold speed the second follows within 1 ms: it may overtake the first
    assert started.num_frames == 2 == len(fed) + started.dropped_frames[OVERTAKEN]
    assert fed[-1].frame.stamp_ns == 3_600_000 * MS
    assert started.synchronizer_counters == {"time jumped ahead": 1}


def test_the_last_frames_are_as_late_as_the_last_message() -> None:
    # CAM_FRONT is waited for until 50; the recording ends with a lost file at 30
    (fed,) = feed(FakeSource(one=[0, -30]), ("CAM_FRONT",)).virtual()
    assert (fed.frame.stamp_ns, fed.emitted_ns) == (0, 30 * MS)


def test_lost_files_are_kept_by_name_and_say_why_a_frame_lacks_them() -> None:
    started = feed(FakeSource(one=[0, -100, 200]))
    frames = [fed.frame for fed in started.virtual()]
    assert [frame.missing for frame in frames[1:2]] == [{LIDAR: "message dropped: malformed, lost"}]
    assert [lost.reason for lost in started.missing_files] == ["lost"]
    assert started.messages == {LIDAR: 2}
    assert started.synchronizer_counters == {f"{LIDAR}: malformed": 1}


def test_whoever_stops_listening_leaves_no_thread_behind() -> None:
    before = set(threading.enumerate())
    frames = feed(FakeSource(one=list(range(0, 100_000, 10)))).paced(1.0)
    next(frames)
    assert len(set(threading.enumerate()) - before) == 2
    frames.close()
    assert set(threading.enumerate()) <= before


def test_a_slow_listener_gets_the_newest_frame() -> None:
    started = feed(FakeSource(one=list(range(0, 2000, 100))))
    stamps = []
    for fed in started.paced(10.0):
        stamps.append(fed.frame.stamp_ns // MS)
        time.sleep(0.05)
    assert stamps[-1] == 1900
    assert len(stamps) + started.dropped_frames[OVERTAKEN] == started.num_frames == 20
    assert len(stamps) <= 6
