"""Poses, attributes and parts of actors at a time."""

import numpy as np
import pytest

from perception.synthetic.conditions import Conditions
from perception.synthetic.object_models import object_model
from perception.synthetic.part_list import Material, PartList
from perception.synthetic.primitives import NO_OBJECT, Primitives
from perception.synthetic.scene_script import Actor, SceneScript, Track
from perception.synthetic.tracks import StaticTrack, drive, station_poses

DAY = Conditions(
    name="day",
    sun_azimuth=1.0,
    sun_elevation=1.0,
    sunlight=0.6,
    skylight=0.6,
    tint_rgb=(1.0, 1.0, 1.0),
    sky_top_rgb=(90, 130, 190),
    sky_horizon_rgb=(200, 215, 230),
    contrast=1.0,
    noise=2.0,
    visibility=600.0,
    headlights=0.0,
    lidar_dropout=0.02,
    lidar_dropout_per_meter=0.001,
    lidar_range_noise=0.02,
    lidar_clutter=0.0,
)
NEAR = np.array([0.0, 0.0])


def _actor(category: str, track: Track, seed: int = 0) -> Actor:
    size, model = object_model(category, np.random.default_rng(seed))
    return Actor(category=category, size=size, model=model, track=track)


def _clutter(*places: tuple[float, float, float]) -> Primitives:
    """Cubes of 2 m at x, y with a yaw."""
    parts = PartList()
    for x, y, yaw in places:
        look = Material(rgb=(9, 9, 9))
        parts.add((x, y, 1.0), (2.0, 2.0, 2.0), look, semantic=4, yaw=yaw)
    return parts.table()


def _script(
    *actors: Actor, clutter: Primitives | None = None, duration: float = 10.0
) -> SceneScript:
    return SceneScript(
        name="scene-0001",
        location="boston-seaport",
        description="Synthetic",
        conditions=DAY,
        duration=duration,
        ego=StaticTrack(x=0.0, y=0.0, yaw=0.0),
        actors=actors,
        clutter=_clutter() if clutter is None else clutter,
    )


def _there_and_wait() -> Track:
    """From x = 2 m at -1 s at 4 m/s; stands at 20 m for 4 s; then goes on."""
    line = np.array([[0.0, 5.0], [90.0, 5.0]])
    return drive(station_poses(line, 1.0), start=2.0, cruise=4.0, stops=[(20.0, 4.0)])


def test_attributes_by_hand():
    # Braking from 4 m/s at 1.6 m/s2 takes 5 m and 2.5 s: from 15 m at -1 + 13 / 4 = 2.25 s, so it
    # stands from 4.75 s to 8.75 s.
    moving, standing = _there_and_wait(), StaticTrack(x=0.0, y=-9.0, yaw=0.0)
    expected = {
        ("vehicle.car", True): ("vehicle.moving", "vehicle.stopped", "vehicle.moving"),
        ("vehicle.bus.rigid", False): ("vehicle.parked",) * 3,
        ("human.pedestrian.adult", True): (
            "pedestrian.moving",
            "pedestrian.standing",
            "pedestrian.moving",
        ),
        ("human.pedestrian.child", False): ("pedestrian.standing",) * 3,
        ("vehicle.bicycle", True): ("cycle.with_rider",) * 3,
        ("vehicle.motorcycle", False): ("cycle.without_rider",) * 3,
        ("movable_object.barrier", False): ("",) * 3,
        ("movable_object.trafficcone", False): ("",) * 3,
    }
    actors = [_actor(category, moving if moves else standing) for category, moves in expected]
    script = _script(*actors)
    for index, attributes in enumerate(expected.values()):
        assert tuple(script.attribute(index, time) for time in (1.0, 6.0, 10.0)) == attributes


def test_table_of_poses_agrees_with_the_tracks():
    script = _script(
        _actor("vehicle.car", _there_and_wait()),
        _actor("vehicle.car", StaticTrack(x=3.0, y=4.0, yaw=5.0)),
    )
    times = np.random.default_rng(0).uniform(-1.0, 11.0, 200)
    poses = script.actor_poses(times)
    for index, actor in enumerate(script.actors):
        np.testing.assert_allclose(poses[:, index], actor.track.poses(times), atol=1e-3)
    np.testing.assert_array_equal(poses[7:8], script.actor_poses(times[7:8]))


@pytest.mark.parametrize("time", [-1.0, 0.0, 4.321, 11.0])
def test_parts_at_a_time_are_those_of_each_actor_moved_to_its_pose(time):
    clutter = _clutter((8.0, 8.0, 0.3))
    line = np.array([[0.0, 5.0], [30.0, 25.0], [10.0, 60.0]])
    script = _script(
        _actor("vehicle.construction", drive(station_poses(line, 2.0), start=1.0, cruise=3.0)),
        _actor("vehicle.bicycle", StaticTrack(x=-7.0, y=2.0, yaw=2.5)),
        clutter=clutter,
    )
    table = script.primitives_at(time, NEAR, 500.0)
    row = 0
    for index, actor in enumerate(script.actors):
        x, y, yaw = script.actor_poses(np.array([time]))[0, index]
        R = np.array([[np.cos(yaw), -np.sin(yaw), 0], [np.sin(yaw), np.cos(yaw), 0], [0, 0, 1]])
        for part in range(len(actor.model)):
            center = R @ actor.model.center_global[part] + [x, y, 0]
            np.testing.assert_allclose(table.center_global[row], center, atol=1e-9)
            R_expected = R @ actor.model.R_global_box[part]
            np.testing.assert_allclose(table.R_global_box[row], R_expected, atol=1e-9)
            assert table.object_index[row] == index
            assert (table.colors_rgb[row] == actor.model.colors_rgb[part]).all()
            row += 1
    assert row == len(table) - 1
    assert table.object_index[row] == NO_OBJECT
    np.testing.assert_array_equal(table.center_global[row], clutter.center_global[0])


def test_only_what_is_near_is_given():
    clutter = _clutter((30.0, 0.0, 0.0), (31.6, 0.0, 0.0), (31.3, 0.0, np.pi / 4))
    script = _script(
        _actor("vehicle.bus.rigid", StaticTrack(x=34.0, y=0.0, yaw=0.0)),  # 11 m long
        _actor("human.pedestrian.adult", StaticTrack(x=0.0, y=31.0, yaw=0.0)),
        clutter=clutter,
    )
    table = script.primitives_at(0.0, NEAR, 30.0)
    # The bus reaches to 28.5 m. Cubes of 2 m: the first reaches to 29 m, the second to 30.6 m (its
    # circle of 1.41 m to 30.2 m), the third, on edge, to 29.9 m.
    assert set(table.object_index.tolist()) == {0, NO_OBJECT}
    assert table.center_global[table.object_index == NO_OBJECT, 0].tolist() == [30.0, 31.3]


def test_a_scene_without_actors_has_clutter_only():
    script = _script(clutter=_clutter((3.0, 0.0, 0.0)))
    assert len(script.primitives_at(0.0, NEAR, 10.0)) == 1
    assert script.actor_poses(np.array([0.0, 1.0])).shape == (2, 0, 3)
