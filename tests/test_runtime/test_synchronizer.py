from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perception.errors import InputError
from perception.messages import Calibration, CameraImage, LidarSweep, SensorFrame
from perception.taxonomy import CAMERAS, LIDAR
from runtime.synchronizer import JUMP_BACK_NS, Synchronizer, SynchronizerConfig

MS = 1_000_000
SECOND = 1000 * MS
CALIBRATION = Calibration(cameras={}, T_ego_lidar=np.eye(4))
PIXEL = np.zeros((1, 1, 3), np.uint8)
POINTS = np.zeros((4, 0), np.float32)
OFFSET_MS = {
    "CAM_FRONT_LEFT": -43.1,
    "CAM_FRONT": -35.5,
    "CAM_FRONT_RIGHT": -27.6,
    "CAM_BACK_RIGHT": -20.1,
    "CAM_BACK": -10.4,
    "CAM_BACK_LEFT": -0.5,
    LIDAR: 0.0,
}
"""Stamps against the LiDAR's in one round of the real car."""


def message(sensor: str, stamp_ns: int) -> CameraImage | LidarSweep:
    pose = np.eye(4)
    pose[0, 3] = stamp_ns  # tells whose pose a frame carries
    if sensor == LIDAR:
        return LidarSweep(stamp_ns=stamp_ns, points_lidar=POINTS, T_global_ego=pose)
    return CameraImage(camera=sensor, stamp_ns=stamp_ns, rgb=PIXEL, T_global_ego=pose)


def schedule(
    seconds: float,
    sensors: tuple[str, ...] = (*CAMERAS, LIDAR),
    camera_hz: float = 12,
    lidar_hz: float = 20,
    start_ms: float = 1000,
) -> list[tuple[int, str]]:
    """Stamps of the real car, in time order."""
    found = []
    for sensor in sensors:
        hz = lidar_hz if sensor == LIDAR else camera_hz
        for index in range(int(seconds * hz)):
            at_ms = start_ms + OFFSET_MS[sensor] + index * 1000 / hz
            found.append((round(at_ms * MS), sensor))
    return sorted(found)


def run(synchronizer: Synchronizer, stamps: list[tuple[int, str]]) -> list[tuple[int, SensorFrame]]:
    """Push messages at their time; pairs of (time of emission, frame)."""
    found = []
    for stamp_ns, sensor in stamps:
        found += [(stamp_ns, frame) for frame in synchronizer.advance(stamp_ns)]
        found += [(stamp_ns, frame) for frame in synchronizer.push(message(sensor, stamp_ns))]
    return found + [(stamps[-1][0], frame) for frame in synchronizer.flush()]


def new(**changes: object) -> Synchronizer:
    return Synchronizer(
        SynchronizerConfig(**{"cameras": CAMERAS, "wait_ns": 100 * MS, **changes}), CALIBRATION
    )


def ages_ms(frame: SensorFrame) -> dict[str, float]:
    return {name: (frame.stamp_ns - image.stamp_ns) / MS for name, image in frame.images.items()}


def test_first_real_round_is_emitted_by_the_lidar_that_completes_it() -> None:
    frames = run(new(), schedule(1 / 12, lidar_hz=12))
    assert len(frames) == 1
    emitted_ns, frame = frames[0]
    # FRONT_LEFT opens at 956.9 ms, the LiDAR at 1000 ms is the seventh sensor.
    assert emitted_ns == frame.stamp_ns == 1000 * MS
    assert frame.T_global_ego is not None
    assert frame.T_global_ego[0, 3] == 1000 * MS
    assert ages_ms(frame) == pytest.approx(
        {name: -offset for name, offset in OFFSET_MS.items() if name != LIDAR}
    )
    assert dict(frame.missing) == {}


def test_real_rates_give_one_complete_frame_per_camera_round() -> None:
    synchronizer = new()
    frames = run(synchronizer, schedule(5))
    # 5 s at 12 Hz are 60 rounds; each round's last camera or sweep completes one frame, and the two
    # rates may leave one round over at the end.
    assert 59 <= len(frames) <= 61
    for emitted_ns, frame in frames[:-1]:
        assert set(frame.images) == set(CAMERAS)
        # A sweep is at most 50 ms older than the image that completes the group.
        assert emitted_ns - frame.stamp_ns <= 50 * MS
        assert max(map(abs, ages_ms(frame).values())) <= 83.4
    assert not synchronizer.counters


def test_dead_camera_costs_the_wait_and_nothing_else() -> None:
    alive = tuple(name for name in (*CAMERAS, LIDAR) if name != "CAM_BACK")
    frames = run(new(), schedule(2, alive))
    assert len(frames) >= 2 * 1000 / (100 + 84)  # one wait and at most one camera period per frame
    for emitted_ns, frame in frames[:-1]:
        assert dict(frame.missing) == {"CAM_BACK": "no data yet"}
        assert set(frame.images) == set(CAMERAS) - {"CAM_BACK"}
        assert emitted_ns - frame.stamp_ns <= 100 * MS


def test_camera_that_dies_later_keeps_its_last_image_for_others_to_judge() -> None:
    stamps = [s for s in schedule(1) if s[1] != "CAM_BACK" or s[0] < 1100 * MS]
    last = run(new(), stamps)[-1][1]
    # 1000 - 10.4 + 83.3 ms is CAM_BACK's second and last image.
    assert last.images["CAM_BACK"].stamp_ns == pytest.approx(1072.933 * MS, abs=MS)
    assert "CAM_BACK" not in last.missing


def test_without_lidar_the_newest_image_gives_stamp_and_pose() -> None:
    frames = run(new(), schedule(1, CAMERAS))
    assert frames
    for _, frame in frames:
        newest = max(frame.images.values(), key=lambda image: image.stamp_ns)
        assert frame.stamp_ns == newest.stamp_ns
        assert frame.T_global_ego is newest.T_global_ego
        assert frame.sweeps == ()
        assert dict(frame.missing) == {LIDAR: "no data yet"}


def test_without_cameras_sweeps_alone_make_frames() -> None:
    frames = run(new(), schedule(1, (LIDAR,)))
    # Opens at 1000 ms, the sweep at 1100 ms closes it before it is added: stamp 1050 ms; and so on.
    assert [frame.stamp_ns // MS for _, frame in frames[:3]] == [1050, 1150, 1250]
    assert set(frames[0][1].missing) == set(CAMERAS)


def test_late_join_makes_the_frames_complete_from_then_on() -> None:
    late = schedule(1, ("CAM_BACK",), start_ms=2000)
    others = schedule(2, tuple(name for name in (*CAMERAS, LIDAR) if name != "CAM_BACK"))
    frames = [frame for _, frame in run(new(), sorted(late + others))]
    joined = [frame for frame in frames if "CAM_BACK" in frame.images]
    assert joined
    assert all("CAM_BACK" in frame.missing for frame in frames[: -len(joined)])
    assert not any(frame.missing for frame in joined)
    assert joined[0].stamp_ns < 2100 * MS


def test_sweeps_are_the_newest_first_and_no_more_than_asked_for() -> None:
    last = run(new(max_sweeps=3), schedule(1))[-1][1]
    assert [last.sweeps[0].stamp_ns - sweep.stamp_ns for sweep in last.sweeps] == [
        0,
        50 * MS,
        100 * MS,
    ]


def test_time_that_passes_without_a_message_closes_the_group() -> None:
    synchronizer = new(wait_ns=100 * MS)
    assert synchronizer.push(message("CAM_FRONT", 0)) == []
    assert synchronizer.deadline_ns == 100 * MS
    assert synchronizer.advance(100 * MS - 1) == []
    (frame,) = synchronizer.advance(100 * MS)
    assert frame.stamp_ns == 0
    assert synchronizer.deadline_ns is None
    assert synchronizer.advance(SECOND) == []


def test_message_older_than_the_last_frame_is_kept_but_opens_nothing() -> None:
    synchronizer = new(cameras=("CAM_FRONT",))
    synchronizer.push(message("CAM_FRONT", 0))
    (frame,) = synchronizer.push(message(LIDAR, 10 * MS))
    assert frame.stamp_ns == 10 * MS
    assert synchronizer.push(message("CAM_FRONT", 5 * MS)) == []
    assert synchronizer.deadline_ns is None
    assert synchronizer.flush() == []
    synchronizer.push(message(LIDAR, 60 * MS))
    assert synchronizer.flush()[0].images["CAM_FRONT"].stamp_ns == 5 * MS


def test_duplicates_disorder_and_strangers_are_dropped_and_counted() -> None:
    synchronizer = new()
    for sensor, stamp_ms in (
        ("CAM_FRONT", 100),
        ("CAM_FRONT", 100),
        ("CAM_FRONT", 90),
        (LIDAR, 50),
        (LIDAR, 50),
        ("CAM_ROOF", 120),
    ):
        synchronizer.push(message(sensor, stamp_ms * MS))
    assert synchronizer.counters == {
        "CAM_FRONT: duplicate": 1,
        "CAM_FRONT: out of order": 1,
        "LIDAR_TOP: duplicate": 1,
        "CAM_ROOF: unknown sensor": 1,
    }
    assert synchronizer.flush()[0].images["CAM_FRONT"].stamp_ns == 100 * MS


def test_log_that_starts_over_is_flushed_and_gives_the_same_frames_again() -> None:
    synchronizer = new()
    stamps = schedule(3)
    once = [frame for _, frame in run(new(), stamps)]
    twice = [frame for _, frame in run(synchronizer, stamps + stamps)]
    assert synchronizer.counters == {"time jumped back": 1}
    assert [f.stamp_ns for f in twice] == [f.stamp_ns for f in once] * 2
    assert twice[len(once)].missing == once[0].missing  # nothing of the first run is left
    assert twice[len(once)].sweeps[-1].stamp_ns >= stamps[0][0]


def test_jump_of_exactly_the_limit_is_still_disorder() -> None:
    synchronizer = new()
    synchronizer.push(message("CAM_FRONT", 2 * SECOND))
    synchronizer.push(message("CAM_FRONT", 2 * SECOND - JUMP_BACK_NS))
    assert synchronizer.counters == {"CAM_FRONT: out of order": 1}
    synchronizer.push(message("CAM_FRONT", 2 * SECOND - JUMP_BACK_NS - 1))
    assert synchronizer.counters["time jumped back"] == 1


def test_clock_ahead_of_the_stamps_is_no_jump() -> None:
    synchronizer = new()
    synchronizer.advance(3600 * SECOND)
    (frame,) = synchronizer.push(message("CAM_FRONT", SECOND))  # has waited long enough already
    assert frame.stamp_ns == SECOND
    assert not synchronizer.counters


def test_new_calibration_holds_from_the_next_frame_on() -> None:
    synchronizer = new()
    other = Calibration(cameras={}, T_ego_lidar=np.diag([1.0, 1, 1, 1]))
    synchronizer.push(message(LIDAR, 0))
    assert synchronizer.flush()[0].calibration is CALIBRATION
    synchronizer.set_calibration(other)
    synchronizer.push(message(LIDAR, 1))
    assert synchronizer.flush()[0].calibration is other


@pytest.mark.parametrize(
    "changes", [{"wait_ns": -1}, {"max_sweeps": 0}, {"cameras": ("A", "A")}, {"cameras": (LIDAR,)}]
)
def test_config_that_cannot_work_is_refused(changes: dict) -> None:
    with pytest.raises(InputError, match="expected"):
        SynchronizerConfig(**{"cameras": CAMERAS, **changes})


SENSORS = ("A", "B", LIDAR)
WAIT = 5
Events = list[tuple[str, int]]


def oracle(events: Events) -> tuple[list[tuple], Counter[str]]:
    """The rules once more, from the whole history at each step instead of a running state.

    An event is (sensor, stamp) or ("time", now); a frame is (stamp, images, sweeps, missing).
    """
    frames: list[tuple] = []
    counters: Counter[str] = Counter()
    start = 0  # first event after the last jump
    taken: list[tuple[int, str, int]] = []  # (index, sensor, stamp) since the jump
    emitted: list[tuple[int, int]] = []  # (number of messages taken before it, stamp)

    def group() -> list[tuple[int, str, int]]:
        first, last = emitted[-1] if emitted else (0, -(10**18))
        return [entry for entry in taken[first:] if entry[2] > last]

    def emit() -> None:
        members = group()
        sweeps = [stamp for _, sensor, stamp in members if sensor == LIDAR]
        stamp = max(sweeps or [stamp for _, _, stamp in members])
        newest = {s: max(t for _, n, t in taken if n == s) for s in {n for _, n, _ in taken}}
        images = {s: t for s, t in newest.items() if s != LIDAR}
        all_sweeps = sorted((t for _, n, t in taken if n == LIDAR), reverse=True)
        missing = tuple(s for s in SENSORS if s not in newest)
        frames.append((stamp, images, tuple(all_sweeps[:2]), missing))
        emitted.append((len(taken), stamp))

    def emit_if_due(now: int) -> None:
        if group() and now >= group()[0][2] + WAIT:
            emit()

    for index, (sensor, stamp) in enumerate(events):
        if sensor == "X":
            counters["X: unknown sensor"] += 1
            continue
        if sensor != "time":
            if taken and stamp < max(t for _, _, t in taken) - JUMP_BACK_NS:
                counters["time jumped back"] += 1
                if group():
                    emit()
                start, taken, emitted = index, [], []
            own = [t for _, n, t in taken if n == sensor]
            if own and stamp <= max(own):
                kind = "duplicate" if stamp == max(own) else "out of order"
                counters[f"{sensor}: {kind}"] += 1
                continue
        now = max(
            t
            for s, t in events[start : index + 1]
            if s != "X"  # a dropped message is never the newest
        )
        emit_if_due(now)
        if sensor != "time":
            taken.append((index, sensor, stamp))
            if {n for _, n, _ in group()} == set(SENSORS):
                emit()
            else:
                emit_if_due(now)
    if group():
        emit()
    return frames, counters


jumps = st.sampled_from([0, 0, 0, 0, 3 * JUMP_BACK_NS])
events_strategy = st.lists(
    st.tuples(
        st.sampled_from([*SENSORS, *SENSORS, "time", "X"]),
        st.builds(int.__add__, st.integers(0, 25), jumps),
    ),
    max_size=40,
)


@settings(max_examples=400, deadline=None)
@given(events_strategy)
def test_any_schedule_agrees_with_the_rules_written_down_a_second_time(events: Events) -> None:
    config = SynchronizerConfig(cameras=("A", "B"), wait_ns=WAIT, max_sweeps=2)
    synchronizer = Synchronizer(config, CALIBRATION)
    frames: list[SensorFrame] = []
    for sensor, stamp in events:
        if sensor == "time":
            frames += synchronizer.advance(stamp)
        else:
            frames += synchronizer.push(message(sensor, stamp))
    frames += synchronizer.flush()
    got = [
        (
            frame.stamp_ns,
            {name: image.stamp_ns for name, image in frame.images.items()},
            tuple(sweep.stamp_ns for sweep in frame.sweeps),
            tuple(frame.missing),
        )
        for frame in frames
    ]
    expected, counters = oracle(events)
    assert got == expected
    assert synchronizer.counters == counters


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([*CAMERAS, LIDAR]), st.integers(0, 900), st.integers(0, 120)),
        max_size=120,
    )
)
def test_stamps_of_frames_grow_and_memory_is_bounded(rows: list[tuple[str, int, int]]) -> None:
    synchronizer = new(max_sweeps=4)
    frames: list[SensorFrame] = []
    for sensor, stamp_ms, _ in sorted(
        rows, key=lambda row: row[1] + row[2]
    ):  # late by up to 120 ms
        frames += synchronizer.push(message(sensor, stamp_ms * MS))
    frames += synchronizer.flush()
    stamps = [frame.stamp_ns for frame in frames]
    assert all(before < after for before, after in pairwise(stamps))
    assert all(len(frame.sweeps) <= 4 for frame in frames)
