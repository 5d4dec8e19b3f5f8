import numpy as np
import pytest
import torch
from torch import nn

from perception.data.targets import box_targets
from perception.geometry.grid import BevGrid
from perception.models.heads.center_head import (
    BoxTargets,
    CenterHead,
    CenterHeadConfig,
    CenterHeadOutput,
)
from perception.models.heads.map_head import MapHead, MapHeadConfig, MapTargets, resampling_points
from perception.models.losses import gaussian_focal_loss, sigmoid_focal_loss

GRID = BevGrid(x_min=-8.0, x_max=8.0, y_min=-4.0, y_max=4.0, cell=1.0)


def center_head(num_boxes=4):
    return CenterHead(CenterHeadConfig(channels=8, num_boxes=num_boxes), 8, 3, GRID)


def perfect_output(boxes, labels):
    """Maps that say exactly what the targets say."""
    targets = box_targets(boxes, labels, 3, GRID)
    heatmap = torch.from_numpy(targets.heatmap).clamp(1e-4, 1 - 1e-4)
    code = torch.zeros(10, GRID.num_cells)
    count = int(targets.object_mask.sum())
    code[:, targets.cell[:count]] = torch.from_numpy(targets.code[:count]).nan_to_num().T
    output = CenterHeadOutput(
        heatmap_logits=torch.logit(heatmap)[None], code=code.reshape(1, 10, GRID.ny, GRID.nx)
    )
    batch = BoxTargets(
        heatmap=torch.from_numpy(targets.heatmap)[None],
        cell=torch.from_numpy(targets.cell)[None],
        code=torch.from_numpy(targets.code)[None],
        object_mask=torch.from_numpy(targets.object_mask)[None],
        labelled=torch.ones(1),
    )
    return output, batch


def test_peaks_decode_to_the_boxes_they_were_drawn_from():
    boxes = np.array(
        [
            [3.25, -2.5, 0.4, 4.0, 2.0, 1.5, 0.7, 1.0, -2.0],
            [-6.1, 2.2, -0.3, 0.6, 0.7, 1.8, -3.0, 0.0, 0.5],
        ]
    )
    output, _ = perfect_output(boxes, np.array([2, 0]))
    found, scores, labels = center_head(num_boxes=2).decode(output)
    order = labels[0].argsort(descending=True)
    assert labels[0][order].tolist() == [2, 0]
    np.testing.assert_allclose(found[0][order].numpy(), boxes, atol=1e-4)
    assert (scores > 0.99).all()


def test_loss_of_perfect_maps_is_nearly_zero_and_of_wrong_ones_is_not():
    boxes = np.array([[3.25, -2.5, 0.4, 4.0, 2.0, 1.5, 0.7, np.nan, np.nan]])
    output, targets = perfect_output(boxes, np.array([1]))
    head = center_head()
    good = head.loss(output, targets)
    assert float(good["box"]) < 1e-6  # and not NaN: the unknown velocity is left out
    wrong = CenterHeadOutput(heatmap_logits=-output.heatmap_logits, code=output.code + 1.0)
    bad = head.loss(wrong, targets)
    assert float(bad["heatmap"]) > 100 * float(good["heatmap"])
    # 8 known columns, each wrong by 1: 0.25 * 8
    assert float(bad["box"]) == pytest.approx(2.0, rel=1e-4)


def test_a_frame_without_labels_adds_nothing():
    boxes = np.array([[3.25, -2.5, 0.4, 4.0, 2.0, 1.5, 0.7, 0.0, 0.0]])
    output, targets = perfect_output(boxes, np.array([1]))
    unlabelled = BoxTargets(**{**vars(targets), "labelled": torch.zeros(1)})
    assert all(float(x) == 0 for x in center_head().loss(output, unlabelled).values())


def test_resampling_a_ramp_gives_the_ramp():
    # a map whose value is x at each BEV cell's centre must be x at each raster cell's centre
    raster = BevGrid(x_min=-6.0, x_max=6.0, y_min=-3.0, y_max=3.0, cell=0.5)
    x = torch.from_numpy(GRID.x_centers()).float()
    y = torch.from_numpy(GRID.y_centers()).float()
    bev = torch.stack([x[None, :].expand(8, 16), y[:, None].expand(8, 16)])[None]
    points = torch.from_numpy(resampling_points(GRID, raster))[None]
    found = nn.functional.grid_sample(bev, points, mode="bilinear", align_corners=False)[0]
    expected_x = torch.from_numpy(raster.x_centers()).float()[None, :].expand(12, 24)
    expected_y = torch.from_numpy(raster.y_centers()).float()[:, None].expand(12, 24)
    torch.testing.assert_close(found, torch.stack([expected_x, expected_y]), atol=1e-5, rtol=0)


def test_unknown_layers_are_no_negatives():
    raster = BevGrid(x_min=-6.0, x_max=6.0, y_min=-3.0, y_max=3.0, cell=1.0)
    head = MapHead(MapHeadConfig(channels=4, grid=raster), 8, 2, GRID)
    logits = torch.full((2, 2, 6, 12), 5.0)  # says "there" everywhere
    mask = torch.zeros(2, 2, 6, 12)
    mask[:, 0] = 1.0
    labelled = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    known_only = head.loss(logits, MapTargets(mask=mask, labelled=labelled))["map"]
    both = head.loss(logits, MapTargets(mask=mask, labelled=torch.ones(2, 2)))["map"]
    assert float(known_only) < 1e-4
    assert float(both) > 4.0


def test_map_loss_is_the_mean_over_the_frames_that_know_the_layer():
    raster = BevGrid(x_min=-6.0, x_max=6.0, y_min=-3.0, y_max=3.0, cell=1.0)
    head = MapHead(MapHeadConfig(channels=4, grid=raster), 8, 1, GRID)
    logits = torch.zeros(2, 1, 6, 12)
    targets = MapTargets(mask=torch.zeros(2, 1, 6, 12), labelled=torch.tensor([[1.0], [0.0]]))
    # probability 0.5 everywhere: log 2 * 0.5 ** 2
    assert float(head.loss(logits, targets)["map"]) == pytest.approx(0.25 * np.log(2), rel=1e-5)


def test_focal_losses_on_one_cell():
    # heatmap: p = 0.5 at a peak: -log(0.5) * 0.5 ** 2, one peak
    heatmap = torch.ones(1, 1, 1, 1)
    loss = gaussian_focal_loss(torch.zeros(1, 1, 1, 1), heatmap, torch.ones(1, 1, 1, 1))
    assert float(loss) == pytest.approx(0.25 * np.log(2))
    # beside a peak with value 0.5: -log(0.5) * 0.5 ** 2 * (1 - 0.5) ** 4
    loss = gaussian_focal_loss(torch.zeros(1, 1, 1, 1), heatmap * 0.5, torch.ones(1, 1, 1, 1))
    assert float(loss) == pytest.approx(0.25 * np.log(2) / 16)
    loss = sigmoid_focal_loss(torch.zeros(1), torch.ones(1))
    assert float(loss) == pytest.approx(0.25 * np.log(2))
