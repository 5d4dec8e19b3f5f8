import threading

import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed: run make test in .venv-ros")
pytest.importorskip("perception_ros", reason="the ROS workspace is not sourced")

from perception_ros.newest_worker import NewestWorker

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
