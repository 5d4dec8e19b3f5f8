from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perception.errors import InputError
from perception.messages import CameraImage, LidarSweep
from perception.taxonomy import CAMERAS, LIDAR
from runtime.message_source import Arrival, sensor_of
from runtime.replay_faults import Fault, FaultPlan, parse_fault, with_faults

MS = 1_000_000


def arrivals(num: int = 40, step_ms: int = 100) -> list[Arrival]:
    """A sweep and an image every 100 ms from 5 s on; a message's content is its number."""
    messages = []
    for i in range(num):
        stamp_ns = (5000 + i * step_ms) * MS
        points, rgb = np.full((4, 1), i, np.float32), np.full((1, 1, 3), i, np.uint8)
        sweep = LidarSweep(stamp_ns=stamp_ns, points_lidar=points, T_global_ego=None)
        image = CameraImage(camera="CAM_BACK", stamp_ns=stamp_ns, rgb=rgb, T_global_ego=None)
        messages += [Arrival(now_ns=stamp_ns, message=m) for m in (sweep, image)]
    return messages


def struck(*script: str, **numbers: float) -> tuple[list[Arrival], Counter[str]]:
    counters: Counter[str] = Counter()
    plan = FaultPlan(script=tuple(parse_fault(line) for line in script), **numbers)
    return list(with_faults(arrivals(), plan, "scene", counters)), counters


def images(got: list[Arrival]) -> list[tuple[int, int, int]]:
    """Time of arrival, stamp, both since the start [ms], and content of the images."""
    return [
        (a.now_ns // MS - 5000, a.message.stamp_ns // MS - 5000, int(a.message.rgb[0, 0, 0]))
        for a in got
        if isinstance(a.message, CameraImage)
    ]


def test_a_script_is_read_to_the_letter() -> None:
    assert parse_fault("CAM_BACK:dead:2.0-4.0") == Fault(
        sensors=("CAM_BACK",), kind="dead", from_s=2.0, to_s=4.0
    )
    assert parse_fault("CAMERAS:late:0-1:80").sensors == CAMERAS
    assert parse_fault("ALL:lossy:0-1").value == 0.5


@pytest.mark.parametrize(
    "text",
    ["", "CAM_BACK", "CAM_REAR:dead:0-1", "CAM_BACK:gone:0-1", "CAM_BACK:dead:1-0",
     "CAM_BACK:dead:x-1", "CAM_BACK:dead:1", "ALL:lossy:0-1:2", "ALL:late:0-1:inf",
     "CAM_BACK:burst:0-inf", "CAM_BACK:burst:0-1e300", "ALL:late:0-1:1e300",
     "ALL:late:0-1:nan"],
)  # fmt: skip
def test_a_wrong_script_is_one_sentence(text: str) -> None:
    with pytest.raises(InputError, match="Fault"):
        parse_fault(text)


def test_dead_frozen_stuck_and_late_do_what_they_say_and_only_then() -> None:
    got, counters = struck(
        "CAM_BACK:dead:0.2-0.4",
        "CAM_BACK:frozen:0.5-0.7",
        "CAM_BACK:stuck:0.8-0.9",
        "CAM_BACK:late:1.0-1.1:30",
    )
    # 200 and 300 are lost; 500 and 600 show 400's picture under their own stamps; 800 is 700 again
    # with its stamp; 1000 comes at 1030.
    assert images(got)[:9] == [
        (0, 0, 0), (100, 100, 1), (400, 400, 4), (500, 500, 4), (600, 600, 4), (700, 700, 7),
        (800, 700, 7), (900, 900, 9), (1030, 1000, 10),
    ]  # fmt: skip
    assert counters == {
        "CAM_BACK: dead": 2, "CAM_BACK: frozen": 2, "CAM_BACK: stuck": 1, "CAM_BACK: late": 1,
    }  # fmt: skip
    # time passes where nothing came, and the LiDAR is as it was
    assert sum(a.message is None for a in got) == 2
    assert sum(isinstance(a.message, LidarSweep) for a in got) == 40


def test_a_burst_delivers_everything_at_its_end_in_order() -> None:
    got, counters = struck("CAM_BACK:burst:0.2-0.5")
    assert images(got)[2:6] == [(500, 200, 2), (500, 300, 3), (500, 400, 4), (500, 500, 5)]
    assert counters == {"CAM_BACK: burst": 3}


def test_stalls_hold_all_sensors_and_loss_takes_its_share() -> None:
    got, counters = struck(bursts_per_minute=60.0, seed=3)
    held = [a for a in got if a.message and a.now_ns > a.message.stamp_ns]
    assert {sensor_of(a.message) for a in held} == {"CAM_BACK", LIDAR}
    assert max(a.now_ns - a.message.stamp_ns for a in held) <= 300 * MS
    assert len(held) == counters["CAM_BACK: burst"] + counters[f"{LIDAR}: burst"]
    got, counters = struck(loss=0.3)
    # 80 messages: 24 lost on average, standard deviation 4.1
    assert 8 <= sum(counters.values()) == sum(a.message is None for a in got) <= 40


@settings(deadline=None, max_examples=40)
@given(
    jitter_ms=st.floats(0, 200),
    loss=st.floats(0, 1),
    bursts_per_minute=st.floats(0, 60),
    seed=st.integers(0, 99),
)
def test_the_same_seed_does_the_same_and_time_never_goes_back(**numbers: float) -> None:
    (a, counted), (b, _) = struck(**numbers), struck(**numbers)
    assert [(x.now_ns, x.message and x.message.stamp_ns) for x in a] == [
        (x.now_ns, x.message and x.message.stamp_ns) for x in b
    ]
    times = [arrival.now_ns for arrival in a]
    assert times == sorted(times)
    assert len(a) == 80
    for sensor in ("CAM_BACK", LIDAR):
        own = [x.message.stamp_ns for x in a if x.message and sensor_of(x.message) == sensor]
        assert own == sorted(own)
        lost = counted[f"{sensor}: lost"]
        assert len(own) == 40 - lost


def test_a_frozen_lidar_gives_its_old_points_under_new_stamps() -> None:
    got, _ = struck("LIDAR_TOP:frozen:0.5-0.7")
    sweeps = [a.message for a in got if isinstance(a.message, LidarSweep)]
    shown = [(s.stamp_ns // MS - 5000, int(s.points_lidar[0, 0])) for s in sweeps[4:8]]
    assert shown == [(400, 4), (500, 4), (600, 4), (700, 7)]


def test_a_sensor_that_is_held_from_its_first_message_gives_nothing() -> None:
    for kind in ("frozen", "stuck"):
        got, counters = struck(f"CAM_BACK:{kind}:0-0.2")
        assert images(got)[0] == (200, 200, 2)
        assert counters == {f"CAM_BACK: {kind}": 2}


def test_probability_and_delay_are_those_that_were_asked_for() -> None:
    for script, expected in (("lossy:0-9:0", 40), ("lossy:0-9:1", 0)):
        assert len(images(struck(f"CAM_BACK:{script}")[0])) == expected
    late = images(struck("CAM_BACK:late:0-9:70")[0])
    assert {arrived - stamp for arrived, stamp, _ in late} == {70}
    # the absolute value of a normal variable of 20 ms has a mean of 16 ms and rarely 90
    delays = [a.now_ns - a.message.stamp_ns for a in struck(jitter_ms=20.0)[0] if a.message]
    assert 10 * MS < sum(delays) / len(delays) < 22 * MS
    assert max(delays) < 100 * MS


def test_scenes_have_their_own_chance() -> None:
    plan = FaultPlan(loss=0.5, seed=1)
    lost = [
        [a.message is None for a in with_faults(arrivals(), plan, scene, Counter())]
        for scene in ("one", "two")
    ]
    assert lost[0] != lost[1]


def test_no_fault_changes_nothing() -> None:
    assert [a.now_ns for a in struck()[0]] == [a.now_ns for a in arrivals()]
    with pytest.raises(InputError, match="loss is 2"):
        FaultPlan(loss=2.0)
