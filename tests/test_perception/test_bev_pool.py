from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pool_tables import points_of, table_of_cells

from perception import native
from perception.ops.bev_pool import bev_pool, bev_pool_backward, bev_pool_reference

N, D, H, W, C = 2, 3, 4, 3, 5


def random_case(seed: int, share: float, num_cells: int, dtype=torch.float64):
    """A share of the frustum points in cells at random, in pieces of columns; empty cells too."""
    random = np.random.default_rng(seed)
    cell = random.integers(0, num_cells, (N, D, H, W))
    below = random.random(cell.shape) < 0.5  # like the row above: runs of several rows
    for h in range(1, H):
        cell[:, :, h] = np.where(below[:, :, h], cell[:, :, h - 1], cell[:, :, h])
    cell[random.random(cell.shape) >= share] = -1
    depth = torch.from_numpy(random.random((N, D, H, W))).to(dtype)
    feat = torch.from_numpy(random.normal(size=(N, H, W, C))).to(dtype)
    return depth, feat, *(torch.from_numpy(x) for x in table_of_cells(cell, num_cells))


def points(runs: torch.Tensor, cell_start: torch.Tensor) -> list[torch.Tensor]:
    return [torch.from_numpy(x).long() for x in points_of(runs.numpy(), cell_start.numpy(), W)]


def test_reference_on_a_hand_made_world():
    # one camera, two depth bins, a column of two pixels with features (10, 1) and (20, 2). Cell 0
    # gets both rows of bin 0 and row 1 of bin 1: 0.25 (10, 1) + 0.5 (20, 2) + 0.5 (20, 2) =
    # (22.5, 2.25); cell 1 is empty; cell 2 gets row 0 of bin 1: 0.75 (10, 1); the table's last row
    # is padding
    depth = torch.tensor([0.25, 0.5, 0.75, 0.5]).reshape(1, 2, 2, 1)
    feat = torch.tensor([10.0, 1.0, 20.0, 2.0]).reshape(1, 2, 1, 2)
    runs = torch.tensor([[0, 0, 2], [3, 1, 1], [2, 0, 1], [99, 99, 9]], dtype=torch.int32)
    cell_start = torch.tensor([0, 2, 2, 3], dtype=torch.int32)
    expected = torch.tensor([[22.5, 2.25], [0.0, 0.0], [7.5, 0.75]])
    assert torch.equal(bev_pool_reference(depth, feat, runs, cell_start), expected)
    assert torch.equal(bev_pool(depth, feat, runs, cell_start), expected)
    in_double = depth.double(), feat.double(), runs, cell_start
    assert torch.equal(bev_pool(*in_double), expected.double())


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.floats(0, 1), st.integers(1, 9))
def test_fast_form_is_the_reference(seed, share, num_cells):
    case = random_case(seed, share, num_cells)
    torch.testing.assert_close(bev_pool(*case), bev_pool_reference(*case), rtol=1e-12, atol=1e-12)
    depth, feat, *table = case
    single = bev_pool(depth.float(), feat.float(), *table)  # compiled, where a compiler was found
    torch.testing.assert_close(single.double(), bev_pool_reference(*case), rtol=1e-5, atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.floats(0, 1))
def test_nothing_is_lost(seed, share):
    depth, feat, runs, cell_start = random_case(seed, share, 7)
    point_depth, point_feat, _ = points(runs, cell_start)
    total = depth.reshape(-1, 1)[point_depth] * feat.flatten(0, 2)[point_feat]
    bev = bev_pool(depth, feat, runs, cell_start)
    torch.testing.assert_close(bev.sum(0), total.sum(0))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_the_order_of_a_cell_s_runs_changes_nothing(seed):
    depth, feat, runs, cell_start = random_case(seed, 0.8, 4)
    random = np.random.default_rng(seed)
    order = np.concatenate(
        [random.permutation(np.arange(*ends)) for ends in pairwise(cell_start.tolist())]
    ).astype(np.int64)
    shuffled = bev_pool(depth, feat, runs[order], cell_start)
    bev = bev_pool(depth, feat, runs, cell_start)
    torch.testing.assert_close(shuffled, bev, rtol=1e-12, atol=1e-12)


def test_gradient_of_a_listed_point_is_its_cell_s_and_of_others_none():
    # features of ones: d bev[cell] / d depth[point] = 1 per channel, so with the output gradients
    # 10 * cell + channel over C = 5 channels a listed point gets 50 * cell + (0+1+2+3+4)
    depth, feat, runs, cell_start = random_case(7, 0.3, 6)
    depth, feat = depth.requires_grad_(), torch.ones_like(feat)
    bev = bev_pool(depth, feat, runs, cell_start)
    bev.backward(10.0 * torch.arange(6.0)[:, None].double() + torch.arange(5.0).double())
    expected = torch.zeros(N * D * H * W, dtype=torch.float64)
    point_depth, _, cell = points(runs, cell_start)
    assert 0 < len(cell) < len(expected)
    expected[point_depth] = 50.0 * cell.double() + 10.0
    torch.testing.assert_close(depth.grad.flatten(), expected)


def test_gradients_in_portions_are_those_in_one(monkeypatch):
    depth, feat, *lists = random_case(4, 1.0, 6)
    gradients = []
    for at_once in (1 << 16, 7):  # 72 points: 10 portions of 7 and one of 2
        monkeypatch.setattr("perception.ops.bev_pool.POINTS_AT_ONCE", at_once)
        d, f = depth.clone().requires_grad_(), feat.clone().requires_grad_()
        (bev_pool(d, f, *lists) ** 2).sum().backward()
        gradients.append((d.grad, f.grad))
    for portions, one in zip(*gradients, strict=True):
        assert torch.equal(portions, one)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.4, 1.0])
def test_gradients_are_the_reference_s(share, dtype):
    depth, feat, *lists = random_case(3, share, 6, dtype)
    gradients = []
    for pool in (bev_pool, bev_pool_reference):
        d, f = depth.clone().requires_grad_(), feat.clone().requires_grad_()
        (pool(d, f, *lists) ** 2).sum().backward()
        gradients.append((d.grad, f.grad))
    for fast, reference in zip(*gradients, strict=True):
        torch.testing.assert_close(fast, reference)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_point_in_two_runs_counts_twice(dtype):
    # point 0 (row 0 of bin 0) is in both runs: cells 0 and 1 with gradients 1 and 10 per channel.
    # d bev / d depth: 3 channels of feature 2: point 0: 3 * 2 * (1 + 10) = 66, point 1 (row 1, in
    # the first run alone): 3 * 2 * 1 = 6; d bev / d feat: depth 0.5: row 0: 0.5 * 11 = 5.5, row 1:
    # 0.5 * 1 = 0.5
    runs = torch.tensor([[0, 0, 2], [0, 0, 1]], dtype=torch.int32)
    cell_start = torch.tensor([0, 1, 2], dtype=torch.int32)
    grad_bev = torch.tensor([[1.0], [10.0]], dtype=dtype).expand(2, 3)
    for pool in (bev_pool, bev_pool_reference):
        depth = torch.full((1, 1, 2, 1), 0.5, dtype=dtype, requires_grad=True)
        feat = torch.full((1, 2, 1, 3), 2.0, dtype=dtype, requires_grad=True)
        pool(depth, feat, runs, cell_start).backward(grad_bev)
        assert depth.grad.flatten().tolist() == [66.0, 6.0]
        assert feat.grad.flatten().tolist() == [5.5] * 3 + [0.5] * 3


@pytest.mark.parametrize(
    ("runs", "cell_start", "words"),
    [
        ([[10**9, 0, 1]], [0, 1], "begins outside depth"),
        ([[0, 0, 2**31 - 1]], [0, 1], "leaves its image"),
        ([[0, 10**9, 1]], [0, 1], "not the one of its depth"),
        ([[0, 0, 1]], [0, 2**31 - 1, -(2**31), -1, 1], "decreases"),
        ([[0, 0, 1]], [0, 10**9], "beyond the runs"),
    ],
)
def test_a_bad_table_is_an_exception_and_no_crash(runs, cell_start, words):
    if native.library() is None:
        pytest.skip(native.description())
    depth, feat = torch.ones(N, D, H, W), torch.ones(N, H, W, C)
    table = [torch.tensor(x, dtype=torch.int32) for x in (runs, cell_start)]
    with pytest.raises(ValueError, match=f"does not fit depth of .2, 3, 4, 3.: .*{words}"):
        bev_pool(depth, feat, *table)
    grad_bev = torch.ones(len(cell_start) - 1, C)
    with pytest.raises(ValueError, match=words):
        bev_pool_backward(grad_bev, depth, feat, *table)


def test_operator_is_registered_as_torch_wants_it():
    depth, feat, *lists = random_case(5, 0.6, 6)
    torch.library.opcheck(bev_pool, (depth.requires_grad_(), feat.requires_grad_(), *lists))


def test_same_result_twice_to_the_last_bit():
    case = random_case(11, 1.0, 4, dtype=torch.float32)
    assert torch.equal(bev_pool(*case), bev_pool(*case))
