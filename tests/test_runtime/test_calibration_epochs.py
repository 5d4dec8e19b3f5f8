import dataclasses
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from toy_frames import FakeEngine, calibration, frame

from perception.bundle import load_bundle
from perception.errors import InputError
from perception.geometry.pool_table import pool_table
from perception.messages import Calibration
from perception.model_inputs import ModelInputs, calibrated_rig
from perception.taxonomy import CAMERAS
from runtime.calibration_epochs import CalibrationEpochs, same_calibration
from runtime.engines.base import ModelOutputs
from runtime.pipeline import Pipeline


def wait_until(condition: Callable[[], bool]) -> None:
    """The epochs' thread has no other way to say that it is done."""
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.001)


@contextmanager
def opened(
    first: Calibration, prepare: Callable[[Calibration], None]
) -> Iterator[CalibrationEpochs]:
    epochs = CalibrationEpochs(first, prepare)
    try:
        yield epochs
    finally:
        epochs.close()


class Gate:
    """A preparation that waits to be let through."""

    def __init__(self) -> None:
        self.begun: list[Calibration] = []
        self._open = threading.Semaphore(1)  # the first calibration passes

    def __call__(self, calibration: Calibration) -> None:
        self.begun.append(calibration)
        assert self._open.acquire(timeout=30)

    def let_one_pass(self) -> None:
        self._open.release()


def test_a_new_calibration_is_a_new_epoch_once_it_is_prepared() -> None:
    gate, first, second = Gate(), calibration(100.0), calibration(110.0)
    with opened(first, gate) as epochs:
        assert epochs.current() == (0, first)
        epochs.submit(second)
        wait_until(lambda: len(gate.begun) == 2)
        assert epochs.current() == (0, first)  # it is not ready: frames go on with the old one
        gate.let_one_pass()
        wait_until(lambda: epochs.current()[0] == 1)
        assert epochs.current()[1] is second
        assert epochs.counters == {"swapped": 1}


def test_the_newest_submission_wins() -> None:
    gate = Gate()
    with opened(calibration(100.0), gate) as epochs:
        for focal_px in (110.0, 120.0, 130.0, 140.0):
            epochs.submit(calibration(focal_px))
            if focal_px == 110.0:
                wait_until(lambda: len(gate.begun) == 2)
        gate.let_one_pass()
        gate.let_one_pass()
        wait_until(lambda: epochs.current()[0] == 2)
        assert epochs.current()[1].cameras["CAM_FRONT"].K_cam[0, 0] == 140
        assert [c.cameras["CAM_FRONT"].K_cam[0, 0] for c in gate.begun] == [100, 110, 140]
        assert epochs.counters == {"swapped": 2, "superseded": 2}


def test_the_same_numbers_are_no_change() -> None:
    with opened(calibration(100.0), lambda _: None) as epochs:
        for _ in range(100):  # an intrinsics message comes with each image
            epochs.submit(calibration(100.0))
        epochs.submit(calibration(110.0))
        wait_until(lambda: epochs.current()[0] == 1)
        epochs.submit(calibration(110.0))
        epochs.submit(calibration(100.0))
        wait_until(lambda: epochs.current()[0] == 2)
        assert epochs.counters == {"swapped": 2}


def test_back_to_the_one_in_use_before_the_other_began_is_no_change() -> None:
    gate = Gate()
    with opened(calibration(100.0), gate) as epochs:
        epochs.submit(calibration(110.0))
        wait_until(lambda: len(gate.begun) == 2)
        epochs.submit(calibration(120.0))
        epochs.submit(calibration(110.0))
        gate.let_one_pass()
        wait_until(lambda: epochs.current()[0] == 1)
        epochs.submit(calibration(130.0))
        gate.let_one_pass()
        wait_until(lambda: epochs.current()[0] == 2)
        assert [c.cameras["CAM_FRONT"].K_cam[0, 0] for c in gate.begun] == [100, 110, 130]


def with_camera(**changes: object) -> Calibration:
    good = calibration()
    camera = dataclasses.replace(good.cameras["CAM_FRONT"], **changes)
    return dataclasses.replace(good, cameras={**good.cameras, "CAM_FRONT": camera})


FAR = np.eye(4)
FAR[0, 3] = 1e300
MIRROR = np.diag([1.0, -1.0, 1.0, 1.0])
BAD = {
    "focal length of 0": (with_camera(K_cam=np.diag([0.0, 100.0, 1.0])), "focal lengths 0 and"),
    "not a number": (with_camera(K_cam=np.full((3, 3), np.nan)), "is not finite"),
    "focal length of a star": (with_camera(K_cam=np.diag([1e200, 1e200, 1.0])), "1e+200"),
    "camera beyond the horizon": (with_camera(T_ego_cam=FAR), "the limit is 100 m"),
    "mirror": (with_camera(T_ego_cam=MIRROR), "no rigid transform"),
    "no size": (with_camera(width_px=0), "width_px of CAM_FRONT is 0"),
    "mirrored LiDAR": (dataclasses.replace(calibration(), T_ego_lidar=MIRROR), "T_ego_lidar is no"),
}


@pytest.mark.parametrize("kind", sorted(BAD))
def test_a_calibration_that_cannot_be_right_is_refused_and_counted(kind: str) -> None:
    bad, said = BAD[kind]
    prepared: list[Calibration] = []
    first = calibration()
    with opened(first, prepared.append) as epochs:
        epochs.submit(bad)
        wait_until(lambda: epochs.counters["refused"] == 1)
        assert epochs.current() == (0, first)
        assert prepared == [first]
        assert epochs.newest_fault is not None
        assert said in epochs.newest_fault
        epochs.submit(calibration(110.0))  # the thread goes on
        wait_until(lambda: epochs.current()[0] == 1)
    with pytest.raises(InputError, match="The first calibration"):
        CalibrationEpochs(bad, prepared.append)


def test_one_that_cannot_be_prepared_is_refused_once_and_for_all() -> None:
    begun = []

    def prepare(new: Calibration) -> None:
        begun.append(new.cameras["CAM_FRONT"].K_cam[0, 0])
        if begun[-1] == 110:
            raise ValueError("too low")

    with opened(calibration(100.0), prepare) as epochs:
        epochs.submit(calibration(110.0))
        wait_until(lambda: epochs.counters["refused"] == 1)
        assert epochs.current()[0] == 0
        assert epochs.newest_fault == "too low"
        epochs.submit(calibration(110.0))  # the refused one again: no news
        epochs.submit(calibration(120.0))
        wait_until(lambda: epochs.current()[0] == 1)
        assert begun == [100, 110, 120]
        assert epochs.counters == {"refused": 1, "swapped": 1}


@pytest.mark.parametrize(
    ("error", "fault"), [(RuntimeError("no thread"), "no thread"), (MemoryError(), "MemoryError")]
)
def test_one_that_could_not_be_prepared_just_now_is_tried_again_when_it_comes_again(
    error: Exception, fault: str
) -> None:
    errors = [None, error, None]

    def prepare(_: Calibration) -> None:
        if (now := errors.pop(0)) is not None:
            raise now

    with opened(calibration(100.0), prepare) as epochs:
        epochs.submit(calibration(110.0))
        wait_until(lambda: epochs.counters["failed"] == 1)
        assert (epochs.current()[0], epochs.newest_fault) == (0, fault)
        epochs.submit(calibration(110.0))
        wait_until(lambda: epochs.current()[0] == 1)
        assert epochs.counters == {"failed": 1, "swapped": 1}


def test_a_failure_does_not_forget_a_newer_one_that_is_waiting() -> None:
    gate = Gate()

    def prepare(new: Calibration) -> None:
        gate(new)
        if new.cameras["CAM_FRONT"].K_cam[0, 0] == 110:
            raise MemoryError

    with opened(calibration(100.0), prepare) as epochs:
        epochs.submit(calibration(110.0))
        wait_until(lambda: len(gate.begun) == 2)
        epochs.submit(calibration(120.0))
        gate.let_one_pass()
        wait_until(lambda: len(gate.begun) == 3)
        epochs.submit(calibration(120.0))  # on its way: no news
        gate.let_one_pass()
        wait_until(lambda: epochs.current()[0] == 1)
        assert epochs.counters == {"failed": 1, "swapped": 1}
        assert len(gate.begun) == 3


def test_counters_are_a_copy() -> None:
    with opened(calibration(100.0), lambda _: None) as epochs:
        epochs.counters["swapped"] += 7
        assert not epochs.counters


def test_closing_gives_up_what_is_pending_and_ends_the_thread() -> None:
    before, gate = set(threading.enumerate()), Gate()
    epochs = CalibrationEpochs(calibration(100.0), gate)
    assert len(set(threading.enumerate()) - before) == 1
    epochs.submit(calibration(110.0))
    wait_until(lambda: len(gate.begun) == 2)
    epochs.submit(calibration(120.0))
    closing = threading.Thread(target=epochs.close)
    closing.start()
    wait_until(lambda: epochs._closed)
    gate.let_one_pass()
    gate.let_one_pass()  # if it begins what it has to give up, it does not hang here
    closing.join(30)
    assert set(threading.enumerate()) <= before
    assert len(gate.begun) == 2
    epochs.submit(calibration(130.0))
    epochs.submit(calibration(140.0))
    assert epochs.counters == {"swapped": 1}  # nothing waits, so nothing is superseded
    assert epochs.current()[0] == 1


def test_cameras_that_come_or_go_are_a_change() -> None:
    whole = calibration()
    fewer = dataclasses.replace(whole, cameras={"CAM_FRONT": whole.cameras["CAM_FRONT"]})
    assert same_calibration(whole, calibration())
    assert not same_calibration(whole, fewer)
    assert not same_calibration(fewer, whole)
    assert not same_calibration(whole, with_camera(height_px=91))
    assert not same_calibration(whole, dataclasses.replace(whole, knows_lidar=False))


class TableEngine(FakeEngine):
    """Keeps the pool table of each frame."""

    def __init__(self) -> None:
        super().__init__()
        self.tables: list[tuple[np.ndarray, np.ndarray]] = []

    def run(self, inputs: ModelInputs) -> ModelOutputs:
        self.tables.append((inputs.pool_runs, inputs.cell_start))
        return super().run(inputs)


def test_no_frame_ever_mixes_two_calibrations(toy_bundle: Path) -> None:
    """Changes come at any moment of 80 frames; each frame's table is its epoch's as a whole."""
    engine = TableEngine()
    bundle = load_bundle(toy_bundle)
    pipeline = Pipeline(bundle, engine=engine, compensate_ego_motion=False)
    of_epoch: dict[int, Calibration] = {}
    used: list[int] = []
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with opened(calibration(100.0), pipeline.prepare_calibration) as epochs:
            for index in range(80):
                if index % 4 == 0:
                    epochs.submit(calibration(100.0 + index))
                epoch, current = epochs.current()
                of_epoch[epoch] = current
                sensors = dataclasses.replace(frame(), calibration=current, calibration_epoch=epoch)
                result = pipeline.process(sensors)
                used.append(result.calibration_epoch)
    finally:
        sys.setswitchinterval(interval)
    assert used == sorted(used)
    assert len(set(used)) > 3
    spec = bundle.card.inputs
    expected = {}
    for epoch, current in of_epoch.items():
        rig = calibrated_rig(current, spec, CAMERAS)
        expected[epoch] = pool_table(
            spec.frustum,
            spec.camera_grid,
            spec.feature_height,
            spec.feature_width,
            rig.K_img_aug,
            rig.T_ego_cam,
        )
    for epoch, (runs, cell_start) in zip(used, engine.tables, strict=True):
        np.testing.assert_array_equal(runs, expected[epoch].runs)
        np.testing.assert_array_equal(cell_start, expected[epoch].cell_start)
    pipeline.close()
