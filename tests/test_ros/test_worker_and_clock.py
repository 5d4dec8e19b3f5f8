import threading

import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed: run make test in .venv-ros")
pytest.importorskip("perception_ros", reason="the ROS workspace is not sourced")

from perception_ros.newest_worker import NewestWorker
from perception_ros.stamp_clock import StampClock

pytestmark = pytest.mark.ros


class Gate:
    """Work that waits until it may go on, and says when it has begun."""

    def __init__(self) -> None:
        self.begun, self.go = threading.Event(), threading.Event()
        self.done: list[int] = []

    def __call__(self, item: int) -> None:
        self.begun.set()
        assert self.go.wait(10)
        if item < 0:
            raise RuntimeError("no")
        self.done.append(item)


def test_only_the_newest_waiting_item_is_worked_on_and_the_others_are_counted() -> None:
    gate = Gate()
    worker = NewestWorker(gate, pytest.fail, "test")
    worker.submit(1)
    assert gate.begun.wait(10)
    for item in (2, 3, 4):  # 3 overtakes 2, 4 overtakes 3
        worker.submit(item)
    gate.begun.clear()
    gate.go.set()
    assert gate.begun.wait(10)
    worker.stop()
    assert gate.done == [1, 4]
    assert worker.num_overtaken == 2


def test_an_error_is_reported_and_the_thread_lives_on() -> None:
    gate, errors = Gate(), []
    gate.go.set()
    worker = NewestWorker(gate, errors.append, "test")
    worker.submit(-1)
    assert gate.begun.wait(10)
    while not errors:
        pass
    gate.begun.clear()
    worker.submit(5)
    assert gate.begun.wait(10)
    worker.stop()
    assert [str(error) for error in errors] == ["no"]
    assert gate.done == [5]


def test_stop_leaves_no_thread_behind() -> None:
    worker = NewestWorker(lambda item: None, pytest.fail, "short-lived")
    worker.stop()
    assert "short-lived" not in [thread.name for thread in threading.enumerate()]


def test_the_clock_goes_on_from_the_newest_stamp() -> None:
    steady = [100]
    clock = StampClock(1.0, lambda: steady[0])
    assert clock.now_ns() is None
    clock.observe(5_000)
    steady[0] = 150
    assert clock.now_ns() == 5_050
    clock.observe(4_900)  # a late message does not set the clock back
    assert clock.now_ns() == 5_050
    clock.observe(7_000)
    assert clock.now_ns() == 7_000


def test_the_clock_runs_slower_with_a_log_played_slowly() -> None:
    steady = [0]
    clock = StampClock(0.25, lambda: steady[0])
    clock.observe(1_000)
    steady[0] = 400
    assert clock.now_ns() == 1_100


def test_the_clock_starts_over_with_a_log_that_starts_over() -> None:
    clock = StampClock(1.0, lambda: 0)
    clock.observe(10_000_000_000)
    clock.observe(8_999_999_999)  # more than a second older
    assert clock.now_ns() == 8_999_999_999


def test_messages_that_waited_during_a_pause_come_before_the_time_that_passed() -> None:
    steady = [0]
    clock = StampClock(1.0, lambda: steady[0])
    clock.observe(1_000)
    assert clock.settled_ns() is None
    steady[0] = 500  # the process stood still; a message of 1_100 waits
    assert clock.settled_ns() == 1_000
    clock.observe(1_100)
    steady[0] = 520
    assert clock.settled_ns() == 1_120
    steady[0] = 540
    assert clock.settled_ns() == 1_120
