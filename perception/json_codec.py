"""Frozen dataclasses to JSON and back, strictly: no unknown key, no missing key, no silent cast."""

import dataclasses
import difflib
import json
import types
import typing
from typing import Any, TypeVar

from perception.errors import InputError

T = TypeVar("T")


def to_json(value: Any) -> str:
    """Write a dataclass as indented JSON with its fields in their order."""
    return json.dumps(dataclasses.asdict(value), indent=2) + "\n"


def from_json(cls: type[T], text: str, source: str) -> T:
    """Read a dataclass back.

    Args:
        cls: The dataclass to build.
        text: The JSON text.
        source: What the text is, for error messages (usually a path).

    Raises:
        InputError: The text is no JSON, or a key is unknown, missing or of the wrong type.
    """
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{source} is not valid JSON ({error}): write it again.") from error
    return typing.cast(T, _decode(cls, value, source))


def _decode(kind: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _decode_dataclass(kind, value, where)
    origin = typing.get_origin(kind)
    arguments = typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _decode(_member(arguments, value, where), value, where)
    if origin is typing.Literal:
        if value not in arguments:
            raise InputError(f"{where} is {value!r}, expected one of {', '.join(arguments)}.")
        return value
    if origin is tuple:
        _expect(value, list, where)
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return tuple(_decode(arguments[0], v, f"{where}[{i}]") for i, v in enumerate(value))
        if len(value) != len(arguments):
            raise InputError(f"{where} has {len(value)} values, expected {len(arguments)}.")
        pairs = zip(arguments, value, strict=True)
        return tuple(_decode(a, v, f"{where}[{i}]") for i, (a, v) in enumerate(pairs))
    if origin is dict:
        _expect(value, dict, where)
        return {k: _decode(arguments[1], v, f"{where}.{k}") for k, v in value.items()}
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError as error:
            raise InputError(f"{where} is an integer too large for a number.") from error
    if kind is int and isinstance(value, bool):
        raise InputError(f"{where} is {value!r}, expected an int.")
    _expect(value, kind, where)
    return value


def _member(arguments: tuple[Any, ...], value: Any, where: str) -> Any:
    """The type of a union that a value is of: dataclasses are told apart by their field `kind`."""
    members = [a for a in arguments if a is not type(None)]
    if len(members) == 1:
        return members[0]
    of_kind = {typing.get_args(typing.get_type_hints(m)["kind"])[0]: m for m in members}
    kind = value.get("kind") if isinstance(value, dict) else None
    if kind not in of_kind:
        raise InputError(f"{where} is of kind {kind!r}, expected one of {', '.join(of_kind)}.")
    return of_kind[kind]


def _decode_dataclass(kind: type, value: Any, where: str) -> Any:
    _expect(value, dict, where)
    hints = typing.get_type_hints(kind)
    names = [field.name for field in dataclasses.fields(kind)]
    for key in value:
        if key not in names:
            close = difflib.get_close_matches(key, names, 1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise InputError(f"{where} has the unknown key {key!r}.{hint}")
    missing = [name for name in names if name not in value]
    if missing:
        raise InputError(f"{where} lacks the key {missing[0]!r}: it is from another version.")
    try:
        return kind(
            **{name: _decode(hints[name], value[name], f"{where}.{name}") for name in names}
        )
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{where}: {error}") from error


def _expect(value: Any, kind: type, where: str) -> None:
    if not isinstance(value, kind):
        raise InputError(f"{where} is {value!r}, expected {kind.__name__}.")
