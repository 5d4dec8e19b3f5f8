import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely import affinity
from shapely.geometry import box as rectangle

from perception.geometry.grid import BevGrid
from perception.models.assignment import FORBIDDEN, MatchWeights, focal_cost, iou_3d, match

GRID = BevGrid(x_min=-8.0, x_max=8.0, y_min=-4.0, y_max=4.0, cell=1.0)


def box(x=0.0, y=0.0, z=0.0, length=4.0, width=2.0, height=1.0, yaw=0.0):
    return np.array([[x, y, z, length, width, height, yaw, 0.0, 0.0]])


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (box(), 1.0),
        (box(yaw=np.pi), 1.0),
        # shifted by half its length: 4 of 8 shared, union 12
        (box(x=2.0), 1 / 3),
        # half as high above: 8 * 0.5 shared, union 8 + 8 - 4
        (box(z=0.5), 1 / 3),
        # a quarter turn: 2 x 2 shared, union 8 + 8 - 4
        (box(yaw=np.pi / 2), 1 / 3),
        # a unit square inside
        (box(x=1.0, y=0.5, length=1.0, width=1.0), 1 / 8),
        # touching: nothing shared
        (box(x=4.0), 0.0),
        (box(z=1.0), 0.0),
        (box(length=0.0), 0.0),
        (box(x=np.nan), 0.0),
        (box(length=np.inf), 0.0),
    ],
)
def test_iou_by_hand(other, expected):
    assert iou_3d(box(), other)[0, 0] == pytest.approx(expected, abs=1e-5)
    assert iou_3d(other, box())[0, 0] == pytest.approx(expected, abs=1e-5)


def test_iou_of_a_square_and_itself_turned_by_45_degrees():
    # squares of side 2 share a regular octagon of inradius 1: area 8 (sqrt 2 - 1); union 8 - that
    octagon = 8 * (np.sqrt(2) - 1)
    found = iou_3d(box(length=2.0), box(length=2.0, yaw=np.pi / 4))[0, 0]
    assert found == pytest.approx(octagon / (8 - octagon), abs=1e-5)


@settings(max_examples=60, deadline=None)
@given(
    st.floats(-4, 4), st.floats(-4, 4), st.floats(0.1, 6), st.floats(0.1, 3),
    st.floats(-4, 4), st.floats(-4, 4),
)  # fmt: skip
def test_iou_is_that_of_polygons(x, y, length, width, yaw_a, yaw_b):
    a, b = box(yaw=yaw_a), box(x, y, 0.0, length, width, 1.0, yaw_b)
    outlines = []
    for (row,) in (a, b):
        outline = rectangle(-row[3] / 2, -row[4] / 2, row[3] / 2, row[4] / 2)
        outline = affinity.rotate(outline, row[6], origin=(0, 0), use_radians=True)
        outlines.append(affinity.translate(outline, row[0], row[1]))
    shared = outlines[0].intersection(outlines[1]).area
    expected = shared / (8 + length * width - shared)
    assert iou_3d(a, b)[0, 0] == pytest.approx(expected, abs=1e-4)


def test_focal_cost_at_even_odds():
    # p = 0.5: -0.25 * 0.25 * log 0.5 + 0.75 * 0.25 * log 0.5
    assert focal_cost(np.zeros(1))[0] == pytest.approx(0.125 * np.log(0.5))
    assert np.isfinite(focal_cost(np.array([-1e4, 1e4]))).all()


def test_the_assignment_is_the_cheapest_of_all():
    random = np.random.default_rng(0)
    weights = MatchWeights(label=1.0, center=0.7, overlap=0.4)
    for _ in range(10):
        logits = random.normal(size=(5, 3))
        boxes = np.concatenate([box(*random.uniform(-3, 3, 2)) for _ in range(5)])
        objects = np.concatenate([box(*random.uniform(-3, 3, 2), yaw=1.0) for _ in range(3)])
        labels = random.integers(0, 3, 3)
        cost = np.empty((5, 3))
        for q, n in np.ndindex(5, 3):
            # the range is 16 m by 8 m
            way = abs(boxes[q, 0] - objects[n, 0]) / 16 + abs(boxes[q, 1] - objects[n, 1]) / 8
            overlap = iou_3d(boxes[q : q + 1], objects[n : n + 1])[0, 0]
            cost[q, n] = focal_cost(logits[q])[labels[n]] + 0.7 * way - 0.4 * overlap
        best = min(itertools.permutations(range(5), 3), key=lambda p: cost[p, range(3)].sum())
        queries, chosen = match(logits, boxes, objects, labels, GRID, weights)
        assert dict(zip(chosen.tolist(), queries.tolist(), strict=True)) == dict(enumerate(best))


def test_costs_that_are_not_finite_are_avoided_and_do_no_harm():
    boxes = np.concatenate([box(np.nan), box(x=5.0), box(np.inf)])
    logits = np.array([[9.0], [-9.0], [np.nan]])
    queries, chosen = match(logits, boxes, box(), np.array([0]), GRID, MatchWeights())
    assert (queries.tolist(), chosen.tolist()) == ([1], [0])
    assert FORBIDDEN > 100
    none, _ = match(logits, boxes, np.zeros((0, 9)), np.zeros(0, int), GRID, MatchWeights())
    assert len(none) == 0


def test_more_objects_than_queries_leaves_objects_over():
    objects = np.concatenate([box(x=x) for x in (-6.0, 0.0, 6.0)])
    queries, chosen = match(
        np.zeros((1, 1)), box(x=0.5), objects, np.zeros(3, int), GRID, MatchWeights()
    )
    assert (queries.tolist(), chosen.tolist()) == ([0], [1])
