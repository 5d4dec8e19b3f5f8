"""What both executables share: parameters, running a node until a signal, ending cleanly."""

import dataclasses
import signal
import threading
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import rclpy
from rcl_interfaces.msg import ParameterDescriptor
from rclpy.executors import SingleThreadedExecutor
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions

from runtime.api import InputError

WAKE_UP_S = 0.1
"""How long a signal may go unnoticed [s]."""

Settings = TypeVar("Settings")


class Stopped(Exception):  # noqa: N818 - no error
    """A signal came while a node was still being built."""


def parameter(default: Any, meaning: str) -> Any:
    """Field of a dataclass of parameters.

    Args:
        default: Also says the type; a float may be given as a whole number.
        meaning: Content and unit in one line.
    """
    return dataclasses.field(default=default, metadata={"meaning": meaning})


def read_parameters(node: Node, cls: type[Settings]) -> Settings:
    """Declare one read-only ROS parameter per field of a dataclass, and give their values.

    Raises:
        InputError: A value has the wrong type, or the dataclass refuses it.
    """
    values: dict[str, Any] = {}
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        meaning, kind = field.metadata["meaning"], type(field.default)
        # Dynamic typing lets us say what is wrong, and take 0 for 0.0.
        descriptor = ParameterDescriptor(description=meaning, read_only=True, dynamic_typing=True)
        value = node.declare_parameter(field.name, field.default, descriptor).value
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            raise InputError(
                f"Parameter {field.name} is {value!r}, expected a {kind.__name__}: {meaning}"
            )
        values[field.name] = value
    return cls(**values)


class RunnableNode(Protocol):
    """What `run_node` needs besides an rclpy node."""

    finished: threading.Event
    """Set by the node when there is nothing left to do."""

    def close(self) -> None:
        """Stop threads; called once, before the node is destroyed."""


def run_node(make_node: Callable[[threading.Event], Node]) -> int:
    """Run one node until it is finished or SIGINT or SIGTERM comes; both end with exit code 0.

    Our own handlers in place of rclpy's: the context stays valid until the node is closed, and a
    second signal during the clean-up changes nothing.

    Args:
        make_node: Builds a `RunnableNode`; gets the event that is set when a signal has come, for
            waits of its own, which end with `Stopped`.

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
        node = make_node(stop)
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        try:
            while not (stop.is_set() or node.finished.is_set()):
                _spin_once(executor, node)
        finally:
            node.close()
            executor.shutdown()
            node.destroy_node()
    except Stopped:
        pass
    finally:
        rclpy.try_shutdown()
    return 0


def _spin_once(executor: SingleThreadedExecutor, node: Node) -> None:
    try:
        executor.spin_once(timeout_sec=WAKE_UP_S)
    except rclpy_implementation.RCLError as error:
        # On Jazzy a wrong request of another process ends up here; it is no reason to stop.
        node.get_logger().error(f"ROS reported: {error}")
