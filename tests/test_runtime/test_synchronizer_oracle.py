import random
from itertools import pairwise

import pytest
from frame_oracle import Oracle, Push
from hypothesis import given, settings
from hypothesis import strategies as st
from sensor_schedule import CALIBRATION, MS, message, stamps_of

from perception.messages import SensorFrame
from perception.taxonomy import LIDAR
from runtime.frame_grid import MOST_WAITING
from runtime.synchronizer import Synchronizer, SynchronizerConfig
from runtime.time_steps import JUMP_NS

SENSORS = ("A", "B", LIDAR)
UNIT = 5 * MS
"""Times are multiples of this, so that stamps meet each other and the edges of windows."""

CHOICES = ((20, 20, 10, 40), (10, 0, 4, 20), (12, 2, 8, 25), (20, 0, 5, 45), (3, 1), (0, 1, 3))
"""Period, wait, window, max_ahead, max_sweeps, jitter."""
OFFSETS = (None, -8, -3, 0, 5)


def to_config(
    period: int, wait: int, window: int, ahead: int, sweeps: int, jitter: int, *offsets: int | None
) -> SynchronizerConfig:
    return SynchronizerConfig(
        cameras=("A", "B"),
        period_ns=period * UNIT,
        wait_ns=min(wait, period) * UNIT,
        window_ns=window * UNIT,
        offset_ns={n: o * UNIT for n, o in zip(SENSORS, offsets, strict=True) if o is not None},
        max_ahead_ns=ahead * UNIT,
        max_sweeps=sweeps,
        jitter_ns=jitter * UNIT,
        frozen_after=0,  # no message has a content
    )


configs = st.builds(
    to_config, *map(st.sampled_from, CHOICES), *[st.sampled_from(OFFSETS)] * len(SENSORS)
)
STEPS = (0, 1, 1, 2, 2, 3, 4, 6, 10, 25, -1, -30)
AGES = (0, 0, 0, 1, 2, 4, 8, 12, 16, 25, 40, -1, -4, -21, -60)
JUMPS = tuple(sign * (JUMP_NS // UNIT) + i for sign in (-1, 1) for i in (-1, 0, 1, 15, 500))

Row = tuple[int, int, str, int]
"""Time since the row before, jump, sensor and age on arrival, in `UNIT`s."""

rows = st.tuples(
    st.sampled_from(STEPS),
    st.sampled_from([0] * 40 + [*JUMPS]),
    st.sampled_from([*SENSORS * 3, "time", "X"]),
    st.sampled_from(AGES),
)


def random_schedule(rng: random.Random) -> list[Row]:
    """Steady, jittered or wild, with spells in which some sensors or all are silent."""
    steps = rng.choice([(1,), STEPS[:8], STEPS])
    ages = rng.choice([(0,), (0, 1, 2, 4), AGES])
    share_of_jumps = rng.choice([0, 0, 0.01, 0.05])
    spells = [SENSORS, SENSORS[:2], SENSORS[2:], SENSORS[1:], (*SENSORS, "X"), ("time",)]
    found: list[Row] = []
    spell: tuple[str, ...] = SENSORS
    for _ in range(rng.choice([20, 60, 150])):
        if rng.random() < 0.03:
            spell = rng.choice(spells)
        jump = rng.choice(JUMPS) if rng.random() < share_of_jumps else 0
        found.append((rng.choice(steps), jump, rng.choice((*spell, "time")), rng.choice(ages)))
    return found


def random_config(rng: random.Random) -> SynchronizerConfig:
    return to_config(*[rng.choice(choices) for choices in CHOICES], *rng.choices(OFFSETS, k=3))


def to_pushes(rows: list[Row], with_now: bool) -> list[Push]:
    pushes: list[Push] = []
    now = 0
    for step, jump, sensor, age in rows:
        now += (step + jump) * UNIT
        if sensor == "time":
            pushes.append((sensor, now, now))
        else:
            pushes.append((sensor, now - age * UNIT, now if with_now else None))
    return pushes


def feed(synchronizer: Synchronizer, push: Push) -> list[SensorFrame]:
    sensor, stamp_ns, now_ns = push
    if sensor == "time":
        return synchronizer.advance(stamp_ns)
    return synchronizer.push(message(sensor, stamp_ns), now_ns)


def check(config: SynchronizerConfig, pushes: list[Push]) -> None:
    synchronizer, oracle = Synchronizer(config, CALIBRATION), Oracle(config)
    for num_pushed, push in enumerate(pushes, start=1):
        known = len(oracle.frames)
        frames = feed(synchronizer, push)
        oracle.step(push)
        assert_same(frames, oracle, known)
        assert synchronizer.counters == oracle.counters, push
        jumps = sum(n for name, n in oracle.counters.items() if "jumped" in name)
        # one cause at most for each message that does not wait any more
        assert oracle.counters.total() - jumps <= num_pushed - len(oracle.waiting)
        check_bounds(synchronizer, config, frames)
    known = len(oracle.frames)
    frames = synchronizer.flush()
    oracle.flush()
    assert_same(frames, oracle, known)
    assert oracle.unexplained() == []


def assert_same(frames: list[SensorFrame], oracle: Oracle, known: int) -> None:
    got = [
        (f.stamp_ns, stamps_of(f), tuple(s.stamp_ns for s in f.sweeps), dict(f.missing))
        for f in frames
    ]
    assert got == [(f.stamp, f.used, f.sweeps, f.missing) for f in oracle.frames[known:]]


def check_bounds(
    synchronizer: Synchronizer, config: SynchronizerConfig, frames: list[SensorFrame]
) -> None:
    state = synchronizer._state
    most = 2 + (config.wait_ns + config.max_ahead_ns) // config.period_ns
    assert all(len(track.candidates) <= most for track in state.tracks.values())
    assert len(state.sweeps) <= 2 * config.max_sweeps
    assert len(state.grid._waiting) < MOST_WAITING
    # A second's frames before the jump rule, those flushed, and one.
    assert len(frames) <= JUMP_NS // config.period_ns + most + 2
    if not any("jumped" in name for name in synchronizer.counters):
        assert all(a.stamp_ns < b.stamp_ns for a, b in pairwise(frames))


@settings(max_examples=60, deadline=None)
@given(configs, st.lists(rows, min_size=20, max_size=60), st.booleans())
def test_any_schedule_agrees_with_the_rules_written_down_a_second_time(
    config: SynchronizerConfig, rows: list[Row], with_now: bool
) -> None:
    check(config, to_pushes(rows, with_now))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("block", range(10))
def test_twenty_thousand_schedules_agree_with_the_rules_written_down_a_second_time(
    block: int,
) -> None:
    for seed in range(2000 * block, 2000 * (block + 1)):
        rng = random.Random(seed)
        check(random_config(rng), to_pushes(random_schedule(rng), rng.random() < 0.6))
