import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sensor_schedule import MS, SECOND, SENSORS, message, new, run, schedule, stamps_of

from perception.messages import SensorFrame
from perception.taxonomy import LIDAR
from runtime.synchronizer import JUMP_NS, PATIENCE_FRAMES

PERIOD = 100 * MS
TICK = 10 * MS
"""Steps of time in `run`."""
SUBSETS = [{s for i, s in enumerate(SENSORS) if n >> i & 1} for n in range(2 ** len(SENSORS))]


def spread(frame: SensorFrame) -> int:
    """Time between the oldest and the newest message of a frame [ns]."""
    stamps = stamps_of(frame).values()
    return max(stamps) - min(stamps) if stamps else 0


def test_all_128_subsets_of_sensors_show_in_the_next_frame_and_none_is_lost() -> None:
    random.Random(0).shuffle(SUBSETS)
    dwell_ns = 5 * PERIOD
    everything = schedule(len(SUBSETS) * dwell_ns / SECOND, start_ms=100)
    stamps = [s for s in everything if s[1] in SUBSETS[min(s[0] // dwell_ns, 127)]]
    synchronizer = new()
    frames = run(synchronizer, stamps)
    start_ns = stamps[0][0] + (0 if stamps[0][1] == LIDAR else 40 * MS)
    seen = set()
    for index, (emitted_ns, frame) in enumerate(frames):
        instant_ns = start_ns + index * PERIOD  # one frame each period: none is left out
        assert 0 <= emitted_ns - instant_ns <= 50 * MS + TICK
        subset = SUBSETS[min(emitted_ns // dwell_ns, 127)]
        since_ns = instant_ns - emitted_ns // dwell_ns * dwell_ns
        # Nothing older than 100 ms is used, and each sensor delivers within 84 ms.
        if since_ns > PERIOD:
            assert set(stamps_of(frame)) == subset
            assert set(frame.missing) == set(SENSORS) - subset
            seen.add(frozenset(subset))
        # Who is missing since frames is not waited for.
        if since_ns > (PATIENCE_FRAMES + 1) * PERIOD:
            assert emitted_ns - instant_ns <= TICK
    assert len(seen) >= 127  # the last subset's frames may end with its last message
    assert not synchronizer.counters


@pytest.mark.parametrize("num_events", [100, pytest.param(10_000, marks=pytest.mark.slow)], ids=str)
def test_random_losses_and_returns_never_cost_a_frame(num_events: int) -> None:
    rng = random.Random(1)
    synchronizer, alive = new(), set(SENSORS)
    next_ns = {s: rng.randrange(80) * MS for s in SENSORS}
    switch_ns, events, now_ns, frames = SECOND, 0, 0, []
    synchronizer.push(message(LIDAR, 0))
    while events < num_events:
        now_ns += TICK
        if now_ns >= switch_ns:
            alive ^= {rng.choice(SENSORS)}
            switch_ns += rng.randint(1, 12) * PERIOD
            events += 1
        for sensor in SENSORS:
            if now_ns >= next_ns[sensor]:
                next_ns[sensor] += 50 * MS if sensor == LIDAR else 83 * MS
                if sensor in alive:
                    frames += synchronizer.push(message(sensor, now_ns))
        frames += synchronizer.advance(now_ns)
    missed = now_ns // PERIOD + 1 - len(frames)
    assert 0 <= missed <= 1  # the last frame may still wait
    assert all(a.stamp_ns < b.stamp_ns for a, b in pairwise(frames))
    assert all(spread(frame) <= 160 * MS for frame in frames)
    assert not synchronizer.counters


def test_log_that_is_played_a_hundred_times_gives_the_same_frames_each_time() -> None:
    sensors = ("CAM_FRONT", "CAM_BACK", LIDAR)
    stamps = schedule(1.2, sensors)
    once = [f for _, f in run(new(cameras=sensors[:2]), stamps)]
    synchronizer = new(cameras=sensors[:2])
    for loop in range(100):
        frames = [f for _, f in run(synchronizer, stamps)]
        start = len(frames) - len(once)
        # What was not yet due at the end of the log comes first, of that time's data alone.
        assert start == (0 if loop == 0 else 1)
        assert all(f.stamp_ns > once[-1].stamp_ns for f in frames[:start])
        assert [stamps_of(f) for f in frames[start:]] == [stamps_of(f) for f in once]
        assert [len(f.sweeps) for f in frames[start:]] == [len(f.sweeps) for f in once]
    assert synchronizer.counters == {"time jumped back": 99}


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from([1, -1]),
    st.sampled_from([1, 10, 40, 100, 250, 900, 1200, 5000, 60_000, 3_600_000]),
    st.integers(0, 99),
    st.booleans(),
)
def test_frames_go_on_after_a_jump_of_time(
    sign: int, jump_ms: int, phase_ms: int, with_now: bool
) -> None:
    sensors, start_ns = ("CAM_FRONT", "CAM_BACK", LIDAR), 10_000 * SECOND
    synchronizer, jump_ns = new(cameras=sensors[:2]), sign * jump_ms * MS
    cut_ns = start_ns + (1500 + phase_ms) * MS
    frames = []
    for stamp_ns, sensor in schedule(2.5, sensors, start_ms=start_ns // MS + 1000):
        moved_ns = stamp_ns + jump_ns * (stamp_ns >= cut_ns)
        now_ns = moved_ns + 5 * MS if with_now else None
        for frame in synchronizer.push(message(sensor, moved_ns), now_ns):
            assert spread(frame) <= 160 * MS  # no frame mixes the two times
            frames.append((stamp_ns, frame))
    # A step back of less than a second is waited for: the frames of that time have gone out.
    pause_ns = -jump_ns if -JUMP_NS < jump_ns < 0 else 0
    after = [stamp_ns for stamp_ns, frame in frames if stamp_ns >= cut_ns and not frame.missing]
    # Of these the first may still be the old time's.
    assert after[1] <= cut_ns + pause_ns + 3 * PERIOD
    jumps = {f"time jumped {'back' if sign < 0 else 'ahead'}": 1} if jump_ms > 1000 else {}
    assert {k: n for k, n in synchronizer.counters.items() if "jumped" in k} == jumps
    if sign > 0:
        # Nothing is dropped, but what comes first after a gap in which its sensor was given up may
        # miss a frame that did not wait for it.
        dropped = {k: n for k, n in synchronizer.counters.items() if "jumped" not in k}
        assert all(k.endswith(": late") and n == 1 for k, n in dropped.items())
