"""The node's state as a diagnostics message. Pure functions, no node.

One status for the node, one per sensor, one for the times.
"""

from collections.abc import Collection
from dataclasses import dataclass

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue

from perception_ros.convert import make_header
from perception_ros.perception_loop import LoopState
from perception_ros.result_messages import KNOWN_BIT, MAX_MASK_CLASSES
from runtime.api import LIDAR


@dataclass(frozen=True, kw_only=True)
class NodeState:
    """What is reported about a node."""

    name: str
    """Fully qualified name of the node."""
    lifecycle: str
    """unconfigured, inactive, active or finalized."""
    problem: str
    """Why the last transition failed; empty where it did not."""
    bundle_digest: str
    """sha256 of the bundle of all sensors; empty before configure."""
    cameras: tuple[str, ...]
    """Cameras of the bundle; empty before configure."""
    map_classes: tuple[str, ...]
    """Map classes of the bundle; empty before configure."""
    max_silent_s: float
    """Longer than this without a result is an error [s]."""
    loop: LoopState | None
    """What happens on the topics; None where the node is not active."""


def to_diagnostics(state: NodeState, now_ns: int) -> DiagnosticArray:
    """Is there output, from which sensors, in what time, and what was dropped."""
    statuses = [_node(state)]
    if state.loop is not None:
        sensors = (*state.cameras, LIDAR)
        statuses += [_sensor(state, state.loop, sensor) for sensor in sensors]
        statuses.append(_times(state, state.loop))
    return DiagnosticArray(header=make_header(now_ns, ""), status=statuses)


def _node(state: NodeState) -> DiagnosticStatus:
    level, message = _judge(state)
    values: dict[str, object] = {"lifecycle": state.lifecycle, "bundle": state.bundle_digest}
    for index, name in enumerate(state.map_classes[:MAX_MASK_CLASSES]):
        values[f"map_mask bit {1 << index:#04x}"] = name
    values[f"map_mask bit {KNOWN_BIT:#04x}"] = "known"
    loop = state.loop
    if loop is not None:
        values["calibration_epoch"] = loop.calibration_epoch
        if loop.calibration_fault is not None:
            values["calibration refused"] = loop.calibration_fault
        values["silent_s"] = f"{loop.silent_s:.2f}"
        if loop.result is not None:
            values["mode"] = loop.result.mode
            values["sensors_used"] = " ".join(loop.result.sensors_used)
            values["stamp_ns"] = loop.result.stamp_ns
            values["computed by bundle"] = loop.result.bundle_digest
        values |= {f"count: {reason}": num for reason, num in sorted(loop.counters.items())}
    return _status(state, "perception", level, message, values)


def _judge(state: NodeState) -> tuple[bytes, str]:
    if state.problem:
        return DiagnosticStatus.ERROR, f"{state.lifecycle}: {state.problem}"
    if state.loop is None:
        return DiagnosticStatus.STALE, state.lifecycle
    result, silent_s = state.loop.result, state.loop.silent_s
    silent = _is_silent(state, state.loop)
    if state.loop.now_ns == 0:  # simulated time that has not begun
        return DiagnosticStatus.ERROR if silent else DiagnosticStatus.STALE, "no /clock yet"
    if silent:
        return DiagnosticStatus.ERROR, f"no result for {silent_s:.1f} s"
    if result is None:
        return DiagnosticStatus.STALE, "waiting for the first result"
    if result.mode == "invalid":
        return DiagnosticStatus.ERROR, f"no usable sensor: {_names(result.sensors_missing)}"
    if result.sensors_missing:
        return DiagnosticStatus.WARN, f"{result.mode}, without {_names(result.sensors_missing)}"
    return DiagnosticStatus.OK, result.mode


def _is_silent(state: NodeState, loop: LoopState) -> bool:
    return loop.silent_s > state.max_silent_s


def _sensor(state: NodeState, loop: LoopState, sensor: str) -> DiagnosticStatus:
    """Whether the newest result was made from this sensor, and how old its newest message is."""
    values: dict[str, object] = {}
    if sensor in loop.newest_ns:
        values["age_ms"] = f"{(loop.now_ns - loop.newest_ns[sensor]) * 1e-6:.1f}"
    values |= {
        f"count: {reason}": num
        for reason, num in sorted(loop.counters.items())
        if reason.startswith(f"{sensor}:")
    }
    if sensor not in loop.newest_ns:
        level, message = DiagnosticStatus.STALE, "no message yet"
    elif loop.result is None:
        level, message = DiagnosticStatus.STALE, "no result yet"
    elif _is_silent(state, loop):  # what the last result was made from is history
        level, message = DiagnosticStatus.STALE, "no new result"
    elif sensor in loop.result.sensors_used:
        level, message = DiagnosticStatus.OK, "used"
    else:
        level = DiagnosticStatus.WARN
        message = loop.result.sensors_missing.get(sensor, "not used")
    return _status(state, sensor, level, message, values)


def _times(state: NodeState, loop: LoopState) -> DiagnosticStatus:
    values: dict[str, object] = {}
    for stage, summary in loop.latency.items():
        values |= {
            f"{stage} p50_ms": f"{summary.p50_ms:.1f}",
            f"{stage} p95_ms": f"{summary.p95_ms:.1f}",
            f"{stage} p99_ms": f"{summary.p99_ms:.1f}",
        }
    total = loop.latency.get("sensor to output")
    message = f"sensor to output p99 {total.p99_ms:.0f} ms" if total else "no result yet"
    return _status(state, "latency", DiagnosticStatus.OK, message, values)


def _status(
    state: NodeState, part: str, level: bytes, message: str, values: dict[str, object]
) -> DiagnosticStatus:
    return DiagnosticStatus(
        level=level,
        name=f"{state.name}: {part}",
        message=message,
        hardware_id=state.bundle_digest[:12],
        values=[KeyValue(key=key, value=str(value)) for key, value in values.items()],
    )


def _names(sensors: Collection[str]) -> str:
    return ", ".join(sensors)
