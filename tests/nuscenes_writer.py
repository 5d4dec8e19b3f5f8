"""Writes a small, valid nuScenes log with known content, so that tests need no real data.

Two scenes. In each the car drives a gentle left turn at 5 m/s, with another car ahead of it and a
pedestrian to its right, both at constant velocity. LiDAR at 20 Hz, cameras at 10 Hz, keyframes at
2 Hz; the cameras' stamps lie before the LiDAR's by the offsets of the real car.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg

from perception.geometry import boxes, camera, rigid
from perception.taxonomy import DETECTION_CLASS_OF_CATEGORY, LIDAR

VERSION = "v1.0-mini"
SPEED = 5.0
YAW_RATE = 0.05
MAP_SIZE_M = 120
MAP_PX_PER_M = 10
SCENES = (
    # name in mini_train / mini_val, place, start [us], x, y [m], yaw [rad] at the start
    ("scene-0061", "singapore-onenorth", 1532402927647951, 60.0, 55.0, 0.5),
    ("scene-0103", "boston-seaport", 1533151603547590, 55.0, 60.0, -2.0),
)
CAMERA_RIG = {
    # position in ego [m], heading [deg], focal length over width, earlier than the LiDAR by [us]
    "CAM_FRONT": ((1.70, 0.0, 1.5), 0.0, 0.79, 35186),
    "CAM_FRONT_RIGHT": ((1.55, -0.5, 1.5), -55.0, 0.79, 27108),
    "CAM_FRONT_LEFT": ((1.52, 0.5, 1.5), 55.0, 0.79, 42791),
    "CAM_BACK": ((0.03, 0.0, 1.5), 180.0, 0.50, 10032),
    "CAM_BACK_LEFT": ((1.03, 0.5, 1.5), 110.0, 0.79, 185),
    "CAM_BACK_RIGHT": ((1.01, -0.5, 1.5), -110.0, 0.79, 19477),
}
LIDAR_POSITION = (0.94, 0.0, 1.84)
OBJECTS = (
    # category, attribute, start ahead / left of the car [m], l, w, h [m], heading and speed [m/s]
    # against the car's first heading, colour
    ("vehicle.car", "vehicle.moving", (12.0, 3.5), (4.5, 1.9, 1.6), 0.0, 4.0, (200, 40, 40)),
    ("human.pedestrian.adult", "pedestrian.moving", (9.0, -4.0), (0.8, 0.7, 1.8), 1.5, 1.2,
     (40, 60, 220)),
)  # fmt: skip
LIDAR_PERIOD_US = 50_000
CAMERA_PERIOD_US = 100_000
KEYFRAME_PERIOD_US = 500_000

Tables = dict[str, list[dict[str, Any]]]


def write_small_log(
    root: Path,
    num_keyframes: int = 4,
    image_width_px: int = 160,
    image_height_px: int = 90,
    num_points: int = 400,
) -> Path:
    """Write the log and return its root, for `NuScenesLog(root)` or `NuScenes("v1.0-mini", root)`.

    Args:
        root: Folder to make.
        num_keyframes: Keyframes of each of the two scenes.
        image_width_px: Width of each camera's image.
        image_height_px: Height of each camera's image.
        num_points: Points of each LiDAR sweep.
    """
    tables = _common_tables()
    for scene in SCENES:
        _SceneWriter(
            root, tables, scene, num_keyframes, (image_width_px, image_height_px), num_points
        ).write()
    folder = root / VERSION
    folder.mkdir(parents=True)
    for name, records in tables.items():
        (folder / f"{name}.json").write_text(json.dumps(records, indent=1))
    return root


def edit_table(root: Path, name: str, edit: Callable[[list[dict[str, Any]]], object]) -> None:
    """Change the records of a table in place."""
    path = root / VERSION / f"{name}.json"
    records = json.loads(path.read_text())
    edit(records)
    path.write_text(json.dumps(records))


def ego_pose(scene: tuple, stamp_us: int) -> np.ndarray:
    """`T_global_ego` on the arc x' = v cos(yaw), y' = v sin(yaw), yaw' = YAW_RATE."""
    _, _, start_us, x, y, yaw = scene
    now = yaw + YAW_RATE * (stamp_us - start_us) * 1e-6
    radius = SPEED / YAW_RATE
    position = [
        x + radius * (np.sin(now) - np.sin(yaw)),
        y - radius * (np.cos(now) - np.cos(yaw)),
        0.0,
    ]
    return rigid.transform_from_quaternion(rigid.quaternion_from_yaw(now), position)


def boxes_global(scene: tuple, stamp_us: int) -> np.ndarray:
    """The two objects at a time [2 9]."""
    _, _, start_us, x, y, yaw = scene
    rows = []
    for _, _, (ahead, left), size, heading, speed, _ in OBJECTS:
        velocity = speed * np.array([np.cos(yaw + heading), np.sin(yaw + heading)])
        start = [
            x + ahead * np.cos(yaw) - left * np.sin(yaw),
            y + ahead * np.sin(yaw) + left * np.cos(yaw),
        ]
        xy = np.array(start) + velocity * (stamp_us - start_us) * 1e-6
        rows.append([*xy, size[2] / 2, *size, boxes.wrap_angle(yaw + heading), *velocity])
    return np.array(rows)


class _SceneWriter:
    def __init__(
        self,
        root: Path,
        tables: Tables,
        scene: tuple,
        num_keyframes: int,
        image_size: tuple[int, int],
        num_points: int,
    ) -> None:
        self.root, self.tables, self.scene = root, tables, scene
        self.num_keyframes, self.num_points = num_keyframes, num_points
        self.width, self.height = image_size
        self.name, self.start_us = scene[0], scene[2]
        self.random = np.random.default_rng(scene[2])
        self.stamps = [self.start_us + i * KEYFRAME_PERIOD_US for i in range(num_keyframes)]
        self.samples = [_token(self.name, "sample", i) for i in range(num_keyframes)]

    def write(self) -> None:
        self._write_scene()
        points_lidar = self._write_sensor(LIDAR, LIDAR_PERIOD_US, 0)
        for name, (_, _, _, early_us) in CAMERA_RIG.items():
            self._write_sensor(name, CAMERA_PERIOD_US, early_us)
        self._write_annotations(points_lidar)
        self._write_map()

    def _write_scene(self) -> None:
        log = _token(self.name, "log")
        self.tables["log"].append(
            {
                "token": log,
                "logfile": f"hand-made-{self.name}",
                "vehicle": "n000",
                "date_captured": "2018-07-24",
                "location": self.scene[1],
            }
        )
        self.tables["scene"].append(
            {
                "token": _token(self.name, "scene"),
                "log_token": log,
                "nbr_samples": self.num_keyframes,
                "first_sample_token": self.samples[0],
                "last_sample_token": self.samples[-1],
                "name": self.name,
                "description": "A left turn behind a car",
            }
        )
        for token, before, after, stamp in _chain(self.samples, self.stamps):
            self.tables["sample"].append(
                {
                    "token": token,
                    "timestamp": stamp,
                    "prev": before,
                    "next": after,
                    "scene_token": _token(self.name, "scene"),
                }
            )

    def _write_sensor(self, sensor: str, period_us: int, early_us: int) -> list[np.ndarray]:
        """Write calibration, files and records of one sensor; give its keyframes' points."""
        K_cam, T_ego_sensor = self._calibration(sensor)
        calibration = self._write_calibration(sensor, K_cam, T_ego_sensor)
        number = (self.num_keyframes - 1) * KEYFRAME_PERIOD_US // period_us + 1
        stamps = [self.start_us - early_us + i * period_us for i in range(number)]
        tokens = [_token(self.name, sensor, stamp) for stamp in stamps]
        per_keyframe = KEYFRAME_PERIOD_US // period_us
        keyframe_points = []
        for index, (token, before, after, stamp) in enumerate(_chain(tokens, stamps)):
            is_keyframe = index % per_keyframe == 0
            ending = "pcd.bin" if sensor == LIDAR else "jpg"
            file = f"{'samples' if is_keyframe else 'sweeps'}/{sensor}/"
            file += f"hand-made-{self.name}__{sensor}__{stamp}.{ending}"
            T_global_ego = ego_pose(self.scene, stamp)
            if sensor == LIDAR:
                points = self._points_lidar(stamp, rigid.inverse(T_global_ego @ T_ego_sensor))
                content = points.tobytes()
                if is_keyframe:
                    keyframe_points.append(points)
            else:
                content = self._jpeg(stamp, rigid.inverse(T_global_ego), T_ego_sensor, K_cam)
            (self.root / file).parent.mkdir(parents=True, exist_ok=True)
            (self.root / file).write_bytes(content)
            self.tables["ego_pose"].append(
                {"token": token, "timestamp": stamp, **_pose_columns(T_global_ego)}
            )
            self.tables["sample_data"].append(
                {
                    "token": token,
                    # data between keyframes belongs to the later one, as in nuScenes
                    "sample_token": self.samples[-(-index // per_keyframe)],
                    "ego_pose_token": token,
                    "calibrated_sensor_token": calibration,
                    "timestamp": stamp,
                    "fileformat": "pcd" if sensor == LIDAR else "jpg",
                    "is_key_frame": is_keyframe,
                    "height": 0 if sensor == LIDAR else self.height,
                    "width": 0 if sensor == LIDAR else self.width,
                    "filename": file,
                    "prev": before,
                    "next": after,
                }
            )
        return keyframe_points

    def _calibration(self, sensor: str) -> tuple[np.ndarray, np.ndarray]:
        if sensor == LIDAR:  # x right, y forward: turned by -90 degrees against the car
            right = rigid.quaternion_from_yaw(-np.pi / 2)
            return np.zeros((0, 0)), rigid.transform_from_quaternion(right, LIDAR_POSITION)
        position, heading, focal, _ = CAMERA_RIG[sensor]
        heading_quaternion = rigid.quaternion_from_yaw(np.deg2rad(heading))
        T_ego_mount = rigid.transform_from_quaternion(heading_quaternion, position)
        # x right = -y left, y down = -z up, z forward = x forward
        T_mount_cam = rigid.transform_from_quaternion((0.5, -0.5, 0.5, -0.5), (0, 0, 0))
        f = focal * self.width
        K_cam = np.array([[f, 0, self.width / 2], [0, f, self.height / 2], [0, 0, 1]])
        return K_cam, T_ego_mount @ T_mount_cam

    def _write_calibration(self, sensor: str, K_cam: np.ndarray, T_ego_sensor: np.ndarray) -> str:
        token = _token(self.name, sensor, "calibration")
        self.tables["calibrated_sensor"].append(
            {
                "token": token,
                "sensor_token": _token("sensor", sensor),
                **_pose_columns(T_ego_sensor),
                "camera_intrinsic": K_cam.tolist(),
            }
        )
        return token

    def _points_lidar(self, stamp: int, T_lidar_global: np.ndarray) -> np.ndarray:
        """Some points on the objects, a few on the car itself, the rest on the ground."""
        T_lidar_ego = T_lidar_global @ ego_pose(self.scene, stamp)
        num_box, num_self = self.num_points // 8, self.num_points // 40
        parts = []
        for row in boxes_global(self.scene, stamp):
            # on the sides, 1 % within the faces, so that rounding cannot move a point outside
            local = self.random.uniform(-0.49, 0.49, (num_box, 3))
            axis = self.random.integers(0, 2, num_box)
            local[np.arange(num_box), axis] = self.random.choice([-0.49, 0.49], num_box)
            T_global_box = rigid.transform_from_quaternion(
                rigid.quaternion_from_yaw(row[boxes.YAW]), row[boxes.CENTER]
            )
            points = rigid.apply(T_global_box, local * row[boxes.SIZE])
            parts.append(rigid.apply(T_lidar_global, points))
        num_ground = self.num_points - num_self - num_box * len(parts)
        radius, angle = self.random.uniform([[3], [-np.pi]], [[45], [np.pi]], (2, num_ground))
        ground = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)
        ground = np.pad(ground, ((0, 0), (0, 1)), constant_values=-0.05)  # below every box
        parts += [rigid.apply(T_lidar_ego, ground), self.random.uniform(-0.8, 0.8, (num_self, 3))]
        xyz = np.concatenate(parts)
        intensity = self.random.integers(0, 256, (len(xyz), 1))
        ring = self.random.integers(0, 32, (len(xyz), 1))
        return np.hstack([xyz, intensity, ring]).astype("<f4")

    def _jpeg(
        self, stamp: int, T_ego_global: np.ndarray, T_ego_cam: np.ndarray, K_cam: np.ndarray
    ) -> bytes:
        """Sky with a clock in the corner, ground, and the visible boxes as filled outlines."""
        rgb = np.full((self.height, self.width, 3), (150, 180, 220), np.uint8)
        rgb[self.height // 2 :] = (90, 90, 90)
        rows = boxes.transform(T_ego_global, boxes_global(self.scene, stamp))
        for corners, (*_, color) in zip(boxes.corners(rows), OBJECTS, strict=True):
            pixels, _, in_front = camera.project(corners, T_ego_cam, K_cam)
            if in_front.all():
                outline = cv2.convexHull(np.clip(pixels, -1e4, 1e4).astype(np.int32))
                cv2.fillConvexPoly(rgb, outline, color)
        # No two pictures are alike, as with a camera's noise: what repeats itself is frozen.
        rgb[:8, :8] = np.random.default_rng(stamp).integers(0, 256, 3)
        return simplejpeg.encode_jpeg(rgb, quality=90)

    def _write_annotations(self, keyframe_points: list[np.ndarray]) -> None:
        rows = [boxes_global(self.scene, stamp) for stamp in self.stamps]
        _, T_ego_lidar = self._calibration(LIDAR)
        for index, (category, attribute, *_) in enumerate(OBJECTS):
            instance = _token(self.name, "instance", index)
            tokens = [_token(self.name, "annotation", index, stamp) for stamp in self.stamps]
            self.tables["instance"].append(
                {
                    "token": instance,
                    "category_token": _token("category", category),
                    "nbr_annotations": len(tokens),
                    "first_annotation_token": tokens[0],
                    "last_annotation_token": tokens[-1],
                }
            )
            for keyframe, (token, before, after, stamp) in enumerate(_chain(tokens, self.stamps)):
                row = rows[keyframe][index]
                T_global_lidar = ego_pose(self.scene, stamp) @ T_ego_lidar
                points = rigid.apply(T_global_lidar, keyframe_points[keyframe][:, :3])
                length, width, height = row[boxes.SIZE].tolist()
                self.tables["sample_annotation"].append(
                    {
                        "token": token,
                        "sample_token": self.samples[keyframe],
                        "instance_token": instance,
                        "visibility_token": "4",
                        "attribute_tokens": [_token("attribute", attribute)],
                        "translation": row[boxes.CENTER].tolist(),
                        "size": [width, length, height],
                        "rotation": list(rigid.quaternion_from_yaw(row[boxes.YAW])),
                        "prev": before,
                        "next": after,
                        "num_lidar_pts": int(boxes.points_inside(row[None], points).sum()),
                        "num_radar_pts": 0,
                    }
                )

    def _write_map(self) -> None:
        """A 12 m wide road along the first heading; the picture's bottom row is y = 0."""
        _, _, _, x, y, yaw = self.scene
        mask = np.zeros((MAP_SIZE_M * MAP_PX_PER_M,) * 2, np.uint8)
        start, end = (
            (
                (x + s * np.cos(yaw)) * MAP_PX_PER_M,
                (MAP_SIZE_M - y - s * np.sin(yaw)) * MAP_PX_PER_M,
            )
            for s in (-60, 60)
        )
        start, end = (tuple(int(v) for v in point) for point in (start, end))
        cv2.line(mask, start, end, 255, thickness=12 * MAP_PX_PER_M)
        file = f"maps/{_token(self.name, 'map')}.png"
        (self.root / "maps").mkdir(exist_ok=True)
        cv2.imwrite(str(self.root / file), mask)
        self.tables["map"].append(
            {
                "token": _token(self.name, "map"),
                "category": "semantic_prior",
                "filename": file,
                "log_tokens": [_token(self.name, "log")],
            }
        )


def _common_tables() -> Tables:
    sensors = {**dict.fromkeys(CAMERA_RIG, "camera"), LIDAR: "lidar"}
    attributes = ("vehicle.moving", "pedestrian.moving")
    per_scene = ("calibrated_sensor", "ego_pose", "log", "scene", "sample", "sample_data",
                 "sample_annotation", "instance", "map")  # fmt: skip
    return {
        "category": [
            {"token": _token("category", name), "name": name, "description": ""}
            for name in DETECTION_CLASS_OF_CATEGORY
        ],
        "attribute": [
            {"token": _token("attribute", name), "name": name, "description": ""}
            for name in attributes
        ],
        "visibility": [
            {"token": str(i + 1), "level": level, "description": ""}
            for i, level in enumerate(("v0-40", "v40-60", "v60-80", "v80-100"))
        ],
        "sensor": [
            {"token": _token("sensor", name), "channel": name, "modality": modality}
            for name, modality in sensors.items()
        ],
        **{name: [] for name in per_scene},
    }


def _chain(tokens: list[str], stamps: list[int]) -> zip:
    """Rows of token, previous token, next token, stamp."""
    return zip(tokens, ["", *tokens[:-1]], [*tokens[1:], ""], stamps, strict=True)


def _pose_columns(T: np.ndarray) -> dict[str, list[float]]:
    """nuScenes' columns of a pose: quaternion (w, x, y, z) by way of the rotation's eigenvector."""
    R = T[:3, :3]
    # 4 q q^T in terms of R; q is the eigenvector of the largest eigenvalue (Bar-Itzhack 2000)
    K = np.array(
        [
            [R.trace(), R[2, 1] - R[1, 2], R[0, 2] - R[2, 0], R[1, 0] - R[0, 1]],
            [0, R[0, 0] - R[1, 1] - R[2, 2], R[0, 1] + R[1, 0], R[0, 2] + R[2, 0]],
            [0, 0, R[1, 1] - R[0, 0] - R[2, 2], R[1, 2] + R[2, 1]],
            [0, 0, 0, R[2, 2] - R[0, 0] - R[1, 1]],
        ]
    )
    q = np.linalg.eigh(K, UPLO="U")[1][:, -1]
    return {"rotation": q.tolist(), "translation": T[:3, 3].tolist()}


def _token(*parts: object) -> str:
    return hashlib.md5("/".join(map(str, parts)).encode()).hexdigest()
