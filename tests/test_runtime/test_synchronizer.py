from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from sensor_schedule import (
    CALIBRATION,
    MS,
    OFFSET_MS,
    SECOND,
    SENSORS,
    message,
    new,
    run,
    schedule,
    stamps_of,
)

from perception.data.nuscenes_log import MissingFile, NuScenesLog
from perception.errors import InputError
from perception.messages import Calibration, CameraImage
from perception.taxonomy import CAMERAS, LIDAR
from runtime.synchronizer import PATIENCE_FRAMES, Synchronizer, SynchronizerConfig
from runtime.time_steps import JUMP_NS

PERIOD = 100 * MS


def two_sensors(**changes: object) -> Synchronizer:
    """A and the LiDAR, both expected at the instant, with the windows of the defaults."""
    return new(**{"cameras": ("A",), "offset_ns": {"A": 0}, **changes})


def test_first_real_round_goes_out_with_the_lidar_that_completes_it() -> None:
    frames = run(new(), schedule(1 / 12, lidar_hz=12))
    assert len(frames) == 1
    emitted_ns, frame = frames[0]
    # FRONT_LEFT comes first, at 956.9 ms; the LiDAR at 1000 ms is the last and sets t(0).
    assert emitted_ns == frame.stamp_ns == 1000 * MS
    assert frame.T_global_ego is not None
    assert frame.T_global_ego[0, 3] == 1000 * MS
    assert stamps_of(frame) == {
        name: pytest.approx(1000 * MS + offset * MS) for name, offset in OFFSET_MS.items()
    }
    assert dict(frame.missing) == {}


def test_real_rates_give_a_complete_frame_every_period_and_drop_nothing() -> None:
    synchronizer = new()
    frames = run(synchronizer, schedule(5))
    # t(0) is the first sweep, and the last message has 5950 ms: t(k) = 1000 ms + k * 100 ms,
    # k = 0..49. Each second sweep comes at an instant, and the frame goes out with it at once.
    assert len(frames) == 50
    for index, (emitted_ns, frame) in enumerate(frames):
        assert not frame.missing
        instant_ns = SECOND + index * PERIOD
        assert emitted_ns == frame.stamp_ns == instant_ns
        ages_ns = [instant_ns - stamp_ns for stamp_ns in stamps_of(frame).values()]
        assert min(ages_ns) == 0
        assert max(ages_ns) <= 83.4 * MS  # one period of a camera
    assert not synchronizer.counters


def test_defaults_bear_delays_of_60_ms_of_the_lidar_and_66_ms_of_the_cameras() -> None:
    # Oldest usable: t(k) - 60 ms and t(k) - 40 - 60 ms. End of the wait: t(k) + 50 ms. Between them
    # come a period, 50 or 83.3 ms, and the delay.
    synchronizer, frames = new(), []
    arrivals = [(stamp + (60 if name == LIDAR else 66) * MS, name) for stamp, name in schedule(5)]
    for now_ns, name in sorted(arrivals):
        stamp_ns = now_ns - (60 if name == LIDAR else 66) * MS
        frames += synchronizer.push(message(name, stamp_ns), now_ns)
    assert [dict(frame.missing) for frame in frames[1:]] == [{}] * 49
    assert not synchronizer.counters


def test_keyframes_alone_give_a_complete_frame_each() -> None:
    synchronizer = new(period_ns=500 * MS)
    frames = run(synchronizer, schedule(5, camera_hz=2, lidar_hz=2))
    assert [frame.stamp_ns for _, frame in frames] == [(1000 + 500 * k) * MS for k in range(10)]
    assert not any(frame.missing for _, frame in frames)
    assert not synchronizer.counters


def test_sweeps_between_keyframes_are_kept_for_accumulation() -> None:
    synchronizer = new(period_ns=500 * MS, max_sweeps=4)
    last = run(synchronizer, schedule(2, camera_hz=2, lidar_hz=20))[-1][1]
    # t(3) = 1000 + 3 * 500 ms; the sweep of that time completes it.
    assert [sweep.stamp_ns // MS for sweep in last.sweeps] == [2500, 2450, 2400, 2350]
    assert not synchronizer.counters


def test_dead_camera_costs_the_wait_in_the_first_frames_only() -> None:
    alive = tuple(name for name in SENSORS if name != "CAM_BACK")
    frames = run(new(), schedule(2, alive))
    waits_ns = [emitted - (SECOND + k * PERIOD) for k, (emitted, _) in enumerate(frames)]
    assert waits_ns == [50 * MS] * PATIENCE_FRAMES + [0] * (len(frames) - PATIENCE_FRAMES)
    for _, frame in frames:
        assert dict(frame.missing) == {"CAM_BACK": "no data yet"}


def test_death_and_return_show_in_the_next_frame() -> None:
    gone_ns, back_ns = 1500 * MS, 2500 * MS
    stamps = [s for s in schedule(3) if s[1] != "CAM_BACK" or not gone_ns < s[0] < back_ns]
    missing = [frame.missing.get("CAM_BACK") for _, frame in run(new(), stamps)]
    # Last image: 989.6 + 6 * 83.3 = 1489.6 ms; offset -40 and window 60: usable until t(k) =
    # 1589.6 ms, so t(5) = 1500 has it, t(6) = 1600 has not. Next image: 989.6 + 19 * 83.3 =
    # 2572.9 ms, usable from t(k) = 2552.9 ms on: t(15) = 2500 has not, t(16) = 2600 has it.
    assert missing[:6] == [None] * 6
    assert missing[6:16] == ["no data in time"] * 10
    assert missing[16:] == [None] * len(missing[16:])


def test_sensor_that_comes_back_after_the_instant_is_waited_for_again() -> None:
    synchronizer = two_sensors()
    stamps = [(k * PERIOD, LIDAR) for k in range(12)]
    stamps += [(k * PERIOD + 30 * MS, "A") for k in range(8, 12)]
    frames = run(synchronizer, sorted(stamps))
    # In frame 8 it would have been, had the frame waited; so frame 9 waits 30 ms and has it.
    assert [k for k, (_, frame) in enumerate(frames) if not frame.missing] == [9, 10, 11]
    assert frames[9][0] == 9 * PERIOD + 30 * MS


def test_without_lidar_the_newest_image_gives_stamp_and_pose() -> None:
    frames = run(new(), schedule(1, CAMERAS))
    assert len(frames) == 10
    # FRONT_LEFT at 956.9 ms is the first, and for 100 ms a sweep could have set t(0). So t(0) is
    # 956.9 + 40 ms: its wait has ended at 1046.9 ms, that of t(1) ends at 1146.9 ms.
    assert [emitted_ns / MS for emitted_ns, _ in frames[:2]] == [1056.9, 1146.9]
    for _, frame in frames:
        newest = max(frame.images.values(), key=lambda image: image.stamp_ns)
        assert frame.stamp_ns == newest.stamp_ns
        assert frame.T_global_ego is newest.T_global_ego
        assert frame.sweeps == ()
        assert dict(frame.missing) == {LIDAR: "no data yet"}


def test_frames_without_any_sensor_go_on_with_their_instants_for_stamps() -> None:
    synchronizer = new()
    synchronizer.push(message(LIDAR, 0))
    frames = [f for now in range(0, 1000, 10) for f in synchronizer.advance(now * MS)]
    assert len(frames) == 10
    for index, frame in enumerate(frames[1:], start=1):
        assert frame.stamp_ns == index * PERIOD
        assert frame.T_global_ego is None
        assert (dict(frame.images), frame.sweeps) == ({}, ())
        assert set(frame.missing) == set(SENSORS)


def test_message_in_two_frames_gives_only_the_first_its_stamp() -> None:
    synchronizer = two_sensors()
    synchronizer.push(message("A", 0))
    assert len(synchronizer.push(message(LIDAR, 0))) == 1  # t(0) = 0
    synchronizer.push(message("A", 95 * MS))
    (first,) = synchronizer.push(message(LIDAR, 145 * MS))  # 45 ms after t(1) and 55 before t(2)
    assert first.stamp_ns == 145 * MS
    assert synchronizer.push(message("A", 190 * MS)) == []
    (second,) = synchronizer.advance(200 * MS)
    assert stamps_of(second) == {"A": 190 * MS, LIDAR: 145 * MS}
    assert second.stamp_ns == 190 * MS
    assert second.T_global_ego is not None
    assert second.T_global_ego[0, 3] == 190 * MS


def test_sweeps_are_the_newest_first_and_no_more_than_asked_for() -> None:
    last = run(new(max_sweeps=3), schedule(1))[-1][1]
    assert [last.sweeps[0].stamp_ns - sweep.stamp_ns for sweep in last.sweeps] == [
        0,
        50 * MS,
        100 * MS,
    ]


def test_deadline_says_when_the_next_frame_goes_out() -> None:
    synchronizer = two_sensors()
    assert synchronizer.deadline_ns is None
    assert synchronizer.push(message("A", 0)) == []
    assert synchronizer.deadline_ns == 100 * MS  # a period is given to the LiDAR's first sweep
    assert len(synchronizer.push(message(LIDAR, 10 * MS))) == 1
    assert synchronizer.push(message("A", 95 * MS)) == []
    assert synchronizer.deadline_ns == 160 * MS  # the LiDAR is waited for
    assert synchronizer.advance(160 * MS - 1) == []
    (frame,) = synchronizer.advance(160 * MS)
    assert stamps_of(frame) == {"A": 95 * MS}
    assert synchronizer.push(message("A", 195 * MS)) == []
    assert synchronizer.push(message(LIDAR, 196 * MS)) == []
    assert synchronizer.deadline_ns == 210 * MS  # complete
    assert len(synchronizer.advance(210 * MS)) == 1


def test_message_at_the_last_moment_is_in_the_frame() -> None:
    synchronizer = two_sensors()
    synchronizer.push(message(LIDAR, 0))
    (frame,) = synchronizer.push(message("A", 50 * MS))
    assert set(stamps_of(frame)) == {"A", LIDAR}


def test_newest_usable_message_is_taken_whatever_the_order_of_arrival() -> None:
    synchronizer = two_sensors()
    synchronizer.push(message("A", 0), 0)
    assert len(synchronizer.push(message(LIDAR, 0), 0)) == 1
    synchronizer.push(message("A", 100 * MS), 100 * MS)
    # 170 ms is past the window of frame 1, which ends at 160 ms; 120 ms lies in it.
    assert synchronizer.push(message(LIDAR, 170 * MS), 105 * MS) == []
    (frame,) = synchronizer.push(message(LIDAR, 120 * MS), 110 * MS)
    assert stamps_of(frame) == {"A": 100 * MS, LIDAR: 120 * MS}
    assert not synchronizer.counters
    synchronizer.push(message(LIDAR, 165 * MS), 175 * MS)  # 170 ms serves each frame that it could
    assert synchronizer.counters == {f"{LIDAR}: out of order": 1}
    assert stamps_of(synchronizer.flush()[0]) == {LIDAR: 170 * MS}


@pytest.mark.parametrize(
    ("stamp_ms", "now_ms", "reason"),
    # Frame 3 has gone out at 300 ms with A of 290 ms, and would have waited until 350 ms. Frame 4's
    # window is 340..460 ms, frame 3's was 240..360 ms.
    [
        (290, 320, "duplicate"),
        (280, 351, "late"),
        (240, 351, "late"),
        (280, 350, "out of order"),  # in time, but the frame has 290 ms
        (295, 350, None),  # in time, but the frame went without it at 300 ms, being complete
        (295, 351, "late"),
        (239, 320, "stale"),
        (301, 351, None),  # too old for frame 4, newer than frame 3's instant: between them
        (421, 320, "early"),
        (420, 320, None),
    ],
)
def test_each_drop_has_one_cause(stamp_ms: int, now_ms: int, reason: str | None) -> None:
    synchronizer = two_sensors()
    for k in range(4):
        synchronizer.push(message("A", max(0, k * 100 - 10) * MS), k * PERIOD)
        synchronizer.push(message(LIDAR, k * PERIOD), k * PERIOD)
    assert not synchronizer.counters
    synchronizer.push(message("A", stamp_ms * MS), now_ms * MS)
    assert synchronizer.counters == ({} if reason is None else {f"A: {reason}": 1})
    if reason in ("late", "stale", "early"):
        (frame,) = synchronizer.advance(450 * MS)
        assert frame.missing["A"] == f"message dropped: {reason}"


def test_strangers_and_malformed_messages_are_counted() -> None:
    synchronizer = two_sensors()
    assert synchronizer.push(message("CAM_ROOF", 0)) == []
    assert synchronizer.deadline_ns is None
    synchronizer.push(message(LIDAR, 0))
    synchronizer.reject("A", "encoding is yuv")
    synchronizer.reject("CAM_ROOF", "no pixels")
    assert synchronizer.counters == {
        "CAM_ROOF: unknown sensor": 1,
        "A: malformed": 1,
        "CAM_ROOF: malformed": 1,
    }
    (frame,) = synchronizer.advance(50 * MS)
    assert dict(frame.missing) == {"A": "message dropped: malformed, encoding is yuv"}
    (frame,) = synchronizer.advance(150 * MS)
    assert frame.missing["A"] == "no data yet"


def test_clock_ahead_neither_pulls_time_nor_sets_the_grid() -> None:
    synchronizer = two_sensors()
    synchronizer.push(message("A", 3600 * SECOND), 0)
    assert synchronizer.deadline_ns is None
    synchronizer.push(message(LIDAR, 0), 0)
    for k in range(1, 10):
        synchronizer.push(message("A", 3600 * SECOND + k * PERIOD), k * PERIOD)
        frames = synchronizer.push(message(LIDAR, k * PERIOD), k * PERIOD)
        assert all(frame.stamp_ns <= k * PERIOD for frame in frames)
    assert synchronizer.counters == {"A: early": 10}


@pytest.mark.parametrize("sensor", ["A", LIDAR])
def test_message_from_long_ago_does_not_set_the_grid(sensor: str) -> None:
    synchronizer = two_sensors()
    # wait 50 + window 60 ms: what is older than 110 ms on arrival can be in no frame.
    synchronizer.push(message(sensor, SECOND - 110 * MS - 1), SECOND)
    assert synchronizer.deadline_ns is None
    assert synchronizer.counters == {f"{sensor}: stale": 1}
    frames = synchronizer.push(message(sensor, SECOND - 110 * MS), SECOND)
    frame = (frames + synchronizer.advance(SECOND + PERIOD))[0]
    assert stamps_of(frame) == {sensor: SECOND - 110 * MS}


def test_time_that_steps_far_gives_each_frame_up_to_a_second() -> None:
    synchronizer = two_sensors()
    synchronizer.push(message(LIDAR, 0))
    # Frame 0 may wait until 50 ms; a second later is still no jump. Frames 0 to 2 wait in vain for
    # one sensor or two, later ones for none: t(k) <= 1050 ms gives k = 0..10.
    frames = synchronizer.advance(50 * MS + JUMP_NS)
    assert [frame.stamp_ns // MS for frame in frames] == list(range(0, 1001, 100))
    assert not synchronizer.counters


@pytest.mark.parametrize(("sensor", "end_ms"), [(LIDAR, 50), ("A", 100)])
def test_time_that_jumps_ahead_gives_what_is_there_and_starts_over(
    sensor: str, end_ms: int
) -> None:
    synchronizer = two_sensors()
    synchronizer.push(message(sensor, 0))
    # Frame 0 may wait until 50 ms if the LiDAR has set t(0); a camera waits until 100 ms for that.
    (frame,) = synchronizer.advance(end_ms * MS + JUMP_NS + 1)
    assert stamps_of(frame) == {sensor: 0}
    assert synchronizer.counters == {"time jumped ahead": 1}
    now_ns = synchronizer.deadline_ns  # empty frames go on
    assert now_ns == (end_ms + 50) * MS + JUMP_NS + 1
    (empty,) = synchronizer.advance(now_ns)
    assert dict(empty.missing) == {"A": "no data yet", LIDAR: "no data yet"}
    synchronizer.push(message(sensor, now_ns + 5 * MS))
    # The sweep has set the grid anew, or the image will in a period.
    assert synchronizer.deadline_ns == now_ns + 5 * MS + end_ms * MS


def test_step_back_of_exactly_the_limit_is_no_jump() -> None:
    synchronizer = two_sensors()
    synchronizer.push(message("A", 2 * SECOND))
    synchronizer.push(message("A", 2 * SECOND - JUMP_NS))
    assert synchronizer.counters == {"A: stale": 1}
    (frame,) = synchronizer.push(message("A", 2 * SECOND - JUMP_NS - 1))
    assert frame.stamp_ns == 2 * SECOND
    assert synchronizer.counters["time jumped back"] == 1


def test_same_messages_give_the_same_frames() -> None:
    first, second = ([f for _, f in run(new(), schedule(2))] for _ in range(2))
    assert [(f.stamp_ns, stamps_of(f)) for f in first] == [
        (f.stamp_ns, stamps_of(f)) for f in second
    ]
    assert all(a.stamp_ns < b.stamp_ns for a, b in pairwise(first))


@pytest.mark.nuscenes
def test_real_keyframes_use_each_image_once(real_log_root: Path) -> None:
    log = NuScenesLog(real_log_root)
    for scene in log.scenes:
        synchronizer, frames, num_images = new(period_ns=500 * MS), [], 0
        for item in log.messages(scene):
            if not isinstance(item, MissingFile):
                num_images += isinstance(item, CameraImage)
                frames += synchronizer.push(item)
        frames += synchronizer.flush()
        assert sum(len(frame.images) for frame in frames) == num_images
        assert not frames[0].missing
        assert not synchronizer.counters


def test_new_calibration_holds_from_the_next_frame_on() -> None:
    synchronizer = two_sensors()
    other = Calibration(cameras={}, T_ego_lidar=np.diag([1.0, 1, 1, 1]))
    synchronizer.push(message(LIDAR, 0))
    (frame,) = synchronizer.flush()
    assert (frame.calibration, frame.calibration_epoch) == (CALIBRATION, 0)
    synchronizer.set_calibration(other, 3)
    synchronizer.push(message(LIDAR, 100 * MS))
    (frame,) = synchronizer.flush()
    assert frame.calibration is other
    assert frame.calibration_epoch == 3
    assert synchronizer.flush() == []


@pytest.mark.parametrize(
    "changes",
    [
        {"period_ns": 0},
        {"wait_ns": -1},
        {"wait_ns": 100 * MS + 1},
        {"window_ns": -1},
        {"window_ns": JUMP_NS + 1},
        {"max_ahead_ns": -1},
        {"max_sweeps": 0},
        {"frozen_after": -1},
        {"frozen_after": 1},
        {"offset_ns": {"CAM_ROOF": 0}},
        {"cameras": ("A", "A")},
        {"cameras": (LIDAR,)},
    ],
)
def test_config_that_cannot_work_is_refused(changes: dict) -> None:
    with pytest.raises(InputError, match="expected"):
        SynchronizerConfig(**{"cameras": CAMERAS, **changes})
