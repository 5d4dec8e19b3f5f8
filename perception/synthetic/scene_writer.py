"""Runs the sensors through one scene: images, sweeps, and what they saw of each actor."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import simplejpeg

from perception.synthetic import rig
from perception.synthetic.camera_renderer import render_image
from perception.synthetic.casts import CameraView
from perception.synthetic.ground import Ground
from perception.synthetic.ground_view import GroundView
from perception.synthetic.lidar_scanner import points_per_object, scan_lidar
from perception.synthetic.log_plan import (
    CAMERA_PERIOD_US,
    KEYFRAME_PERIOD_US,
    LogConfig,
    ScenePlan,
)
from perception.synthetic.log_tables import Tables
from perception.synthetic.pixel_labels import encode_labels, label_pixels
from perception.synthetic.primitives import Primitives
from perception.synthetic.random_streams import stream
from perception.synthetic.ray_caster import cast_camera
from perception.synthetic.scene_records import (
    Shot,
    Sightings,
    ego_transforms,
    file_name,
    scene_tables,
)
from perception.synthetic.scene_script import SceneScript
from perception.taxonomy import LIDAR

JPEG_QUALITY = 90
CAMERA_RADIUS = 260.0
"""Primitives further from the car [m] are not drawn. Source: ours."""
LABEL_FOLDER = "pixel_labels"


@dataclass
class StageTimes:
    """CPU time per stage of the work [s]."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add what the block takes to a stage."""
        started = time.process_time()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.process_time() - started


def plan_shots(plan: ScenePlan, config: LogConfig) -> list[Shot]:
    """Files of a scene by sensor and time.

    Nothing is taken before the first keyframe or after the last: devkit code takes a file between
    keyframes to have a keyframe on either side.
    """
    last = config.num_keyframes - 1
    lidar_period_us = KEYFRAME_PERIOD_US // config.sweeps_per_keyframe
    shots = []
    for k in range(last * config.sweeps_per_keyframe + 1):
        keyframe, since = divmod(k, config.sweeps_per_keyframe)
        shots.append(
            Shot(
                sensor=LIDAR,
                stamp_us=plan.start_us + keyframe * KEYFRAME_PERIOD_US + since * lidar_period_us,
                is_keyframe=since == 0,
                keyframe=keyframe if since == 0 else keyframe + 1,
            )
        )
    per_keyframe = KEYFRAME_PERIOD_US // CAMERA_PERIOD_US if config.camera_sweeps else 1
    for camera, mount in rig.CAMERA_MOUNTS.items():
        for k in range(last * per_keyframe + 1):
            keyframe, since = divmod(k, per_keyframe)
            stamp_us = plan.start_us + keyframe * KEYFRAME_PERIOD_US - mount.lead_us
            shots.append(
                Shot(
                    sensor=camera,
                    stamp_us=stamp_us + since * CAMERA_PERIOD_US,
                    is_keyframe=since == 0,
                    keyframe=keyframe if since == 0 else keyframe + 1,
                )
            )
    return shots


@dataclass(frozen=True, kw_only=True)
class SceneWriter:
    """Writes a scene's files below `root`."""

    root: Path
    config: LogConfig
    plan: ScenePlan
    script: SceneScript
    ground: Ground
    ground_view: GroundView
    times: StageTimes

    def write(self, on_keyframe: Callable[[], None]) -> Tables:
        """Write the files, keyframe after keyframe, and return the scene's records.

        Args:
            on_keyframe: Called when a keyframe and what lies before it is on disk.
        """
        shots = plan_shots(self.plan, self.config)
        shape = (self.config.num_keyframes, len(self.script.actors))
        sightings = Sightings(
            lidar_points=np.zeros(shape, np.int64),
            visible_px=np.zeros(shape, np.int64),
            unoccluded_px=np.zeros(shape, np.int64),
        )
        for folder in {shot.folder for shot in shots}:
            (self.root / folder).mkdir(parents=True, exist_ok=True)
        for keyframe in range(self.config.num_keyframes):
            for shot in shots:
                if shot.keyframe == keyframe:
                    take = self._sweep if shot.sensor == LIDAR else self._image
                    take(shot, sightings)
            on_keyframe()
        with self.times.stage("tables"):
            return scene_tables(self.plan, self.config, self.script, shots, sightings)

    def _sweep(self, shot: Shot, sightings: Sightings) -> None:
        T_global_lidar = self._T_global_ego(shot) @ rig.T_ego_lidar()
        primitives = self._primitives(shot, T_global_lidar, rig.LIDAR_RANGE)
        with self.times.stage("LiDAR"):
            scan = scan_lidar(
                primitives,
                self.ground,
                T_global_lidar,
                self.script.conditions,
                self._random(shot),
                self.config.backend,
            )
        if shot.is_keyframe:
            num_actors = len(self.script.actors)
            sightings.lidar_points[shot.keyframe] = points_per_object(scan, primitives, num_actors)
        self._store(shot, np.ascontiguousarray(scan.points_lidar, "<f4").tobytes())

    def _image(self, shot: Shot, sightings: Sightings) -> None:
        T_global_ego = self._T_global_ego(shot)
        T_global_cam = T_global_ego @ rig.T_ego_cam(shot.sensor)
        view = CameraView(
            K_cam=rig.intrinsics(
                shot.sensor, self.config.image_width_px, self.config.image_height_px
            ),
            T_global_cam=T_global_cam,
            width_px=self.config.image_width_px,
            height_px=self.config.image_height_px,
        )
        primitives = self._primitives(shot, T_global_cam, CAMERA_RADIUS)
        with self.times.stage("camera rays"):
            cast = cast_camera(primitives, view, len(self.script.actors), self.config.backend)
        with self.times.stage("camera colours"):
            rgb = render_image(
                cast,
                primitives,
                self.ground_view,
                view,
                self.script.conditions,
                self._random(shot),
                T_global_ego,
            )
        with self.times.stage("JPEG"):
            content = simplejpeg.encode_jpeg(rgb, quality=JPEG_QUALITY, colorsubsampling="420")
        self._store(shot, content)
        if not shot.is_keyframe:
            return
        sightings.visible_px[shot.keyframe] += cast.visible_px
        sightings.unoccluded_px[shot.keyframe] += cast.unoccluded_px
        if self.config.pixel_labels:
            with self.times.stage("pixel labels"):
                labels = label_pixels(cast, primitives, self.ground, view)
                path = self.root / LABEL_FOLDER / file_name(self.plan, self.config.seed, shot)
                path.parent.mkdir(parents=True, exist_ok=True)
                for ending, content in encode_labels(labels).items():
                    path.with_suffix(f".{ending}").write_bytes(content)

    def _T_global_ego(self, shot: Shot) -> np.ndarray:  # noqa: N802
        (T_global_ego,) = ego_transforms(self.script, np.array([self._time(shot)]))
        return T_global_ego

    def _primitives(self, shot: Shot, T_global_sensor: np.ndarray, radius: float) -> Primitives:
        with self.times.stage("poses"):
            return self.script.primitives_at(self._time(shot), T_global_sensor[:2, 3], radius)

    def _time(self, shot: Shot) -> float:
        return (shot.stamp_us - self.plan.start_us) * 1e-6

    def _random(self, shot: Shot) -> np.random.Generator:
        since_start_us = shot.stamp_us - self.plan.start_us
        return stream(self.config.seed, self.plan.name, shot.sensor, since_start_us)

    def _store(self, shot: Shot, content: bytes) -> None:
        with self.times.stage("files"):
            path = self.root / file_name(self.plan, self.config.seed, shot)
            path.write_bytes(content)
