"""Motion is smooth, obeys its limits, and halts where it should."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perception.synthetic import tracks
from perception.synthetic.tracks import StaticTrack, drive, resample, shift_sideways, station_poses

STRAIGHT = np.array([[0.0, 0.0], [300.0, 0.0]])


def _corner() -> np.ndarray:
    """100 m east, a left bend of 12 m radius, 100 m north; 1 m apart or less."""
    angle = np.linspace(-np.pi / 2, 0, 30)
    bend = np.stack([100 + 12 * np.cos(angle), 12 + 12 * np.sin(angle)], axis=-1)
    return np.concatenate([[[0.0, 0.0]], bend, [[112.0, 112.0]]])


def test_static_track_is_the_same_at_all_times() -> None:
    poses = StaticTrack(x=1.0, y=2.0, yaw=3.0).poses(np.array([-1.0, 0.0, 9.0]))
    assert np.array_equal(poses, [[1, 2, 3]] * 3)


def test_constant_speed_on_a_straight_line() -> None:
    track = drive(station_poses(STRAIGHT, 3.0), start=10.0, cruise=8.0)
    # It is at 10 m at -1 s and goes 8 m/s: 18 m at 0 s, 58 m at 5 s.
    poses = track.poses(np.array([-1.0, 0.0, 5.0]))
    assert np.allclose(poses, [[10, 0, 0], [18, 0, 0], [58, 0, 0]], atol=1e-9)


def test_halt_by_hand() -> None:
    # From 10 m at 8 m/s with 1.6 m/s2: braking takes 8^2 / 3.2 = 20 m and 8 / 1.6 = 5 s, so it
    # begins at 90 m, at -1 + 80 / 8 = 9 s, and it stands at 110 m from 14 s to 17 s.
    track = drive(station_poses(STRAIGHT, 3.0), start=10.0, cruise=8.0, stops=[(110.0, 3.0)])
    x = track.poses(np.array([9.0, 14.0, 15.5, 17.0, 22.0]))[:, 0]
    assert np.allclose(x, [90.0, 110.0, 110.0, 110.0, 130.0], atol=0.02)


def test_stands_at_the_end_of_its_line() -> None:
    track = drive(station_poses(STRAIGHT[:] / 10, 3.0), start=2.0, cruise=5.0)
    poses = track.poses(np.array([60.0, 70.0]))
    assert np.array_equal(poses[0], poses[1])
    assert 27.0 < poses[0, 0] <= 28.5  # the front point, 1.5 m ahead, is on the line's 30 m


@settings(max_examples=40, deadline=None)
@given(st.floats(2.0, 14.0), st.floats(40.0, 190.0), st.floats(0.5, 9.0))
def test_speed_and_heading_are_continuous_and_within_limits(
    cruise: float, stop: float, wait: float
) -> None:
    track = drive(station_poses(_corner(), 2.7), start=5.0, cruise=cruise, stops=[(stop, wait)])
    times = np.arange(-1.0, 20.0, 0.02)
    poses = track.poses(times)
    velocity = np.diff(poses[:, :2], axis=0) / 0.02
    speed = np.hypot(*velocity.T)
    assert speed.max() <= cruise + 1e-6
    assert np.abs(np.diff(speed)).max() <= 0.02 * 1.6 * 3  # chords of bends add a little
    yaw_rate = np.diff(poses[:, 2]) / 0.02
    assert np.abs(yaw_rate * speed).max() < 3.0  # lateral acceleration
    # It moves where it looks, but for the way of a middle between two axles in a bend.
    moving = speed > 0.5
    heading = np.arctan2(velocity[:, 1], velocity[:, 0])
    assert np.abs(heading - poses[:-1, 2])[moving].max() < 0.1


def test_rear_axle_runs_on_the_line() -> None:
    poses = station_poses(_corner(), 2.6, of_rear=True)
    on_arc = poses[(poses[:, 0] > 100.5) & (poses[:, 1] < 11.5)]
    assert len(on_arc) > 20
    assert np.allclose(np.hypot(on_arc[:, 0] - 100, on_arc[:, 1] - 12), 12.0, atol=0.01)


def test_yaw_does_not_jump_on_a_way_around() -> None:
    angle = np.linspace(0, 4 * np.pi, 400)
    poses = station_poses(30 * np.stack([np.cos(angle), np.sin(angle)], axis=-1), 3.0)
    assert np.abs(np.diff(poses[:, 2])).max() < 0.05
    assert np.ptp(poses[:, 2]) > 12.0


def test_single_times_equal_many() -> None:
    track = drive(station_poses(_corner(), 2.6), start=5.0, cruise=9.0, stops=[(60.0, 2.0)])
    times = np.linspace(-1.0, 21.0, 50)
    one_by_one = np.concatenate([track.poses(times[i : i + 1]) for i in range(50)])
    assert np.array_equal(track.poses(times), one_by_one)


def test_resample_and_shift() -> None:
    line = resample(np.array([[0.0, 0.0], [4.0, 0.0], [4.0, 4.0]]), 2.0)
    assert np.allclose(line, [[0, 0], [2, 0], [4, 0], [4, 2]])
    # Left of east is north.
    assert np.allclose(
        shift_sideways(np.array([[0.0, 0.0], [5.0, 0.0]]), 1.5), [[0, 1.5], [5, 1.5]]
    )


def test_too_short_lines_are_refused() -> None:
    with pytest.raises(ValueError, match=r"2\.0 m is too short for a base of 3\.0 m"):
        station_poses(np.array([[0.0, 0.0], [2.0, 0.0]]), 3.0)
    with pytest.raises(ValueError, match="leaves no way"):
        drive(station_poses(STRAIGHT / 10, 3.0), start=60.0, cruise=5.0)
    assert tracks.START_TIME == -1.0
