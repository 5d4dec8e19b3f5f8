import numpy as np
import pytest

from perception.data.sampling import cbgs_indices


def test_every_class_gets_the_same_share():
    # 90 frames with a car, 10 of them with a bicycle too, 10 frames with nothing: 100 pairs, so
    # each of the two classes gets 50 draws
    frames = [{0}] * 80 + [{0, 1}] * 10 + [set()] * 10
    index = cbgs_indices(frames, 2, seed=3)
    assert index.shape == (100,)
    assert index.dtype == np.int64
    assert index[:50].max() < 90  # those of the first class
    assert set(index[50:]) <= set(range(80, 90))
    assert len(set(index[50:])) > 5  # with replacement, but not one frame only


def test_a_class_that_no_frame_has_gets_nothing():
    # 8 pairs over 4 classes: 2 draws for each of the two that occur
    index = cbgs_indices([[0, 2]] * 4, 4, seed=0)
    assert index.shape == (4,)


def test_a_rare_class_is_never_lost():
    # 3 pairs over 10 classes are a share of 0.3: one draw each
    assert cbgs_indices([[0], [1], [9]], 10, seed=0).tolist() == [0, 1, 2]


@pytest.mark.parametrize("frames", [[], [[], [], []]])
def test_without_objects_every_frame_is_taken_once(frames):
    assert cbgs_indices(frames, 10, seed=0).tolist() == list(range(len(frames)))


def test_the_seed_fixes_the_draws():
    frames = [{k % 3} for k in range(60)]
    first, again, other = (cbgs_indices(frames, 3, seed) for seed in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()
