import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely.geometry import LineString, Point, Polygon

from perception.errors import InputError
from perception.synthetic.street_builder import build_street_map
from perception.synthetic.street_map import LOCATIONS, Lane, ParkingSpot, StreetMap

BEND = 0.06
"""Lines of 2 m pieces, bent one by one, stay that close to each other [m]."""


def lane_polygon(lane: Lane) -> Polygon:
    return Polygon(np.concatenate([lane.right_edge, lane.left_edge[::-1]]))


def spot_polygon(spot: ParkingSpot) -> Polygon:
    u = np.array([np.cos(spot.yaw), np.sin(spot.yaw)]) * spot.length / 2
    v = np.array([-np.sin(spot.yaw), np.cos(spot.yaw)]) * spot.width / 2
    center = np.array([spot.x, spot.y])
    return Polygon([center + u + v, center + v - u, center - u - v, center + u - v])


def drivable(street_map: StreetMap) -> Polygon:
    areas = [segment.polygon for segment in street_map.road_segments]
    areas += [park.polygon for park in street_map.car_parks]
    return shapely.union_all(areas).buffer(BEND)


@pytest.fixture(scope="module", params=["boston-seaport", "singapore-onenorth"])
def street_map(request: pytest.FixtureRequest) -> StreetMap:
    return build_street_map(request.param, 3)


def test_a_successor_begins_where_its_lane_ends_and_heads_the_same_way(street_map):
    for lane in street_map.lanes:
        for index in lane.successors:
            successor = street_map.lanes[index]
            for name in ("centerline", "left_edge", "right_edge"):
                before, after = getattr(lane, name), getattr(successor, name)
                np.testing.assert_allclose(before[-1], after[0], atol=1e-6)
            before = lane.centerline[-1] - lane.centerline[-2]
            after = successor.centerline[1] - successor.centerline[0]
            cos = before @ after / np.linalg.norm(before) / np.linalg.norm(after)
            assert cos > np.cos(np.deg2rad(8.0))


def test_lanes_have_no_kinks_and_close_points(street_map):
    for lane in street_map.lanes:
        steps = np.diff(lane.centerline, axis=0)
        assert np.linalg.norm(steps, axis=-1).max() < 2.2
        turns = np.diff(np.unwrap(np.arctan2(steps[:, 1], steps[:, 0])))
        # The sharpest turn has 6 m of radius or more and points 1 m apart: 1/6 rad is 10 degrees.
        assert np.abs(turns).max(initial=0.0) < np.deg2rad(20.0)


def test_lanes_and_paths_lie_on_the_road(street_map):
    road = drivable(street_map)
    shapely.prepare(road)
    for lane in street_map.lanes:
        assert road.covers(shapely.linestrings([lane.left_edge, lane.right_edge])).all()


def test_every_lane_leads_on_or_leaves_the_map_and_every_lane_is_reached(street_map):
    hull = shapely.union_all([s.polygon for s in street_map.road_segments]).convex_hull
    reached = {index for lane in street_map.lanes for index in lane.successors}
    for index, lane in enumerate(street_map.lanes):
        if not lane.successors:
            assert hull.exterior.distance(Point(lane.centerline[-1])) < 35.0
        if index not in reached:
            assert hull.exterior.distance(Point(lane.centerline[0])) < 35.0
    assert sum(not lane.successors for lane in street_map.lanes) < 0.1 * len(street_map.lanes)


def test_one_drives_on_the_local_side_of_the_yellow_line(street_map):
    dividers = {divider.road_segment: divider.line for divider in street_map.road_dividers}
    for lane in street_map.lanes:
        if lane.is_connector:
            continue
        line = dividers[lane.road_segment]
        middle = lane.centerline[len(lane.centerline) // 2]
        forward = lane.centerline[-1] - lane.centerline[0]
        nearest = line[np.argmin(np.linalg.norm(line - middle, axis=-1))]
        dx, dy = nearest - middle
        # The line lies to the left of the driver (cross product > 0) where one drives on the right.
        divider_is_left = forward[0] * dy - forward[1] * dx > 0
        assert divider_is_left != street_map.drives_on_left
    assert street_map.drives_on_left == street_map.location.startswith("singapore")


def test_spots_are_clear_of_lanes_and_of_each_other_and_some_are_long(street_map):
    spots = [spot_polygon(spot) for spot in street_map.parking_spots]
    lanes = shapely.STRtree([lane_polygon(lane) for lane in street_map.lanes])
    assert lanes.query(spots, predicate="overlaps").size == 0
    assert shapely.STRtree(spots).query(spots, predicate="overlaps").size == 0
    road = drivable(street_map)
    shapely.prepare(road)
    assert road.covers(spots).all()
    assert sum(s.length >= 12.0 and s.width >= 2.9 for s in street_map.parking_spots) >= 8
    assert {spot.in_car_park for spot in street_map.parking_spots} == {True, False}


def test_crossings_lead_from_walkway_to_walkway_behind_the_stop_line(street_map):
    walkways = shapely.union_all(street_map.walkways)
    shapely.prepare(walkways)
    for crossing in street_map.crossings:
        assert walkways.covers(shapely.points(crossing.path)).all()
        assert crossing.polygon.distance(walkways) < BEND
        assert crossing.polygon.covers(Point(crossing.path.mean(axis=0)))
    for stop in street_map.stop_lines:
        for index in stop.lanes:
            assert stop.polygon.distance(Point(street_map.lanes[index].centerline[-1])) < BEND
        if stop.crossing is not None:
            # 1 m of road lies between, less where streets meet at an acute angle.
            assert 0.7 < stop.polygon.distance(street_map.crossings[stop.crossing].polygon) < 1.2


def test_lots_are_clear_of_roads_walkways_and_planting_lines(street_map):
    lots = shapely.union_all(street_map.building_lots)
    assert lots.distance(drivable(street_map)) > 3.0
    assert lots.distance(shapely.union_all(street_map.walkways)) > 1.5
    planting = [LineString(line) for line in street_map.planting_lines]
    assert lots.distance(shapely.union_all(planting)) > 0.5
    assert len(street_map.building_lots) > 80
    assert all(lot.equals(lot.convex_hull) for lot in street_map.building_lots)


def test_there_is_plenty_to_learn(street_map):
    assert len(street_map.car_parks) >= 10
    assert len(street_map.crossings) >= 15
    parks = shapely.union_all([park.polygon for park in street_map.car_parks])
    points = np.concatenate([lane.centerline for lane in street_map.lanes])
    assert np.mean(shapely.distance(shapely.points(points), parks) < 50.0) > 0.75
    with_two = {divider.road_segment for divider in street_map.lane_dividers}
    assert len(with_two) >= 0.45 * len(street_map.road_dividers)


@settings(max_examples=2, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(LOCATIONS))
def test_areas_are_valid_without_holes_and_inside_the_map(seed, location):
    street_map = build_street_map(location, seed)
    records = (*street_map.road_segments, *street_map.car_parks, *street_map.crossings)
    areas = [record.polygon for record in (*records, *street_map.stop_lines)]
    areas += [*street_map.walkways, *street_map.building_lots]
    areas += [lane_polygon(lane) for lane in street_map.lanes]
    inside = shapely.box(0.0, 0.0, street_map.size, street_map.size)
    for area in areas:
        assert area.is_valid
        assert not area.interiors
        assert inside.contains(area)
    for line in (*street_map.walking_paths, *street_map.planting_lines):
        assert np.linalg.norm(np.diff(line, axis=0), axis=-1).max() <= 4.0
        assert inside.contains(LineString(line))


def test_the_same_seed_gives_the_same_map_and_another_seed_another():
    first, again, other = (build_street_map("boston-seaport", seed) for seed in (5, 5, 6))

    def content(street_map: StreetMap) -> tuple:
        lanes = [(lane.centerline.tobytes(), lane.successors) for lane in street_map.lanes]
        areas = shapely.to_wkb([*street_map.walkways, *street_map.building_lots]).tolist()
        paths = [line.tobytes() for line in street_map.walking_paths]
        return lanes, areas, paths, street_map.parking_spots

    assert content(first) == content(again)
    assert all(a != b for a, b in zip(content(first), content(other), strict=True))


def test_an_unknown_location_is_refused():
    with pytest.raises(InputError, match="expected one of singapore-onenorth"):
        build_street_map("atlantis", 0)
