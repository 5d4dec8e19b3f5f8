"""What a replay may cost: limits from a JSON file, per hardware, and what broke them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perception import json_codec
from perception.errors import InputError
from perception.provenance import environment

FORMAT_VERSION = 1
"""Raised when an older version could misread a newer file."""

SHARES = ("dropped", "incomplete", "invalid")
"""Parts of a replay's frames that can be limited: overtaken (of all), without every sensor, and
without any sensor (of those given out)."""


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
    """Stage -> p50_ms, p95_ms, p99_ms, max_ms or mean_ms -> longest time [ms]."""


@dataclass(frozen=True, kw_only=True)
class Budgets:
    """A budget file. Shares and counts hold anywhere, times on the hardware that they name."""

    format_version: int
    shares: dict[str, float]
    """One of `SHARES` -> largest part, 0..1."""
    counts: dict[str, int]
    """Counter of the pipeline, such as engine_failures -> largest number."""
    stamp_clock_ms: dict[str, dict[str, float]]
    """As `stages_ms`, for stages that a virtual clock measures by the stamps alone: the same on
    every machine, and not looked at with a wall clock."""
    hardware: tuple[HardwareBudget, ...]

    def __post_init__(self) -> None:
        """Refuse another format and unknown shares."""
        if self.format_version != FORMAT_VERSION:
            raise ValueError(
                f"format is {self.format_version}, this version reads {FORMAT_VERSION}"
            )
        if unknown := set(self.shares) - set(SHARES):
            raise ValueError(f"shares name {sorted(unknown)}, expected some of {SHARES}")


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
    """Hold a replay's report against a budget.

    Raises:
        InputError: The budget limits a stage or a counter that the replay does not have.
    """
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
            f"{what}: got {got:g}, allowed {allowed:g}"
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
        measured = report["latency"].get(stage)
        for statistic, allowed in limits.items():
            if measured is None or statistic not in measured:
                raise InputError(
                    f"The budget limits {statistic} of {stage!r}, the replay has "
                    f"{', '.join(report['latency'])}: write one of these."
                )
            yield f"{statistic} of {stage}", measured[statistic], allowed
