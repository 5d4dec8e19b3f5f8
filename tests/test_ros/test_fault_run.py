"""Over DDS, two processes: sensors come and go, a rig is killed, a calibration changes."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed: run make test in .venv-ros")
pytest.importorskip("perception_msgs", reason="the ROS workspace is not sourced")

from perception_msgs.msg import Box3DArray
from perception_ros import convert
from rclpy.qos import qos_profile_sensor_data
from rig_publisher import CAMERAS, calibration
from sensor_msgs.msg import CameraInfo

from runtime.api import LIDAR, load_bundle

pytestmark = [pytest.mark.ros, pytest.mark.timeout(180)]

PROGRAM = Path(__file__).with_name("rig_publisher.py")
SENSORS = (*CAMERAS, LIDAR)
PERIOD_S = 0.1
DWELL_S = 0.9
SETTLED_S = 0.4
"""Time after a change in which a result may be of the time before: window, wait, period, and a busy
machine."""

SUBSETS = (
    "1111101",  # the last camera joins late
    "1111111", "1111110", "0000001", "1111111", "0000000", "1000000", "0111111", "1010101",
    "0000001", "0101010", "1111111",
)  # fmt: skip

RUNGS = ("1111111", "1111110", "0000001")
"""Everything, no LiDAR, no camera."""

MODES = {
    "invalid": Box3DArray.MODE_INVALID,
    "camera": Box3DArray.MODE_CAMERA,
    "lidar": Box3DArray.MODE_LIDAR,
    "fusion": Box3DArray.MODE_FUSION,
}

StartRig = Callable[..., subprocess.Popen]


@pytest.fixture
def fast_bundle() -> Path:
    """The toy bundle: a result costs a few milliseconds, so all of them come in time."""
    if "BEV_TOY_BUNDLE" not in os.environ:
        pytest.skip("no toy bundle: set BEV_TOY_BUNDLE to what tests/make_toy_bundle.py wrote")
    return Path(os.environ["BEV_TOY_BUNDLE"]).resolve()


@pytest.fixture
def start_rig(ros_domain: int, tmp_path: Path) -> Iterator[StartRig]:
    """Start the other process; what still runs at the end is killed."""
    started: list[subprocess.Popen] = []

    def start(*arguments: str) -> subprocess.Popen:
        command = [sys.executable, str(PROGRAM), str(tmp_path / "rig.json"), *arguments]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def names_of(digits: str) -> set[str]:
    return {name for name, digit in zip(SENSORS, digits, strict=True) if digit == "1"}


def mode_of(sensors: set[str]) -> int:
    if LIDAR in sensors:
        return MODES["fusion" if len(sensors) > 1 else "lidar"]
    return MODES["camera" if sensors else "invalid"]


class Heard:
    """Results with the time at which they came."""

    def __init__(self, listener: Any) -> None:
        self.boxes: list[Box3DArray] = []
        self.times_ns: list[int] = []
        listener.node.create_subscription(Box3DArray, "/bev/output/boxes", self._take, 1000)

    def _take(self, message: Box3DArray) -> None:
        self.boxes.append(message)
        self.times_ns.append(time.time_ns())

    def last_used(self) -> set[str] | None:
        return set(self.boxes[-1].sensors_used) if self.boxes else None

    def check(self) -> None:
        """Each result's mode is that of its own sensors, and stamps grow."""
        for message in self.boxes:
            assert message.mode == mode_of(set(message.sensors_used))
            missing = {fault.sensor for fault in message.sensors_missing}
            assert missing == set(SENSORS) - set(message.sensors_used)
        stamps = [convert.to_stamp_ns(message.header) for message in self.boxes]
        assert stamps == sorted(set(stamps))


def start_node(start: Callable[..., Any], bundle: Path, folder: Path) -> Any:
    return start(
        "bev_node",
        bundle=bundle,
        calibration=folder / "rig.json",
        calibration_timeout_s=60,
        self_test=False,  # the toy has no golden frame
    )


def test_results_go_on_and_say_which_sensors_they_are_from(
    start: Callable[..., Any], start_rig: StartRig, listener: Any, fast_bundle: Path, tmp_path: Path
) -> None:
    script = json.dumps([[index * DWELL_S, digits] for index, digits in enumerate(SUBSETS)])
    heard = Heard(listener)
    node = start_node(start, fast_bundle, tmp_path)
    # Two processes may take seconds to find each other: the script starts when they have.
    rig = start_rig("--hold", "--script", script, "--seconds", str(len(SUBSETS) * DWELL_S))
    listener.spin_until(lambda: heard.last_used() == names_of(SUBSETS[0]), "the first subset")
    begin = len(heard.boxes)
    rig.send_signal(signal.SIGUSR1)
    listener.spin_until(lambda: rig.poll() is not None, "the script has ended")
    assert rig.stdout is not None
    lines = [json.loads(line) for line in rig.stdout if line.startswith("{")]
    changes = [(line["time_ns"], line["alive"]) for line in lines if "alive" in line]
    changes = changes[-len(SUBSETS) :]  # one more came before the script
    heard.check()
    times_ns = np.array(heard.times_ns[begin:])
    within = times_ns[(times_ns > changes[0][0]) & (times_ns < changes[-1][0])]
    gaps_s = np.diff(within) * 1e-9
    print(f"gaps between results: median {np.median(gaps_s):.3f}, longest {gaps_s.max():.3f} s")  # noqa: T201
    assert np.median(gaps_s) == pytest.approx(PERIOD_S, abs=0.03)
    assert np.quantile(gaps_s, 0.9) <= 2 * PERIOD_S
    num_settled = num_right = num_wrong = 0
    shown: set[str] = set()
    for message, time_ns in zip(heard.boxes[begin:], heard.times_ns[begin:], strict=True):
        past = [change for change in changes if change[0] <= time_ns]
        later = [change for change in changes if change[0] > time_ns]
        if past and later and time_ns - past[-1][0] > SETTLED_S * 1e9:
            num_settled += 1
            digits = past[-1][1]
            used, sent = set(message.sensors_used), names_of(digits)
            num_wrong += not used <= sent
            if used == sent:
                num_right += 1
                shown.add(digits)
    print(f"settled {num_settled}, right {num_right}, wrong {num_wrong}")  # noqa: T201
    assert num_settled >= len(SUBSETS)
    # A rig that is held up on a busy machine sends nothing for a while: its sensors are rightly
    # missing then, in one frame of ten at most. What does not send is never named as used.
    assert num_wrong <= 0.05 * num_settled
    assert num_right >= 0.9 * num_settled
    assert shown == set(SUBSETS)
    assert node.interrupt() == 0
    assert "Traceback" not in node.output
    assert "frame lost" not in node.output


def test_a_killed_rig_comes_back_and_a_changed_calibration_is_used(
    start: Callable[..., Any], start_rig: StartRig, listener: Any, fast_bundle: Path, tmp_path: Path
) -> None:
    heard = Heard(listener)
    node = start_node(start, fast_bundle, tmp_path)
    rig = start_rig()
    everything = set(SENSORS)
    listener.spin_until(lambda: heard.last_used() == everything, "all sensors are used")
    epoch = heard.boxes[-1].calibration_epoch
    # Another focal length for one camera, while the others go on.
    info = convert.to_camera_info(
        calibration(160, 90).cameras[CAMERAS[0]], convert.make_header(1, "c")
    )
    info.k[0] = info.k[4] = info.p[0] = info.p[5] = 150.0
    publisher = listener.node.create_publisher(
        CameraInfo, "/bev/input/camera_info0", qos_profile_sensor_data
    )
    begin = len(heard.boxes)

    def changed() -> bool:
        publisher.publish(info)
        return heard.boxes[-1].calibration_epoch > epoch and heard.last_used() == everything

    listener.spin_until(changed, "the new calibration is used")
    epochs = [message.calibration_epoch for message in heard.boxes[begin:]]
    assert epochs == sorted(epochs)
    assert epochs[-1] == epoch + 1  # sent again and again, changed once
    rig.kill()
    listener.spin_until(lambda: heard.boxes[-1].mode == MODES["invalid"], "nothing is sent")
    num = len(heard.boxes)
    listener.spin_until(lambda: len(heard.boxes) > num + 5, "results go on")
    assert {message.mode for message in heard.boxes[num:]} == {MODES["invalid"]}
    start_rig()
    listener.spin_until(lambda: heard.last_used() == everything, "all sensors are used again")
    heard.check()
    assert node.interrupt() == 0
    assert "Traceback" not in node.output


def test_each_rung_of_the_ladder_is_computed_by_its_own_bundle(
    start: Callable[..., Any], start_rig: StartRig, listener: Any, fast_bundle: Path, tmp_path: Path
) -> None:
    """All sensors, then no LiDAR, then no camera, then all: the bundle that answers is named."""
    heard = Heard(listener)
    bundles = [fast_bundle.with_name(fast_bundle.name + end) for end in ("", "_camera", "_lidar")]
    fusion, camera, lidar = (load_bundle(path).digest for path in bundles)
    assert len({fusion, camera, lidar}) == 3
    node = start(
        "bev_node", bundle=bundles[0], camera_bundle=bundles[1], lidar_bundle=bundles[2],
        calibration=tmp_path / "rig.json", calibration_timeout_s=60, self_test=False,
    )  # fmt: skip
    start_rig("--script", json.dumps([[i * 3.0, s] for i, s in enumerate(RUNGS * 6)]))
    wanted = [(MODES["fusion"], fusion), (MODES["camera"], camera), (MODES["lidar"], lidar)]
    answers: list[tuple[int, str]] = []

    def all_answered() -> bool:
        answers[:] = [(message.mode, message.bundle) for message in heard.boxes]
        return set(wanted) <= set(answers)

    listener.spin_until(all_answered, "all three bundles have answered")
    assert set(answers) <= {*wanted, (MODES["invalid"], fusion)}
    heard.check()
    assert node.interrupt() == 0
    assert "frame lost" not in node.output
