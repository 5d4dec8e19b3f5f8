import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from perception.geometry.frustum import Frustum
from perception.models.depth_supervision import (
    DepthTargets,
    depth_bins,
    depth_counts,
    depth_loss,
)

FRUSTUM = Frustum(
    stride=2, depth_min=1.0, depth_max=4.0, depth_step=0.5, z_min=-10.0, z_max=10.0
)  # bins [1, 1.5) [1.5, 2) [2, 2.5) [2.5, 3) [3, 3.5) [3.5, 4)


def test_bins_by_hand():
    depth_img = np.array(
        [
            [
                [0.0, 0.0, 3.7, 0.0, 0.0, 9.0],
                [0.0, 0.0, 2.6, 2.4, 0.0, 0.0],
                [0.5, 0.0, 1.0, 0.0, 4.0, 0.0],
                [0.0, 3.0, 0.0, 1.4, 0.0, 0.0],
            ]
        ],
        np.float32,
    )
    # nearest per 2x2 patch: none, 2.4, 9 (too far); 0.5 (too near, and hides the 3.0), 1, 4 (edge)
    np.testing.assert_array_equal(depth_bins(depth_img, FRUSTUM), [[[-1, 2, -1], [-1, 0, -1]]])


def test_just_below_the_far_edge_is_the_last_bin():
    below = np.nextafter(np.float32(4), np.float32(0))
    assert depth_bins(np.full((1, 2, 2), below, np.float32), FRUSTUM).item() == 5


@given(st.integers(0, 5))
def test_a_bin_s_middle_is_in_it(index):
    # the frustum's points lie in the middles of the bins, so that lifting and targets agree
    middle = FRUSTUM.depth_min + (index + 0.5) * FRUSTUM.depth_step
    assert depth_bins(np.full((1, 2, 2), middle, np.float32), FRUSTUM).item() == index


def test_bins_leave_the_image_alone():
    depth_img = np.random.default_rng(0).uniform(0, 5, (2, 4, 6)).astype(np.float32)
    before = depth_img.copy()
    depth_bins(depth_img, FRUSTUM)
    np.testing.assert_array_equal(depth_img, before)


def test_loss_by_hand():
    # pixel 0: two equal scores, the target among two bins -> log 2
    # pixel 1: scores (log 3, 0), target bin 1 -> probability 1/4 -> log 4; pixel 2 is not known
    logits = torch.tensor([[0.0, math.log(3), 7.0], [0.0, 0.0, -7.0]]).reshape(1, 1, 2, 1, 3)
    targets = DepthTargets(bin=torch.tensor([0, 1, -1]).reshape(1, 1, 1, 3))
    counts = depth_counts(targets)
    assert counts["depth"] == 2
    loss = depth_loss(logits, targets, counts)
    assert loss["depth"].item() == pytest.approx((math.log(2) + math.log(4)) / 2)


def test_nothing_known_costs_nothing():
    logits = torch.randn(2, 3, 6, 2, 2, requires_grad=True)
    targets = DepthTargets(bin=torch.full((2, 3, 2, 2), -1))
    loss = depth_loss(logits, targets, depth_counts(targets))["depth"]
    loss.backward()
    assert loss == 0
    assert not logits.grad.any()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_a_batch_in_parts_is_the_whole(seed):
    # counts of all parts are summed before any part's loss is taken
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(4, 2, 6, 3, 3, generator=generator, dtype=torch.float64).float()
    bins = torch.randint(-1, 6, (4, 2, 3, 3), generator=generator)
    whole = DepthTargets(bin=bins)
    counts = depth_counts(whole)
    parts = [(slice(0, 1), slice(1, 4)), (slice(0, 2), slice(2, 4))][seed % 2]
    assert sum(depth_counts(DepthTargets(bin=bins[p]))["depth"] for p in parts) == counts["depth"]
    total = sum(depth_loss(logits[p], DepthTargets(bin=bins[p]), counts)["depth"] for p in parts)
    torch.testing.assert_close(total, depth_loss(logits, whole, counts)["depth"])


def test_loss_is_in_full_precision_under_autocast():
    targets = DepthTargets(bin=torch.zeros(1, 1, 2, 2, dtype=torch.int64))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = torch.randn(1, 1, 6, 2, 2).bfloat16()
        assert depth_loss(logits, targets, depth_counts(targets))["depth"].dtype == torch.float32
