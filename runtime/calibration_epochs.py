"""Calibration that changes while the car drives: prepared beside the frames, swapped between them.

    submit --> pending (newest only) --> own thread: check, prepare --> current (epoch + 1)
                                                                         |
                                              taken once per frame <-----'

A frame carries one calibration and its epoch from beginning to end, so that old and new never meet
in it. What takes time, such as the pool table, is made before the swap.
"""

import logging
import threading
from collections import Counter
from collections.abc import Callable

import numpy as np

from perception.messages import Calibration, CameraCalibration
from runtime.calibration_file import check_calibration

_LOG = logging.getLogger(__name__)


class CalibrationEpochs:
    """The calibration in use, and a thread that makes the next one ready."""

    def __init__(self, calibration: Calibration, prepare: Callable[[Calibration], None]) -> None:
        """Prepare the first calibration here and now, as epoch 0.

        Args:
            calibration: The first.
            prepare: Makes ready what depends on a calibration, such as
                `Pipeline.prepare_calibration`; is called in a thread of this class.

        Raises:
            InputError: The first calibration cannot be right.
            ValueError: It cannot be prepared.
        """
        check_calibration(calibration, "The first calibration")
        prepare(calibration)
        self.counters: Counter[str] = Counter()
        """swapped; refused (cannot be right, or be prepared); superseded (a newer one came before
        its turn)."""
        self.newest_fault: str | None = None
        """Why the newest refused calibration was refused."""
        self._prepare = prepare
        self._current = (0, calibration)
        self._newest = calibration  # in use, on its way, or refused
        self._pending: Calibration | None = None
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="calibration", daemon=True)
        self._thread.start()

    def current(self) -> tuple[int, Calibration]:
        """Epoch and calibration for the next frame; never waits for a preparation."""
        return self._current

    def submit(self, calibration: Calibration) -> None:
        """Hand over a calibration; the one before it is given up where it has not begun.

        The same as the newest one is no change: it may come with every image. Returns at once.
        """
        with self._changed:
            if self._closed or same_calibration(calibration, self._newest):
                return
            if self._pending is not None:
                self.counters["superseded"] += 1
            self._newest = self._pending = calibration
            self._changed.notify()

    def close(self) -> None:
        """End the thread; what is pending is given up, the current calibration stays."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._pending is not None or self._closed)
                calibration, self._pending = self._pending, None
            if self._closed or calibration is None:
                return
            if same_calibration(calibration, self._current[1]):
                continue
            try:
                check_calibration(calibration, "The new calibration")
                self._prepare(calibration)
            except Exception as error:  # whatever it is, the car drives on with the old one
                self.counters["refused"] += 1
                self.newest_fault = str(error)
                _LOG.warning("A calibration was refused: %s", error)
            else:
                self.counters["swapped"] += 1
                self._current = (self._current[0] + 1, calibration)


def same_calibration(a: Calibration, b: Calibration) -> bool:
    """Whether two rigs agree in every number, and in what is known."""
    return a is b or (
        a.knows_lidar == b.knows_lidar
        and a.cameras.keys() == b.cameras.keys()
        and np.array_equal(a.T_ego_lidar, b.T_ego_lidar)
        and all(_same_camera(a.cameras[name], b.cameras[name]) for name in a.cameras)
    )


def _same_camera(a: CameraCalibration, b: CameraCalibration) -> bool:
    return a is b or (
        (a.width_px, a.height_px) == (b.width_px, b.height_px)
        and np.array_equal(a.K_cam, b.K_cam)
        and np.array_equal(a.T_ego_cam, b.T_ego_cam)
    )
