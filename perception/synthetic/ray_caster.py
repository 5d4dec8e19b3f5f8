"""What cameras and LiDAR see: each ray's nearest box, or the ground.

Both sensors look at the same boxes through the same code, so depth, occlusion, identities and
point counts agree. Boxes are seen from outside only: a ray that begins in one leaves it unnoticed.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float32, Float64, Int32, Int64

from perception.errors import InputError
from perception.synthetic import rig
from perception.synthetic.casts import GROUND, NOTHING, CameraCast, CameraView, LidarCast
from perception.synthetic.primitives import Primitives
from perception.synthetic.ray_grid import RayGrid, camera_grid, lidar_grid
from perception.synthetic.ray_hits import nearest_hits
from perception.synthetic.ray_outlines import Outlines
from perception.synthetic.ray_slabs import slabs_of
from perception.synthetic.ray_windows import (
    NEAR_PLANE,
    Boxes,
    Windows,
    camera_windows,
    in_camera_cone,
    lidar_windows,
)

BACKENDS = ("numpy", "numba")


def cast_camera(
    primitives: Primitives, view: CameraView, num_objects: int, backend: str = "numpy"
) -> CameraCast:
    """Nearest box or ground behind each pixel's centre, up to the horizon.

    Args:
        primitives: Everything above the ground, in the global frame.
        view: The camera.
        num_objects: How many annotated objects there are, seen or not; more than the largest
            `object_index`.
        backend: One of `BACKENDS`; the result is the same.

    Raises:
        InputError: The backend is not known or not installed.
    """
    center_cam = _centers(primitives, view.T_global_cam)
    radius = np.linalg.norm(primitives.half_size, axis=1)
    seen = np.flatnonzero(in_camera_cone(center_cam, radius, view))
    boxes = _boxes(primitives, view.T_global_cam, center_cam, seen)
    windows = camera_windows(boxes, view)
    object_index = primitives.object_index[boxes.row[windows.box]].astype(np.int64)
    outlines = Outlines.of(windows, object_index, num_objects)
    t, primitive = cast_grid(
        camera_grid(view), view.T_global_cam, boxes, windows, outlines, backend
    )
    bins = np.subtract(primitive, NOTHING, dtype=np.int64).ravel()
    pixels = np.bincount(bins, minlength=len(primitives) - NOTHING)
    visible_px = np.zeros(num_objects, dtype=np.int64)
    annotated = primitives.object_index >= 0
    np.add.at(visible_px, primitives.object_index[annotated], pixels[-NOTHING:][annotated])
    return CameraCast(
        depth=t, primitive=primitive, visible_px=visible_px, unoccluded_px=outlines.areas()
    )


def cast_lidar(
    primitives: Primitives, T_global_lidar: Float64[np.ndarray, "4 4"], backend: str = "numpy"
) -> LidarCast:
    """Nearest box or ground of each ray of one revolution, up to `rig.LIDAR_RANGE`.

    Args:
        primitives: Everything above the ground, in the global frame.
        T_global_lidar: Pose of the sensor, the same for the whole revolution.
        backend: One of `BACKENDS`; the result is the same.

    Raises:
        InputError: The backend is not known or not installed.
    """
    center_lidar = _centers(primitives, T_global_lidar)
    radius = np.linalg.norm(primitives.half_size, axis=1)
    seen = np.flatnonzero(np.linalg.norm(center_lidar, axis=1) - radius <= rig.LIDAR_RANGE)
    boxes = _boxes(primitives, T_global_lidar, center_lidar, seen)
    windows = lidar_windows(boxes)
    outlines = Outlines.of(windows, np.full(len(windows), -1), 0)
    grid = lidar_grid()
    t, primitive = cast_grid(grid, T_global_lidar, boxes, windows, outlines, backend)
    ray_range = t * np.hypot(np.float32(1.0), grid.lines[2])[:, None]
    is_far = ray_range > np.float32(rig.LIDAR_RANGE)
    ray_range[is_far] = np.inf
    primitive[is_far] = NOTHING
    return LidarCast(range=ray_range.T.ravel(), primitive=primitive.T.ravel())


def cast_grid(
    grid: RayGrid,
    T_global_sensor: Float64[np.ndarray, "4 4"],
    boxes: Boxes,
    windows: Windows,
    outlines: Outlines,
    backend: str,
) -> tuple[Float32[np.ndarray, "h w"], Int32[np.ndarray, "h w"]]:
    """Distance `t` and row of the nearest hit of each ray of a grid; marks `outlines`.

    Raises:
        InputError: The backend is not known or not installed.
    """
    kernel = _kernel(backend)
    t, primitive = _ground(grid, T_global_sensor)
    row = boxes.row[windows.box]
    kernel(slabs_of(boxes, windows, grid), windows, row, outlines, t, primitive)
    return t, primitive


def cast_rays(
    primitives: Primitives,
    origin_global: Float64[np.ndarray, " 3"],
    directions_global: Float64[np.ndarray, "rays 3"],
) -> tuple[Float64[np.ndarray, " rays"], Int32[np.ndarray, " rays"]]:
    """All rays against all boxes and the ground, in float64: the slow reference of the others.

    Returns:
        Distance in lengths of the direction, infinite where nothing is met, and the row of the
        table, `GROUND` or `NOTHING`. Boxes are not met nearer than `NEAR_PLANE` lengths.
    """
    with np.errstate(divide="ignore"):
        t = np.where(
            directions_global[:, 2] < 0, -origin_global[2] / directions_global[:, 2], np.inf
        )
    t[t <= 0] = np.inf
    primitive = np.where(t < np.inf, GROUND, NOTHING).astype(np.int32)
    for row in range(len(primitives)):
        R_box_global = primitives.R_global_box[row].T
        origin_box = R_box_global @ (origin_global - primitives.center_global[row])
        directions_box = directions_global @ R_box_global.T
        directions_box[np.abs(directions_box) < 1e-30] = 1e-30
        a = (-primitives.half_size[row] - origin_box) / directions_box
        b = (primitives.half_size[row] - origin_box) / directions_box
        enter, leave = np.minimum(a, b).max(axis=1), np.maximum(a, b).min(axis=1)
        is_hit = (enter <= leave) & (enter >= NEAR_PLANE) & (enter < t)
        t[is_hit], primitive[is_hit] = enter[is_hit], row
    return t, primitive


def _centers(
    primitives: Primitives, T_global_sensor: Float64[np.ndarray, "4 4"]
) -> Float64[np.ndarray, "n 3"]:
    """Centres in the sensor's frame."""
    offset = primitives.center_global - T_global_sensor[:3, 3]
    return np.einsum("ni,ij->nj", offset, T_global_sensor[:3, :3])


def _boxes(
    primitives: Primitives,
    T_global_sensor: Float64[np.ndarray, "4 4"],
    center: Float64[np.ndarray, "n 3"],
    rows: Int64[np.ndarray, " m"],
) -> Boxes:
    """Some boxes in the sensor's frame."""
    return Boxes(
        row=rows,
        center=center[rows],
        R_sensor_box=np.einsum(
            "ij,nik->njk", T_global_sensor[:3, :3], primitives.R_global_box[rows]
        ),
        half_size=primitives.half_size[rows],
    )


def _ground(
    grid: RayGrid, T_global_sensor: Float64[np.ndarray, "4 4"]
) -> tuple[Float32[np.ndarray, "h w"], Int32[np.ndarray, "h w"]]:
    """Where each ray meets the plane z = 0 from above."""
    up = T_global_sensor[2, :3]
    up = np.where(np.abs(up) < 1e-9, 0.0, up)  # an upright sensor: columns do not matter
    of_column = (up[:, None] * grid.columns).sum(axis=0)
    of_line = (up[:, None] * grid.lines).sum(axis=0)
    rise = of_column + of_line[:, None] if of_column.any() else of_line[:, None]
    height = float(T_global_sensor[2, 3])
    is_met = (rise < 0) & (height > 0)
    t = np.divide(-height, rise, out=np.full(rise.shape, np.inf), where=is_met)
    primitive = np.where(is_met, GROUND, NOTHING)
    return (
        np.broadcast_to(t.astype(np.float32), grid.shape).copy(),
        np.broadcast_to(primitive.astype(np.int32), grid.shape).copy(),
    )


def _kernel(backend: str) -> Callable[..., None]:
    if backend == "numpy":
        return nearest_hits
    if backend != "numba":
        raise InputError(
            f'backend of the ray caster is "{backend}", expected one of {", ".join(BACKENDS)}: '
            'leave it out for "numpy"'
        )
    try:
        from perception.synthetic.ray_caster_numba import nearest_hits_numba
    except ModuleNotFoundError as error:
        raise InputError(
            f'backend "numba" of the ray caster needs the package {error.name}, which is not '
            "installed: run `pip install bev-perception[fast]` or use the numpy backend"
        ) from error
    return nearest_hits_numba
