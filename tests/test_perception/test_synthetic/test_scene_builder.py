"""Scenes are whole, without collisions, and the same for the same seed."""

from collections import Counter

import numpy as np
import pytest
import shapely
from ring_town import SIZE, ring, ring_town

from perception.synthetic import scene_builder
from perception.synthetic.clutter import build_clutter
from perception.synthetic.occupancy import gap
from perception.synthetic.primitives import SEMANTIC_CLASSES, Primitives
from perception.synthetic.scene_builder import build_scene
from perception.synthetic.scene_script import SceneScript
from perception.synthetic.sight import blocked, classes_in_sight
from perception.synthetic.stage import EGO_MIDDLE, EGO_SIZE
from perception.synthetic.street_map import Lane, StreetMap
from perception.taxonomy import DETECTION_CLASS_OF_CATEGORY, DETECTION_CLASSES

TOWN = ring_town()


@pytest.fixture(scope="module")
def clutter() -> Primitives:
    return build_clutter(TOWN, 0)


@pytest.fixture(scope="module", params=[("scene-a", 0), ("scene-b", 1)])
def scene(request: pytest.FixtureRequest, clutter: Primitives) -> SceneScript:
    name, seed = request.param
    return build_scene(TOWN, clutter, name, seed, 12.0)


def test_nobody_touches_anybody_at_any_time(scene: SceneScript):
    times = np.arange(-1.0, 13.0, 0.2)
    poses = scene.actor_poses(times)
    ego = scene.ego.poses(times)
    ego[:, 0] += EGO_MIDDLE * np.cos(ego[:, 2])
    ego[:, 1] += EGO_MIDDLE * np.sin(ego[:, 2])
    poses = np.concatenate([poses, ego[:, None]], axis=1)
    half = np.array([*(actor.size[:2] for actor in scene.actors), EGO_SIZE]) / 2
    first, second = np.triu_indices(len(half), 1)
    for step in poses:
        offset = step[second, :2] - step[first, :2]
        apart = gap(offset, step[first, 2], half[first], step[second, 2], half[second])
        assert apart.min() > 0.0


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("duration", [1.5, 12.0])
def test_all_classes_are_near_the_car_in_sight(seed: int, duration: float, clutter: Primitives):
    scene = build_scene(TOWN, clutter, "scene-c", seed, duration)
    times = np.linspace(0.0, duration, 5)
    assert classes_in_sight(scene.actors, scene.ego, clutter, times) == set(DETECTION_CLASSES)
    ego, poses = scene.ego.poses(times), scene.actor_poses(times)
    distance = np.hypot(*(poses[..., :2] - ego[:, None, :2]).transpose(2, 0, 1)).min(axis=0)
    near = {
        DETECTION_CLASS_OF_CATEGORY[scene.actors[index].category]
        for index in np.nonzero(distance < 38.0)[0]
    }
    assert near == set(DETECTION_CLASSES)


def test_the_mix_is_that_of_a_street(scene: SceneScript):
    count = Counter(DETECTION_CLASS_OF_CATEGORY[actor.category] for actor in scene.actors)
    assert 40 <= len(scene.actors) <= 110
    assert count["car"] >= max(count[c] for c in ("truck", "bus", "trailer", "motorcycle"))
    assert count["pedestrian"] >= 6
    assert count["traffic_cone"] >= 4
    assert count["barrier"] >= 3


def test_everybody_is_on_the_map_and_out_of_buildings(scene: SceneScript, clutter: Primitives):
    poses = scene.actor_poses(np.arange(-1.0, 13.0, 0.5))[..., :2].reshape(-1, 2)
    assert poses.min() > 0.0
    assert poses.max() < SIZE
    lots = shapely.union_all(list(TOWN.building_lots))
    assert not shapely.contains_xy(lots, poses[:, 0], poses[:, 1]).any()


def test_the_car_drives_on_a_lane_and_smoothly(scene: SceneScript):
    times = np.arange(-1.0, 13.0, 0.05)
    ego = scene.ego.poses(times)
    lanes = shapely.union_all([shapely.LineString(ring(side)) for side in (1.75, -1.75)])
    assert shapely.distance(lanes, shapely.points(ego[:, :2])).max() < 0.05
    speed = np.hypot(*np.diff(ego[:, :2], axis=0).T) / 0.05
    assert speed.max() < 12.5
    assert np.abs(np.diff(speed)).max() < 0.05 * 3.5
    assert np.abs(np.diff(ego[:, 2])).max() < 0.05 * 1.0


def test_moving_vehicles_keep_their_lane(scene: SceneScript):
    lanes = shapely.union_all([shapely.LineString(ring(side)) for side in (1.75, -1.75)])
    times = np.array([0.0, 5.0, 10.0])
    number = 0
    for index, actor in enumerate(scene.actors):
        path = scene.actor_poses(times)[:, index]
        if actor.category == "vehicle.car" and np.ptp(path[:, 0]) + np.ptp(path[:, 1]) > 1.0:
            # The middle of a chord of 2.7 m in a bend of 20 m lies 2.7^2 / 8 / 20 = 0.05 m inside.
            assert shapely.distance(lanes, shapely.points(path[:, :2])).max() < 0.1
            number += 1
    assert number >= 1


def test_riders_sit_on_cycles_that_move_only(scene: SceneScript):
    for index, actor in enumerate(scene.actors):
        if actor.category in ("vehicle.bicycle", "vehicle.motorcycle"):
            has_rider = actor.size[2] > 1.4
            assert scene.attribute(index, 5.0).endswith(
                "with_rider" if has_rider else "without_rider"
            )


def test_equal_seeds_give_equal_scenes_and_others_do_not(clutter: Primitives):
    first, again, other = (build_scene(TOWN, clutter, "scene-d", seed, 2.0) for seed in (0, 0, 1))
    assert first.description == again.description
    times = np.array([0.0, 1.0])
    np.testing.assert_array_equal(first.actor_poses(times), again.actor_poses(times))
    one, two = (scene.primitives_at(1.0, np.zeros(2), 500.0) for scene in (first, again))
    np.testing.assert_array_equal(one.colors_rgb, two.colors_rgb)
    assert not np.array_equal(first.ego.poses(times), other.ego.poses(times))


def test_a_map_without_room_is_named(clutter: Primitives):
    dead_end = StreetMap(**{**vars(TOWN), "lanes": (_short_lane(),)})
    with pytest.raises(ValueError, match="boston-seaport leads on for 20 s"):
        build_scene(dead_end, clutter, "scene-e", 0, 20.0)


def _short_lane() -> Lane:
    lane = TOWN.lanes[0]
    lines = {name: getattr(lane, name)[:15] for name in ("centerline", "left_edge", "right_edge")}
    return Lane(**{**vars(lane), **lines, "successors": ()})


def test_clutter_keeps_off_the_road_and_out_of_the_way(clutter: Primitives):
    assert 200 < len(clutter) < 1500
    road = TOWN.road_segments[0].polygon
    low = clutter.center_global[:, 2] - clutter.half_size[:, 2] < 2.0
    xy = clutter.center_global[:, :2]
    assert not shapely.contains_xy(road, xy[low, 0], xy[low, 1]).any()
    middle_lines = shapely.union_all([shapely.LineString(ring(side)) for side in (7.7, -7.7)])
    assert shapely.distance(middle_lines, shapely.points(xy[low])).min() > 0.8
    classes = {SEMANTIC_CLASSES[index] for index in clutter.semantic}
    assert classes == {"building", "vegetation", "pole"}
    np.testing.assert_array_equal(clutter.center_global, build_clutter(TOWN, 0).center_global)


def test_blocked_by_hand():
    # A wall of 2 x 4 m at x = 5 hides what is behind it; neither what is in front nor aside, and a
    # rectangle does not hide its own middle.
    wall = np.array([[5.0, 0.0, np.pi / 2, 2.0, 1.0]])
    targets = np.array([[10.0, 0.0], [3.0, 0.0], [10.0, 9.0], [-10.0, 0.0], [5.0, 0.0]])
    assert blocked(np.zeros(2), targets, wall).tolist() == [True, False, False, False, False]


def test_scene_is_rebuilt_until_all_classes_are_seen(
    clutter: Primitives, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(scene_builder, "classes_in_sight", lambda *_: {"car"})
    monkeypatch.setattr(scene_builder, "_ATTEMPTS", 2)
    with pytest.raises(ValueError, match="scene-f: no room for all classes on boston-seaport"):
        build_scene(TOWN, clutter, "scene-f", 0, 2.0)
