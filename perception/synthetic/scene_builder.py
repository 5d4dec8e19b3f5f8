"""Puts a scene together: the car's drive, then everybody else, then a look whether it is whole."""

import numpy as np

from perception.synthetic import pedestrians, random_streams, traffic, work_zones
from perception.synthetic.conditions import draw_conditions
from perception.synthetic.ego_drive import EgoDrive, draw_ego_drive
from perception.synthetic.primitives import Primitives
from perception.synthetic.scene_script import Actor, SceneScript
from perception.synthetic.sight import classes_in_sight
from perception.synthetic.stage import Stage
from perception.synthetic.street_map import StreetMap
from perception.taxonomy import DETECTION_CLASSES

_ATTEMPTS = 60


def build_scene(
    street_map: StreetMap, clutter: Primitives, name: str, seed: int, duration: float
) -> SceneScript:
    """Draw a scene in which each detection class is seen at least once near the car.

    Args:
        street_map: Where.
        clutter: What stands there, from `clutter.build_clutter`.
        name: Such as "scene-0061"; another name gives another scene.
        seed: Of the log.
        duration: From the first keyframe to the last [s].

    Raises:
        ValueError: The map has no room for such a scene.
    """
    for attempt in range(_ATTEMPTS):
        rng = random_streams.stream(seed, name, "script", attempt)
        drive = draw_ego_drive(street_map, rng, duration)
        stage = Stage(street_map, clutter, duration, drive.track, drive.lanes)
        num_zones = _set_scene(stage, rng)
        # What stands decides most of it: no need to draw traffic for a scene that has not all.
        if _unseen(stage, drive, clutter) <= {"car", "pedestrian"}:
            _add_traffic(stage, rng)
            if not _unseen(stage, drive, clutter):
                break
    else:
        raise ValueError(f"{name}: no room for all classes on {street_map.location}")
    conditions = draw_conditions(random_streams.stream(seed, name, "conditions"))
    words = [conditions.name, *drive.words, *_describe(stage.actors, num_zones)]
    return SceneScript(
        name=name,
        location=street_map.location,
        description=f"Synthetic: {', '.join(words)}",
        conditions=conditions,
        duration=duration,
        ego=drive.track,
        actors=tuple(stage.actors),
        clutter=clutter,
    )


def _set_scene(stage: Stage, rng: np.random.Generator) -> int:
    """Place what stands, the rare and large first; returns the number of work zones."""
    places = traffic.large_places(stage)
    for category in ("vehicle.trailer", "vehicle.bus.rigid", "vehicle.truck"):
        traffic.add_parked_large(stage, rng, places, category, 1)
    num_zones = work_zones.add_work_zones(stage, rng, 2 if stage.ego_distance < 150.0 else 3)
    for category, number in (
        ("vehicle.trailer", int(rng.integers(1, 3))),
        ("vehicle.bus.rigid", int(rng.integers(0, 2))),
        ("vehicle.bus.bendy", int(rng.random() < 0.2)),
        ("vehicle.truck", int(rng.integers(1, 3))),
    ):
        traffic.add_parked_large(stage, rng, places, category, number)
    for category in ("vehicle.motorcycle", "vehicle.bicycle"):
        traffic.add_parked_cycles(stage, rng, category, int(rng.integers(2, 4)))
    work_zones.add_barrier_row(stage, rng, int(rng.integers(3, 6)))
    return num_zones


def _add_traffic(stage: Stage, rng: np.random.Generator) -> None:
    """Let in who moves, and fill up with what there is most of; more on a long way."""
    share = 0.8 + stage.ego_distance / 220.0
    pedestrians.add_crossing(stage, rng, int(rng.integers(1, 4)))
    for category, number in (
        ("vehicle.bus.rigid", 1),
        ("vehicle.truck", int(rng.integers(1, 3))),
        ("vehicle.motorcycle", int(rng.integers(1, 3))),
        ("vehicle.bicycle", int(rng.integers(1, 3))),
        ("vehicle.car", int(share * rng.integers(8, 15))),
    ):
        traffic.add_moving(stage, rng, category, number)
    traffic.add_parked_cars(stage, rng, int(share * rng.integers(12, 24)))
    pedestrians.add_walking(stage, rng, int(share * rng.integers(5, 11)))
    pedestrians.add_standing(stage, rng, int(share * rng.integers(3, 7)))


def _unseen(stage: Stage, drive: EgoDrive, clutter: Primitives) -> set[str]:
    """Detection classes that the car does not see near it."""
    times = np.linspace(0.0, stage.duration, 5)
    return set(DETECTION_CLASSES) - classes_in_sight(stage.actors, drive.track, clutter, times)


def _describe(actors: list[Actor], num_zones: int) -> list[str]:
    num_people = sum(actor.category.startswith("human") for actor in actors)
    words = ["work zone"] if num_zones else []
    return [*words, "many pedestrians"] if num_people > 15 else words
