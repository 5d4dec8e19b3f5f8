import itertools
import math
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.task_rules import (
    EqualNormConfig,
    FixedConfig,
    GradNormConfig,
    ImtlGConfig,
    TaskRuleConfig,
    UncertaintyConfig,
    learned,
    loss_weights,
    shared_weights,
    shortest,
    without_conflict,
)

TASKS = ("boxes", "map")
RULES = tuple(kind() for kind in get_args(TaskRuleConfig))


def rng(seed=0):
    return np.random.default_rng(seed)


def gram(*gradients):
    rows = np.array(gradients, float)
    return rows @ rows.T


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_starts_with_finite_weights_and_leaves_a_single_task_alone(rule):
    weights = shared_weights(rule, gram([3.0, 4.0], [-1.0, 2.0]), rng())
    assert weights.shape == (2,)
    assert np.isfinite(weights).all()
    np.testing.assert_allclose(shared_weights(rule, gram([3.0, 4.0]), rng()), [1.0])
    assert set(loss_weights(rule, {}, TASKS)) == set(TASKS)


def test_fixed_weights_are_the_losses_and_nothing_is_learned():
    rule = FixedConfig(boxes=5.0)
    assert loss_weights(rule, {}, TASKS) == {"boxes": 5.0, "map": 1.0}
    assert shared_weights(rule, gram([1.0], [2.0]), rng()).tolist() == [1.0, 1.0]
    assert learned(rule, {}, {"boxes": 1.0}, {"boxes": 1.0}) == {}
    with pytest.raises(ValueError, match="expected more than 0"):
        FixedConfig(map=0.0)


def test_mgda_is_the_closed_form_of_two_tasks():
    # g1 = (2, 0), g2 = (0, 1): a1 = (g2 - g1).g2 / |g1 - g2|^2 = 1 / 5
    np.testing.assert_allclose(shortest(gram([2.0, 0.0], [0.0, 1.0])), [0.2, 0.8])
    # g1 = (1, 0), g2 = (3, 1): (g2 - g1).g2 = 7, over 5: clipped to 1
    np.testing.assert_allclose(shortest(gram([1.0, 0.0], [3.0, 1.0])), [1.0, 0.0])
    np.testing.assert_allclose(shortest(gram([1.0, 1.0], [1.0, 1.0])), [0.5, 0.5])
    np.testing.assert_allclose(shortest(gram([2.0, 0.0], [-1.0, 0.0])), [1 / 3, 2 / 3])


@given(st.integers(0, 1000))
def test_no_mixture_of_three_is_shorter_than_mgda_s(seed):
    products = gram(*rng(seed).normal(size=(3, 4)))
    weights = shortest(products)
    assert weights.min() >= 0
    assert weights.sum() == pytest.approx(1.0)
    best = min(
        np.array([a, b, 1 - a - b]) @ products @ np.array([a, b, 1 - a - b])
        for a, b in itertools.product(np.linspace(0, 1, 21), repeat=2)
        if a + b <= 1
    )
    assert weights @ products @ weights <= best + 1e-9


def test_pc_grad_takes_out_what_works_against_the_other():
    # g1 = (1, 0), g2 = (-1, 1): product -1. g1 + g2 / 2 = (1/2, 1/2), g2 + g1 = (0, 1);
    # coefficients (1, 1/2) + (1, 1)
    np.testing.assert_allclose(without_conflict(gram([1.0, 0.0], [-1.0, 1.0]), rng()), [2.0, 1.5])
    np.testing.assert_allclose(without_conflict(gram([1.0, 0.0], [1.0, 1.0]), rng()), [1.0, 1.0])


@given(st.integers(0, 1000))
def test_pc_grad_equals_the_projections_of_the_vectors_themselves(seed):
    gradients = rng(seed).normal(size=(4, 3))
    random, total = rng(seed), np.zeros(3)
    for place, gradient in enumerate(gradients):
        rest = gradient.copy()
        for other in random.permutation(4):
            if other != place and rest @ gradients[other] < 0:
                rest -= (
                    rest
                    @ gradients[other]
                    / (gradients[other] @ gradients[other])
                    * (gradients[other])
                )
        total += rest
    weights = without_conflict(gradients @ gradients.T, rng(seed))
    np.testing.assert_allclose(weights @ gradients, total, atol=1e-9)


def test_equal_norms_have_the_direction_of_imtl_g():
    products = gram([3.0, 4.0], [0.0, 1.0])  # lengths 5 and 1: mean 3
    weights = shared_weights(EqualNormConfig(), products, rng())
    np.testing.assert_allclose(weights, [0.6, 3.0])
    other = shared_weights(ImtlGConfig(), products, rng())
    np.testing.assert_allclose(weights / weights.sum(), other)


def test_uncertainty_ends_at_the_logarithm_of_the_loss():
    rule, state = UncertaintyConfig(lr=0.1), {}
    assert loss_weights(rule, state, TASKS) == {"boxes": 0.5, "map": 0.5}
    # from s = 0: s - 0.1 / 2 * (1 - L) = 0.05 for L = 2
    assert learned(rule, state, {"boxes": 2.0}, {"boxes": 1.0}) == {"s/boxes": pytest.approx(0.05)}
    for _ in range(500):
        state = learned(rule, state, {"boxes": 2.0, "map": 1e-9}, {})
    assert state["s/boxes"] == pytest.approx(math.log(2.0), abs=1e-3)
    assert state["s/map"] == -10.0  # no further
    assert loss_weights(rule, state, ["boxes"])["boxes"] == pytest.approx(0.25, abs=1e-3)


def test_grad_norm_makes_norms_level_that_are_a_hundred_times_apart():
    rule, state = GradNormConfig(), {}
    for _ in range(300):
        weights = loss_weights(rule, state, TASKS)
        norms = {"boxes": 148.0 * weights["boxes"], "map": weights["map"]}
        own = {task: norms[task] / weights[task] for task in TASKS}
        state = learned(rule, state, {"boxes": 1.0, "map": 1.0}, own)
    assert norms["boxes"] == pytest.approx(norms["map"], rel=0.06)  # two steps of 2.5 %


def test_a_huge_loss_does_not_throw_the_variance_beyond_its_end():
    rule, state = UncertaintyConfig(), {}
    seen = []
    for _ in range(300):
        state = learned(rule, state, {"boxes": 1000.0}, {"boxes": 1.0})
        seen.append(state["s/boxes"])
    assert max(seen) <= math.log(1000.0) + 0.11  # ends at ln 1000 = 6.91
    assert seen[-1] == pytest.approx(math.log(1000.0), abs=0.1)


@pytest.mark.parametrize(
    "make",
    [
        lambda: FixedConfig(map=math.nan),
        lambda: FixedConfig(boxes=0.0),
        lambda: UncertaintyConfig(lr=-1.0),
        lambda: GradNormConfig(lr=0.0),
        lambda: GradNormConfig(asymmetry=-1.0),
    ],
)
def test_impossible_numbers_are_refused(make):
    with pytest.raises(ValueError, match="expected more than 0"):
        make()


def test_grad_norm_by_hand():
    rule = GradNormConfig(lr=0.1)
    # at first all rates are 1: norms 3 and 1 shall both be 2: exp(-0.1) and exp(0.1), made to have
    # the sum 2: 0.904837 / 1.005004 and 1.105171 / 1.005004
    state = learned(rule, {}, {"boxes": 8.0, "map": 4.0}, {"boxes": 3.0, "map": 1.0})
    assert state == pytest.approx(
        {"first/boxes": 8.0, "first/map": 4.0, "weight/boxes": 0.900332, "weight/map": 1.099668}
    )
    # the boxes' loss is a quarter, the map's the same: relative rates 0.4 and 1.6, norms 1 and 1.1
    # have the mean 1.05 and shall be 1.05 * 0.4 ** 1.5 = 0.27 and 2.1: a ratio of exp(-0.4)
    state = learned(rule, state, {"boxes": 2.0, "map": 4.0}, {"boxes": 1 / 0.9, "map": 1.0})
    assert loss_weights(rule, state, TASKS) == pytest.approx({"boxes": 0.802625, "map": 1.197375})
    # no task is ever given up
    for _ in range(200):
        state = learned(rule, state, {"boxes": 2.0, "map": 4.0}, {"boxes": 1e9, "map": 1e-9})
    assert loss_weights(rule, state, TASKS)["boxes"] == pytest.approx(1e-4, rel=0.1)
    assert learned(rule, state, {}, {}) == state
