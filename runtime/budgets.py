"""What a replay may cost: limits from a JSON file, per hardware, and what broke them."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perception import json_codec
from perception.errors import InputError
from perception.provenance import environment
from runtime.replay_report import STATISTICS

FORMAT_VERSION = 1
"""Raised when an older version could misread a newer file."""

SHARES = ("dropped", "incomplete", "invalid")
"""Parts of a replay's frames that can be limited: overtaken (of all), without every sensor, and
without any sensor (of those given out)."""

COUNTERS = (
    "frames",
    "frames_without_sensor",
    "engine_failures",
    "dropped_boxes",
    "dropped_pillars",
    "dropped_voxels",
    "bad_map_cells",
)
"""Counters of the pipeline and the ladder that can be limited."""

STAGES = (
    "decode",
    "waiting for sensors",
    "waiting for pipeline",
    "preprocess",
    "preprocess/images",
    "preprocess/pool_table",
    "preprocess/depth_image",
    "preprocess/accumulate",
    "preprocess/pillars",
    "engine",
    "postprocess",
    "total",
    "age of oldest sensor",
    "jitter",
)
"""Stages of a report whose times can be limited."""


@dataclass(frozen=True, kw_only=True)
class HardwareBudget:
    """Limits for one machine and one model."""

    processor: str
    """Part of the processor's name, as in the report."""
    cpu_count: int
    """Its cores."""
    engine: str
    """Part of the engine's description, as in the report."""
    recipe: str
    """Recipe of the bundle."""
    stages_ms: dict[str, dict[str, float]]
    """One of `STAGES` -> mean_ms, p50_ms, p95_ms, p99_ms or max_ms -> longest time [ms]."""

    def __post_init__(self) -> None:
        """Refuse what no report has."""
        _require_stages(self.stages_ms)


@dataclass(frozen=True, kw_only=True)
class Budgets:
    """A budget file. Shares and counts hold anywhere, times on the hardware that they name."""

    format_version: int
    shares: dict[str, float]
    """One of `SHARES` -> largest part, 0..1."""
    counts: dict[str, int]
    """One of `COUNTERS` -> largest number."""
    stamp_clock_ms: dict[str, dict[str, float]]
    """As `stages_ms`, for stages that a virtual clock measures by the stamps alone: the same on
    every machine, and not looked at with a wall clock."""
    hardware: tuple[HardwareBudget, ...]

    def __post_init__(self) -> None:
        """Refuse another format and what no report has."""
        if self.format_version != FORMAT_VERSION:
            raise ValueError(
                f"format is {self.format_version}, this version reads {FORMAT_VERSION}"
            )
        _require_known("shares", self.shares, SHARES)
        _require_known("counts", self.counts, COUNTERS)
        _require_stages(self.stamp_clock_ms)


@dataclass(frozen=True, kw_only=True)
class BudgetVerdict:
    """How a replay did against its budget."""

    hardware: str
    """What it ran on."""
    known_hardware: bool
    """Whether the file has times for it; if not, times were reported and not judged."""
    num_checked: int
    """Limits that were looked at."""
    breaches: tuple[str, ...]
    """One sentence each: what, got, allowed."""

    def text(self) -> str:
        """For people."""
        times = "" if self.known_hardware else "; no times are written for it: reported, not judged"
        lines = [
            f"budget    {len(self.breaches)} of {self.num_checked} limits broken on "
            f"{self.hardware}{times}"
        ]
        return "\n".join([*lines, *(f"  {breach}" for breach in self.breaches)]) + "\n"


def read_budgets(path: Path) -> Budgets:
    """Read a budget file.

    Raises:
        InputError: It is absent or has another form.
    """
    try:
        text = path.read_text()
    except OSError as error:
        raise InputError(
            f"Budget {path} cannot be read ({error.strerror}): see "
            "tests/test_replay/budgets.json for one."
        ) from error
    return json_codec.from_json(Budgets, text, str(path))


def judge(report: Mapping[str, Any], budgets: Budgets) -> BudgetVerdict:
    """Hold a replay's report against a budget; a stage that never ran breaks its limits."""
    machine = environment()
    name = f"{machine['cpu_count']} x {machine['processor']}"
    times = [
        budget.stages_ms
        for budget in budgets.hardware
        if budget.processor in str(machine["processor"])
        and budget.cpu_count == machine["cpu_count"]
        and budget.engine in report["engine"]
        and budget.recipe == report["recipe"]
    ]
    virtual = [budgets.stamp_clock_ms] if report["clock"] == "virtual" else []
    limits = [*_counted(report, budgets)]
    for stages_ms in (*times, *virtual):
        limits += _timed(report, stages_ms)
    return BudgetVerdict(
        hardware=f"{name}, {report['engine']}",
        known_hardware=bool(times),
        num_checked=len(limits),
        breaches=tuple(
            f"{what}: {'not measured' if math.isnan(got) else f'got {got:g}'}, allowed {allowed:g}"
            for what, got, allowed in limits
            if not got <= allowed
        ),
    )


def _counted(report: Mapping[str, Any], budgets: Budgets) -> Iterator[tuple[str, float, float]]:
    """What, got, allowed."""
    num_in, num_out = max(report["frames_in"], 1), max(report["frames_out"], 1)
    shares = {
        "dropped": sum(report["frames_dropped"].values()) / num_in,
        "incomplete": report["frames_incomplete"] / num_out,
        "invalid": report["frames_by_mode"].get("invalid", 0) / num_out,
    }
    for name, allowed in budgets.shares.items():
        yield f"share of {name} frames", shares[name], allowed
    for name, most in budgets.counts.items():
        yield name, float(report["pipeline"].get(name, 0)), float(most)


def _timed(
    report: Mapping[str, Any], stages_ms: Mapping[str, Mapping[str, float]]
) -> Iterator[tuple[str, float, float]]:
    for stage, limits in stages_ms.items():
        if stage == "waiting for pipeline" and report["clock"] == "virtual":
            continue  # nothing waits there
        measured = report["latency"].get(stage, {})
        for statistic, allowed in limits.items():
            yield f"{statistic} of {stage}", measured.get(statistic, math.nan), allowed


def _require_known(what: str, names: Iterable[str], known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            raise ValueError(f"{what} name {name!r}, expected one of {', '.join(known)}")


def _require_stages(stages_ms: Mapping[str, Mapping[str, float]]) -> None:
    _require_known("stages", stages_ms, STAGES)
    for limits in stages_ms.values():
        _require_known("statistics", limits, STATISTICS)
