"""People of a scene: on walkways and on crossings."""

import numpy as np
from jaxtyping import Float64

from perception.synthetic.object_models import object_model
from perception.synthetic.scene_script import Actor
from perception.synthetic.stage import Stage
from perception.synthetic.tracks import STEP, drive, resample, shift_sideways, station_poses

_CATEGORIES = (
    "human.pedestrian.adult",
    "human.pedestrian.child",
    "human.pedestrian.police_officer",
)
_SHARES = (0.90, 0.07, 0.03)
_RADIUS = 36.0
"""From the car's path [m]."""


def add_walking(stage: Stage, rng: np.random.Generator, number: int) -> int:
    """Let people walk along walkways near the car's path; returns how many."""
    paths = [
        path
        for path in stage.street_map.walking_paths
        if stage.distance_to_ego(path).min() < _RADIUS and len(path) > 2
    ]
    admitted = 0
    for _ in range(4 * number if paths else 0):
        path = paths[int(rng.integers(len(paths)))]
        line = resample(path if rng.random() < 0.5 else path[::-1], 1.0)
        if len(line) < 8:
            continue
        line = shift_sideways(line, float(rng.uniform(-0.7, 0.7)))
        distance = stage.distance_to_ego(line)
        begin = float(rng.choice(np.nonzero(distance < _RADIUS + 4.0)[0]))
        admitted += _let_walk(stage, rng, line, begin, [])
        if admitted == number:
            break
    return admitted


def add_crossing(stage: Stage, rng: np.random.Generator, number: int) -> int:
    """Let people wait at crossings and go over them; returns how many."""
    crossings = [
        crossing
        for crossing in stage.street_map.crossings
        if stage.distance_to_ego(crossing.path).min() < _RADIUS + 4.0
    ]
    admitted = 0
    for _ in range(4 * number if crossings else 0):
        path = crossings[int(rng.integers(len(crossings)))].path
        line = resample(path if rng.random() < 0.5 else path[::-1], 0.5)
        line = shift_sideways(line, float(rng.uniform(-1.0, 1.0)))
        if rng.random() < 0.5:
            begin, stops = 0.0, [(0.0, float(rng.uniform(0.0, 0.6) * stage.duration + 0.1))]
        else:
            begin, stops = float(rng.uniform(0.0, 0.25 * len(line))), []
        admitted += _let_walk(stage, rng, line, begin, stops)
        if admitted == number:
            break
    return admitted


def add_standing(stage: Stage, rng: np.random.Generator, number: int) -> int:
    """Put people on walkways, alone or face to face; returns how many."""
    points = np.concatenate(stage.street_map.walking_paths)
    distance = stage.distance_to_ego(points)
    near = points[(distance > 3.0) & (distance < _RADIUS)]
    admitted = 0
    for _ in range(3 * number if len(near) else 0):
        x, y = (float(v) for v in near[int(rng.integers(len(near)))] + rng.uniform(-1.0, 1.0, 2))
        yaw = float(rng.uniform(-np.pi, np.pi))
        if admitted < number and stage.place(_draw_category(rng), rng, (x, y, yaw)):
            admitted += 1
            if rng.random() < 0.4 and admitted < number:
                apart = float(rng.uniform(0.9, 1.3))
                facing = (
                    x + apart * float(np.cos(yaw)),
                    y + apart * float(np.sin(yaw)),
                    yaw + float(np.pi),
                )
                admitted += stage.place(_draw_category(rng), rng, facing)
        if admitted == number:
            break
    return admitted


def _let_walk(
    stage: Stage,
    rng: np.random.Generator,
    line: Float64[np.ndarray, "n 2"],
    begin: float,
    stops: list[tuple[float, float]],
) -> bool:
    category = _draw_category(rng)
    size, model = object_model(category, rng, moving=True)
    poses = station_poses(line, 0.6)
    if begin > (len(poses) - 8) * STEP:
        return False
    track = drive(
        poses,
        start=begin,
        cruise=float(rng.uniform(0.8, 1.7)),
        stops=stops,
        acceleration=0.8,
    )
    actor = Actor(category=category, size=size, model=model, track=track)
    return stage.let_move(actor, margin=0.12)


def _draw_category(rng: np.random.Generator) -> str:
    return _CATEGORIES[int(rng.choice(len(_CATEGORIES), p=_SHARES))]
