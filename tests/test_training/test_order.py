import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perception.errors import InputError
from training.order import SampleOrder


def order(num=20, batch_size=8, micro_batch=0, seed=1, **ranks):
    return SampleOrder(
        indices=np.arange(num), batch_size=batch_size, micro_batch=micro_batch, seed=seed, **ranks
    )


def draws(steps):
    return [[key.draw for key in micro] for micro in steps]


def test_a_batch_is_cut_into_micro_steps_and_these_into_ranks():
    # batch 8, two ranks, two frames per pass: micro-step 0 is 0..3, micro-step 1 is 4..7
    first, second = (order(micro_batch=2, rank=rank, world_size=2) for rank in (0, 1))
    assert draws(first.step(0)) == [[0, 1], [4, 5]]
    assert draws(second.step(0)) == [[2, 3], [6, 7]]
    assert draws(first.step(3)) == [[24, 25], [28, 29]]  # the draw counts from the first step on
    assert (first.num_micro, first.frames_per_pass, first.steps_per_epoch) == (2, 2, 2)


@given(
    share=st.integers(1, 4), micro=st.integers(1, 3), world_size=st.integers(1, 4),
    step=st.integers(0, 50), seed=st.integers(0, 3),
)  # fmt: skip
def test_all_ranks_together_have_the_same_batch_for_any_cut(share, micro, world_size, step, seed):
    batch_size = share * micro * world_size
    num = 3 * batch_size + 1
    whole = order(num, batch_size, seed=seed).step(step)[0]
    cut = [
        key
        for rank in range(world_size)
        for micro_keys in order(
            num, batch_size, micro, seed=seed, rank=rank, world_size=world_size
        ).step(step)
        for key in micro_keys
    ]
    assert sorted(cut, key=lambda key: key.draw) == whole


def test_an_epoch_takes_no_keyframe_twice_and_each_epoch_has_another_order():
    samples = order(num=20, batch_size=8)  # two steps per epoch, four keyframes are left out
    epochs = [[key.index for s in (2 * e, 2 * e + 1) for key in samples.step(s)[0]] for e in (0, 1)]
    assert all(len(set(epoch)) == 16 for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert order(seed=2).step(0) != samples.step(0)


def test_resampled_keyframes_appear_as_often_as_they_are_listed():
    samples = SampleOrder(indices=np.array([7, 7, 7, 3]), batch_size=4, micro_batch=0, seed=0).step(
        5
    )[0]
    assert sorted(key.index for key in samples) == [3, 7, 7, 7]


def test_beginning_late_gives_the_rest():
    samples = order(micro_batch=2)
    whole = list(samples.micro_batches(0, 7))
    assert len(whole) == len(samples.micro_batches(0, 7)) == 7 * 4
    for first in range(8):
        assert list(samples.micro_batches(first, 7)) == whole[4 * first :]
    assert [keys for step in range(7) for keys in samples.step(step)] == whole
    assert all(type(key.index) is int for keys in whole for key in keys)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num": 7}, "7 keyframes, fewer than the batch of 8: lower"),
        ({"world_size": 3}, "8 frames does not split over 3 processes"),
        ({"micro_batch": 3, "world_size": 2}, "share of 4 frames does not split into .* of 3"),
    ],
)
def test_a_batch_that_cannot_be_cut_is_refused(changes, said):
    with pytest.raises(InputError, match=said):
        order(**changes)
