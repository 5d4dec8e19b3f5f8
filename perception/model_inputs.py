"""From a sensor frame to the network's input tensors: the same code in training and in the car."""

from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Float64, Int32, UInt8

from perception.geometry import pillars, rigid
from perception.geometry.depth_image import depth_image
from perception.geometry.frustum import Frustum
from perception.geometry.grid import BevGrid
from perception.geometry.image_crop import ImageCrop
from perception.geometry.pool_table import PoolTable, PoolTableCache, pool_table
from perception.messages import LidarSweep, SensorFrame
from perception.taxonomy import LIDAR


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """Everything that fixes the network's inputs. Travels in the model card."""

    cameras: tuple[str, ...]
    """Cameras in the order of the tensors; none for a network of the LiDAR alone."""
    image: ImageCrop
    """How an image is cut."""
    frustum: Frustum
    """How image features are spread in space."""
    bev: BevGrid
    """The network's BEV grid."""
    camera_grid: BevGrid
    """The grid that image features are pooled on: the BEV grid, or one of half its cell."""
    pillars: pillars.PillarConfig
    """How points are sorted."""
    depth_image: bool = False
    """Whether the network takes the LiDAR's depths in each camera's picture."""
    use_lidar: bool = True
    """False for a network of the cameras alone."""
    max_sensor_age: float = 0.1
    """A sensor whose newest data is further from the frame's stamp than this [s], before or after,
    is masked. nuScenes' cameras are up to 0.043 s early (measured on real logs)."""

    def __post_init__(self) -> None:
        """Refuse parts that do not fit together."""
        if not self.cameras and not self.use_lidar:
            raise ValueError(
                "a network without cameras and without LiDAR sees nothing: use one of them"
            )
        if self.depth_image and not (self.cameras and self.use_lidar):
            raise ValueError("a depth image needs cameras and LiDAR: set depth_image to False")
        if len(set(self.cameras)) != len(self.cameras):
            raise ValueError(f"cameras are {self.cameras}, expected each name once")
        for size, name in ((self.image.height_px, "height"), (self.image.width_px, "width")):
            if size % self.frustum.stride:
                raise ValueError(
                    f"image {name} is {size} px, expected a multiple of {self.frustum.stride}"
                )

    @property
    def sensors(self) -> tuple[str, ...]:
        """Sensors that the network looks at."""
        return (*self.cameras, LIDAR) if self.use_lidar else self.cameras

    @property
    def feature_height(self) -> int:
        """Rows of the image feature map."""
        return self.image.height_px // self.frustum.stride

    @property
    def feature_width(self) -> int:
        """Columns of the image feature map."""
        return self.image.width_px // self.frustum.stride


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
        self, camera: str, rgb: UInt8[np.ndarray, "h w 3"]
    ) -> UInt8[np.ndarray, "h_aug w_aug 3"]:
        """Make the network's image by that homography."""
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
        self, camera: str, rgb: UInt8[np.ndarray, "h w 3"]
    ) -> UInt8[np.ndarray, "h_aug w_aug 3"]:
        """Resize and crop."""
        return self.image.apply(rgb)


@dataclass(frozen=True, kw_only=True)
class PreparedFrame:
    """Inputs, and what went into them."""

    inputs: ModelInputs
    sensors_used: tuple[str, ...]
    sensors_missing: Mapping[str, str]
    """Sensor name -> why it is masked."""
    num_dropped_pillars: int


def prepare_frame(
    frame: SensorFrame,
    spec: InputSpec,
    executor: Executor | None = None,
    augmentation: FrameAugmentation | None = None,
    tables: PoolTableCache | None = None,
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
    """
    change = augmentation or PlainCut(image=spec.image)
    faults = {camera: _camera_fault(frame, camera, spec) for camera in spec.cameras}
    if spec.use_lidar:
        faults[LIDAR] = _lidar_fault(frame, spec)
    used = tuple(sensor for sensor, fault in faults.items() if fault is None)
    images = {camera: frame.images[camera] for camera in spec.cameras if camera in used}

    sorting = executor.submit(_frame_points, frame, spec, change) if executor else None
    pixels = np.zeros(
        (len(spec.cameras), spec.image.height_px, spec.image.width_px, 3), dtype=np.uint8
    )
    for camera, image in images.items():
        pixels[spec.cameras.index(camera)] = change.cut(camera, image.rgb)
    rig = _camera_rig(frame, spec, tuple(images), change)
    table = rig_pool_table(rig, spec, change.T_ego_aug_ego, tables)
    points_ego, columns = sorting.result() if sorting else _frame_points(frame, spec, change)
    return PreparedFrame(
        inputs=ModelInputs(
            images=pixels,
            camera_mask=np.array([camera in images for camera in spec.cameras], dtype=np.float32),
            pool_runs=table.runs,
            cell_start=table.cell_start,
            depth_img=(
                rig_depth_images(points_ego, rig, spec)
                if spec.depth_image
                else np.zeros((len(spec.cameras), 0, 0), np.float32)
            ),
            pillar_points=columns.points,
            pillar_num_points=columns.num_points,
            pillar_cell=columns.cell,
            cell_pillar=columns.cell_pillar,
            lidar_mask=np.array([LIDAR in used], dtype=np.float32),
        ),
        sensors_used=used,
        sensors_missing={
            sensor: frame.missing.get(sensor, fault)
            for sensor, fault in faults.items()
            if fault is not None
        },
        num_dropped_pillars=columns.num_dropped_pillars,
    )


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
    usable = (camera for camera in spec.cameras if _camera_fault(frame, camera, spec) is None)
    return _camera_rig(frame, spec, tuple(usable), change)


def rig_depth_images(
    points_ego: Float32[np.ndarray, "5 n"], rig: CameraRig, spec: InputSpec
) -> Float32[np.ndarray, "cam h w"]:
    """Depths of points in each of the network's images; zeros for a camera that is not used."""
    height, width = spec.image.height_px, spec.image.width_px
    depth = np.zeros((len(spec.cameras), height, width), np.float32)
    for index, (K_img_aug, T_ego_cam) in enumerate(zip(rig.K_img_aug, rig.T_ego_cam, strict=True)):
        if K_img_aug is not None and T_ego_cam is not None:
            depth[index] = depth_image(points_ego, T_ego_cam, K_img_aug, height, width)
    return depth


def _camera_rig(
    frame: SensorFrame, spec: InputSpec, cameras: tuple[str, ...], change: FrameAugmentation
) -> CameraRig:
    K_img_aug: list[np.ndarray | None] = [None] * len(spec.cameras)
    T_ego_cam: list[np.ndarray | None] = [None] * len(spec.cameras)
    for index, camera in enumerate(spec.cameras):
        if camera in cameras:
            calibration = frame.calibration.cameras[camera]
            A = change.A_img_aug_img(camera, calibration.width_px, calibration.height_px)
            K_img_aug[index] = A @ calibration.K_cam
            T_ego_cam[index] = (
                motion(frame.T_global_ego, frame.images[camera].T_global_ego)
                @ calibration.T_ego_cam
            )
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


def motion(
    T_global_ego_now: Float64[np.ndarray, "4 4"] | None,
    T_global_ego_then: Float64[np.ndarray, "4 4"] | None,
) -> Float64[np.ndarray, "4 4"]:
    """`T_ego_now_ego_then`; identity where a pose is not known: the car is taken to stand."""
    if T_global_ego_now is None or T_global_ego_then is None:
        return np.eye(4)
    return rigid.inverse(T_global_ego_now) @ T_global_ego_then


def usable_sweeps(frame: SensorFrame, spec: InputSpec) -> tuple[LidarSweep, ...]:
    """Sweeps that may be accumulated, newest first; empty where the newest is too old or too new.

    Without ego poses only the newest: older ones would smear over a moving car.
    """
    if _lidar_fault(frame, spec) is not None:
        return ()
    if frame.T_global_ego is None or frame.sweeps[0].T_global_ego is None:
        return frame.sweeps[:1]
    recent = (
        sweep
        for sweep in frame.sweeps
        if frame.stamp_ns - sweep.stamp_ns <= spec.pillars.max_sweep_age * 1e9
        and sweep.T_global_ego is not None
    )
    return tuple(recent)[: spec.pillars.num_sweeps]


def accumulate(
    frame: SensorFrame, sweeps: tuple[LidarSweep, ...], config: pillars.PillarConfig
) -> Float32[np.ndarray, "5 n"]:
    """Bring sweeps into the frame's ego frame, newest first; rows as `pillars.POINT_COLUMNS`."""
    points_ego = np.empty((5, sum(sweep.points_lidar.shape[1] for sweep in sweeps)), np.float32)
    end = 0
    for sweep in sweeps:
        T_ego_lidar = motion(frame.T_global_ego, sweep.T_global_ego) @ frame.calibration.T_ego_lidar
        x, y = sweep.points_lidar[:2]
        far = (np.abs(x) >= config.ego_radius) | (np.abs(y) >= config.ego_radius)
        points_lidar = sweep.points_lidar.take(np.flatnonzero(far), axis=1)
        start, end = end, end + points_lidar.shape[1]
        R_ego_lidar, t_ego_lidar = np.split(T_ego_lidar[:3].astype(np.float32), [3], axis=1)
        xyz = rigid.product_of_columns(R_ego_lidar, points_lidar[:3])
        points_ego[:3, start:end] = xyz + t_ego_lidar
        points_ego[3, start:end] = points_lidar[3]
        points_ego[4, start:end] = (frame.stamp_ns - sweep.stamp_ns) * 1e-9
    return points_ego[:, :end]


def frame_points(frame: SensorFrame, spec: InputSpec) -> Float32[np.ndarray, "5 n"]:
    """All points of the usable sweeps, rows as `pillars.POINT_COLUMNS`, newest sweep first."""
    return accumulate(frame, usable_sweeps(frame, spec), spec.pillars)


def _frame_points(
    frame: SensorFrame, spec: InputSpec, change: FrameAugmentation
) -> tuple[Float32[np.ndarray, "5 n"], pillars.Pillars]:
    """Points as measured, and the pillars of them after augmentation."""
    if not spec.use_lidar:
        nothing = np.empty((5, 0), np.float32)
        return nothing, pillars.build_pillars(nothing, spec.pillars)
    points_ego = frame_points(frame, spec)
    if isinstance(change, PlainCut):
        return points_ego, pillars.build_pillars(points_ego, spec.pillars)
    A, t = np.split(change.T_ego_aug_ego[:3].astype(np.float32), [3], axis=1)
    xyz_aug = rigid.product_of_columns(A, points_ego[:3]) + t
    points_aug = np.concatenate([xyz_aug, points_ego[3:]])
    return points_ego, pillars.build_pillars(points_aug, spec.pillars)


def _camera_fault(frame: SensorFrame, camera: str, spec: InputSpec) -> str | None:
    if camera not in frame.images:
        return "no data"
    if camera not in frame.calibration.cameras:
        return "no calibration"
    image, calibration = frame.images[camera], frame.calibration.cameras[camera]
    if image.rgb.ndim != 3 or image.rgb.shape[2] != 3 or image.rgb.dtype != np.uint8:
        return f"image is {image.rgb.dtype} of shape {image.rgb.shape}, expected uint8 RGB"
    height, width, _ = image.rgb.shape
    if (height, width) != (calibration.height_px, calibration.width_px):
        return (
            f"image is {width} x {height} px, the calibration says {calibration.width_px} x "
            f"{calibration.height_px}"
        )
    try:
        spec.image.A_img_aug_img(width, height)
    except ValueError as error:
        return str(error)
    return _age_fault(image.stamp_ns, frame, spec)


def _lidar_fault(frame: SensorFrame, spec: InputSpec) -> str | None:
    if not frame.sweeps:
        return "no data"
    return _age_fault(frame.sweeps[0].stamp_ns, frame, spec)


def _age_fault(stamp_ns: int, frame: SensorFrame, spec: InputSpec) -> str | None:
    age = (frame.stamp_ns - stamp_ns) * 1e-9
    if abs(age) <= spec.max_sensor_age:
        return None
    kind = "old" if age > 0 else "ahead"
    return f"newest data is {abs(age):.3f} s {kind}, the limit is {spec.max_sensor_age:.3f} s"
