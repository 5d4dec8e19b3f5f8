import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.gradient_calibration import (
    EqualConfig,
    GateConfig,
    OgmConfig,
    equal_projections,
    imtl_g,
    modality_factors,
)


def random_gradients(seed, num, dims=40, decades=6.0):
    """Gradients in random directions, their lengths over some decades."""
    rng = np.random.default_rng(seed)
    lengths = 10.0 ** rng.uniform(-decades / 2, decades / 2, (num, 1))
    return rng.normal(size=(num, dims)) * lengths


def weights_of(gradients):
    return imtl_g(gradients @ gradients.T)


def published(gradients):
    """The form of the paper: a_2.. = g_1 U^T (D U^T)^-1."""
    unit = gradients / np.linalg.norm(gradients, axis=1, keepdims=True)
    d, u = gradients[0] - gradients[1:], unit[0] - unit[1:]
    rest = gradients[0] @ u.T @ np.linalg.inv(d @ u.T)
    return np.concatenate([[1 - rest.sum()], rest])


seeds, nums = st.integers(0, 10**6), st.integers(2, 6)


@given(seeds, nums)
def test_weights_sum_to_1_and_projections_are_equal(seed, num):
    gradients = random_gradients(seed, num)
    weights = weights_of(gradients)
    assert weights.sum() == pytest.approx(1.0, abs=1e-9)
    terms = gradients @ (weights @ gradients) / np.linalg.norm(gradients, axis=1)
    assert np.ptp(terms) <= 1e-6 * np.abs(terms).max()


@given(seeds, nums)
def test_inner_products_give_what_the_published_form_gives(seed, num):
    gradients = random_gradients(seed, num, decades=2.0)
    np.testing.assert_allclose(weights_of(gradients), published(gradients), rtol=1e-7, atol=1e-9)


@given(seeds)
def test_two_tasks_are_the_closed_form_and_the_general_one_alike(seed):
    gradients = random_gradients(seed, 2)
    first, second = np.linalg.norm(gradients, axis=1)
    expected = np.array([second, first]) / (first + second)
    np.testing.assert_allclose(weights_of(gradients), expected, rtol=1e-12)
    np.testing.assert_allclose(equal_projections(gradients @ gradients.T), expected, rtol=1e-9)


def test_three_tasks_by_hand():
    # u = e1, e2, (e1 + e2) / sqrt 2 with lengths 1, 2, 1: singular (rank 2), so with a ridge.
    # C b = 1 with c = 1 / sqrt 2: b1 + c b3 = 1, b2 + c b3 = 1, c (b1 + b2) + b3 = 1. The first two
    # give b1 = b2 = 1 - c b3; the third 2 c - b3 + b3 = 1, 1.414 = 1: not to be solved, and with
    # the ridge b is (-1, -1, sqrt 2) times something large: a ~ (-1, -1/2, sqrt 2), sum -0.0858
    gradients = np.array([[1.0, 0.0], [0.0, 2.0], [0.5**0.5, 0.5**0.5]])
    total = -1 - 0.5 + math.sqrt(2)
    expected = np.array([-1.0, -0.5, math.sqrt(2)]) / total
    np.testing.assert_allclose(weights_of(gradients), expected, rtol=1e-3)
    # 60 degrees between each two, lengths 1, 2, 4: b are equal, a ~ 1, 1/2, 1/4, sum 7/4
    gram = np.array([[1.0, 1.0, 2.0], [1.0, 4.0, 4.0], [2.0, 4.0, 16.0]])
    np.testing.assert_allclose(imtl_g(gram), np.array([4, 2, 1]) / 7, rtol=1e-12)


@given(seeds, nums)
def test_another_order_of_the_tasks_is_another_order_of_the_weights(seed, num):
    gradients = random_gradients(seed, num, decades=2.0)
    order = np.random.default_rng(seed).permutation(num)
    np.testing.assert_allclose(
        weights_of(gradients[order]), weights_of(gradients)[order], rtol=1e-6, atol=1e-9
    )


@given(seeds, nums)
def test_scales_of_single_losses_change_the_length_alone(seed, num):
    gradients = random_gradients(seed, num, decades=2.0)
    rng = np.random.default_rng(seed)
    before = weights_of(gradients) @ gradients
    scaled = gradients * 10.0 ** rng.uniform(-3, 3, (num, 1))
    after = weights_of(scaled) @ scaled
    # up to the sign, which of three and more tasks is that of the sum of the weights
    cosine = before @ after / np.linalg.norm(before) / np.linalg.norm(after)
    assert abs(cosine) == pytest.approx(1.0, abs=1e-6)
    assert num > 2 or cosine > 0
    np.testing.assert_allclose(
        weights_of(7.0 * gradients), weights_of(gradients), rtol=1e-7, atol=1e-9
    )


@given(seeds, nums)
def test_a_rotation_changes_nothing(seed, num):
    gradients = random_gradients(seed, num, dims=8, decades=2.0)
    rotation, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(8, 8)))
    np.testing.assert_allclose(
        weights_of(gradients @ rotation), weights_of(gradients), rtol=1e-5, atol=1e-7
    )


@pytest.mark.parametrize("num", [1, 2, 3, 5])
def test_equal_gradients_get_equal_weights(num):
    gradients = np.tile([3.0, 4.0], (num, 1))
    np.testing.assert_allclose(weights_of(gradients), np.full(num, 1 / num), rtol=1e-9)


def test_opposite_gradients_cancel():
    gradients = np.array([[3.0, 4.0], [-6.0, -8.0]])  # lengths 5 and 10: weights 2/3 and 1/3
    for weights in (weights_of(gradients), equal_projections(gradients @ gradients.T)):
        np.testing.assert_allclose(weights, [2 / 3, 1 / 3], rtol=1e-9)
        np.testing.assert_allclose(weights @ gradients, 0.0, atol=1e-9)


def test_orthogonal_gradients_are_weighted_by_one_over_their_lengths():
    # lengths 1, 2, 4: 1, 1/2, 1/4 over 7/4
    np.testing.assert_allclose(imtl_g(np.diag([1.0, 4.0, 16.0])), [4 / 7, 2 / 7, 1 / 7])


def test_negative_weights_can_be_clipped():
    gradients = np.array([[1.0, 0.0, 0.1], [0.0, 1.0, 0.1], [1.0, 1.0, 0.0]])
    weights = weights_of(gradients)
    assert weights.min() < 0
    clipped = imtl_g(gradients @ gradients.T, clip=True)
    np.testing.assert_allclose(clipped, weights.clip(min=0) / weights.clip(min=0).sum())


def test_weights_that_sum_to_nothing_become_one_over_the_lengths():
    # two pairs of opposite directions at right angles: 1 / n each
    gradients = np.array([[1.0, 0.0], [-2.0, 0.0], [0.0, 1.0], [0.0, -2.0]])
    weights = weights_of(gradients)
    np.testing.assert_allclose(weights, np.array([2, 1, 2, 1]) / 6, rtol=1e-6)
    # directions with b of both signs, the last one's length such that b_1 + b_2 + b_3 / n_3 = 0
    flat = np.array([[1.0, 0.0, 0.1], [0.0, 1.0, 0.1], [1.0, 1.0, 0.0]])
    flat /= np.linalg.norm(flat, axis=1, keepdims=True)
    b = np.linalg.solve(flat @ flat.T, np.ones(3))
    length = -b[2] / (b[0] + b[1])
    flat[2] *= length
    expected = np.array([1.0, 1.0, 1.0 / length])
    np.testing.assert_allclose(weights_of(flat), expected / expected.sum(), rtol=1e-9)


lengths = st.floats(1e-6, 1e6)


@given(lengths, lengths)
def test_equal_makes_equal_and_keeps_the_sum(camera, lidar):
    config = EqualConfig(limit=1e13)
    k_camera, k_lidar = modality_factors(camera, lidar, config)
    assert k_camera * camera == pytest.approx(k_lidar * lidar, rel=1e-5)
    assert k_camera * camera + k_lidar * lidar == pytest.approx(camera + lidar)
    again = modality_factors(k_camera * camera, k_lidar * lidar, config)
    assert again == pytest.approx((1.0, 1.0))


@pytest.mark.parametrize(
    ("target", "expected"),
    [("mean", (2.5, 0.625)), ("geo", (2.0, 0.5)), ("min", (1.0, 0.25)), ("max", (4.0, 1.0))],
)
def test_equal_to_which_norm(target, expected):
    # norms 1 and 4: mean 2.5, geometric mean 2
    assert modality_factors(1.0, 4.0, EqualConfig(target=target)) == pytest.approx(expected)


def test_equal_is_limited_to_both_sides():
    # norms 1 and 99: the mean is 50, factors 50 and 50 / 99; the limit is 10
    assert modality_factors(1.0, 99.0, EqualConfig()) == pytest.approx((10.0, 50 / 99))
    assert modality_factors(1.0, 99.0, EqualConfig(target="min")) == pytest.approx((1.0, 0.1))


@given(lengths, lengths, st.floats(0.01, 5.0))
def test_gate_holds_the_larger_one_back_and_no_further_than_the_other(camera, lidar, slope):
    factors = modality_factors(camera, lidar, GateConfig(slope=slope))
    large, small = (0, 1) if camera >= lidar else (1, 0)
    norms = (camera, lidar)
    lead = norms[large] / norms[small]
    assert factors[small] == 1.0
    assert factors[large] <= 1.0
    assert 1.0 - 1e-9 <= factors[large] * lead <= lead * (1 + 1e-9)
    assert modality_factors(camera, lidar, GateConfig(slope=2 * slope))[large] <= factors[large]


def test_gate_by_hand():
    # lead 2: 1 - tanh(0.3) = 0.70869; with slope 1: 1 - tanh(1) = 0.238 is below 1/2
    assert modality_factors(2.0, 1.0, GateConfig()) == pytest.approx((1 - math.tanh(0.3), 1.0))
    assert modality_factors(1.0, 2.0, GateConfig(slope=1.0)) == pytest.approx((1.0, 0.5))
    assert modality_factors(1.0 + 1e-9, 1.0, GateConfig()) == pytest.approx((1.0, 1.0), abs=1e-8)


def test_ogm_jumps_where_the_sensors_are_level():
    assert modality_factors(1.0, 1.0, OgmConfig()) == (1.0, 1.0)
    # lead 2: 1 - tanh(0.6); just over 1: 1 - tanh(0.3)
    assert modality_factors(2.0, 1.0, OgmConfig()) == pytest.approx((1 - math.tanh(0.6), 1.0))
    assert modality_factors(1 + 1e-9, 1.0, OgmConfig())[0] == pytest.approx(1 - math.tanh(0.3))


@pytest.mark.parametrize("config", [EqualConfig(), GateConfig(), OgmConfig()])
def test_level_sensors_missing_ones_and_loss_scales(config):
    assert modality_factors(3.0, 3.0, config) == (1.0, 1.0)
    for norm in (0.0, math.nan, math.inf):
        assert modality_factors(norm, 2.0, config) == (1.0, 1.0)
        assert modality_factors(2.0, norm, config) == (1.0, 1.0)
    for scale in (2.0**16, 2.0**-40):
        scaled = modality_factors(3.0 * scale, 5.0 * scale, config)
        assert scaled == modality_factors(3.0, 5.0, config)


def test_impossible_numbers_are_refused():
    with pytest.raises(ValueError, match=r"limit is 0\.5"):
        EqualConfig(limit=0.5)
    with pytest.raises(ValueError, match=r"slope is 0\.0"):
        GateConfig(slope=0.0)
