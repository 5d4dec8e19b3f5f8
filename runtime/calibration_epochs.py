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
        self._counters: Counter[str] = Counter()
        self._newest_fault: str | None = None
        self._prepare = prepare
        self._current = (0, calibration)
        self._newest = calibration  # in use, on its way, or refused for good
        self._pending: Calibration | None = None
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="calibration", daemon=True)
        self._thread.start()

    @property
    def counters(self) -> Counter[str]:
        """How many so far: swapped, refused, failed, superseded.

        Refused ones cannot be right; failed ones could not be prepared and are tried again when
        they come again; a superseded one was still waiting when a newer one came.
        """
        with self._changed:
            return self._counters.copy()

    @property
    def newest_fault(self) -> str | None:
        """Why the newest calibration that was refused or failed was."""
        return self._newest_fault

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
                self._counters["superseded"] += 1
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
            except ValueError as error:
                self._give_up(calibration, "refused", error)
            except Exception as error:  # whatever it is, the car drives on with the old one
                self._give_up(calibration, "failed", error)
            else:
                with self._changed:
                    self._counters["swapped"] += 1
                    self._current = (self._current[0] + 1, calibration)

    def _give_up(self, calibration: Calibration, what: str, error: Exception) -> None:
        with self._changed:
            self._counters[what] += 1
            self._newest_fault = str(error) or type(error).__name__
            if what == "failed" and self._newest is calibration:
                self._newest = self._current[1]  # so that the same one is no repetition
        _LOG.warning("A calibration %s: %s", what, self._newest_fault)


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
