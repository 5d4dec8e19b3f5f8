"""Records of nuScenes' 13 tables: those that every log shares, and how a record is put together."""

import hashlib
from typing import Any

import numpy as np
from jaxtyping import Float64

from perception.geometry import rigid
from perception.synthetic import rig
from perception.taxonomy import LIDAR

Record = dict[str, Any]
Tables = dict[str, list[Record]]

TABLE_NAMES = (
    "attribute",
    "calibrated_sensor",
    "category",
    "ego_pose",
    "instance",
    "log",
    "map",
    "sample",
    "sample_annotation",
    "sample_data",
    "scene",
    "sensor",
    "visibility",
)

CATEGORIES = (
    "noise",
    "animal",
    "human.pedestrian.adult",
    "human.pedestrian.child",
    "human.pedestrian.construction_worker",
    "human.pedestrian.personal_mobility",
    "human.pedestrian.police_officer",
    "human.pedestrian.stroller",
    "human.pedestrian.wheelchair",
    "movable_object.barrier",
    "movable_object.debris",
    "movable_object.pushable_pullable",
    "movable_object.trafficcone",
    "static_object.bicycle_rack",
    "vehicle.bicycle",
    "vehicle.bus.bendy",
    "vehicle.bus.rigid",
    "vehicle.car",
    "vehicle.construction",
    "vehicle.emergency.ambulance",
    "vehicle.emergency.police",
    "vehicle.motorcycle",
    "vehicle.trailer",
    "vehicle.truck",
    "flat.driveable_surface",
    "flat.other",
    "flat.sidewalk",
    "flat.terrain",
    "static.manmade",
    "static.other",
    "static.vegetation",
    "vehicle.ego",
)
"""In the order of their `index`. Source: nuScenes, lidarseg's category table."""

ATTRIBUTES = (
    "vehicle.moving",
    "vehicle.stopped",
    "vehicle.parked",
    "cycle.with_rider",
    "cycle.without_rider",
    "pedestrian.sitting_lying_down",
    "pedestrian.standing",
    "pedestrian.moving",
)
VISIBILITY_LEVELS = ("v0-40", "v40-60", "v60-80", "v80-100")
VISIBILITY_BOUNDS = (0.4, 0.6, 0.8)
"""Visible share of an object that separates the levels. Source: nuScenes, visibility table."""

MAP_FILES = {
    "singapore-onenorth": "53992ee3023e5494b90c316c183be829",
    "singapore-hollandvillage": "37819e65e09e5547b8a3ceaefba56bb2",
    "singapore-queenstown": "93406b464a165eaba6d9de76ca09f5da",
    "boston-seaport": "36092f0b03a857c6a3403e25b4b7aab3",
}
"""Names of the map pictures, which the devkit's `BitMap` expects. Source: nuscenes-devkit 1.2.0."""


def token(*parts: str | int) -> str:
    """Token of a record: 32 hexadecimal digits that depend on nothing but the arguments."""
    text = "\x1f".join(str(part) for part in parts)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def common_tables() -> Tables:
    """All 13 tables; filled are those that do not depend on scenes."""
    tables: Tables = {name: [] for name in TABLE_NAMES}
    tables["category"] = [
        {
            "token": token("category", name),
            "name": name,
            "description": name.split(".")[-1].replace("_", " "),
            "index": index,
        }
        for index, name in enumerate(CATEGORIES)
    ]
    tables["attribute"] = [
        {"token": token("attribute", name), "name": name, "description": name.replace(".", " is ")}
        for name in ATTRIBUTES
    ]
    tables["visibility"] = [
        {
            "token": str(index + 1),
            "level": level,
            "description": f"{level[1:]} % of the object can be seen in the six cameras",
        }
        for index, level in enumerate(VISIBILITY_LEVELS)
    ]
    tables["sensor"] = [
        {
            "token": token("sensor", name),
            "channel": name,
            "modality": "lidar" if name == LIDAR else "camera",
        }
        for name in (*rig.CAMERA_MOUNTS, LIDAR)
    ]
    return tables


def calibrated_sensors(log_token: str, width_px: int, height_px: int) -> list[Record]:
    """The rig, as a scene's log has it."""
    records = []
    for sensor in (*rig.CAMERA_MOUNTS, LIDAR):
        if sensor == LIDAR:
            T_ego_sensor, intrinsic = rig.T_ego_lidar(), []
        else:
            T_ego_sensor = rig.T_ego_cam(sensor)
            intrinsic = rig.intrinsics(sensor, width_px, height_px).tolist()
        records.append(
            {
                "token": token(log_token, sensor, "calibration"),
                "sensor_token": token("sensor", sensor),
                **pose_columns(T_ego_sensor),
                "camera_intrinsic": intrinsic,
            }
        )
    return records


def pose_columns(T: Float64[np.ndarray, "4 4"]) -> Record:
    """Translation [m] and quaternion (w, x, y, z), to the micrometre."""
    return {
        "translation": [round(value, 6) for value in T[:3, 3].tolist()],
        "rotation": [round(value, 12) for value in rigid.quaternion_from_transform(T).tolist()],
    }


def chain(tokens: list[str]) -> list[tuple[str, str, str]]:
    """Each token with its predecessor and successor; "" where there is none."""
    return list(zip(tokens, ["", *tokens[:-1]], [*tokens[1:], ""], strict=True))
