from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from perception.ops.bev_pool import bev_pool, bev_pool_reference

CAM, D, H, W, C = 2, 3, 2, 4, 5


def random_case(seed: int, num_points: int, num_cells: int, dtype=torch.float64):
    """Distinct frustum points, spread over cells at random; some cells stay empty."""
    random = np.random.default_rng(seed)
    point_depth = random.permutation(CAM * D * H * W)[:num_points].astype(np.int32)
    cam = point_depth // (D * H * W)
    point_feat = (cam * H * W + point_depth % (H * W)).astype(np.int32)
    cell = np.sort(random.integers(0, num_cells, num_points))
    cell_start = np.zeros(num_cells + 1, np.int32)
    cell_start[1:] = np.cumsum(np.bincount(cell, minlength=num_cells))
    depth = torch.from_numpy(random.random((CAM, D, H, W))).to(dtype)
    feat = torch.from_numpy(random.normal(size=(CAM, H, W, C))).to(dtype)
    lists = [torch.from_numpy(x) for x in (point_depth, point_feat, cell_start)]
    return depth, feat, *lists


def test_reference_on_a_hand_made_world():
    # one camera, two depth bins, one pixel with feature (10, 1); cell 0 gets both bins
    # (0.25 + 0.75) * (10, 1) = (10, 1), cell 1 is empty
    depth = torch.tensor([0.25, 0.75]).reshape(1, 2, 1, 1)
    feat = torch.tensor([10.0, 1.0]).reshape(1, 1, 1, 2)
    lists = [torch.tensor(x, dtype=torch.int32) for x in ([0, 1], [0, 0], [0, 2, 2])]
    expected = torch.tensor([[10.0, 1.0], [0.0, 0.0]])
    assert torch.equal(bev_pool_reference(depth, feat, *lists), expected)
    assert torch.equal(bev_pool(depth, feat, *lists), expected)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, CAM * D * H * W), st.integers(1, 9))
def test_fast_form_is_the_reference(seed, num_points, num_cells):
    case = random_case(seed, num_points, num_cells)
    torch.testing.assert_close(bev_pool(*case), bev_pool_reference(*case), rtol=1e-12, atol=1e-12)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, CAM * D * H * W))
def test_nothing_is_lost(seed, num_points):
    depth, feat, point_depth, point_feat, cell_start = random_case(seed, num_points, 7)
    total = depth.reshape(-1, 1)[point_depth.long()] * feat.flatten(0, 2)[point_feat.long()]
    bev = bev_pool(depth, feat, point_depth, point_feat, cell_start)
    torch.testing.assert_close(bev.sum(0), total.sum(0))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_the_order_of_a_cell_s_points_changes_nothing(seed):
    depth, feat, point_depth, point_feat, cell_start = random_case(seed, 30, 4)
    random = np.random.default_rng(seed)
    order = np.concatenate(
        [random.permutation(np.arange(*ends)) for ends in pairwise(cell_start.tolist())]
    ).astype(np.int64)
    shuffled = bev_pool(depth, feat, point_depth[order], point_feat[order], cell_start)
    bev = bev_pool(depth, feat, point_depth, point_feat, cell_start)
    torch.testing.assert_close(shuffled, bev, rtol=1e-12, atol=1e-12)


def test_gradient_of_a_listed_point_is_its_cell_s_and_of_others_none():
    # features of ones: d bev[cell] / d depth[point] = 1 per channel, so with the output gradients
    # 10 * cell + channel over C = 5 channels a listed point gets 50 * cell + (0+1+2+3+4)
    depth, feat, point_depth, point_feat, cell_start = random_case(7, 20, 6)
    depth, feat = depth.requires_grad_(), torch.ones_like(feat)
    bev = bev_pool(depth, feat, point_depth, point_feat, cell_start)
    bev.backward(10.0 * torch.arange(6.0)[:, None].double() + torch.arange(5.0).double())
    expected = torch.zeros(CAM * D * H * W, dtype=torch.float64)
    for cell in range(6):
        for point in point_depth[cell_start[cell] : cell_start[cell + 1]]:
            expected[point] = 50.0 * cell + 10.0
    torch.testing.assert_close(depth.grad.flatten(), expected)


def test_gradients_in_portions_are_those_in_one(monkeypatch):
    depth, feat, *lists = random_case(4, CAM * D * H * W, 6)
    gradients = []
    for at_once in (1 << 16, 7):  # 48 points: 6 portions of 7 and one of 6
        monkeypatch.setattr("perception.ops.bev_pool.POINTS_AT_ONCE", at_once)
        d, f = depth.clone().requires_grad_(), feat.clone().requires_grad_()
        (bev_pool(d, f, *lists) ** 2).sum().backward()
        gradients.append((d.grad, f.grad))
    for portions, one in zip(*gradients, strict=True):
        assert torch.equal(portions, one)


@pytest.mark.parametrize("num_points", [0, 1, 20, CAM * D * H * W])
def test_gradients_are_the_reference_s(num_points):
    depth, feat, *lists = random_case(3, num_points, 6)
    gradients = []
    for pool in (bev_pool, bev_pool_reference):
        d, f = depth.clone().requires_grad_(), feat.clone().requires_grad_()
        (pool(d, f, *lists) ** 2).sum().backward()
        gradients.append((d.grad, f.grad))
    for fast, reference in zip(*gradients, strict=True):
        torch.testing.assert_close(fast, reference)


def test_operator_is_registered_as_torch_wants_it():
    depth, feat, *lists = random_case(5, 30, 6)
    torch.library.opcheck(bev_pool, (depth.requires_grad_(), feat.requires_grad_(), *lists))


def test_same_result_twice_to_the_last_bit():
    case = random_case(11, CAM * D * H * W, 4, dtype=torch.float32)
    assert torch.equal(bev_pool(*case), bev_pool(*case))
