"""Tables of one scene, from its script and what the sensors saw of the actors."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from perception.geometry import rigid
from perception.synthetic.log_plan import KEYFRAME_PERIOD_US, LogConfig, ScenePlan
from perception.synthetic.log_tables import (
    VISIBILITY_BOUNDS,
    Record,
    Tables,
    calibrated_sensors,
    chain,
    token,
)
from perception.synthetic.scene_script import SceneScript
from perception.taxonomy import LIDAR

ANNOTATION_RADIUS = 80.0
"""Objects further from the car [m] are not annotated. Source: ours; nuScenes' reach is similar."""


@dataclass(frozen=True, kw_only=True)
class Shot:
    """One file that a sensor writes."""

    sensor: str
    stamp_us: int
    is_keyframe: bool
    keyframe: int
    """Index of the keyframe that it belongs to: its own, or the one that follows."""

    @property
    def folder(self) -> str:
        """Folder in the log."""
        return f"{'samples' if self.is_keyframe else 'sweeps'}/{self.sensor}"


@dataclass(frozen=True, kw_only=True)
class Sightings:
    """What the sensors saw of each actor at each keyframe."""

    lidar_points: Int64[np.ndarray, "keyframe actor"]
    visible_px: Int64[np.ndarray, "keyframe actor"]
    """Over the six cameras."""
    unoccluded_px: Int64[np.ndarray, "keyframe actor"]


def log_file_name(plan: ScenePlan, seed: int) -> str:
    """Name of a scene's log, with which its files begin."""
    return f"synthetic-{seed}-{plan.name}"


def file_name(plan: ScenePlan, seed: int, shot: Shot) -> str:
    """Path of a shot's file in the log."""
    ending = "pcd.bin" if shot.sensor == LIDAR else "jpg"
    name = f"{log_file_name(plan, seed)}__{shot.sensor}__{shot.stamp_us}.{ending}"
    return f"{shot.folder}/{name}"


def scene_tables(
    plan: ScenePlan,
    config: LogConfig,
    script: SceneScript,
    shots: Sequence[Shot],
    sightings: Sightings,
) -> Tables:
    """Records of a scene; the tables that all scenes share are left out."""
    samples = [token(config.seed, plan.name, "sample", k) for k in range(config.num_keyframes)]
    log_token = token(config.seed, plan.name, "log")
    scene_token = token(config.seed, plan.name, "scene")
    annotations, instances = _annotations(plan, config, script, samples, sightings)
    sample_data, ego_poses = _sample_data(plan, config, script, samples, shots)
    return {
        "log": [
            {
                "token": log_token,
                "logfile": log_file_name(plan, config.seed),
                "vehicle": "synthetic",
                "date_captured": "2023-11-14",
                "location": plan.location,
            }
        ],
        "scene": [
            {
                "token": scene_token,
                "log_token": log_token,
                "nbr_samples": len(samples),
                "first_sample_token": samples[0],
                "last_sample_token": samples[-1],
                "name": plan.name,
                "description": script.description,
            }
        ],
        "calibrated_sensor": calibrated_sensors(
            log_token, config.image_width_px, config.image_height_px
        ),
        "sample": [
            {
                "token": sample,
                "timestamp": plan.start_us + keyframe * KEYFRAME_PERIOD_US,
                "prev": before,
                "next": after,
                "scene_token": scene_token,
            }
            for keyframe, (sample, before, after) in enumerate(chain(samples))
        ],
        "sample_data": sample_data,
        "ego_pose": ego_poses,
        "sample_annotation": annotations,
        "instance": instances,
    }


def ego_transforms(
    script: SceneScript, times: Float64[np.ndarray, " t"]
) -> list[Float64[np.ndarray, "4 4"]]:
    """`T_global_ego` at times since the start [s]."""
    return [
        rigid.transform_from_quaternion(rigid.quaternion_from_yaw(yaw), (x, y, 0.0))
        for x, y, yaw in script.ego.poses(times).tolist()
    ]


def _sample_data(
    plan: ScenePlan,
    config: LogConfig,
    script: SceneScript,
    samples: Sequence[str],
    shots: Sequence[Shot],
) -> tuple[list[Record], list[Record]]:
    log_token = token(config.seed, plan.name, "log")
    records, poses = [], []
    for sensor in dict.fromkeys(shot.sensor for shot in shots):
        own = sorted((s for s in shots if s.sensor == sensor), key=lambda shot: shot.stamp_us)
        times = (np.array([shot.stamp_us for shot in own]) - plan.start_us) * 1e-6
        tokens = [token(config.seed, plan.name, sensor, shot.stamp_us) for shot in own]
        width_px, height_px = (
            (0, 0) if sensor == LIDAR else (config.image_width_px, config.image_height_px)
        )
        ego = script.ego.poses(times).tolist()
        for shot, (x, y, yaw), (name, before, after) in zip(own, ego, chain(tokens), strict=True):
            poses.append(
                {
                    "token": name,
                    "timestamp": shot.stamp_us,
                    "rotation": _rotation(yaw),
                    "translation": [round(x, 6), round(y, 6), 0.0],
                }
            )
            records.append(
                {
                    "token": name,
                    "sample_token": samples[shot.keyframe],
                    "ego_pose_token": name,
                    "calibrated_sensor_token": token(log_token, sensor, "calibration"),
                    "timestamp": shot.stamp_us,
                    "fileformat": "pcd" if sensor == LIDAR else "jpg",
                    "is_key_frame": shot.is_keyframe,
                    "height": height_px,
                    "width": width_px,
                    "filename": file_name(plan, config.seed, shot),
                    "prev": before,
                    "next": after,
                }
            )
    return records, poses


def _annotations(
    plan: ScenePlan,
    config: LogConfig,
    script: SceneScript,
    samples: Sequence[str],
    sightings: Sightings,
) -> tuple[list[Record], list[Record]]:
    times = np.arange(config.num_keyframes) * KEYFRAME_PERIOD_US * 1e-6
    ego_xy = script.ego.poses(times)[:, :2]
    annotations, instances = [], []
    for index, actor in enumerate(script.actors):
        poses = actor.track.poses(times)
        near = np.flatnonzero(np.hypot(*(poses[:, :2] - ego_xy).T) <= ANNOTATION_RADIUS)
        if len(near) < 2:
            continue  # one box alone has no velocity
        # without gaps, so that neighbours in the chain are half a second apart
        keyframes = range(int(near[0]), int(near[-1]) + 1)
        instance = token(config.seed, plan.name, "instance", index)
        tokens = [token(config.seed, plan.name, "annotation", index, k) for k in keyframes]
        instances.append(
            {
                "token": instance,
                "category_token": token("category", actor.category),
                "nbr_annotations": len(tokens),
                "first_annotation_token": tokens[0],
                "last_annotation_token": tokens[-1],
            }
        )
        length, width, height = actor.size
        for keyframe, (name, before, after) in zip(keyframes, chain(tokens), strict=True):
            x, y, yaw = poses[keyframe].tolist()
            attribute = script.attribute(index, float(times[keyframe]))
            annotations.append(
                {
                    "token": name,
                    "sample_token": samples[keyframe],
                    "instance_token": instance,
                    "visibility_token": visibility_token(
                        int(sightings.visible_px[keyframe, index]),
                        int(sightings.unoccluded_px[keyframe, index]),
                    ),
                    "attribute_tokens": [token("attribute", attribute)] if attribute else [],
                    "translation": [round(x, 6), round(y, 6), round(height / 2, 6)],
                    "size": [round(width, 6), round(length, 6), round(height, 6)],
                    "rotation": _rotation(yaw),
                    "prev": before,
                    "next": after,
                    "num_lidar_pts": int(sightings.lidar_points[keyframe, index]),
                    "num_radar_pts": 0,
                }
            )
    return annotations, instances


def visibility_token(visible_px: int, unoccluded_px: int) -> str:
    """Token "1" to "4" of nuScenes' visibility levels; "1" for what no camera looks at."""
    share = visible_px / unoccluded_px if unoccluded_px else 0.0
    return str(1 + int(np.searchsorted(VISIBILITY_BOUNDS, share, side="right")))


def _rotation(yaw: float) -> list[float]:
    return [round(value, 12) for value in rigid.quaternion_from_yaw(yaw)]
