"""Models of everything that is annotated, by nuScenes' category."""

from collections.abc import Callable

import numpy as np

from perception.synthetic import (
    object_models_people,
    object_models_street,
    object_models_vehicles,
)
from perception.synthetic.part_list import ObjectParts
from perception.synthetic.primitives import SEMANTIC_CLASSES, Primitives
from perception.taxonomy import DETECTION_CLASS_OF_CATEGORY

_MODELS: dict[str, Callable[[np.random.Generator, int, bool], ObjectParts]] = {
    "human.pedestrian.adult": object_models_people.adult,
    "human.pedestrian.child": object_models_people.child,
    "human.pedestrian.construction_worker": object_models_people.worker,
    "human.pedestrian.police_officer": object_models_people.police_officer,
    "movable_object.barrier": object_models_street.barrier,
    "movable_object.trafficcone": object_models_street.traffic_cone,
    "vehicle.bicycle": object_models_people.bicycle,
    "vehicle.bus.bendy": object_models_vehicles.bendy_bus,
    "vehicle.bus.rigid": object_models_vehicles.rigid_bus,
    "vehicle.car": object_models_vehicles.car,
    "vehicle.construction": object_models_street.construction_vehicle,
    "vehicle.motorcycle": object_models_people.motorcycle,
    "vehicle.trailer": object_models_vehicles.trailer,
    "vehicle.truck": object_models_vehicles.truck,
}

CATEGORIES = tuple(_MODELS)
"""Categories that have a model: all that count as one of the ten detection classes."""


def object_model(
    category: str, rng: np.random.Generator, *, moving: bool = False
) -> tuple[tuple[float, float, float], Primitives]:
    """Draw an object of a category: no two look alike.

    Args:
        category: One of `CATEGORIES`.
        rng: Source of its size, shape and colours.
        moving: Pedestrians stride, and cycles have a rider; no matter for others.

    Returns:
        Size (length, width, height) [m], and its parts in its own frame: x forward, y left, origin
        on the ground below the middle of the box. The parts lie inside the box and touch each of
        its sides.

    Raises:
        KeyError: There is no model of the category.
    """
    semantic = SEMANTIC_CLASSES.index(DETECTION_CLASS_OF_CATEGORY[category])
    parts = _MODELS[category](rng, semantic, moving)
    return parts.size, parts.table()
