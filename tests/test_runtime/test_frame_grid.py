"""What sets t(0), seen in the frames. A is expected at the instant; window 60, wait 50 ms."""

import pytest
from sensor_schedule import MS, SECOND, message, new, stamps_of

from perception.messages import SensorFrame
from perception.taxonomy import LIDAR
from runtime.frame_grid import MOST_WAITING
from runtime.synchronizer import Synchronizer

PERIOD = 100 * MS


def two_sensors(jitter_ns: int = 0) -> Synchronizer:
    return new(cameras=("A",), offset_ns={"A": 0}, jitter_ns=jitter_ns)


def emissions(
    synchronizer: Synchronizer, arrivals: list[tuple[float, float, str]], end_ms: float
) -> list[tuple[float, SensorFrame]]:
    """Push (arrival [ms], stamp [ms], sensor) and advance at each deadline between them."""
    found = []
    for now_ms, stamp_ms, sensor in [*sorted(arrivals), (end_ms, 0, "")]:
        now_ns = round(now_ms * MS)
        while (due_ns := synchronizer.deadline_ns) is not None and due_ns < now_ns:
            found += [(due_ns / MS, frame) for frame in synchronizer.advance(due_ns)]
        if sensor:
            sent = message(sensor, round(stamp_ms * MS))
            found += [(now_ms, frame) for frame in synchronizer.push(sent, now_ns)]
    return found


@pytest.mark.parametrize("sweep_ms", [1, 47, 99, 100])
def test_a_sweep_within_a_period_of_the_first_image_sets_the_grid(sweep_ms: int) -> None:
    synchronizer = two_sensors()
    assert synchronizer.push(message("A", 0)) == []
    synchronizer.push(message("A", 83 * MS), min(sweep_ms, 83) * MS)
    (frame,) = synchronizer.push(message(LIDAR, sweep_ms * MS))
    assert frame.stamp_ns == sweep_ms * MS
    # Nothing more comes: t(1) is a period after the sweep.
    assert synchronizer.deadline_ns == (sweep_ms + 100 + 50) * MS


def test_frames_go_out_with_the_sweep_that_has_just_come_however_long_it_takes() -> None:
    for delay_ms in (0, 1, 30, 55):
        # Sweeps each 50 ms, images each 25 ms, from 10 ms after the first stamp on.
        sweeps = [(50.0 * k + delay_ms, 50.0 * k, LIDAR) for k in range(40)]
        images = [(25.0 * k + 10, 25.0 * k + 10, "A") for k in range(80)]
        frames = emissions(two_sensors(jitter_ns=5 * MS), sweeps + images, 2000)
        assert len(frames) == 20
        # 5 ms are for sweeps that come a little later than the first.
        for index, (emitted_ms, frame) in enumerate(frames[1:], start=1):
            assert not frame.missing
            assert frame.stamp_ns == 100 * index * MS
            assert emitted_ms == 100 * index + delay_ms + 5


def test_a_sweep_that_comes_a_little_later_than_the_first_is_in_its_frame() -> None:
    sweeps = [(50.0 * k + (34 if k else 30), 50.0 * k, LIDAR) for k in range(20)]
    images = [(25.0 * k, 25.0 * k, "A") for k in range(40)]
    frames = emissions(two_sensors(jitter_ns=5 * MS), sweeps + images, 1000)
    # t(k) = 100 k + 30 + 5 ms; each second sweep comes 1 ms before.
    assert [frame.stamp_ns // MS for _, frame in frames] == [100 * k for k in range(10)]
    assert [emitted_ms for emitted_ms, _ in frames] == [100 * k + 35 for k in range(10)]


def test_a_sweep_that_comes_after_its_window_is_still_in_the_frame_it_begins() -> None:
    synchronizer = two_sensors(jitter_ns=5 * MS)
    # 80 ms after its stamp: t(0) is 60 ms after the stamp, the last instant that can use it, and
    # not 80 + 5 ms. Frame 0 waits for A until 110 ms.
    assert synchronizer.push(message(LIDAR, 0), 80 * MS) == []
    assert synchronizer.deadline_ns == 110 * MS
    (frame,) = synchronizer.advance(110 * MS)
    assert stamps_of(frame) == {LIDAR: 0}


def test_without_a_sweep_the_first_image_sets_the_grid_a_period_later() -> None:
    images = [(7 + 100.0 * k, 7 + 100.0 * k, "A") for k in range(5)]
    frames = emissions(two_sensors(), images, 450)
    # The image of 7 ms waits until 107 ms, past the end of t(0) + 50 = 57 ms. t(1) = 107 waits in
    # vain for the LiDAR until 157, t(2) until 257; then three frames have missed it.
    assert [emitted_ms for emitted_ms, _ in frames] == [107, 157, 257, 307, 407]
    assert [frame.stamp_ns // MS for _, frame in frames] == [7, 107, 207, 307, 407]


def test_after_a_jump_images_alone_have_frames_within_a_period_and_a_wait() -> None:
    synchronizer = two_sensors()
    images = [(100.0 * k, 100.0 * k, "A") for k in range(8)]
    emissions(synchronizer, [*images, (0, 0, LIDAR)], 700)
    # The image of 60 s shows the jump and waits for a sweep until 60.1 s.
    synchronizer.push(message("A", 60 * SECOND))
    later = [(60_000 + 100.0 * k, 60_000 + 100.0 * k, "A") for k in range(1, 3)]
    frames = emissions(synchronizer, later, 60_210)
    assert synchronizer.counters["time jumped ahead"] == 1
    shown = [(at, frame.stamp_ns // MS) for at, frame in frames]
    assert shown == [(60_100, 60_000), (60_150, 60_100)]


def test_a_sweep_after_a_jump_sets_the_grid_anew() -> None:
    synchronizer = two_sensors()
    synchronizer.push(message(LIDAR, 0))
    synchronizer.push(message("A", 60 * SECOND))
    synchronizer.push(message("A", 60 * SECOND + 33 * MS))
    (frame,) = synchronizer.push(message(LIDAR, 60 * SECOND + 40 * MS))
    assert stamps_of(frame) == {"A": 60 * SECOND + 33 * MS, LIDAR: 60 * SECOND + 40 * MS}


def test_no_more_than_so_many_messages_wait() -> None:
    synchronizer = two_sensors()
    for index in range(MOST_WAITING):
        assert synchronizer.deadline_ns == (None if index == 0 else PERIOD)
        synchronizer.push(message("A", index), 0)
    assert synchronizer.deadline_ns == 50 * MS  # t(0) is the first message's: 0
    assert not synchronizer.counters


def test_what_waits_is_emitted_at_the_end() -> None:
    synchronizer = two_sensors()
    synchronizer.push(message("A", 0))
    synchronizer.push(message("A", 83 * MS))
    assert [stamps_of(frame) for frame in synchronizer.flush()] == [{"A": 0}, {"A": 83 * MS}]
    assert synchronizer.flush() == []


def test_the_newest_fault_counts_also_for_a_sensor_whose_message_waited() -> None:
    synchronizer = two_sensors()
    synchronizer.push(message("A", 0))
    synchronizer.reject("A", "encoding is yuv")
    # 95 ms later the sweep sets t(0); the image of 0 ms is too old for that.
    synchronizer.push(message(LIDAR, 95 * MS))
    (frame,) = synchronizer.advance(145 * MS)
    assert dict(frame.missing) == {"A": "message dropped: malformed, encoding is yuv"}
