"""Pictures of a frame: six cameras with projected boxes, and the scene from above. Not for the car.

FRONT_LEFT  FRONT  FRONT_RIGHT  |             from above, x forward = up, y left = left
BACK_RIGHT  BACK   BACK_LEFT    |             (below the cameras where there are two)
legend
"""

import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float, Float32, Float64, UInt8

from perception import atomic_file
from perception.errors import InputError
from perception.geometry import boxes, camera, rigid
from perception.messages import CameraImage, Detections, MapMask, SensorFrame
from perception.taxonomy import LIDAR
from perception.usable_data import motion

Picture = UInt8[np.ndarray, "h w 3"]
Color = tuple[int, int, int]

CAMERA_ROWS = (
    ("CAM_FRONT_LEFT", "CAM_FRONT", "CAM_FRONT_RIGHT"),
    ("CAM_BACK_RIGHT", "CAM_BACK", "CAM_BACK_LEFT"),
)
"""Turning one's head to the right walks through the first row, then through the second."""
TILE_WIDTH_PX, TILE_HEIGHT_PX = 640, 360
BEV_RANGE = 51.2
"""Half the side of the square seen from above [m]."""
MAX_COLORED_DEPTH = 60.0
"""Depth of the last colour of projected points [m]."""
EGO_OUTLINE = ((3.1, 0.87), (-1.0, 0.87), (-1.0, -0.87), (3.1, -0.87))
"""The car round its rear axle [m]; 4.1 m x 1.7 m. Source: data sheet of nuScenes' Renault Zoe."""

CLASS_COLORS: dict[str, Color] = {
    "car": (255, 158, 0),
    "truck": (255, 99, 71),
    "construction_vehicle": (233, 150, 70),
    "bus": (255, 69, 180),
    "trailer": (255, 140, 160),
    "barrier": (150, 170, 190),
    "motorcycle": (230, 60, 60),
    "bicycle": (220, 20, 220),
    "pedestrian": (80, 150, 255),
    "traffic_cone": (90, 220, 220),
}
"""RGB of each detection class."""
LAYER_COLORS: dict[str, Color] = {
    "drivable_area": (110, 130, 150),
    "ped_crossing": (250, 120, 120),
    "walkway": (110, 190, 110),
    "stop_line": (255, 190, 60),
    "carpark_area": (150, 110, 220),
    "divider": (240, 240, 120),
}
"""RGB of each map layer; later layers are painted over earlier ones."""
WHITE: Color = (255, 255, 255)
GRAY: Color = (130, 130, 130)
DARK: Color = (24, 26, 30)
LAYER_OPACITY = 0.55

_AROUND = ((0, 1), (1, 2), (2, 3), (3, 0))
EDGES = (*_AROUND, *((a + 4, b + 4) for a, b in _AROUND), *((a, a + 4) for a in range(4)))
"""Pairs of `boxes.corners` that a box's edges join."""
FRONT_CROSS = ((0, 7), (3, 4))
"""Diagonals of the front face: they show which way a box is heading."""


def draw_frame(
    frame: SensorFrame,
    detections: Detections,
    map_mask: MapMask | None = None,
    truth: Detections | None = None,
    truth_map: MapMask | None = None,
    min_score: float = 0.3,
) -> Picture:
    """Draw what the sensors saw and what was found in it.

    Args:
        frame: Sensor data; an absent camera becomes a dark tile with the reason.
        detections: Boxes in the frame's ego frame, coloured by class.
        map_mask: Map layers in the same frame, shown where their probability is above 0.5.
        truth: Ground-truth boxes: thin white lines in the images, a panel of their own from above.
        truth_map: Ground-truth layers, in the panel of the ground truth.
        min_score: Detections below are left out.

    Returns:
        RGB picture.
    """

    def draw_on_image(tile: Picture, K_tile: np.ndarray, T_ego_cam: np.ndarray) -> None:
        if truth is not None:
            _draw_boxes(tile, truth, 0.0, K_tile, T_ego_cam, WHITE)
        _draw_boxes(tile, detections, min_score, K_tile, T_ego_cam, None)

    cameras = _camera_mosaic(frame, draw_on_image)
    if truth is None and truth_map is None:
        panel = _bev_panel(frame, "found", detections, map_mask, min_score, cameras.shape[0])
        picture = np.hstack([cameras, panel])
    else:
        side = cameras.shape[1] // 2
        left = _bev_panel(frame, "found", detections, map_mask, min_score, side)
        right = _bev_panel(frame, "ground truth", truth, truth_map, 0.0, side)
        picture = np.vstack([cameras, np.hstack([left, right])])
    return np.vstack([picture, _legend(picture.shape[1], (CLASS_COLORS, LAYER_COLORS))])


def draw_projected_points(frame: SensorFrame) -> Picture:
    """Draw the newest LiDAR sweep on the images, coloured by depth: shows calibration and timing.

    Returns:
        RGB picture.
    """
    points_ego = _newest_points_ego(frame)

    def draw_on_image(tile: Picture, K_tile: np.ndarray, T_ego_cam: np.ndarray) -> None:
        pixels, depth, in_front = camera.project(points_ego, T_ego_cam, K_tile)
        inside = in_front & (pixels >= 0).all(axis=1) & (pixels < tile.shape[1::-1]).all(axis=1)
        order = np.flatnonzero(inside)[np.argsort(-depth[inside])]  # near points on top
        for (u, v), color in zip(pixels[order], _depth_colors(depth[order]), strict=True):
            cv2.circle(tile, (int(u), int(v)), 1, color.tolist(), -1)

    mosaic = _camera_mosaic(frame, draw_on_image)
    marks = np.arange(0.0, MAX_COLORED_DEPTH + 1, 10.0)
    scale: dict[str, Color] = {
        f"{mark:.0f} m": (int(r), int(g), int(b))
        for mark, (r, g, b) in zip(marks, _depth_colors(marks), strict=True)
    }
    return np.vstack([mosaic, _legend(mosaic.shape[1], (scale,))])


def save_png(path: Path, rgb: Picture) -> None:
    """Write a picture; the file is either whole or absent.

    Raises:
        InputError: The file cannot be written.
    """
    done, content = cv2.imencode(".png", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))
    if not done:
        raise InputError(f"Cannot encode a picture of shape {rgb.shape} as PNG: draw it again.")
    atomic_file.write_bytes(path, content.tobytes())


def _camera_mosaic(
    frame: SensorFrame, draw_on_image: Callable[[Picture, np.ndarray, np.ndarray], None]
) -> Picture:
    """Six tiles; `draw_on_image` gets a tile, its intrinsics, and where its camera was."""

    def tile(name: str) -> Picture:
        image, calibration = frame.images.get(name), frame.calibration.cameras.get(name)
        if image is None or calibration is None:
            return _missing_tile(name, frame.missing.get(name, "no data"))
        picture, scale = _image_tile(image)
        K_tile = np.diag([scale, scale, 1.0]) @ calibration.K_cam
        T_ego_now_ego_then = motion(frame.T_global_ego, image.T_global_ego)
        draw_on_image(picture, K_tile, T_ego_now_ego_then @ calibration.T_ego_cam)
        offset_ms = (image.stamp_ns - frame.stamp_ns) * 1e-6
        _write(picture, f"{name}  {offset_ms:+.0f} ms", (10, 22))
        return picture

    return np.vstack([np.hstack([tile(name) for name in row]) for row in CAMERA_ROWS])


def _image_tile(image: CameraImage) -> tuple[Picture, float]:
    """The image in the upper left of a tile, and its scale."""
    height, width, _ = image.rgb.shape
    scale = min(TILE_WIDTH_PX / width, TILE_HEIGHT_PX / height)
    size = round(width * scale), round(height * scale)
    tile = _blank(TILE_HEIGHT_PX, TILE_WIDTH_PX)
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    tile[: size[1], : size[0]] = cv2.resize(image.rgb, size, interpolation=way)
    return tile, scale


def _missing_tile(name: str, reason: str) -> Picture:
    tile = _blank(TILE_HEIGHT_PX, TILE_WIDTH_PX)
    cv2.rectangle(tile, (4, 4), (TILE_WIDTH_PX - 5, TILE_HEIGHT_PX - 5), (90, 50, 50), 2)
    _write(tile, f"{name}  missing", (16, 40))
    for index, line in enumerate(textwrap.wrap(reason, 62)[:8]):
        _write(tile, line, (16, 80 + 26 * index), (200, 160, 160))
    return tile


def _draw_boxes(
    tile: Picture,
    detections: Detections,
    min_score: float,
    K_tile: Float64[np.ndarray, "3 3"],
    T_ego_cam: Float64[np.ndarray, "4 4"],
    color: Color | None,
) -> None:
    """Draw edges and front crosses; `color` None takes the class's and writes the scores."""
    T_cam_ego = rigid.inverse(T_ego_cam)
    corners_ego = boxes.corners(detections.boxes_ego)
    for index in _shown(detections, min_score):
        corners_cam = rigid.apply(T_cam_ego, corners_ego[index])
        line_color = color or _class_color(detections, index)
        for ends in EDGES if color else (*EDGES, *FRONT_CROSS):
            line = _visible_pixels(corners_cam[list(ends)], K_tile)
            if line is not None:
                cv2.line(tile, line[0], line[1], line_color, 1, cv2.LINE_AA)
        center = _visible_pixels(corners_cam[4:].mean(axis=0)[None].repeat(2, axis=0), K_tile)
        if color is None and center is not None:
            _write(tile, f"{detections.scores[index]:.2f}", center[0], line_color, 0.35)


def _visible_pixels(
    ends_cam: Float64[np.ndarray, "2 3"], K_tile: Float64[np.ndarray, "3 3"]
) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """Pixels of a line's ends, the part behind the camera cut off; None if that is all of it."""
    start, end = ends_cam if ends_cam[0, 2] <= ends_cam[1, 2] else ends_cam[::-1]
    near = 2 * camera.MIN_DEPTH
    if end[2] < near:
        return None
    if start[2] < near:
        start = start + (end - start) * (near - start[2]) / (end[2] - start[2])
    rays = np.stack([start, end]) @ K_tile.T
    (u0, v0), (u1, v1) = np.clip(rays[:, :2] / rays[:, 2:], -1e6, 1e6)
    return (int(u0), int(v0)), (int(u1), int(v1))


def _bev_panel(
    frame: SensorFrame,
    title: str,
    detections: Detections | None,
    map_mask: MapMask | None,
    min_score: float,
    side_px: int,
) -> Picture:
    panel = _blank(side_px, side_px)
    if map_mask is not None:
        _paint_layers(panel, map_mask)
    for radius in range(10, int(BEV_RANGE), 10):
        ring = round(radius / BEV_RANGE * side_px / 2)
        cv2.circle(panel, (side_px // 2, side_px // 2), ring, (60, 64, 70), 1, cv2.LINE_AA)
        _write(panel, f"{radius} m", (side_px // 2 + ring - 40, side_px // 2 + 14), GRAY, 0.35)
    columns_rows = _bev_pixels(_newest_points_ego(frame)[:, :2], side_px)
    inside = ((columns_rows >= 0) & (columns_rows < side_px)).all(axis=1)
    columns, rows = columns_rows[inside].astype(np.int64).T
    panel[rows, columns] = (185, 185, 185)
    cv2.polylines(panel, [_rounded(_bev_pixels(np.array(EGO_OUTLINE), side_px))], True, WHITE, 2)
    if detections is not None:
        _draw_bev_boxes(panel, detections, min_score)
    number = 0 if detections is None else len(_shown(detections, min_score))
    _write(panel, f"{title}: {number} boxes; arrows: way in 1 s", (10, 22))
    if frame.sweeps:
        offset_ms = (frame.sweeps[0].stamp_ns - frame.stamp_ns) * 1e-6
        _write(panel, f"{LIDAR}  {offset_ms:+.0f} ms", (10, 44))
    else:
        _write(panel, f"{LIDAR}  missing: {frame.missing.get(LIDAR, 'no data')}", (10, 44))
    return panel


def _paint_layers(panel: Picture, map_mask: MapMask) -> None:
    """Look up the raster's cell under each pixel; layers are blended over the panel."""
    side = panel.shape[0]
    from_top = BEV_RANGE - (np.arange(side) + 0.5) * 2 * BEV_RANGE / side
    grid = map_mask.grid
    column = np.floor((from_top - grid.x_min) / grid.cell).astype(np.int64)  # x falls with the row
    row = np.floor((from_top - grid.y_min) / grid.cell).astype(np.int64)  # y falls with the column
    inside = ((column >= 0) & (column < grid.nx))[:, None] & ((row >= 0) & (row < grid.ny))
    column, row = column.clip(0, grid.nx - 1), row.clip(0, grid.ny - 1)
    for name, prob in zip(map_mask.classes, map_mask.prob, strict=True):
        covered = inside & (prob[row[None, :], column[:, None]] > 0.5)
        color = np.array(LAYER_COLORS.get(name, GRAY))
        blend = (1 - LAYER_OPACITY) * panel[covered] + LAYER_OPACITY * color
        panel[covered] = blend.astype(np.uint8)


def _draw_bev_boxes(panel: Picture, detections: Detections, min_score: float) -> None:
    side = panel.shape[0]
    outlines = boxes.corners(detections.boxes_ego)[:, :4, :2]
    for index in _shown(detections, min_score):
        color, box = _class_color(detections, index), detections.boxes_ego[index]
        front = outlines[index][[0, 3]].mean(axis=0)
        center = box[:2].astype(np.float64)
        heading = _rounded(_bev_pixels(np.stack([center, front]), side))
        outline = _rounded(_bev_pixels(outlines[index], side))
        cv2.polylines(panel, [outline], True, color, 1, cv2.LINE_AA)
        cv2.line(panel, heading[0].tolist(), heading[1].tolist(), color, 1, cv2.LINE_AA)
        velocity = box[boxes.VELOCITY]
        if np.isfinite(velocity).all() and np.linalg.norm(velocity) > 0.2:
            tip = _rounded(_bev_pixels((center + velocity)[None], side))[0]
            cv2.arrowedLine(
                panel, heading[0].tolist(), tip.tolist(), WHITE, 1, cv2.LINE_AA, tipLength=0.2
            )


def _bev_pixels(xy_ego: Float[np.ndarray, "n 2"], side_px: int) -> Float64[np.ndarray, "n 2"]:
    """Ego metres to panel pixels (column, row): forward is up, left is left."""
    return (BEV_RANGE - xy_ego[:, ::-1].astype(np.float64)) * side_px / (2 * BEV_RANGE)


def _rounded(pixels: Float64[np.ndarray, "n 2"]) -> np.ndarray:
    return np.clip(pixels, -1e6, 1e6).astype(np.int32)


def _newest_points_ego(frame: SensorFrame) -> Float64[np.ndarray, "n 3"]:
    """Finite points of the newest sweep in the frame's ego frame."""
    if not frame.sweeps:
        return np.zeros((0, 3))
    sweep = frame.sweeps[0]
    T_ego_lidar = motion(frame.T_global_ego, sweep.T_global_ego) @ frame.calibration.T_ego_lidar
    points_lidar: Float32[np.ndarray, "n 3"] = sweep.points_lidar[:3].T
    finite = np.isfinite(points_lidar).all(axis=1)
    return rigid.apply(T_ego_lidar, points_lidar[finite].astype(np.float64))


def _depth_colors(depth: Float64[np.ndarray, " n"]) -> UInt8[np.ndarray, "n 3"]:
    """Red near, blue far."""
    level = np.clip(255 - depth / MAX_COLORED_DEPTH * 255, 0, 255).astype(np.uint8)
    if not len(level):
        return np.zeros((0, 3), np.uint8)
    return np.asarray(cv2.applyColorMap(level[:, None], cv2.COLORMAP_TURBO)[:, 0, ::-1])


def _shown(detections: Detections, min_score: float) -> list[int]:
    """Boxes to draw, the best last, on top; a box that is not finite is left out."""
    finite = np.isfinite(detections.boxes_ego[:, : boxes.YAW + 1]).all(axis=1)
    kept = np.flatnonzero(finite & (detections.scores >= min_score))
    return [int(index) for index in kept[np.argsort(detections.scores[kept], kind="stable")]]


def _class_color(detections: Detections, index: int) -> Color:
    return CLASS_COLORS.get(detections.classes[int(detections.labels[index])], GRAY)


def _legend(width: int, groups: Sequence[dict[str, Color]]) -> Picture:
    """A line of names and colours per group."""
    strip = _blank(14 + 26 * len(groups), width)
    for line, colors in enumerate(groups):
        step, top = width // max(len(colors), 8), 10 + 26 * line
        for index, (name, color) in enumerate(colors.items()):
            left = 10 + index * step
            cv2.rectangle(strip, (left, top), (left + 16, top + 14), color, -1)
            _write(strip, name, (left + 22, top + 12), scale=0.42)
    return strip


def _blank(height: int, width: int) -> Picture:
    return np.full((height, width, 3), DARK, dtype=np.uint8)


def _write(
    picture: Picture,
    text: str,
    left_bottom: tuple[int, int],
    color: Color = WHITE,
    scale: float = 0.5,
) -> None:
    """Text with a dark rim, readable on any ground."""
    for thickness, ink in ((3, (0, 0, 0)), (1, color)):
        cv2.putText(
            picture, text, left_bottom, cv2.FONT_HERSHEY_SIMPLEX, scale, ink, thickness, cv2.LINE_AA
        )
