"""Each model fills its annotated box exactly, and shows which way it looks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perception.synthetic.object_models import CATEGORIES, object_model
from perception.synthetic.part_list import Material, ObjectParts
from perception.synthetic.primitives import NO_OBJECT, SEMANTIC_CLASSES, Primitives
from perception.taxonomy import DETECTION_CLASS_OF_CATEGORY

_WITHOUT_MEAN = {"movable_object.trafficcone", "human.pedestrian.child", "vehicle.bus.bendy"}
"""Sizes that the means of the classes say nothing about."""


def _extents(model: Primitives) -> tuple[np.ndarray, np.ndarray]:
    reach = np.einsum("nij,nj->ni", np.abs(model.R_global_box), model.half_size)
    return model.center_global - reach, model.center_global + reach


@settings(max_examples=120, deadline=None)
@given(st.sampled_from(CATEGORIES), st.integers(0, 2**32), st.booleans())
def test_parts_fill_the_annotated_box_exactly(category: str, seed: int, moving: bool) -> None:
    (length, width, height), model = object_model(
        category, np.random.default_rng(seed), moving=moving
    )
    low, high = _extents(model)
    expected_low = [-length / 2, -width / 2, 0.0]
    expected_high = [length / 2, width / 2, height]
    assert np.allclose(low.min(axis=0), expected_low, atol=1e-6)
    assert np.allclose(high.max(axis=0), expected_high, atol=1e-6)
    assert (model.half_size > 0).all()
    assert 2 <= len(model) <= 16
    assert (model.object_index == NO_OBJECT).all()
    detection_class = DETECTION_CLASS_OF_CATEGORY[category]
    assert (model.semantic == SEMANTIC_CLASSES.index(detection_class)).all()
    assert ((model.reflectivity > 0) & (model.reflectivity <= 1)).all()


def test_every_category_of_a_detection_class_has_a_model() -> None:
    assert set(CATEGORIES) == set(DETECTION_CLASS_OF_CATEGORY)


@pytest.mark.parametrize("category", sorted(set(CATEGORIES) - _WITHOUT_MEAN))
def test_mean_size_is_near_that_of_nuscenes(category: str) -> None:
    # length, width, height as in the brief's table of nuScenes' class means
    means = {
        "car": (4.6, 1.95, 1.73),
        "truck": (6.9, 2.5, 2.85),
        "bus": (11.2, 2.95, 3.5),
        "trailer": (12.3, 2.9, 3.9),
        "construction_vehicle": (6.4, 2.8, 3.2),
        "pedestrian": (0.73, 0.67, 1.77),
        "motorcycle": (2.1, 0.77, 1.47),
        "bicycle": (1.7, 0.6, 1.28),
        "barrier": (0.5, 2.5, 1.0),
    }
    sizes = [
        object_model(category, np.random.default_rng(seed), moving=bool(seed % 2))[0]
        for seed in range(40)
    ]
    ratio = np.mean(sizes, axis=0) / means[DETECTION_CLASS_OF_CATEGORY[category]]
    assert ((ratio > 0.88) & (ratio < 1.12)).all()


@pytest.mark.parametrize(
    "category",
    sorted(c for c in CATEGORIES if c.startswith(("vehicle", "human"))),
)
@pytest.mark.parametrize("moving", [False, True])
def test_front_differs_from_rear(category: str, moving: bool) -> None:
    """Turned about by 180 degrees the parts are other parts: the heading can be seen."""
    for seed in range(5):
        size, model = object_model(category, np.random.default_rng(seed), moving=moving)
        turned = model.center_global * [-1.0, -1.0, 1.0]
        distance = np.linalg.norm(turned[:, None] - model.center_global[None], axis=-1)
        assert distance.min(axis=1).max() > 0.05 * size[0]


def test_vehicles_have_red_lamps_at_the_rear_and_bright_ones_in_front() -> None:
    for category in ("vehicle.car", "vehicle.truck", "vehicle.bus.rigid", "vehicle.bus.bendy"):
        _, model = object_model(category, np.random.default_rng(3))
        lamps = (model.glow > 0.5) & (
            model.center_global[:, 2] < 0.5 * model.center_global[:, 2].max()
        )
        colors, x = model.colors_rgb[lamps, 0].astype(int), model.center_global[lamps, 0]
        assert (x > 0).any()
        assert (x < 0).any()
        assert (colors[x > 0, 1] > 200).all()  # green is high in white and yellow light ...
        assert (colors[x < 0, 1] < 60).all()  # ... and low in red


def test_equal_seeds_give_equal_models_and_others_do_not() -> None:
    first, again, other = (
        object_model("vehicle.car", np.random.default_rng(seed)) for seed in (1, 1, 2)
    )
    assert first[0] == again[0]
    assert np.array_equal(first[1].colors_rgb, again[1].colors_rgb)
    assert first[0] != other[0]


def test_a_rider_makes_a_cycle_higher() -> None:
    for category in ("vehicle.bicycle", "vehicle.motorcycle"):
        without, with_rider = (
            object_model(category, np.random.default_rng(1), moving=moving)[0][2]
            for moving in (False, True)
        )
        assert with_rider > without + 0.3


def test_children_are_small_and_workers_reflect() -> None:
    rng = np.random.default_rng(0)
    child, adult = (
        object_model(f"human.pedestrian.{who}", rng)[0][2] for who in ("child", "adult")
    )
    assert child < 0.85 * adult
    worker = object_model("human.pedestrian.construction_worker", rng)[1]
    assert worker.reflectivity.max() > 0.9


@pytest.mark.parametrize("rises", [False, True])
def test_beam_fills_its_ranges(rises: bool) -> None:
    # A box of 4 x 1 x 2 m; the beam takes x -1..1 (half of the length) and z 0.5..1.5.
    parts = ObjectParts((4.0, 1.0, 2.0), 7)
    parts.beam((0.25, 0.75), (0.0, 1.0), (0.25, 0.75), 0.2, Material(rgb=(1, 2, 3)), rises=rises)
    table = parts.table()
    low, high = _extents(table)
    assert np.allclose(low[0], [-1.0, -0.5, 0.5], atol=1e-6)
    assert np.allclose(high[0], [1.0, 0.5, 1.5], atol=1e-6)
    # Its long axis, the first column, points up in front where it rises.
    assert (table.R_global_box[0, 2, 0] > 0) == rises
    assert np.allclose(table.R_global_box[0] @ table.R_global_box[0].T, np.eye(3))
    assert np.isclose(np.linalg.det(table.R_global_box[0]), 1.0)
