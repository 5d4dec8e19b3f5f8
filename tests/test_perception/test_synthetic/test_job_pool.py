import os
from functools import partial

import pytest

from perception.errors import InputError
from perception.synthetic.job_pool import ONE_THREAD, JobPool


def square(number, tick):
    for _ in range(number):
        tick()
    return number * number


def refuse(tick):
    raise InputError("the disk is full")


def die(tick):
    os._exit(1)


@pytest.mark.parametrize("workers", [1, 2])
def test_results_keep_the_order_and_every_tick_is_heard(workers):
    ticks = []
    with JobPool(workers) as pool:
        jobs = [partial(square, number) for number in (3, 0, 2)]
        assert pool.run(jobs, lambda: ticks.append(1)) == [9, 0, 4]
        assert pool.run([partial(square, 5)], lambda: ticks.append(1)) == [25]
    assert len(ticks) == 3 + 0 + 2 + 5


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_of_a_job_reaches_the_caller(workers):
    with JobPool(workers) as pool, pytest.raises(InputError, match="the disk is full"):
        pool.run([refuse], lambda: None)


def test_a_killed_process_is_an_input_error():
    with JobPool(2) as pool, pytest.raises(InputError, match="smaller number of workers"):
        pool.run([die], lambda: None)


def test_the_environment_is_left_as_it_was(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    with JobPool(2):
        assert {name: os.environ[name] for name in ONE_THREAD} == ONE_THREAD
    assert os.environ["OMP_NUM_THREADS"] == "3"
    assert "MKL_NUM_THREADS" not in os.environ
