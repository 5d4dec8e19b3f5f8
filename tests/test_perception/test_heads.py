import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from perception.data.targets import box_targets
from perception.geometry.grid import BevGrid
from perception.models.heads.box_code import BoxTargets
from perception.models.heads.center_head import CenterHead, CenterHeadConfig, CenterHeadOutput
from perception.models.heads.heatmap import lead_over_neighbours
from perception.models.heads.map_head import (
    MapHead,
    MapHeadConfig,
    MapHeadOutput,
    MapTargets,
    RasterSampler,
)
from perception.models.losses import gaussian_focal_loss, sigmoid_focal_loss
from perception.taxonomy import DETECTION_CLASSES

GRID = BevGrid(x_min=-8.0, x_max=8.0, y_min=-4.0, y_max=4.0, cell=1.0)
RASTER = BevGrid(x_min=-6.0, x_max=6.0, y_min=-3.0, y_max=3.0, cell=1.0)
ONE_GROUP = (DETECTION_CLASSES[:3],)
TWO_GROUPS = (DETECTION_CLASSES[:1], DETECTION_CLASSES[1:3])


def center_head(num_boxes=4, groups=ONE_GROUP, **options):
    config = CenterHeadConfig(channels=8, num_boxes=num_boxes, groups=groups, **options)
    return CenterHead(config, 8, 3, GRID)


def targets_of(boxes, labels):
    targets = box_targets(boxes, labels, 3, GRID)
    fields = {f.name: getattr(targets, f.name) for f in dataclasses.fields(targets)}
    tensors = {name: torch.from_numpy(array)[None] for name, array in fields.items()}
    return BoxTargets(**tensors, labelled=torch.ones(1))


def perfect_output(boxes, labels, groups=ONE_GROUP):
    """Maps that say exactly what the targets say, each object in its own group's code."""
    targets = targets_of(boxes, labels)
    code = torch.zeros(1, len(groups), 10, GRID.num_cells)
    for k in range(len(boxes)):
        name = DETECTION_CLASSES[labels[k]]
        (group,) = (g for g, names in enumerate(groups) if name in names)
        code[0, group, :, targets.cell[0, k]] = targets.code[0, k].nan_to_num()
    output = CenterHeadOutput(
        heatmap_logits=torch.logit(targets.heatmap.clamp(1e-4, 1 - 1e-4)),
        code=code.reshape(1, len(groups), 10, GRID.ny, GRID.nx),
    )
    return output, targets


@pytest.mark.parametrize("groups", [ONE_GROUP, TWO_GROUPS])
def test_peaks_decode_to_the_boxes_they_were_drawn_from(groups):
    boxes = np.array(
        [
            [3.25, -2.5, 0.4, 4.0, 2.0, 1.5, 0.7, 1.0, -2.0],
            [-6.1, 2.2, -0.3, 0.6, 0.7, 1.8, -3.0, 0.0, 0.5],
        ]
    )
    output, _ = perfect_output(boxes, np.array([2, 0]), groups)
    found, scores, labels = center_head(2, groups).decode(output)
    order = labels[0].argsort(descending=True)
    assert labels[0][order].tolist() == [2, 0]
    np.testing.assert_allclose(found[0][order].numpy(), boxes, atol=1e-4)
    assert (scores > 0.99).all()


@pytest.mark.parametrize("groups", [ONE_GROUP, TWO_GROUPS])
def test_loss_of_perfect_maps_is_nearly_zero_and_of_wrong_ones_is_not(groups):
    boxes = np.array([[3.25, -2.5, 0.4, 4.0, 2.0, 1.5, 0.7, np.nan, np.nan]])
    output, targets = perfect_output(boxes, np.array([1]), groups)
    head = center_head(groups=groups)
    counts = head.counts(targets)
    assert {name: float(n) for name, n in counts.items()} == {"heatmap": 1.0, "box": 1.0}
    good = head.loss(output, targets, counts)
    assert float(good["box"]) < 1e-6  # and not NaN: the unknown velocity is left out
    wrong = CenterHeadOutput(heatmap_logits=-output.heatmap_logits, code=output.code + 1.0)
    bad = head.loss(wrong, targets, counts)
    assert float(bad["heatmap"]) > 100 * float(good["heatmap"])
    # 8 known columns, each wrong by 1: 0.25 * 8
    assert float(bad["box"]) == pytest.approx(2.0, rel=1e-4)


def test_two_groups_say_two_boxes_in_one_cell():
    boxes = np.array(
        [[3.25, -2.5, 0.4, 4.0, 2.0, 1.5, 0.7, 0, 0], [3.5, -2.2, 1, 9, 3, 3, 1, 0, 0]]
    )
    output, targets = perfect_output(boxes, np.array([0, 2]), TWO_GROUPS)
    assert targets.cell[0, 0] == targets.cell[0, 1]
    found, _, labels = center_head(2, TWO_GROUPS).decode(output)
    np.testing.assert_allclose(found[0][labels[0].argsort()].numpy(), boxes, atol=1e-4)


def test_a_frame_without_labels_adds_nothing():
    boxes = np.array([[3.25, -2.5, 0.4, 4.0, 2.0, 1.5, 0.7, 0.0, 0.0]])
    output, targets = perfect_output(boxes, np.array([1]))
    unlabelled = dataclasses.replace(targets, labelled=torch.zeros(1))
    head = center_head()
    counts = head.counts(unlabelled)
    assert all(float(n) == 0 for n in counts.values())
    assert all(float(x) == 0 for x in head.loss(output, unlabelled, counts).values())


def test_without_any_object_the_gradient_is_finite():
    head = center_head()
    targets = targets_of(np.zeros((0, 9)), np.zeros(0, np.int64))
    loss = head.loss(head(torch.randn(1, 8, 8, 16)), targets, head.counts(targets))
    torch.stack(list(loss.values())).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in head.parameters())


def test_groups_must_be_the_classes_in_their_order():
    for groups in ((("truck", "car"),), (("car",), ()), ()):
        with pytest.raises(ValueError, match="in this order"):
            CenterHeadConfig(channels=8, num_boxes=4, groups=groups)


def test_branches_per_part_give_the_same_maps_in_the_same_columns():
    output = center_head(groups=TWO_GROUPS, branch_per_part=True)(torch.randn(2, 8, 8, 16))
    assert output.heatmap_logits.shape == (2, 3, 8, 16)
    assert output.code.shape == (2, 2, 10, 8, 16)


def test_the_lead_is_over_the_highest_of_the_cells_around():
    values = torch.tensor([[0.0, 2.0, 0.0], [1.0, 5.0, 4.0], [0.0, 0.0, 0.0]])[None, None]
    lead = lead_over_neighbours(values - 10)[0, 0]  # beyond the edge there is nothing, not 0
    assert lead[1].tolist() == [-4.0, 1.0, -1.0]
    assert lead[0, 0] == -5.0


def test_resampling_a_ramp_gives_the_ramp():
    # a map whose value is x at each BEV cell's centre must be x at each raster cell's centre
    raster = BevGrid(x_min=-6.0, x_max=6.0, y_min=-3.0, y_max=3.0, cell=0.5)
    x = torch.from_numpy(GRID.x_centers()).float()
    y = torch.from_numpy(GRID.y_centers()).float()
    bev = torch.stack([x[None, :].expand(8, 16), y[:, None].expand(8, 16)])[None]
    found = RasterSampler(GRID, raster)(bev)[0]
    expected_x = torch.from_numpy(raster.x_centers()).float()[None, :].expand(12, 24)
    expected_y = torch.from_numpy(raster.y_centers()).float()[:, None].expand(12, 24)
    torch.testing.assert_close(found, torch.stack([expected_x, expected_y]), atol=1e-5, rtol=0)


def map_head(num_classes):
    return MapHead(MapHeadConfig(channels=4, grid=RASTER), 8, num_classes, GRID)


def map_loss(head, logits, targets):
    output = MapHeadOutput(logits=logits, aux_logits=())
    return float(head.loss(output, targets, head.counts(targets))["map"])


def test_unknown_layers_are_no_negatives():
    logits = torch.full((2, 2, 6, 12), 5.0)  # says "there" everywhere
    mask = torch.zeros(2, 2, 6, 12)
    mask[:, 0] = 1.0
    one_known = MapTargets(mask=mask, labelled=torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    both_known = MapTargets(mask=mask, labelled=torch.ones(2, 2))
    assert map_loss(map_head(2), logits, one_known) < 1e-4
    assert map_loss(map_head(2), logits, both_known) > 4.0


def test_map_loss_is_the_mean_over_the_frames_that_know_the_layer():
    targets = MapTargets(mask=torch.zeros(2, 1, 6, 12), labelled=torch.tensor([[1.0], [0.0]]))
    # probability 0.5 everywhere: log 2 * 0.5 ** 2
    found = map_loss(map_head(1), torch.zeros(2, 1, 6, 12), targets)
    assert found == pytest.approx(0.25 * np.log(2), rel=1e-5)


def test_the_number_of_convolutions_is_a_choice():
    head = MapHead(MapHeadConfig(channels=4, num_convs=2, grid=RASTER), 8, 6, GRID)
    kernels = [m.kernel_size for m in head.modules() if isinstance(m, nn.Conv2d)]
    assert kernels == [(3, 3), (3, 3), (1, 1)]
    assert head(torch.randn(1, 8, 8, 16)).logits.shape == (1, 6, 6, 12)


@pytest.mark.parametrize("split", [1, 2, 3])
def test_losses_of_the_parts_of_a_batch_add_up_to_the_loss_of_the_whole(split):
    random = np.random.default_rng(0)
    numbers = [3, 0, 5, 1]  # objects per frame
    frames = []
    for number in numbers:
        boxes = random.uniform(1.0, 3.0, (number, 9))
        boxes[:, :2] = random.uniform(-3.9, 3.9, (number, 2))
        frames.append(targets_of(boxes, random.integers(0, 3, number)))
    names = [f.name for f in dataclasses.fields(BoxTargets)]
    cat = {name: torch.cat([getattr(f, name) for f in frames]) for name in names}
    cat["labelled"] = torch.tensor([1.0, 1.0, 1.0, 0.0])
    mask = (torch.rand(4, 2, 6, 12) > 0.5).float()
    labelled = torch.tensor([[1.0, 1.0], [0.0, 1.0], [1.0, 1.0], [0.0, 0.0]])
    box_head, layer_head = center_head().eval(), map_head(2).eval()
    bev = torch.randn(4, 8, 8, 16)

    def losses(part, shared=None):
        boxes = BoxTargets(**{name: value[part] for name, value in cat.items()})
        layers = MapTargets(mask=mask[part], labelled=labelled[part])
        counts = shared or {**box_head.counts(boxes), **layer_head.counts(layers)}
        found = box_head.loss(box_head(bev[part]), boxes, counts)
        return found | layer_head.loss(layer_head(bev[part]), layers, counts), counts

    whole, counts = losses(slice(None))
    first, counts_first = losses(slice(0, split))
    last, counts_last = losses(slice(split, 4))
    for name, count in counts.items():
        torch.testing.assert_close(counts_first[name] + counts_last[name], count)
    first, _ = losses(slice(0, split), counts)
    last, _ = losses(slice(split, 4), counts)
    for name, loss in whole.items():
        torch.testing.assert_close(first[name] + last[name], loss)


def test_focal_losses_on_one_cell():
    # heatmap: p = 0.5 at a peak: -log(0.5) * 0.5 ** 2
    zero, one = torch.zeros(1), torch.ones(1)
    assert float(gaussian_focal_loss(zero, one)) == pytest.approx(0.25 * np.log(2))
    # beside a peak with value 0.5: -log(0.5) * 0.5 ** 2 * (1 - 0.5) ** 4
    assert float(gaussian_focal_loss(zero, one / 2)) == pytest.approx(0.25 * np.log(2) / 16)
    assert float(sigmoid_focal_loss(zero, one)) == pytest.approx(0.25 * np.log(2))
    # alpha weighs what is there by 0.3 and what is not by 0.7
    assert float(sigmoid_focal_loss(zero, one, 0.3)) == pytest.approx(0.075 * np.log(2))
    assert float(sigmoid_focal_loss(zero, zero, 0.3)) == pytest.approx(0.175 * np.log(2))
