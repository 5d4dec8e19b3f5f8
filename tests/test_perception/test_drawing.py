from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from perception import drawing
from perception.data.nuscenes_log import NuScenesLog
from perception.errors import InputError
from perception.geometry import boxes, rigid
from perception.geometry.grid import BevGrid
from perception.messages import Detections, MapMask, SensorFrame
from perception.taxonomy import CAMERAS, DETECTION_CLASSES, LIDAR, MAP_CLASSES

CAMERAS_HEIGHT, CAMERAS_WIDTH = 720, 1920  # two rows of three tiles, 640 x 360 px each


@pytest.fixture(scope="module")
def plain(frame: SensorFrame) -> np.ndarray:
    """The frame with no box."""
    return drawing.draw_frame(frame, found())


@pytest.fixture(scope="module")
def frame(small_log_root: Path) -> SensorFrame:
    log = NuScenesLog(small_log_root)
    return log.keyframe(log.keyframe_tokens()[0], num_sweeps=1)


def found(*rows: list[float], scores: tuple[float, ...] | None = None) -> Detections:
    """Cars."""
    return Detections(
        boxes_ego=np.array(rows, np.float32).reshape(-1, 9),
        scores=np.array(scores if scores is not None else [1.0] * len(rows), np.float32),
        labels=np.zeros(len(rows), np.int64),
        classes=DETECTION_CLASSES,
    )


def marked(picture: np.ndarray, plain: np.ndarray) -> np.ndarray:
    """Rows and columns [n 2] of the pixels that were clearly painted over."""
    return np.argwhere(np.abs(picture.astype(int) - plain).max(axis=2) > 60)


def panel_pixel(x: float, y: float) -> tuple[int, int]:
    """Row and column in the panel beside the cameras: 720 px for 102.4 m, forward up, left left."""
    return round((51.2 - x) * 720 / 102.4), round((51.2 - y) * 720 / 102.4)


def test_a_box_is_drawn_where_it_is_seen_from_above(frame: SensorFrame, plain: np.ndarray) -> None:
    picture = drawing.draw_frame(frame, found([20, 10, 1, 8, 4, 2, 0, np.nan, np.nan]))
    panel, panel_plain = (p[30:CAMERAS_HEIGHT, CAMERAS_WIDTH:] for p in (picture, plain))
    assert panel.shape == (690, 720, 3)  # without the title
    # x 16..24, y 8..12: rows 191.25..247.5, columns 275.6..303.75
    top, left = panel_pixel(24, 12)
    bottom, right = panel_pixel(16, 8)
    pixels = marked(panel, panel_plain) + np.array([30, 0])
    assert np.abs(pixels.min(axis=0) - (top, left)).max() <= 2
    assert np.abs(pixels.max(axis=0) - (bottom, right)).max() <= 2
    # the heading: from the centre forwards, which is up, and nothing from the centre downwards
    middle = pixels[np.abs(pixels[:, 1] - panel_pixel(20, 10)[1]) <= 1, 0]
    assert np.isin(panel_pixel(22, 10)[0], middle)
    assert not np.isin(panel_pixel(18, 10)[0], middle)


def test_a_velocity_is_an_arrow_as_long_as_the_way_in_a_second(frame: SensorFrame) -> None:
    without = drawing.draw_frame(frame, found([20, 10, 1, 8, 4, 2, 0, np.nan, np.nan]))
    moving = drawing.draw_frame(frame, found([20, 10, 1, 8, 4, 2, 0, 0.0, 15.0]))
    changed = np.argwhere((without != moving).any(axis=2)) - (0, CAMERAS_WIDTH)
    # from (20, 10) to the left by 15 m
    (row, left), (_, right) = panel_pixel(20, 25), panel_pixel(20, 10)
    assert abs(changed[:, 1].min() - left) <= 2
    assert abs(changed[:, 1].max() - right) <= 2
    assert abs(np.median(changed[:, 0]) - row) <= 2


def test_boxes_are_projected_as_seen_from_where_the_image_was_taken(frame: SensorFrame) -> None:
    """The car was 4 m further back when it took the picture: its front camera at x = 1.7 - 4.

    The rear face at x = 7.7 is 10 m away, 2 m wide, 2 m high, its middle at the camera's height:
    f = 0.79 x 640 = 505.6 px -> +-50.56 px round (320, 180).
    """
    T_ego_now_ego_then = np.eye(4)
    T_ego_now_ego_then[0, 3] = -4
    image = frame.images["CAM_FRONT"]
    earlier = replace(image, T_global_ego=frame.T_global_ego @ T_ego_now_ego_then)
    frame = replace(frame, images={**frame.images, "CAM_FRONT": earlier})
    plain = drawing.draw_frame(frame, found())
    picture = drawing.draw_frame(frame, found([8.7, 0, 1.5, 2, 2, 2, 0, np.nan, np.nan]))
    pixels = marked(picture[:360, 640:1280], plain[:360, 640:1280])
    left_half = pixels[pixels[:, 1] < 315]  # the score is written to the right of the middle
    assert np.abs(left_half.min(axis=0) - (180 - 50.56, 320 - 50.56)).max() <= 2
    assert np.abs(pixels.max(axis=0) - (180 + 50.56, 320 + 50.56)).max() <= 2
    # no other camera sees it
    assert len(marked(picture[:, :640], plain[:, :640])) == 0
    assert len(marked(picture[360:720, :1920], plain[360:720, :1920])) == 0


def test_a_box_behind_or_beside_a_camera_does_not_wrap_round(
    frame: SensorFrame, plain: np.ndarray
) -> None:
    behind = drawing.draw_frame(frame, found([-15, 0, 1.5, 2, 2, 2, 0, 0, 0]))
    assert len(marked(behind[:360, :1920], plain[:360, :1920])) == 0
    assert len(marked(behind[360:720, 640:1280], plain[360:720, 640:1280])) > 50  # CAM_BACK
    # a long box that reaches from before the camera to behind it is cut, not dropped
    beside = drawing.draw_frame(frame, found([1.5, 2.5, 1.5, 30, 2, 2, 0, 0, 0]))
    pixels = marked(beside[:360, 640:1280], plain[:360, 640:1280])
    assert len(pixels) > 20
    assert pixels[:, 1].max() < 320  # it is on the left; its rear end, mirrored, would be right


def test_the_score_limit_and_broken_boxes(frame: SensorFrame, plain: np.ndarray) -> None:
    rows = [[20, 10, 1, 8, 4, 2, 0, 0, 0], [30, 10, np.nan, 8, 4, 2, 0, 0, 0]]
    hidden = drawing.draw_frame(frame, found(*rows, scores=(0.2, 0.9)), min_score=0.3)
    np.testing.assert_array_equal(hidden, plain)
    shown = drawing.draw_frame(frame, found(*rows, scores=(0.2, 0.9)), min_score=0.1)
    assert (shown != plain).any()


def test_map_layers_lie_where_the_grid_says(frame: SensorFrame) -> None:
    grid = BevGrid(x_min=-30.0, x_max=30.0, y_min=-15.0, y_max=15.0, cell=0.5)
    prob = np.zeros((len(MAP_CLASSES), grid.ny, grid.nx), np.float32)
    # walkway at x 20..30 (columns 100..119), y -15..-5 (rows 0..19)
    prob[MAP_CLASSES.index("walkway"), :20, 100:] = 1.0
    prob[MAP_CLASSES.index("divider")] = 0.5  # not above the limit
    empty = replace(frame, sweeps=())
    plain = drawing.draw_frame(empty, found())
    picture = drawing.draw_frame(empty, found(), MapMask(prob=prob, classes=MAP_CLASSES, grid=grid))
    changed = np.argwhere((picture != plain).any(axis=2)) - (0, CAMERAS_WIDTH)
    top, left = panel_pixel(30, -5)
    bottom, right = panel_pixel(20, -15)
    assert np.abs(changed.min(axis=0) - (top, left)).max() <= 1
    assert np.abs(changed.max(axis=0) - (bottom, right)).max() <= 1
    row, column = panel_pixel(24, -12)
    expected = 0.45 * np.array(drawing.DARK) + 0.55 * np.array(drawing.LAYER_COLORS["walkway"])
    assert np.abs(picture[row, CAMERAS_WIDTH + column] - expected).max() <= 1


def test_the_ground_truth_has_a_panel_of_its_own(frame: SensorFrame) -> None:
    box = [20, 10, 1, 8, 4, 2, 0, 0, 0]
    picture = drawing.draw_frame(frame, found(), truth=found(box))
    without = drawing.draw_frame(frame, found(), truth=found())
    # below the cameras: two panels of 960 px, left what was found, right the truth
    assert picture.shape[1] == CAMERAS_WIDTH
    assert len(marked(picture[750:1680, :960], without[750:1680, :960])) == 0
    assert len(marked(picture[750:1680, 960:], without[750:1680, 960:])) > 50
    assert len(marked(picture[:720], without[:720])) > 50  # white lines in the images


def test_missing_sensors_are_shown_with_their_reason(frame: SensorFrame) -> None:
    images = {name: image for name, image in frame.images.items() if name != "CAM_BACK"}
    dark = replace(frame, images=images, sweeps=(), missing={"CAM_BACK": "x.jpg is truncated"})
    picture = drawing.draw_frame(dark, found())
    tile = picture[360:720, 640:1280]
    assert np.median(tile, axis=(0, 1)).tolist() == list(drawing.DARK)
    other = replace(dark, missing={"CAM_BACK": "y.jpg is listed but missing"})
    assert (drawing.draw_frame(other, found())[360:720, 640:1280] != tile).any()
    blind = replace(frame, images={}, sweeps=(), T_global_ego=None, missing={LIDAR: "no data"})
    assert drawing.draw_frame(blind, found()).shape == picture.shape
    assert drawing.draw_projected_points(blind).shape[1] == CAMERAS_WIDTH


def test_projected_points_lie_on_the_objects(frame: SensorFrame) -> None:
    """A point 10 m ahead of CAM_FRONT and 1 m to its left lands 50.56 px left of the middle."""
    # the camera was at x = 1.524 at its own time, see above; its height 1.5 m
    point_ego = np.array([[11.524, 1.0, 1.5]])
    point_lidar = rigid.apply(rigid.inverse(frame.calibration.T_ego_lidar), point_ego)
    columns = np.array([[*point_lidar[0], 9.0], [np.nan] * 4], np.float32).T.copy()
    sweep = replace(frame.sweeps[0], points_lidar=columns)
    with_point = drawing.draw_projected_points(replace(frame, sweeps=(sweep,)))
    without = drawing.draw_projected_points(replace(frame, sweeps=()))
    changed = np.argwhere((with_point != without).any(axis=2))
    # 35 ms of turning at 0.05 rad/s moves it by 1 px
    np.testing.assert_allclose(changed.mean(axis=0), [180, 640 + 320 - 50.56], atol=2)


def test_inputs_are_not_modified(frame: SensorFrame) -> None:
    detections = found([20, 10, 1, 8, 4, 2, 0, 1, 1])
    before = [frame.images[name].rgb.copy() for name in CAMERAS]
    points, rows = frame.sweeps[0].points_lidar.copy(), detections.boxes_ego.copy()
    drawing.draw_frame(frame, detections, truth=detections)
    drawing.draw_projected_points(frame)
    for name, rgb in zip(CAMERAS, before, strict=True):
        np.testing.assert_array_equal(frame.images[name].rgb, rgb)
    np.testing.assert_array_equal(frame.sweeps[0].points_lidar, points)
    np.testing.assert_array_equal(detections.boxes_ego, rows)
    assert boxes.NUM_COLUMNS == rows.shape[1]


def test_pictures_are_written_as_rgb(tmp_path: Path) -> None:
    rgb = np.zeros((4, 6, 3), np.uint8)
    rgb[..., 0] = 200  # red
    drawing.save_png(tmp_path / "red.png", rgb)
    blue, green, red = cv2.imread(str(tmp_path / "red.png"))[0, 0]
    assert (red, green, blue) == (200, 0, 0)
    assert [path.name for path in tmp_path.iterdir()] == ["red.png"]
    with pytest.raises(InputError, match="Cannot write"):
        drawing.save_png(tmp_path / "nowhere" / "red.png", rgb)
