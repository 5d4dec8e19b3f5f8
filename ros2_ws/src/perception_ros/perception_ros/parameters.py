"""ROS parameters from a dataclass: one field, one parameter, one line of meaning."""

import dataclasses
from array import array
from collections.abc import Sequence
from typing import Any, TypeVar

from rcl_interfaces.msg import ParameterDescriptor
from rclpy.node import Node

from runtime.api import InputError

Settings = TypeVar("Settings")


def parameter(default: Any, meaning: str) -> Any:
    """Field of a dataclass of parameters.

    Args:
        default: Also says the type; a float may be given as a whole number, a tuple is a list of
            floats.
        meaning: Content and unit in one line.
    """
    return dataclasses.field(default=default, metadata={"meaning": meaning})


def declare_parameters(node: Node, cls: type[Any]) -> None:
    """Declare one ROS parameter per field; a value of a wrong type is refused when it is read."""
    for field in dataclasses.fields(cls):
        default = list(field.default) if isinstance(field.default, tuple) else field.default
        # Dynamic typing lets us say what is wrong, and take 0 for 0.0.
        descriptor = ParameterDescriptor(description=field.metadata["meaning"], dynamic_typing=True)
        node.declare_parameter(field.name, default, descriptor)


def read_parameters(node: Node, cls: type[Settings]) -> Settings:
    """Values of declared parameters.

    Raises:
        InputError: A value has the wrong type, or the dataclass refuses it.
    """
    values: dict[str, Any] = {}
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        value, kind = node.get_parameter(field.name).value, type(field.default)
        if kind is float and type(value) is int:
            value = float(value)
        if kind is tuple:
            value = to_floats(value)
        if type(value) is not kind:
            expected = "list of numbers" if kind is tuple else kind.__name__
            raise InputError(
                f"Parameter {field.name} is {node.get_parameter(field.name).value!r}, expected a "
                f"{expected}: {field.metadata['meaning']}"
            )
        values[field.name] = value
    return cls(**values)


def to_floats(value: Any) -> tuple[float, ...] | None:
    """A ROS array of numbers as a tuple; None where it is no such thing."""
    if not isinstance(value, array | Sequence) or isinstance(value, str | bytes):
        return None
    if not all(type(item) in (int, float) for item in value):
        return None
    return tuple(float(item) for item in value)
