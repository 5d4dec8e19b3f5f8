"""Road works: a lane closed by cones and barriers, a machine and workers inside."""

import numpy as np
from jaxtyping import Float64

from perception.synthetic.stage import Stage
from perception.synthetic.tracks import resample

_LENGTH = 21.0
"""Of a zone, along the lane [m]. Source: ours; room for the machine and a taper."""
_BARRIER_PITCH = 2.75
"""Between the middles of barriers in a row [m]: small gaps."""


def add_work_zones(stage: Stage, rng: np.random.Generator, number: int) -> int:
    """Close lanes that the car does not use, near its path; returns how many zones."""
    places = _places(stage)
    if len(places) == 0:
        return 0
    distance = stage.distance_to_ego(places[:, :2])
    usable = np.nonzero((distance > 2.8) & (distance < 25.0))[0]
    admitted = 0
    for index in rng.permutation(usable)[:60]:
        if admitted == number:
            break
        admitted += _add_zone(stage, rng, places[index])
    return admitted


def add_barrier_row(stage: Stage, rng: np.random.Generator, number: int) -> int:
    """Set barriers end to end along the edge of a walkway; returns how many stand."""
    lines = [resample(line, _BARRIER_PITCH) for line in stage.street_map.planting_lines]
    starts = [
        (line, node)
        for line in lines
        for node in range(0, len(line) - number - 1, 3)
        if 4.0 < float(stage.distance_to_ego(line[node : node + 1])[0]) < 22.0
    ]
    admitted = 0
    for choice in rng.permutation(len(starts))[:6]:
        line, node = starts[int(choice)]
        for at, ahead in zip(
            line[node : node + number], line[node + 1 : node + number + 1], strict=True
        ):
            middle, chord = (at + ahead) / 2, ahead - at
            across = float(np.arctan2(chord[1], chord[0]) + np.pi / 2)
            pose = (float(middle[0]), float(middle[1]), across)
            admitted += stage.place("movable_object.barrier", rng, pose, margin=0.05)
        if admitted >= number - 1:
            break
    return admitted


def _places(stage: Stage) -> Float64[np.ndarray, "n 4"]:
    """x, y, heading and width of straight stretches of lanes that the car does not use."""
    places = []
    half = int(_LENGTH / 2 / 2.0) + 1
    for index in stage.free_lanes:
        lane = stage.street_map.lanes[index]
        line = resample(lane.centerline, 2.0)
        width = float(np.hypot(*(lane.left_edge[0] - lane.right_edge[0])))
        for node in range(half + 1, len(line) - half - 1, 2):
            before, after = line[node] - line[node - half], line[node + half] - line[node]
            yaw, turned = np.arctan2(before[1], before[0]), np.arctan2(after[1], after[0])
            if np.cos(turned - yaw) > 0.995:
                chord = line[node + half] - line[node - half]
                middle = (line[node + half] + line[node - half]) / 2
                places.append((*middle, np.arctan2(chord[1], chord[0]), width))
    return np.array(places, dtype=np.float64).reshape(-1, 4)


def _add_zone(stage: Stage, rng: np.random.Generator, place: Float64[np.ndarray, " 4"]) -> bool:
    x, y, yaw, width = (float(value) for value in place)
    zone = np.array([[x, y, yaw]])
    if not stage.occupancy.is_free(zone, (_LENGTH, width), 0.25):
        return False
    # The side on which the traffic passes: towards the middle of the road.
    inner = -1.0 if stage.street_map.drives_on_left else 1.0
    edge = width / 2 - 0.2

    def put(category: str, along: float, across: float, turn: float) -> bool:
        """Place by coordinates of the zone [m]; `across` grows towards the passing traffic."""
        left = inner * across
        pose = (
            x + along * float(np.cos(yaw)) - left * float(np.sin(yaw)),
            y + along * float(np.sin(yaw)) + left * float(np.cos(yaw)),
            yaw + turn,
        )
        return stage.place(category, rng, pose, margin=0.02)

    turn = float(rng.choice((0.0, np.pi)) + rng.normal(0.0, 0.06))
    put("vehicle.construction", float(rng.uniform(0.0, 2.0)), -0.35, turn)
    num_barriers, num_cones = int(rng.integers(3, 6)), int(rng.integers(4, 8))
    put("movable_object.barrier", _LENGTH / 2 - 0.5, -0.1, 0.0)
    put("movable_object.barrier", -_LENGTH / 2 + 2.6, -0.1, 0.0)
    for number in range(num_barriers - 2):
        along = _LENGTH / 2 - 2.6 - number * _BARRIER_PITCH
        put("movable_object.barrier", along, edge - 0.05, float(np.pi / 2))
    for number in range(num_cones):
        # A taper across the lane, then along its edge.
        across = min(edge, -edge + number * 1.0)
        put("movable_object.trafficcone", -_LENGTH / 2 + 0.4 + number * 1.45, across, 0.0)
    for along in rng.permutation([-5.0, -3.8, 6.8, 8.2])[: int(rng.integers(1, 3))]:
        put(
            "human.pedestrian.construction_worker",
            float(along),
            float(rng.uniform(-1.0, 0.3)),
            float(rng.uniform(-np.pi, np.pi)),
        )
    stage.occupancy.add(zone, (_LENGTH, width))
    return True
