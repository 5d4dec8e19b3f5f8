"""Which rays of a sensor could meet a box: a rectangle of its grid, never too small."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64

from perception.synthetic import rig
from perception.synthetic.casts import CameraView
from perception.synthetic.ray_grid import lidar_grid

NEAR_PLANE = 0.1
"""Nothing nearer is met: z-depth for cameras, horizontal range for the LiDAR [m]. Source: ours."""
_MARGIN_PX = 0.01
_MARGIN_RAD = 1e-5
"""Rounding of the slab test (float32: 1e-7 of the distance) stays far inside. Source: ours."""

_EDGES = np.array([(a, a + side) for side in (1, 2, 4) for a in range(8) if not a & side])
"""Pairs of corners, see `Boxes.corners`."""


@dataclass(frozen=True, kw_only=True)
class Boxes:
    """Boxes in a sensor's frame, with the rows of the table that they come from."""

    row: Int64[np.ndarray, " n"]
    center: Float64[np.ndarray, "n 3"]
    R_sensor_box: Float64[np.ndarray, "n 3 3"]
    half_size: Float64[np.ndarray, "n 3"]

    def __len__(self) -> int:
        return len(self.row)

    def corners(self) -> Float64[np.ndarray, "3 8 n"]:
        """Coordinates of the eight corners in the sensor's frame."""
        x, y, z = (self.R_sensor_box * self.half_size[:, None, :]).transpose(2, 1, 0)[:, :, None]
        # Corner 4 i + 2 j + k lies on side i of x, j of y, k of z.
        corners = np.concatenate([self.center.T[:, None] - x, self.center.T[:, None] + x], axis=1)
        corners = np.stack([corners - y, corners + y], axis=2).reshape(3, 4, -1)
        return np.stack([corners - z, corners + z], axis=2).reshape(3, 8, -1)


@dataclass(frozen=True, kw_only=True)
class Windows:
    """Rectangles of a grid of rays, none empty, by growing `box`; ends are excluded.

    A box has none, one, or at the LiDAR's seam two windows.
    """

    box: Int64[np.ndarray, " k"]
    """Index into `Boxes`."""
    column: Int64[np.ndarray, " k"]
    end_column: Int64[np.ndarray, " k"]
    line: Int64[np.ndarray, " k"]
    end_line: Int64[np.ndarray, " k"]
    reaches_near_plane: Bool[np.ndarray, " k"]
    """Whether a ray may enter the box nearer than `NEAR_PLANE`."""

    def __len__(self) -> int:
        return len(self.box)


def in_camera_cone(
    center_cam: Float64[np.ndarray, "n 3"], radius: Float64[np.ndarray, " n"], view: CameraView
) -> Bool[np.ndarray, " n"]:
    """Which spheres reach into the camera's field of view."""
    keep = center_cam[:, 2] + radius >= NEAR_PLANE
    for axis, size in ((0, view.width_px), (1, view.height_px)):
        for edge, sign in ((0.0, 1.0), (float(size), -1.0)):
            inwards = sign * (view.K_cam[axis] - edge * view.K_cam[2])
            distance = np.einsum("ni,i->n", center_cam, inwards / np.linalg.norm(inwards))
            keep &= distance >= -radius
    return keep


def camera_windows(boxes: Boxes, view: CameraView) -> Windows:
    """Pixel rectangles around the boxes, whose edges are clipped at the near plane."""
    corners = boxes.corners()
    in_front = corners[2] >= NEAR_PLANE
    some = in_front.any(axis=0)
    corners, in_front = corners[:, :, some], in_front[:, some]
    uv = _project(corners, view)
    lowest = np.where(in_front, uv, np.inf).min(axis=1)
    highest = np.where(in_front, uv, -np.inf).max(axis=1)
    cut = np.flatnonzero(~in_front.all(axis=0))
    if len(cut) > 0:
        uv = _project(_edges_at_near_plane(corners[:, :, cut]), view)  # NaN: edge is not cut
        lowest[:, cut] = np.fmin(lowest[:, cut], np.fmin.reduce(uv, axis=1))
        highest[:, cut] = np.fmax(highest[:, cut], np.fmax.reduce(uv, axis=1))
    size = np.array([[view.width_px], [view.height_px]])
    first = np.clip(np.ceil(lowest - 0.5 - _MARGIN_PX), 0, size).astype(np.int64)
    end = np.clip(np.floor(highest + 0.5 + _MARGIN_PX), 0, size).astype(np.int64)
    seen = (first < end).all(axis=0)
    nearest = corners[2].min(axis=0)
    return Windows(
        box=np.flatnonzero(some)[seen],
        column=first[0, seen],
        end_column=end[0, seen],
        line=first[1, seen],
        end_line=end[1, seen],
        reaches_near_plane=(nearest < NEAR_PLANE * 1.01)[seen],
    )


def lidar_windows(boxes: Boxes) -> Windows:
    """Rectangles of rings and azimuths around the boxes; two for a box across the seam."""
    corners = boxes.corners()
    nearest, farthest = _horizontal_distances(corners)
    azimuth_low, azimuth_high, is_around = _azimuths(boxes.center, corners)
    nearest = np.where(is_around, 0.0, nearest)
    bottom, top = corners[2].min(axis=0), corners[2].max(axis=0)
    # A point of the box is steepest where it is nearest if it lies below (above), else farthest.
    close = np.maximum(nearest, 1e-6)
    low = np.arctan2(bottom, np.where(bottom < 0, close, farthest)) - _MARGIN_RAD
    high = np.arctan2(top, np.where(top > 0, close, farthest)) + _MARGIN_RAD
    elevations = np.arctan(lidar_grid().lines[2].astype(np.float64))
    line = np.searchsorted(elevations, low, side="left")
    end_line = np.searchsorted(elevations, high, side="right")
    # Columns count clockwise from the first ray's azimuth.
    per_radian = rig.LIDAR_AZIMUTHS / (2 * np.pi)
    x, y = lidar_grid().columns[:2, 0].tolist()
    column = np.ceil((np.arctan2(y, x) - azimuth_high - _MARGIN_RAD) * per_radian)
    end_column = np.floor((np.arctan2(y, x) - azimuth_low + _MARGIN_RAD) * per_radian) + 1
    column, end_column = column.astype(np.int64), end_column.astype(np.int64)
    column = np.where(is_around, 0, column)
    end_column = np.where(is_around, rig.LIDAR_AZIMUTHS, end_column)
    turns = column // rig.LIDAR_AZIMUTHS * rig.LIDAR_AZIMUTHS
    seen = (line < end_line) & (column < end_column) & (nearest <= rig.LIDAR_RANGE)
    return _split_at_seam(
        Windows(
            box=np.flatnonzero(seen),
            column=(column - turns)[seen],
            end_column=(end_column - turns)[seen],
            line=line[seen],
            end_line=end_line[seen],
            reaches_near_plane=(nearest < NEAR_PLANE * 1.01)[seen],
        )
    )


def _project(
    points_cam: Float64[np.ndarray, "3 k n"], view: CameraView
) -> Float64[np.ndarray, "2 k n"]:
    """Pixel coordinates; of no meaning for points behind the near plane."""
    x, y, depth = points_cam
    depth = np.where(depth < NEAR_PLANE * 0.99, NEAR_PLANE, depth)
    (fx, skew, cx), (_, fy, cy), _ = view.K_cam.tolist()
    return np.stack([(fx * x + skew * y) / depth + cx, fy * y / depth + cy])


def _edges_at_near_plane(
    corners_cam: Float64[np.ndarray, "3 8 n"],
) -> Float64[np.ndarray, "3 12 n"]:
    """Where each edge meets the near plane; NaN where it does not."""
    a, b = corners_cam[:, _EDGES[:, 0]], corners_cam[:, _EDGES[:, 1]]
    is_cut = (a[2] < NEAR_PLANE) != (b[2] < NEAR_PLANE)
    share = (NEAR_PLANE - a[2]) / np.where(is_cut, b[2] - a[2], np.nan)
    return a + share * (b - a)


def _horizontal_distances(
    corners: Float64[np.ndarray, "3 8 n"],
) -> tuple[Float64[np.ndarray, " n"], Float64[np.ndarray, " n"]]:
    """Nearest and farthest horizontal distance of each box to the sensor, which is outside it."""
    x, y = corners[:2]
    along_x, along_y = x[_EDGES[:, 1]] - x[_EDGES[:, 0]], y[_EDGES[:, 1]] - y[_EDGES[:, 0]]
    x_a, y_a = x[_EDGES[:, 0]], y[_EDGES[:, 0]]
    square = np.maximum(along_x * along_x + along_y * along_y, 1e-12)
    share = np.clip(-(x_a * along_x + y_a * along_y) / square, 0.0, 1.0)
    foot_x, foot_y = x_a + share * along_x, y_a + share * along_y
    nearest = np.sqrt((foot_x * foot_x + foot_y * foot_y).min(axis=0))
    return nearest, np.sqrt((x * x + y * y).max(axis=0))


def _azimuths(
    center: Float64[np.ndarray, "n 3"], corners: Float64[np.ndarray, "3 8 n"]
) -> tuple[Float64[np.ndarray, " n"], Float64[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    """Lowest and highest azimuth of each box, not wrapped, and whether it surrounds the z axis.

    Seen from outside, a convex outline spans less than half a turn, its middle included.
    """
    x, y = center[:, 0], center[:, 1]
    offset = np.arctan2(x * corners[1] - y * corners[0], x * corners[0] + y * corners[1])
    low, high = offset.min(axis=0), offset.max(axis=0)
    is_around = (high - low >= np.pi - 1e-6) | (np.hypot(x, y) < 1e-6)
    middle = np.arctan2(y, x)
    return middle + low, middle + high, is_around


def _split_at_seam(windows: Windows) -> Windows:
    """Cut what runs past the last column; the rest begins again at column 0."""
    width = rig.LIDAR_AZIMUTHS
    over = windows.end_column > width
    if not over.any():
        return windows
    fields = dict(vars(windows))
    second = {name: value[over] for name, value in fields.items()}
    fields["end_column"] = np.minimum(fields["end_column"], width)
    second["end_column"] = second["end_column"] - width
    second["column"] = np.zeros_like(second["column"])
    merged = {name: np.concatenate([fields[name], second[name]]) for name in fields}
    order = np.argsort(merged["box"], kind="stable")
    return Windows(**{name: value[order] for name, value in merged.items()})
