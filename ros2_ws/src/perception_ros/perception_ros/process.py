"""What the executables share: running a node until a signal, ending cleanly."""

import signal
import threading
from collections.abc import Callable
from typing import Protocol

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions

from runtime.api import InputError

WAKE_UP_S = 0.1
"""How long a signal may go unnoticed [s]."""


class RunnableNode(Protocol):
    """What `run_node` needs besides an rclpy node."""

    finished: threading.Event
    """Set by the node when there is nothing left to do."""

    def close(self) -> None:
        """Stop threads; called once, before the node is destroyed."""


def run_node(make_node: Callable[[], Node]) -> int:
    """Run one node until it is finished or SIGINT or SIGTERM comes; both end with exit code 0.

    Our own handlers in place of rclpy's: the context stays valid until the node is closed, and a
    second signal during the clean-up changes nothing.

    Args:
        make_node: Builds a `RunnableNode`.

    Raises:
        InputError: The ROS arguments, or what `make_node` reads, are wrong.
    """
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    try:
        rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    except (RuntimeError, ValueError) as error:
        raise InputError(f"The ROS arguments are wrong: {error}") from error
    try:
        node = make_node()
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        try:
            while not (stop.is_set() or node.finished.is_set()):
                _spin_once(executor, node)
        finally:
            node.close()
            executor.shutdown()
            node.destroy_node()
    finally:
        rclpy.try_shutdown()
    return 0


def _spin_once(executor: SingleThreadedExecutor, node: Node) -> None:
    try:
        executor.spin_once(timeout_sec=WAKE_UP_S)
    except rclpy_implementation.RCLError as error:
        # On Jazzy a wrong request of another process ends up here; it is no reason to stop.
        node.get_logger().error(f"ROS reported: {error}")
