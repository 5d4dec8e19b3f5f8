import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pool_tables import points_of
from scipy.spatial import cKDTree
from small_detector import small_config

from perception.data.augment import (
    Augmentation,
    BevAugmentConfig,
    ImageAugmentConfig,
    ImageChange,
    augment_boxes,
    draw_augmentation,
)
from perception.data.nuscenes_log import NuScenesLog
from perception.geometry import boxes as box_geometry
from perception.geometry import camera as pinhole
from perception.geometry import rigid
from perception.geometry.grid import BevGrid
from perception.geometry.image_crop import ImageCrop
from perception.model_inputs import FrameAugmentation, prepare_frame
from perception.taxonomy import CAMERAS
from perception.usable_data import frame_points, motion

FINE = BevGrid(x_min=-51.2, x_max=51.2, y_min=-51.2, y_max=51.2, cell=0.8)
SPEC = dataclasses.replace(small_config().inputs, camera_grid=FINE)
SEEDS = st.integers(0, 10_000)


@pytest.fixture(scope="module")
def frame(small_log_root):
    log = NuScenesLog(small_log_root)
    return log.keyframe(log.keyframe_tokens()[1], num_sweeps=3)


def drawn(seed, spec=SPEC):
    rng = np.random.default_rng(seed)
    return draw_augmentation(rng, ImageAugmentConfig(), BevAugmentConfig(), spec)


def turned(**changes):
    plain = {"resize": 1.0, "left": 0.0, "flip": False, "rotation": 0.0}
    return Augmentation(
        image=ImageCrop(height_px=64, width_px=160),
        changes={"CAM_FRONT": ImageChange(**plain | changes)},
        T_ego_aug_ego=np.eye(4),
    )


def moved(A, u, v):
    x, y, w = A @ (u, v, 1.0)
    return x / w, y / w


def test_depth_images_show_the_points_as_measured(frame):
    # the ego frame is turned, scaled and shifted, the pictures are not: the depths in them stay
    still = prepare_frame(frame, SPEC).inputs.depth_img
    change = dataclasses.replace(drawn(1), changes={})
    inputs = prepare_frame(frame, SPEC, augmentation=change).inputs
    assert np.count_nonzero(still) > 100
    assert (inputs.depth_img == still).all()


# images


def test_it_is_what_prepare_frame_takes():
    assert isinstance(drawn(0), FrameAugmentation)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        # 160 x 90 to 160 x 64: 26 rows fall off at the top
        ({}, (30, 54)),
        # mirrored: 160 - 30
        ({"flip": True}, (130, 54)),
        # 176 x 99 px: (33, 88); 16 columns are too many, half of them fall off at the left; 35 rows
        ({"resize": 1.1, "left": 0.5}, (33 - 8, 88 - 35)),
        # 128 x 72 px: (24, 64); 32 columns are lacking, placed at the right edge; 8 rows fall off
        ({"resize": 0.8, "left": 1.0}, (24 + 32, 64 - 8)),
        # a quarter turn about (80, 32): right becomes down, (30 - 80, 54 - 32) -> (-22, -50)
        ({"rotation": np.pi / 2}, (80 - 22, 32 - 50)),
        # first mirrored, (130 - 80, 22), then turned
        ({"flip": True, "rotation": np.pi / 2}, (80 - 22, 32 + 50)),
    ],
    ids=["plain", "flip", "larger", "smaller", "rotation", "flip and rotation"],
)
def test_the_homography_of_each_step(changes, expected):
    A = turned(**changes).A_img_aug_img("CAM_FRONT", 160, 90)
    np.testing.assert_allclose(moved(A, 30.0, 80.0), expected, atol=1e-9)


@settings(deadline=None, max_examples=60)
@given(SEEDS, st.integers(5, 154), st.integers(5, 84))
def test_a_bright_pixel_moves_where_the_matrix_says(seed, column, row):
    spec = dataclasses.replace(SPEC, image=ImageCrop(height_px=64, width_px=160))
    augmentation = drawn(seed, spec)
    rgb = np.zeros((90, 160, 3), np.uint8)
    rgb[row, column] = 255
    u, v = moved(augmentation.A_img_aug_img("CAM_BACK", 160, 90), column + 0.5, row + 0.5)
    image = augmentation.cut("CAM_BACK", rgb)[..., 0].astype(float)
    if 2 <= u <= 158 and 2 <= v <= 62:
        rows, columns = np.nonzero(image)
        weight = image[rows, columns]
        assert weight.sum() > 60
        assert abs((columns + 0.5) @ weight / weight.sum() - u) < 0.6
        assert abs((rows + 0.5) @ weight / weight.sum() - v) < 0.6
    elif not (-2 <= u <= 162 and -2 <= v <= 66):
        assert not image.any()


def test_without_a_change_the_image_is_the_cars():
    rgb = np.random.default_rng(0).integers(0, 256, (90, 160, 3), dtype=np.uint8)
    plain = dataclasses.replace(turned(), changes={})
    expected = plain.image.apply(rgb)
    assert (plain.cut("CAM_FRONT", rgb) == expected).all()
    # the warp of a trivial change gives the same up to rounding
    small = ImageCrop(height_px=32, width_px=96)
    trivial = dataclasses.replace(turned(), image=small)
    difference = trivial.cut("CAM_FRONT", rgb).astype(int) - small.apply(rgb)
    assert np.abs(difference).max() <= 8  # OpenCV weighs in steps of 1/32
    assert np.abs(difference).mean() < 1.5


def test_the_bottom_rows_are_kept():
    rgb = np.zeros((90, 160, 3), np.uint8)
    rgb[-1] = 255
    image = turned(resize=1.1, left=0.3).cut("CAM_FRONT", rgb)
    assert (image[-1] > 100).all()


def test_cutting_leaves_the_picture_as_it_is():
    rgb = np.random.default_rng(0).integers(0, 256, (90, 160, 3), dtype=np.uint8)
    before = rgb.copy()
    for seed in range(3):
        drawn(seed).cut("CAM_FRONT", rgb)
    assert (rgb == before).all()


# the ego frame


def test_the_affine_map_has_what_was_asked_for():
    mirrored = 0
    for seed in range(200):
        T = drawn(seed).T_ego_aug_ego
        A = T[:3, :3]
        scale = np.cbrt(abs(np.linalg.det(A)))
        assert 0.9 <= scale <= 1.1
        np.testing.assert_allclose(A @ A.T, scale**2 * np.eye(3), atol=1e-12)
        np.testing.assert_allclose(A[2], [0, 0, scale], atol=1e-12)
        heading = np.rad2deg(rigid.yaw_of(T))  # 0 or 180 away from a turn of up to 45 degrees
        assert min(abs(heading), 180 - abs(heading)) <= 45
        assert np.abs(T[:3, 3]).max() < 4  # eight sigma
        mirrored += np.linalg.det(A) < 0
    assert 70 < mirrored < 130


def test_a_box_by_hand():
    # x mirrored, then scaled by 2 and shifted by (1, 0, 0.5): heading 30 degrees becomes 150,
    # (10, 5, 1) -> (-20 + 1, 10, 2.5), velocity (3, 1) -> (-6, 2)
    T = np.diag([-2.0, 2.0, 2.0, 1.0])
    T[:3, 3] = (1.0, 0.0, 0.5)
    box = np.array([[10.0, 5.0, 1.0, 4.0, 2.0, 1.5, np.pi / 6, 3.0, 1.0]])
    expected = [[-19.0, 10.0, 2.5, 8.0, 4.0, 3.0, np.pi * 5 / 6, -6.0, 2.0]]
    np.testing.assert_allclose(augment_boxes(T, box), expected, atol=1e-12)
    assert box[0, 0] == 10.0


def test_a_velocity_that_is_not_known_stays_so():
    box = np.array([[10.0, 5.0, 1.0, 4.0, 2.0, 1.5, 0.3, np.nan, np.nan]])
    changed = augment_boxes(drawn(1).T_ego_aug_ego, box)
    assert np.isnan(changed[0, box_geometry.VELOCITY]).all()
    assert np.isfinite(changed[0, :7]).all()


@settings(deadline=None, max_examples=60)
@given(SEEDS, st.floats(-3.1, 3.1))
def test_boxes_and_points_stay_registered(seed, yaw):
    rng = np.random.default_rng(seed)
    T = drawn(seed).T_ego_aug_ego
    box = np.array([[*rng.uniform(-40, 40, 2), 1.0, 4.5, 1.9, 1.6, yaw, 3.0, -1.0]])
    points = box[0, :3] + rng.uniform(-4, 4, (200, 3))
    inside = box_geometry.points_inside(box, points)
    changed = augment_boxes(T, box)
    assert (box_geometry.points_inside(changed, rigid.apply(T, points)) == inside).all()
    # front left above stays a corner, and where the box drives to is where its points go
    later = box.copy()
    later[:, :2] += 0.5 * box[:, box_geometry.VELOCITY]
    expected = changed[:, :2] + 0.5 * changed[:, box_geometry.VELOCITY]
    np.testing.assert_allclose(augment_boxes(T, later)[:, :2], expected, atol=1e-9)
    front = box[0, :3] + 2.25 * np.array([np.cos(yaw), np.sin(yaw), 0.0])
    c, size, heading = changed[0, :3], changed[0, 3], changed[0, 6]
    front_aug = c + size / 2 * np.array([np.cos(heading), np.sin(heading), 0.0])
    np.testing.assert_allclose(rigid.apply(T, front[None])[0], front_aug, atol=1e-9)
    assert -np.pi < heading <= np.pi


# through prepare_frame


def test_augmented_points_undone_project_like_the_originals(frame):
    original = frame_points(frame, SPEC)[:3].T.astype(np.float64)
    for seed in range(4):
        augmentation = drawn(seed)
        inputs = prepare_frame(frame, SPEC, augmentation=augmentation).inputs
        used = np.arange(SPEC.pillars.max_points) < inputs.pillar_num_points[:, None]
        points_aug = inputs.pillar_points[used][:, :3].astype(np.float64)
        undone = rigid.apply(np.linalg.inv(augmentation.T_ego_aug_ego), points_aug)
        distance, match = cKDTree(original).query(undone)
        assert len(undone) > 200
        assert distance.max() < 1e-4
        for name, calibration in frame.calibration.cameras.items():
            T, K = calibration.T_ego_cam, calibration.K_cam
            pixels, depth, _ = pinhole.project(undone, T, K)
            expected, _, _ = pinhole.project(original[match], T, K)
            seen = (depth > 0.1) & (np.abs(expected - (80, 45)) < (80, 45)).all(axis=1)
            assert seen.any()
            assert np.abs(pixels - expected)[seen].max() < 1e-3, name


@pytest.mark.parametrize("seed", range(4))
def test_a_point_on_a_pixels_ray_lands_in_the_cell_of_the_true_point(frame, seed):
    # in the order of the network's cameras, which is not the frame's (trap 12)
    spec = dataclasses.replace(SPEC, cameras=tuple(reversed(CAMERAS)))
    augmentation = drawn(seed, spec)
    inputs = prepare_frame(frame, spec, augmentation=augmentation).inputs
    rng = np.random.default_rng(seed)
    num_depths, h8, w8 = spec.frustum.num_depths, spec.feature_height, spec.feature_width
    depths, pixels, cells = points_of(inputs.pool_runs, inputs.cell_start, w8)
    lifted = 0
    for cam, name in enumerate(spec.cameras):
        calibration = frame.calibration.cameras[name]
        pose = frame.images[name].T_global_ego
        T_ego_cam = motion(frame.T_global_ego, pose) @ calibration.T_ego_cam
        A = augmentation.A_img_aug_img(name, 160, 90)
        for _ in range(30):
            d, h, w = rng.integers((num_depths, h8, w8))
            depth = spec.frustum.depth_min + (d + 0.5) * spec.frustum.depth_step
            u, v = moved(np.linalg.inv(A), (w + 0.5) * 8, (h + 0.5) * 8)
            ray = np.linalg.inv(calibration.K_cam) @ (u, v, 1.0)
            point_ego = rigid.apply(T_ego_cam, depth * ray[None])
            point_aug = rigid.apply(augmentation.T_ego_aug_ego, point_ego)
            cell, inside = FINE.flat_index(point_aug[:, 0], point_aug[:, 1])
            place = np.flatnonzero(depths == ((cam * num_depths + d) * h8 + h) * w8 + w)
            if not inside[0] or not -10 <= point_aug[0, 2] < 10:
                assert len(place) == 0
                continue
            assert len(place) == 1
            assert cells[place[0]] == cell[0]
            assert pixels[place[0]] == (cam * h8 + h) * w8 + w
            lifted += 1
    assert lifted > 60


def test_images_are_cut_one_by_one_in_the_networks_order(frame):
    spec = dataclasses.replace(SPEC, cameras=tuple(reversed(CAMERAS)))
    augmentation = drawn(3, spec)
    images = prepare_frame(frame, spec, augmentation=augmentation).inputs.images
    for cam, name in enumerate(spec.cameras):
        assert (images[cam] == augmentation.cut(name, frame.images[name].rgb)).all()
    assert len({augmentation.changes[name] for name in CAMERAS}) == 6


def test_the_same_numbers_give_the_same_change():
    first, second, other = drawn(5), drawn(5), drawn(6)
    assert first.changes == second.changes
    assert (first.T_ego_aug_ego == second.T_ego_aug_ego).all()
    assert first.changes != other.changes


def test_none_changes_nothing():
    plain = draw_augmentation(np.random.default_rng(0), None, None, SPEC)
    assert plain.changes == {}
    assert (plain.T_ego_aug_ego == np.eye(4)).all()


@pytest.mark.parametrize(
    ("config", "changes"),
    [
        (ImageAugmentConfig, {"resize": (1.2, 0.8)}),
        (ImageAugmentConfig, {"flip_probability": 1.5}),
        (ImageAugmentConfig, {"rotation_deg": -1.0}),
        (BevAugmentConfig, {"scale": (0.0, 1.0)}),
        (BevAugmentConfig, {"translation_sigma": float("nan")}),
    ],
)
def test_impossible_ranges_are_refused(config, changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        config(**changes)
