import random
from itertools import pairwise

import pytest
from sensor_schedule import MS, SECOND, SENSORS, message, new, run, schedule, stamps_of

from perception.messages import SensorFrame, SensorMessage
from perception.taxonomy import LIDAR
from runtime.synchronizer import PATIENCE_FRAMES
from runtime.time_steps import JUMP_NS

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
    first_ns = stamps[0][0]
    assert all(s != LIDAR for stamp_ns, s in stamps if stamp_ns <= first_ns + PERIOD)
    start_ns = first_ns + 40 * MS  # without a sweep in a period the first image sets t(0)
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


JUMPS_MS = (1, 10, 40, 60, 99, 101, 149, 151, 200, 250, 500, 900, 1000, 1200, 60_000, 3_600_000)


def era_of(message: SensorMessage) -> float:
    """0 before the jump, 1 after it."""
    assert message.T_global_ego is not None
    return float(message.T_global_ego[1, 3])


@pytest.mark.parametrize("with_now", [False, True], ids=["stamps", "clock"])
@pytest.mark.parametrize("jump_ms", [sign * jump for jump in JUMPS_MS for sign in (1, -1)])
def test_frames_go_on_after_a_jump_of_time(jump_ms: int, with_now: bool) -> None:
    for phase_ms in range(0, 100, 7):
        check_jump(jump_ms * MS, phase_ms * MS, with_now)


def check_jump(jump_ns: int, phase_ns: int, with_now: bool) -> None:
    sensors, start_ns = ("CAM_FRONT", "CAM_BACK", LIDAR), 10_000 * SECOND
    synchronizer = new(cameras=sensors[:2])
    cut_ns = start_ns + 1500 * MS + phase_ns
    frames, tick_ns = [], start_ns
    for stamp_ns, sensor in schedule(2.5, sensors, start_ms=start_ns // MS + 1000):
        is_after = stamp_ns >= cut_ns
        sent = message(sensor, stamp_ns + jump_ns * is_after)
        sent.T_global_ego[1, 3] = is_after
        now_ns = None
        if with_now:
            now_ns = sent.stamp_ns + 5 * MS
            for ago_ms in range(60, 0, -5):  # time goes on between messages, too
                if stamp_ns - ago_ms * MS > max(tick_ns, cut_ns if is_after else 0):
                    tick_ns = stamp_ns - ago_ms * MS
                    ticked = synchronizer.advance(now_ns - ago_ms * MS)
                    frames += [(tick_ns, frame) for frame in ticked]
            tick_ns = stamp_ns
        frames += [(stamp_ns, frame) for frame in synchronizer.push(sent, now_ns)]
    times = [stamp_ns for stamp_ns, _ in frames]
    most_ns = 3 * PERIOD + (0 if with_now else 20 * MS)  # without a clock with the next message
    assert max(b - a for a, b in pairwise(times)) <= most_ns
    whole = [
        stamp_ns
        for stamp_ns, frame in frames
        if not frame.missing
        and all(era_of(sent) for sent in (*frame.images.values(), frame.sweeps[0]))
    ]
    assert whole[0] <= cut_ns + most_ns
    # A set-back clock shows from 2.5 periods on, at times from 1.5; one ahead beyond a second.
    jumps = {k: n for k, n in synchronizer.counters.items() if "jumped" in k}
    is_seen = (
        jump_ns <= -2.5 * PERIOD or jump_ns > JUMP_NS or bool(jumps and jump_ns < -1.5 * PERIOD)
    )
    assert jumps == ({f"time jumped {'back' if jump_ns < 0 else 'ahead'}": 1} if is_seen else {})
    for _, frame in frames:
        assert spread(frame) <= 160 * MS
        newest = [*frame.images.values(), *frame.sweeps[:1]]
        if is_seen or jump_ns > 1.5 * PERIOD:
            assert len({era_of(sent) for sent in newest}) <= 1  # old and new are never mixed
        if is_seen:
            assert len({era_of(sent) for sent in (*newest, *frame.sweeps)}) <= 1
    if jump_ns > 0:
        # Nothing is dropped, but what comes first after a gap in which its sensor was given up may
        # miss a frame that did not wait for it.
        dropped = {k: n for k, n in synchronizer.counters.items() if "jumped" not in k}
        assert all(k.endswith(": late") and n == 1 for k, n in dropped.items())


def test_one_sensor_that_is_late_is_no_jump_of_time() -> None:
    synchronizer = new(cameras=("CAM_FRONT",))
    for stamp_ns, sensor in schedule(3, ("CAM_FRONT", LIDAR)):
        synchronizer.push(message(sensor, stamp_ns))
        # camera images of 300 to 170 ms ago, between those of the others
        if sensor == LIDAR:
            synchronizer.push(message("CAM_FRONT", stamp_ns - 300 * MS))
            synchronizer.push(message("CAM_FRONT", stamp_ns - 201 * MS))
    assert not any("jumped" in cause for cause in synchronizer.counters)


def test_a_clock_that_is_set_back_without_messages_is_noticed_too() -> None:
    synchronizer = new(cameras=("CAM_FRONT",))
    for stamp_ns, sensor in schedule(1, ("CAM_FRONT", LIDAR)):
        synchronizer.push(message(sensor, stamp_ns))
    now_ns = stamp_ns - 500 * MS
    assert synchronizer.advance(now_ns) == []
    assert synchronizer.advance(now_ns + 99 * MS) == []
    frames = synchronizer.advance(now_ns + 100 * MS)
    assert synchronizer.counters["time jumped back"] == 1
    assert all(frame.stamp_ns > now_ns for frame in frames)  # what had not gone out yet
    assert len(synchronizer.advance(now_ns + 300 * MS)) == 2  # and on, each period
