import dataclasses

import numpy as np
import pytest

from perception.data import faults
from perception.data.faults import FaultConfig, inject
from perception.data.nuscenes_log import NuScenesLog
from perception.taxonomy import CAMERAS, LIDAR

SENSORS = (*CAMERAS, LIDAR)


@pytest.fixture(scope="module")
def log(small_log_root):
    return NuScenesLog(small_log_root)


@pytest.fixture(scope="module")
def token(log):
    return log.keyframe_tokens()[1]


@pytest.fixture
def frame(log, token):
    """Frozen arrays: whoever writes into the frame fails."""
    frame = log.keyframe(token, num_sweeps=3)
    for array in (
        *(image.rgb for image in frame.images.values()),
        *(sweep.points_lidar for sweep in frame.sweeps),
    ):
        array.flags.writeable = False
    return frame


def earlier(log, token):
    return lambda sensor: log.message_before(token, sensor)


def nothing(sensor):
    return None


def rng(seed=0):
    return np.random.default_rng(seed)


def sensors_of(frame):
    return frozenset(frame.images) | ({LIDAR} if frame.sweeps else frozenset())


# dropped


def test_a_dropped_sensor_is_absent_and_named(frame):
    without = faults.drop(faults.drop(frame, "CAM_BACK"), LIDAR)
    assert set(without.images) == set(CAMERAS) - {"CAM_BACK"}
    assert without.sweeps == ()
    assert without.missing == {"CAM_BACK": "dropped", LIDAR: "dropped"}
    assert without.stamp_ns == frame.stamp_ns
    assert set(frame.images) == set(CAMERAS)
    assert faults.drop(without, "CAM_BACK") is without


def test_every_set_of_sensors_but_the_empty_one_occurs(frame):
    # 127 sets, each with probability 1/128 or more: the chance that one is lacking among 2500
    # draws is below 127 * (1 - 1/128)^2500 = 4e-7
    config = FaultConfig(drop_camera=0.5, drop_lidar=0.5)
    random = rng()
    found = {sensors_of(inject(frame, config, random, nothing)) for _ in range(2500)}
    assert len(found) == 127
    assert frozenset() not in found


def test_one_sensor_always_stays(frame):
    everything = FaultConfig(drop_camera=1.0, drop_lidar=1.0, drop_all_cameras=1.0)
    random = rng()
    kept = [sensors_of(inject(frame, everything, random, nothing)) for _ in range(200)]
    assert {len(one) for one in kept} == {1}
    assert frozenset().union(*kept) == set(SENSORS)  # any of them


def test_all_cameras_together(frame):
    config = FaultConfig(drop_all_cameras=0.5)
    random = rng()
    found = [sensors_of(inject(frame, config, random, nothing)) for _ in range(200)]
    assert set(found) == {frozenset(SENSORS), frozenset({LIDAR})}
    assert 60 < sum(one == {LIDAR} for one in found) < 140


def test_a_frame_without_sensors_stays(frame):
    blind = dataclasses.replace(frame, images={}, sweeps=())
    config = FaultConfig(drop_camera=1.0, drop_lidar=1.0, late=1.0, frozen=1.0, noisy=1.0)
    assert inject(blind, config, rng(), nothing) is blind


# late and frozen


def test_a_late_camera_shows_what_was_before_and_says_so(frame, log, token):
    before = log.message_before(token, "CAM_FRONT")
    # cameras of the small log give a picture every 0.1 s
    assert frame.images["CAM_FRONT"].stamp_ns - before.stamp_ns == 100_000_000
    image = faults.late(frame, before).images["CAM_FRONT"]
    assert image.stamp_ns == before.stamp_ns
    assert (image.T_global_ego == before.T_global_ego).all()
    assert (image.rgb == before.rgb).all()


def test_a_late_lidar_gives_the_older_sweeps(frame, log, token):
    changed = faults.late(frame, log.message_before(token, LIDAR))
    ages = [frame.stamp_ns - sweep.stamp_ns for sweep in changed.sweeps]
    assert ages == [50_000_000, 100_000_000]
    assert changed.stamp_ns == frame.stamp_ns


def test_a_frozen_camera_lies(frame, log, token):
    before = log.message_before(token, "CAM_FRONT")
    image = faults.freeze(frame, before).images["CAM_FRONT"]
    assert (image.rgb == before.rgb).all()
    assert (image.rgb != frame.images["CAM_FRONT"].rgb).any()
    assert image.stamp_ns == frame.images["CAM_FRONT"].stamp_ns
    assert (image.T_global_ego == frame.images["CAM_FRONT"].T_global_ego).all()


def test_a_frozen_lidar_lies(frame, log, token):
    before = log.message_before(token, LIDAR)
    sweeps = faults.freeze(frame, before).sweeps
    assert (sweeps[0].points_lidar == before.points_lidar).all()
    assert sweeps[0].stamp_ns == frame.stamp_ns
    assert [s.stamp_ns for s in sweeps] == [s.stamp_ns for s in frame.sweeps]


def test_a_sensor_that_the_frame_lacks_does_not_come_back(frame, log, token):
    for sensor in ("CAM_BACK", LIDAR):
        without = faults.drop(frame, sensor)
        before = log.message_before(token, sensor)
        assert faults.late(without, before) is without
        assert faults.freeze(without, before) is without


def test_at_the_start_of_a_scene_nothing_is_late(log):
    first = log.keyframe_tokens()[0]
    frame = log.keyframe(first)
    assert log.message_before(first, "CAM_FRONT") is None
    changed = inject(frame, FaultConfig(late=1.0), rng(), earlier(log, first))
    assert changed is frame


def test_late_sensors_come_from_the_log(frame, log, token):
    changed = inject(frame, FaultConfig(late=1.0), rng(), earlier(log, token))
    for camera, image in changed.images.items():
        assert frame.images[camera].stamp_ns - image.stamp_ns == 100_000_000
    assert frame.stamp_ns - changed.sweeps[0].stamp_ns == 50_000_000


# noise


def test_pixel_noise_has_the_strength_it_says(frame):
    grey = np.full((90, 160, 3), 128, np.uint8)
    image = dataclasses.replace(frame.images["CAM_FRONT"], rgb=grey)
    frame = dataclasses.replace(frame, images={**frame.images, "CAM_FRONT": image})
    noisy = faults.add_pixel_noise(frame, "CAM_FRONT", 20.0, rng()).images["CAM_FRONT"].rgb
    # cut off, not rounded: half a grey value darker
    assert noisy.mean() == pytest.approx(127.5, abs=0.5)
    assert noisy.std() == pytest.approx(20.0, rel=0.03)


def test_brightness_and_black(frame):
    rgb = frame.images["CAM_FRONT"].rgb
    brighter = faults.change_brightness(frame, "CAM_FRONT", 2.0).images["CAM_FRONT"].rgb
    assert (brighter == np.minimum(rgb.astype(int) * 2, 255)).all()
    black = faults.blacken(frame, "CAM_FRONT")
    assert not black.images["CAM_FRONT"].rgb.any()
    assert (black.images["CAM_BACK"].rgb == frame.images["CAM_BACK"].rgb).all()


def test_lost_points(frame):
    for before, after in zip(
        frame.sweeps, faults.lose_points(frame, 0.7, rng()).sweeps, strict=True
    ):
        assert after.points_lidar.shape[1] == pytest.approx(0.3 * before.points_lidar.shape[1], 0.3)
        assert set(after.points_lidar[0]) <= set(before.points_lidar[0])


def test_lost_beams_are_lost_in_every_sweep(frame):
    # four beams, 100 points each, at elevations that lie in the middle of their steps
    step = np.deg2rad(faults.BEAM_STEP_DEG)
    elevation = np.repeat(np.arange(60, 64) + 0.5, 100) * step - np.pi / 2
    azimuth = rng().uniform(-np.pi, np.pi, 400)
    distance = rng(1).uniform(2, 50, 400)
    xyz = [np.cos(azimuth) * np.cos(elevation), np.sin(azimuth) * np.cos(elevation)]
    points = np.stack([*xyz, np.sin(elevation), np.zeros(400)]).astype(np.float32)
    points[:3] *= distance.astype(np.float32)
    sweeps = tuple(dataclasses.replace(sweep, points_lidar=points) for sweep in frame.sweeps)
    frame = dataclasses.replace(frame, sweeps=sweeps)
    lost = set()
    for seed in range(20):
        after = faults.lose_beams(frame, 0.5, rng(seed)).sweeps
        kept = {sweep.points_lidar.tobytes() for sweep in after}
        assert len(kept) == 1
        assert after[0].points_lidar.shape[1] % 100 == 0  # whole beams
        lost.add(after[0].points_lidar.shape[1])
    assert lost >= {100, 200, 300}


def test_range_noise_moves_points_along_their_rays(frame):
    before = frame.sweeps[0].points_lidar[:3]
    after = faults.jitter_range(frame, 0.1, rng()).sweeps[0].points_lidar[:3]
    np.testing.assert_allclose(np.cross(before.T, after.T), 0, atol=2e-4)
    moved = np.linalg.norm(after - before, axis=0)
    assert moved.std() > 0.03
    assert np.sqrt((moved**2).mean()) == pytest.approx(0.1, rel=0.2)


@pytest.mark.parametrize("sensor", SENSORS)
def test_every_kind_of_noise_spoils_its_sensor_alone(frame, sensor):
    seen = set()
    for seed in range(30):
        changed = faults.spoil(frame, sensor, rng(seed))
        assert changed.missing == {}
        assert sensors_of(changed) == set(SENSORS)
        for camera in set(CAMERAS) - {sensor}:
            assert changed.images[camera] is frame.images[camera]
        assert (changed.sweeps is frame.sweeps) == (sensor != LIDAR)
        if sensor == LIDAR:
            seen.add(changed.sweeps[0].points_lidar.shape == frame.sweeps[0].points_lidar.shape)
        else:
            seen.add(bool(changed.images[sensor].rgb.any()))
    assert seen == {True, False}


def test_points_that_are_no_numbers_are_no_error(frame):
    points = frame.sweeps[0].points_lidar.copy()
    points[:, :3] = np.array([np.nan, np.inf, -np.inf])
    sweep = dataclasses.replace(frame.sweeps[0], points_lidar=points)
    frame = dataclasses.replace(frame, sweeps=(sweep,))
    for seed in range(20):
        assert faults.spoil(frame, LIDAR, rng(seed)).sweeps


# all together


def test_no_probability_changes_nothing(frame):
    assert inject(frame, FaultConfig(), rng(), nothing) is frame


def test_the_same_numbers_give_the_same_faults(frame, log, token):
    config = FaultConfig(drop_camera=0.2, drop_lidar=0.2, late=0.3, frozen=0.3, noisy=0.5)

    def content(seed):
        changed = inject(frame, config, rng(seed), earlier(log, token))
        images = {name: image.rgb.tobytes() for name, image in changed.images.items()}
        return images, [s.points_lidar.tobytes() for s in changed.sweeps], dict(changed.missing)

    assert content(4) == content(4)
    assert content(4) != content(5)


def test_impossible_probabilities_are_refused():
    with pytest.raises(ValueError, match=r"late is 1\.5, expected a probability"):
        FaultConfig(late=1.5)
