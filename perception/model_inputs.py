"""From a sensor frame to the network's input tensors: the same code in training and in the car."""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Float64, Int32, UInt8

from perception.geometry import pillars, rigid
from perception.geometry.depth_image import depth_image
from perception.geometry.image_crop import ImageCrop
from perception.geometry.pool_table import PoolTable, PoolTableCache, pool_table
from perception.input_spec import InputSpec
from perception.messages import Calibration, SensorFrame
from perception.taxonomy import LIDAR
from perception.usable_data import (
    camera_fault,
    frame_points,
    missing_sensors,
    motion,
    sensor_faults,
)


@dataclass(frozen=True, kw_only=True)
class ModelInputs:
    """The network's inputs for one frame; field names are the exported graph's tensor names."""

    images: UInt8[np.ndarray, "cam h w 3"]
    camera_mask: Float32[np.ndarray, " cam"]
    pool_runs: Int32[np.ndarray, "r 3"]
    cell_start: Int32[np.ndarray, " g_plus_1"]
    depth_img: Float32[np.ndarray, "cam h_depth w_depth"]
    """Metres along the optical axis, 0 where no point is; of no size where not asked for."""
    pillar_points: Float32[np.ndarray, "v m 5"]
    pillar_num_points: Int32[np.ndarray, " v"]
    pillar_cell: Int32[np.ndarray, " v"]
    cell_pillar: Int32[np.ndarray, " g_lidar"]
    lidar_mask: Float32[np.ndarray, " 1"]
    sparse_tables: Mapping[str, Int32[np.ndarray, "..."]] = field(default_factory=dict)
    """`SparseTables.by_name` for an exported sparse encoder, made of `pillar_cell`; else nothing.
    Each is a tensor of its own."""

    @property
    def tensors(self) -> dict[str, np.ndarray]:
        """Every tensor by its name."""
        return {**{name: getattr(self, name) for name in TENSOR_NAMES}, **self.sparse_tables}


TENSOR_NAMES = tuple(f for f in ModelInputs.__dataclass_fields__ if f != "sparse_tables")
"""Tensors that every exported graph has."""


@runtime_checkable
class FrameAugmentation(Protocol):
    """How a training frame is turned and cut before the network sees it; the car has none."""

    @property
    def T_ego_aug_ego(self) -> Float64[np.ndarray, "4 4"]:
        """Affine map of the ego frame: rotation, scale, mirror, translation."""
        ...

    def A_img_aug_img(
        self, camera: str, width_px: int, height_px: int
    ) -> Float64[np.ndarray, "3 3"]:
        """Homography from a camera's pixels to the network's."""
        ...

    def cut(
        self,
        camera: str,
        rgb: UInt8[np.ndarray, "h w 3"],
        out: UInt8[np.ndarray, "h_aug w_aug 3"] | None = None,
    ) -> UInt8[np.ndarray, "h_aug w_aug 3"]:
        """Make the network's image by that homography, in `out` where that is given."""
        ...


@dataclass(frozen=True, kw_only=True)
class PlainCut:
    """What the car does: every frame as it is."""

    image: ImageCrop

    @property
    def T_ego_aug_ego(self) -> Float64[np.ndarray, "4 4"]:
        """The ego frame stays."""
        return np.eye(4)

    def A_img_aug_img(
        self, camera: str, width_px: int, height_px: int
    ) -> Float64[np.ndarray, "3 3"]:
        """Homography of the network's crop, the same for each camera."""
        return self.image.A_img_aug_img(width_px, height_px)

    def cut(
        self,
        camera: str,
        rgb: UInt8[np.ndarray, "h w 3"],
        out: UInt8[np.ndarray, "h_aug w_aug 3"] | None = None,
    ) -> UInt8[np.ndarray, "h_aug w_aug 3"]:
        """Resize and crop."""
        return self.image.apply(rgb, out)


@dataclass(frozen=True, kw_only=True)
class PreparedFrame:
    """Inputs, and what went into them."""

    inputs: ModelInputs
    sensors_used: tuple[str, ...]
    sensors_missing: Mapping[str, str]
    """Sensor name -> why it is masked."""
    num_dropped_pillars: int
    part_ms: Mapping[str, float]
    """Time per part [ms]; with an executor, "accumulate" and "pillars" ran beside the others."""


def prepare_frame(
    frame: SensorFrame,
    spec: InputSpec,
    executor: Executor | None = None,
    augmentation: FrameAugmentation | None = None,
    tables: PoolTableCache | None = None,
    *,
    images_out: UInt8[np.ndarray, "cam h w 3"] | None = None,
    compensate_ego_motion: bool = True,
) -> PreparedFrame:
    """Cut the images, list the runs of frustum points per cell, sort the points into pillars.

    A sensor that is absent, too old, too new or of the wrong size is masked and named; nothing that
    a sensor sends raises.

    Args:
        frame: Raw data of one instant.
        spec: What the network wants.
        executor: Where points are sorted while images are cut here; None does one after the other.
        augmentation: How a training frame is changed; None leaves it as it is.
        tables: Pool tables of earlier frames, for a rig that may stand still.
        images_out: Where the network's images are written; None makes a new array.
        compensate_ego_motion: Whether cameras move with the car; without, they are as mounted.
    """
    change = augmentation or PlainCut(image=spec.image)
    run = _now if executor is None else executor.submit
    faults = sensor_faults(frame, spec)
    used = tuple(sensor for sensor, fault in faults.items() if fault is None)
    accumulated = run(_timed, _frame_points, frame, spec, LIDAR in used)
    sorted_points = run(_timed, _pillars, accumulated, spec, change)
    pixels, images_ms = _timed(_cut_images, frame, spec, used, change, images_out, executor)
    rig = _camera_rig(frame, spec, used, change, compensate_ego_motion)
    table, table_ms = _timed(rig_pool_table, rig, spec, change.T_ego_aug_ego, tables)
    points_ego, accumulate_ms = accumulated.result()
    depth_img, depth_ms = _timed(_depth_images, points_ego, rig, spec, executor)
    columns, pillars_ms = sorted_points.result()
    return PreparedFrame(
        inputs=ModelInputs(
            images=pixels,
            camera_mask=np.array([camera in used for camera in spec.cameras], dtype=np.float32),
            pool_runs=table.runs,
            cell_start=table.cell_start,
            depth_img=depth_img,
            pillar_points=columns.points,
            pillar_num_points=columns.num_points,
            pillar_cell=columns.cell,
            cell_pillar=columns.cell_pillar,
            lidar_mask=np.array([LIDAR in used], dtype=np.float32),
        ),
        sensors_used=used,
        sensors_missing=missing_sensors(frame, faults),
        num_dropped_pillars=columns.num_dropped_pillars,
        part_ms={
            "images": images_ms,
            "pool_table": table_ms,
            "depth_image": depth_ms,
            "accumulate": accumulate_ms,
            "pillars": pillars_ms,
        },
    )


def _now(function: Callable[..., Any], *arguments: Any) -> Future[Any]:
    """What `Executor.submit` does, in this thread."""
    future: Future[Any] = Future()
    future.set_result(function(*arguments))
    return future


def _share(tasks: Sequence[Callable[[], object]], executor: Executor | None) -> None:
    """Do tasks here, the last one first, and meanwhile in the executor, once it is idle."""
    futures = [executor.submit(task) for task in tasks] if executor else [None] * len(tasks)
    for task, future in zip(reversed(tasks), reversed(futures), strict=True):
        if future is None or future.cancel():
            task()
        else:
            future.result()


def _timed(function: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    """What the function gives, and how long it took [ms]."""
    start = time.perf_counter()
    result = function(*arguments)
    return result, (time.perf_counter() - start) * 1e3


def _cut_images(
    frame: SensorFrame,
    spec: InputSpec,
    used: tuple[str, ...],
    change: FrameAugmentation,
    out: UInt8[np.ndarray, "cam h w 3"] | None,
    executor: Executor | None,
) -> UInt8[np.ndarray, "cam h w 3"]:
    """The network's images, black where a camera is not used."""
    if out is None:
        out = np.empty(
            (len(spec.cameras), spec.image.height_px, spec.image.width_px, 3), dtype=np.uint8
        )
    tasks = []
    for index, camera in enumerate(spec.cameras):
        if camera in used:
            tasks.append(partial(change.cut, camera, frame.images[camera].rgb, out[index]))
        else:
            out[index] = 0
    _share(tasks, executor)
    return out


@dataclass(frozen=True, kw_only=True)
class CameraRig:
    """Where each camera was when it took its picture; None for one that is not used."""

    K_img_aug: tuple[Float64[np.ndarray, "3 3"] | None, ...]
    """Intrinsics after resize, crop and augmentation [px]."""
    T_ego_cam: tuple[Float64[np.ndarray, "4 4"] | None, ...]
    """Camera at its own stamp to ego at the frame's stamp."""


def camera_rig(
    frame: SensorFrame, spec: InputSpec, augmentation: FrameAugmentation | None = None
) -> CameraRig:
    """The rig of a frame's usable cameras."""
    change = augmentation or PlainCut(image=spec.image)
    usable = [camera for camera in spec.cameras if camera_fault(frame, camera, spec) is None]
    return _camera_rig(frame, spec, usable, change, compensate_ego_motion=True)


def calibrated_rig(
    calibration: Calibration, spec: InputSpec, cameras: Collection[str]
) -> CameraRig:
    """The rig of some cameras as they are mounted: that of a frame without ego motion."""
    still = {camera: np.eye(4) for camera in spec.cameras if camera in cameras}
    return _rig(calibration, still, spec, PlainCut(image=spec.image))


def rig_depth_images(
    points_ego: Float32[np.ndarray, "5 n"],
    rig: CameraRig,
    spec: InputSpec,
    executor: Executor | None = None,
) -> Float32[np.ndarray, "cam h w"]:
    """Depths of points in each of the network's images; zeros for a camera that is not used."""
    height, width = spec.image.height_px, spec.image.width_px
    depth = np.zeros((len(spec.cameras), height, width), np.float32)
    draws = [
        partial(depth_image, points_ego, T_ego_cam, K_img_aug, height, width, depth[index])
        for index, (T_ego_cam, K_img_aug) in enumerate(
            zip(rig.T_ego_cam, rig.K_img_aug, strict=True)
        )
        if T_ego_cam is not None and K_img_aug is not None
    ]
    _share(draws, executor)
    return depth


def _camera_rig(
    frame: SensorFrame,
    spec: InputSpec,
    used: Collection[str],
    change: FrameAugmentation,
    compensate_ego_motion: bool,
) -> CameraRig:
    now = frame.T_global_ego if compensate_ego_motion else None
    moved = {
        camera: motion(now, frame.images[camera].T_global_ego)
        for camera in spec.cameras
        if camera in used
    }
    return _rig(frame.calibration, moved, spec, change)


def _rig(
    calibration: Calibration,
    T_ego_now_ego_then: Mapping[str, Float64[np.ndarray, "4 4"]],
    spec: InputSpec,
    change: FrameAugmentation,
) -> CameraRig:
    """The cameras that a motion is given for."""
    K_img_aug: list[np.ndarray | None] = [None] * len(spec.cameras)
    T_ego_cam: list[np.ndarray | None] = [None] * len(spec.cameras)
    for camera, T in T_ego_now_ego_then.items():
        index, mounted = spec.cameras.index(camera), calibration.cameras[camera]
        A = change.A_img_aug_img(camera, mounted.width_px, mounted.height_px)
        K_img_aug[index] = A @ mounted.K_cam
        T_ego_cam[index] = T @ mounted.T_ego_cam
    return CameraRig(K_img_aug=tuple(K_img_aug), T_ego_cam=tuple(T_ego_cam))


def rig_pool_table(
    rig: CameraRig,
    spec: InputSpec,
    T_ego_aug_ego: Float64[np.ndarray, "4 4"],
    tables: PoolTableCache | None = None,
) -> PoolTable:
    """Which frustum points fall into which cell of the (augmented) ego frame."""
    build = pool_table if tables is None else tables.table
    return build(
        spec.frustum,
        spec.camera_grid,
        spec.feature_height,
        spec.feature_width,
        rig.K_img_aug,
        [None if T is None else T_ego_aug_ego @ T for T in rig.T_ego_cam],
    )


def _frame_points(frame: SensorFrame, spec: InputSpec, is_used: bool) -> Float32[np.ndarray, "5 n"]:
    """Points as measured; none where the LiDAR is not used."""
    return frame_points(frame, spec) if is_used else np.empty((5, 0), np.float32)


def _pillars(
    accumulated: Future[tuple[np.ndarray, float]], spec: InputSpec, change: FrameAugmentation
) -> pillars.Pillars:
    """Pillars of the points after augmentation."""
    points_ego, _ = accumulated.result()
    if isinstance(change, PlainCut):
        return pillars.build_pillars(points_ego, spec.pillars)
    T_ego_aug_ego = change.T_ego_aug_ego[:3].astype(np.float32)
    xyz_aug = rigid.apply_to_columns(T_ego_aug_ego, points_ego[:3])
    return pillars.build_pillars(np.concatenate([xyz_aug, points_ego[3:]]), spec.pillars)


def _depth_images(
    points_ego: Float32[np.ndarray, "5 n"],
    rig: CameraRig,
    spec: InputSpec,
    executor: Executor | None,
) -> Float32[np.ndarray, "cam h_depth w_depth"]:
    if not spec.depth_image:
        return np.zeros((len(spec.cameras), 0, 0), np.float32)
    return rig_depth_images(points_ego, rig, spec, executor)
