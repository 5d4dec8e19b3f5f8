"""Processes on a ROS domain of their own, and somebody who listens to them."""

import gc
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "ros2_ws" / "src" / "perception_ros"
# Behind what is installed: the modules that need no ROS are tested where there is none.
sys.path += [str(Path(__file__).parent), str(PACKAGE)]
TIMEOUT_S = 30.0
"""Discovery may take 3 s and a loaded machine several times that."""


@pytest.fixture
def test_bundle() -> Path:
    """A bundle made beforehand: this environment has no onnx to make one."""
    if "BEV_TEST_BUNDLE" not in os.environ:
        pytest.skip("no bundle: set BEV_TEST_BUNDLE to the folder of an exported one")
    return Path(os.environ["BEV_TEST_BUNDLE"]).resolve()


@pytest.fixture
def ros_domain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A ROS domain that no other test on this machine uses, on loopback with much shared memory.

    LOCALHOST sees 32 participants a domain, so tests must not share one; a held port claims it.
    A lifecycle node refers to itself: until it is collected its services are there and answer.
    """
    gc.collect()
    for domain in range(1, 102):
        claim = socket.socket()
        try:
            claim.bind(("127.0.0.1", 17000 + domain))
        except OSError:
            claim.close()
            continue
        old = os.environ.get("ROS_DISTRO") in ("humble", "jazzy")  # the other name is not read
        profile = f"{'FASTRTPS' if old else 'FASTDDS'}_DEFAULT_PROFILES_FILE"
        for name, value in {
            "ROS_DOMAIN_ID": str(domain),
            "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
            "ROS_LOG_DIR": str(tmp_path / "ros_log"),
            profile: str(PACKAGE / "config" / "fastdds.xml"),
        }.items():
            monkeypatch.setenv(name, value)
        with claim:
            yield domain
        return
    pytest.fail("all ROS domains 1..101 are claimed")


class RosProcess:
    """An executable of the package, in a session of its own."""

    def __init__(self, executable: str, parameters: dict[str, Any], log: Path, *more: str) -> None:
        from ament_index_python.packages import get_package_prefix

        path = Path(get_package_prefix("perception"), "lib", "perception", executable)
        pairs = [
            word
            for name, value in parameters.items()
            for word in (
                "-p",
                f"{name}:={str(value).lower() if isinstance(value, bool) else value}",
            )
        ]
        self.log = log
        with log.open("w") as file:
            self.popen = subprocess.Popen(
                [str(path), "--ros-args", *pairs, *more],
                stdout=file,
                stderr=subprocess.STDOUT,
                env=dict(os.environ),
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        return self.log.read_text()

    def interrupt(self, number: int = signal.SIGINT) -> int:
        """Ask the process to end; gives its exit code."""
        self.popen.send_signal(number)
        return self.popen.wait(TIMEOUT_S)


@pytest.fixture
def start(ros_domain: int, tmp_path: Path) -> Iterator[Callable[..., RosProcess]]:
    """Start executables of the package; what still runs at the end is interrupted, then killed."""
    processes: list[RosProcess] = []

    def start_one(executable: str, *more: str, **parameters: Any) -> RosProcess:
        log = tmp_path / f"{executable}{len(processes)}.log"
        processes.append(RosProcess(executable, parameters, log, *more))
        return processes[-1]

    yield start_one
    for process in processes:
        if process.popen.poll() is None:
            try:
                process.interrupt()
            except subprocess.TimeoutExpired:
                process.popen.kill()
                process.popen.wait()


class Listener:
    """A node in the test's process that keeps what it hears."""

    def __init__(self) -> None:
        import rclpy
        from rclpy.executors import SingleThreadedExecutor
        from rclpy.signals import SignalHandlerOptions

        rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
        self.node = rclpy.create_node("listener")
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self.node)

    def hear(self, kind: type, topic: str, qos: Any = 1000) -> list[Any]:
        """A list that fills with a topic's messages."""
        heard: list[Any] = []
        self.node.create_subscription(kind, topic, heard.append, qos)
        return heard

    def spin_until(
        self, condition: Callable[[], bool], why: str, timeout_s: float = TIMEOUT_S
    ) -> None:
        """Wait until something holds; fail after `timeout_s`."""
        end = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < end, f"waited {timeout_s} s in vain until {why}"
            self._executor.spin_once(timeout_sec=0.05)

    def close(self) -> None:
        import rclpy

        self._executor.shutdown()
        self.node.destroy_node()
        rclpy.try_shutdown()


@pytest.fixture
def listener(ros_domain: int) -> Iterator[Listener]:
    node = Listener()
    yield node
    node.close()
