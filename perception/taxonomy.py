"""Names that every part agrees on: cameras, classes, map layers; and nuScenes' names for them."""

CAMERAS = (
    "CAM_FRONT",
    "CAM_FRONT_RIGHT",
    "CAM_FRONT_LEFT",
    "CAM_BACK",
    "CAM_BACK_LEFT",
    "CAM_BACK_RIGHT",
)
"""Order of the cameras in every tensor. Source: specs, base network section 1."""

LIDAR = "LIDAR_TOP"

DETECTION_CLASSES = (
    "car",
    "truck",
    "construction_vehicle",
    "bus",
    "trailer",
    "barrier",
    "motorcycle",
    "bicycle",
    "pedestrian",
    "traffic_cone",
)
"""Label ids 0..9 of the model. The devkit's own list has another order: map by name."""

MAP_CLASSES = (
    "drivable_area",
    "ped_crossing",
    "walkway",
    "stop_line",
    "carpark_area",
    "divider",
)
"""Channels of the map head; they overlap, so they are six binary problems."""

DETECTION_CLASS_OF_CATEGORY = {
    "human.pedestrian.adult": "pedestrian",
    "human.pedestrian.child": "pedestrian",
    "human.pedestrian.construction_worker": "pedestrian",
    "human.pedestrian.police_officer": "pedestrian",
    "movable_object.barrier": "barrier",
    "movable_object.trafficcone": "traffic_cone",
    "vehicle.bicycle": "bicycle",
    "vehicle.bus.bendy": "bus",
    "vehicle.bus.rigid": "bus",
    "vehicle.car": "car",
    "vehicle.construction": "construction_vehicle",
    "vehicle.motorcycle": "motorcycle",
    "vehicle.trailer": "trailer",
    "vehicle.truck": "truck",
}
"""The 23 nuScenes categories to the 10 classes; a category that is not here is no target."""

_VEHICLES = ("car", "truck", "construction_vehicle", "bus", "trailer")


def attribute_name(detection_class: str, speed: float) -> str:
    """Guess the nuScenes attribute of a box from its class and speed [m/s].

    Source: specs, base network section 11.1 (the rule of the reference releases).
    """
    moving = speed > 0.2
    if detection_class in _VEHICLES:
        if moving:
            return "vehicle.moving"
        return "vehicle.stopped" if detection_class == "bus" else "vehicle.parked"
    if detection_class in ("motorcycle", "bicycle"):
        return "cycle.with_rider" if moving else "cycle.without_rider"
    if detection_class == "pedestrian":
        return "pedestrian.moving" if moving else "pedestrian.standing"
    return ""
