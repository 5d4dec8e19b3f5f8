import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from perception.data.targets import box_targets, draw_gaussian, encode_boxes, gaussian_radius
from perception.geometry.boxes import YAW, wrap_angle
from perception.geometry.grid import BevGrid
from perception.models.heads.box_code import cell_corner, decode_boxes

GRID = BevGrid(x_min=-8.0, x_max=8.0, y_min=-4.0, y_max=4.0, cell=1.0)  # 16 columns, 8 rows


def box(x, y, z=0.5, size=(4.0, 2.0, 1.5), yaw=0.3, velocity=(1.0, -2.0)):
    return np.array([[x, y, z, *size, yaw, *velocity]])


def test_a_box_off_the_diagonal_peaks_at_its_own_cell():
    # x = 3.25: column (3.25 + 8) / 1 = 11; y = -2.5: row (-2.5 + 4) / 1 = 1
    targets = box_targets(box(3.25, -2.5), np.array([2]), 10, GRID)
    assert targets.heatmap.shape == (10, 8, 16)
    assert np.argwhere(targets.heatmap == 1.0).tolist() == [[2, 1, 11]]
    assert targets.cell[0] == 1 * 16 + 11
    np.testing.assert_allclose(targets.code[0, :2], [0.25, 0.5])
    assert targets.object_mask.sum() == 1
    assert targets.label[0] == 2


def test_boxes_one_cell_outside_each_side_are_left_out():
    outside = [(-8.01, 0), (8.0, 0), (0, -4.01), (0, 4.0)]
    boxes = np.concatenate([box(x, y) for x, y in outside])
    targets = box_targets(boxes, np.zeros(4, int), 1, GRID)
    assert targets.object_mask.sum() == 0
    assert targets.heatmap.max() == 0


def test_labels_stay_with_their_boxes_when_others_are_left_out():
    boxes = np.concatenate([box(-9, 0), box(1.5, 2.5), box(np.nan, 0), box(-1.5, 0.5)])
    targets = box_targets(boxes, np.array([3, 1, 2, 7]), 10, GRID)
    assert targets.object_mask.sum() == 2
    assert targets.label[:2].tolist() == [1, 7]
    # columns 9 and 6, rows 6 and 4
    assert targets.cell[:2].tolist() == [6 * 16 + 9, 4 * 16 + 6]


def test_unknown_velocity_stays_unknown():
    targets = box_targets(box(0, 0, velocity=(np.nan, np.nan)), np.array([0]), 1, GRID)
    assert np.isnan(targets.code[0, 8:]).all()
    assert np.isfinite(targets.code[0, :8]).all()


@settings(max_examples=50, deadline=None)
@given(
    st.floats(-7.99, 7.99), st.floats(-3.99, 3.99), st.floats(-3, 3), st.floats(0.2, 12.0),
    st.floats(-7, 7), st.floats(-20, 20),
)  # fmt: skip
def test_encode_then_decode_is_the_identity(x, y, z, length, yaw, speed):
    boxes = box(x, y, z, (length, 1.1, 1.7), yaw, (speed, -speed))
    cell, _ = GRID.flat_index(boxes[:, 0], boxes[:, 1])
    code = torch.from_numpy(encode_boxes(boxes, cell, GRID))
    decoded = decode_boxes(code, cell_corner(torch.from_numpy(cell), GRID), GRID).numpy()
    turn = wrap_angle(decoded[:, YAW] - boxes[:, YAW])  # yaw is known modulo 2 pi
    np.testing.assert_allclose(turn, 0, atol=1e-4)
    decoded[:, YAW] = boxes[:, YAW]
    np.testing.assert_allclose(decoded, boxes, rtol=1e-4, atol=1e-4)


def test_radius_keeps_the_overlap():
    # corner boxes shifted by the radius along the diagonal keep an IoU of at least 0.1
    length, width = 4.0, 2.0
    r = gaussian_radius(length, width)
    shared = (length - r) * (width - r)
    iou = shared / (2 * length * width - shared)
    assert iou >= 0.1 - 1e-9
    assert r > 0.5


def test_gaussian_is_clipped_at_the_border_and_keeps_the_maximum():
    heatmap = np.zeros((5, 6), np.float32)
    draw_gaussian(heatmap, 0, 0, 2)
    draw_gaussian(heatmap, 1, 0, 2)
    assert heatmap[0, 0] == 1.0
    assert heatmap[0, 1] == 1.0
    # sigma = 5 / 6; two cells below (0, 0): exp(-4 / (2 * 25 / 36)) = exp(-2.88)
    np.testing.assert_allclose(heatmap[2, 0], np.exp(-2.88), rtol=1e-5)
    assert heatmap[3:].max() == 0
