"""Vehicles and cycles of a scene: on the move, at the kerb and in car parks."""

import itertools

import numpy as np
from jaxtyping import Float64

from perception.synthetic.object_models import object_model
from perception.synthetic.routes import draw_route, halts
from perception.synthetic.scene_script import Actor
from perception.synthetic.stage import Stage
from perception.synthetic.street_map import ParkingSpot
from perception.synthetic.tracks import (
    braking_distance,
    drive,
    resample,
    shift_sideways,
    station_poses,
)

_LANE_RADIUS = 55.0
"""Traffic starts within this distance of the car's path [m]."""
_CYCLES = ("vehicle.bicycle", "vehicle.motorcycle")


def add_moving(stage: Stage, rng: np.random.Generator, category: str, number: int) -> int:
    """Let vehicles of a category drive near the car's path; returns how many found a way."""
    street_map = stage.street_map
    middles = np.array([lane.centerline[len(lane.centerline) // 2] for lane in street_map.lanes])
    near = np.nonzero(stage.distance_to_ego(middles) < _LANE_RADIUS)[0]
    admitted = 0
    for _ in range(6 * number if len(near) else 0):
        actor = _draw_driver(stage, rng, category, int(rng.choice(near)))
        if actor is not None and stage.let_move(actor, margin=0.35):
            admitted += 1
            if admitted == number:
                break
    return admitted


def _draw_driver(stage: Stage, rng: np.random.Generator, category: str, lane: int) -> Actor | None:
    size, model = object_model(category, rng, moving=True)
    cruise = float(rng.uniform(3.0, 5.5) if category == _CYCLES[0] else rng.uniform(5.0, 11.0))
    begin = size[0] / 2 + float(rng.uniform(0.0, 45.0))
    length = begin + cruise * (stage.duration + 2.0) + braking_distance(cruise) + size[0]
    route = draw_route(stage.street_map, rng, lane, length)
    if route is None:
        return None
    line = route.line
    if category in _CYCLES:
        to_left = 1.0 if stage.street_map.drives_on_left else -1.0
        aside = rng.uniform(0.7, 1.1) if category == _CYCLES[0] else rng.uniform(-0.5, 0.5)
        line = shift_sideways(resample(line, 2.0), float(to_left * aside))
    stops = []
    ahead = halts(stage.street_map, route, begin + 5.0, size[0] / 2)
    if ahead and rng.random() < 0.4:
        stops.append((ahead[0], float(rng.uniform(2.0, 15.0))))
    poses = station_poses(line, 0.6 * size[0])
    track = drive(poses, start=begin, cruise=cruise, stops=stops)
    return Actor(category=category, size=size, model=model, track=track)


def add_parked_cars(stage: Stage, rng: np.random.Generator, number: int) -> int:
    """Fill parking places near the car's path; returns how many."""
    spots = stage.street_map.parking_spots
    if not spots:
        return 0
    distance = stage.distance_to_ego(np.array([(spot.x, spot.y) for spot in spots]))
    # Near places first, but with gaps.
    order = np.argsort(distance + rng.uniform(0.0, 30.0, len(spots)))
    admitted = 0
    for index in order[distance[order] < 55.0]:
        if admitted == number:
            break
        spot = spots[int(index)]
        turned = np.pi if spot.in_car_park and rng.random() < 0.3 else 0.0
        pose = (
            spot.x + float(rng.uniform(-0.1, 0.1)),
            spot.y + float(rng.uniform(-0.1, 0.1)),
            float(spot.yaw + turned + rng.normal(0.0, 0.02)),
        )
        admitted += stage.place("vehicle.car", rng, pose, margin=0.12)
    return admitted


def large_places(stage: Stage) -> list[Float64[np.ndarray, "_ 3"]]:
    """Where long vehicles may stand near the path: in parking places; in lanes at the kerb."""
    kinds = (_long_places(stage.street_map.parking_spots), _kerb_lane_places(stage))
    near = []
    for places in kinds:
        distance = stage.distance_to_ego(places[:, :2])
        near.append(places[(distance > 4.0) & (distance < 30.0)])
    return near


def add_parked_large(
    stage: Stage,
    rng: np.random.Generator,
    kinds: list[Float64[np.ndarray, "_ 3"]],
    category: str,
    number: int,
) -> int:
    """Park long vehicles at places (x, y, yaw), the first kind before the second; how many."""
    admitted = 0
    for places in kinds:
        distance = stage.distance_to_ego(places[:, :2])
        for index in np.argsort(distance + rng.uniform(0.0, 15.0, len(places)))[:25]:
            if admitted == number:
                return admitted
            x, y, yaw = (float(value) for value in places[index])
            admitted += stage.place(category, rng, (x, y, yaw), margin=0.3)
    return admitted


def _long_places(spots: tuple[ParkingSpot, ...]) -> Float64[np.ndarray, "n 3"]:
    """Parking places for long vehicles, and the middles of two neighbours at the kerb."""
    kerb = [spot for spot in spots if not spot.in_car_park]
    places = [(spot.x, spot.y, spot.yaw) for spot in spots if spot.length > 9.0]
    places += [
        ((a.x + b.x) / 2, (a.y + b.y) / 2, a.yaw)
        for a, b in itertools.pairwise(kerb)
        if np.hypot(a.x - b.x, a.y - b.y) < 1.3 * a.length and np.cos(a.yaw - b.yaw) > 0.99
    ]
    return np.array(places, dtype=np.float64).reshape(-1, 3)


def _kerb_lane_places(stage: Stage) -> Float64[np.ndarray, "n 3"]:
    """Points of lanes at the kerb that the car does not use, clear of junctions."""
    left = np.array([lane.left_edge[len(lane.left_edge) // 2] for lane in stage.street_map.lanes])
    right = np.array(
        [lane.right_edge[len(lane.right_edge) // 2] for lane in stage.street_map.lanes]
    )
    kerb_side, other_side = (left, right) if stage.street_map.drives_on_left else (right, left)
    places = [np.empty((0, 3))]
    for index in stage.free_lanes:
        # Where lanes lie side by side, one's kerb-side edge is the other's inner one.
        if np.hypot(*(other_side - kerb_side[index]).T).min() < 0.6:
            continue
        line = resample(stage.street_map.lanes[index].centerline, 2.0)
        if len(line) > 14:
            tangent = np.gradient(line, axis=0)
            yaw = np.arctan2(tangent[:, 1], tangent[:, 0])
            places.append(np.concatenate([line, yaw[:, None]], axis=-1)[6:-6:2])
    return np.concatenate(places)


def add_parked_cycles(stage: Stage, rng: np.random.Generator, category: str, number: int) -> int:
    """Put cycles side by side at the edge of walkways; returns how many."""
    lines = [resample(line, 2.0) for line in stage.street_map.planting_lines]
    places = np.concatenate(
        [
            np.concatenate([line, np.arctan2(*np.gradient(line, axis=0).T[::-1])[:, None]], axis=-1)
            for line in lines
            if len(line) > 2
        ]
        or [np.empty((0, 3))]
    )
    distance = stage.distance_to_ego(places[:, :2])
    # Near places first, but not always the nearest.
    order = np.argsort(distance + rng.uniform(0.0, 12.0, len(places)))
    admitted = 0
    for index in order[(distance[order] > 3.0) & (distance[order] < 25.0)][:40]:
        if admitted >= number:
            break
        x, y, along = (float(value) for value in places[index])
        slant = float(rng.choice((0.0, 0.0, 1.2, -1.2)) + rng.normal(0.0, 0.1))
        group = int(rng.integers(1, 3)) if slant < 0.4 else 1
        step = 2.4 if abs(slant) < 0.4 else 1.1
        for place in range(min(group, number - admitted)):
            at = (
                x + place * step * float(np.cos(along)),
                y + place * step * float(np.sin(along)),
                along + slant + float(rng.choice((0.0, np.pi))),
            )
            admitted += stage.place(category, rng, at, margin=0.15)
    return admitted
