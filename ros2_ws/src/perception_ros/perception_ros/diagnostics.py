"""The node's state as a diagnostics message. Pure functions, no node."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue

from perception_ros.convert import make_header
from perception_ros.result_messages import MODE_NAMES, mode_of
from runtime.api import PerceptionResult


@dataclass(frozen=True, kw_only=True)
class NodeState:
    """What is reported about a running node."""

    name: str
    """Fully qualified name of the node."""
    bundle_digest: str
    cameras: tuple[str, ...]
    """Cameras of the bundle."""
    result: PerceptionResult | None
    """The newest result; None before the first."""
    silent_s: float
    """Time since the newest result, or since start [s]."""
    max_silent_s: float
    """Longer than this without a result is an error [s]."""
    latency_ms: float
    """From the frame being complete to the newest result being published [ms]."""
    counters: Mapping[str, int]
    """Everything that was dropped or overtaken, by reason, since start."""


def to_diagnostics(state: NodeState, now_ns: int) -> DiagnosticArray:
    """One status: is there output, from which sensors, what was dropped."""
    level, message = _judge(state)
    values: dict[str, object] = {"bundle": state.bundle_digest[:12]}
    if state.result is not None:
        values["mode"] = MODE_NAMES[mode_of(state.result.sensors_used, state.cameras)]
        values["sensors_used"] = " ".join(state.result.sensors_used)
        values |= {f"missing: {name}": why for name, why in state.result.sensors_missing.items()}
        values["stamp_ns"] = state.result.stamp_ns
        values["latency_ms"] = f"{state.latency_ms:.1f}"
        values |= {f"{name}_ms": f"{ms:.1f}" for name, ms in state.result.stage_ms.items()}
    values["silent_s"] = f"{state.silent_s:.2f}"
    values |= {f"count: {reason}": number for reason, number in sorted(state.counters.items())}
    status = DiagnosticStatus(
        level=level,
        name=f"{state.name}: perception",
        message=message,
        hardware_id=state.bundle_digest[:12],
        values=[KeyValue(key=key, value=str(value)) for key, value in values.items()],
    )
    return DiagnosticArray(header=make_header(now_ns, ""), status=[status])


def _judge(state: NodeState) -> tuple[bytes, str]:
    result = state.result
    if result is None:
        return DiagnosticStatus.STALE, "waiting for sensor data"
    if state.silent_s > state.max_silent_s:
        return DiagnosticStatus.ERROR, f"no result for {state.silent_s:.1f} s"
    mode = MODE_NAMES[mode_of(result.sensors_used, state.cameras)]
    if not result.sensors_used:
        return DiagnosticStatus.ERROR, f"no usable sensor: {_names(result.sensors_missing)}"
    if result.sensors_missing:
        return DiagnosticStatus.WARN, f"{mode}, without {_names(result.sensors_missing)}"
    return DiagnosticStatus.OK, mode


def _names(sensors: Collection[str]) -> str:
    return ", ".join(sensors)
