import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest

from perception.errors import InputError
from perception.provenance import environment
from runtime import budgets as budgets_module
from runtime.budgets import COUNTERS, STAGES, Budgets, HardwareBudget, judge, read_budgets

OWN_FILE = Path(__file__).with_name("budgets.json")


def report(clock: str = "virtual") -> dict[str, Any]:
    return {
        "engine": "ONNX Runtime, CPU",
        "recipe": "toy",
        "clock": clock,
        "frames_in": 20,
        "frames_out": 10,
        "frames_dropped": {"overtaken": 10},
        "frames_incomplete": 1,
        "frames_by_mode": {"fusion": 10},
        "pipeline": {"frames": 10, "engine_failures": 2},
        "latency": {
            "engine": {"p50_ms": 5.0, "p99_ms": 9.0},
            "waiting for sensors": {"max_ms": 50.0},
        },
    }


def budgets(**changes: Any) -> Budgets:
    machine = environment()
    known = HardwareBudget(
        processor=str(machine["processor"]),
        cpu_count=int(str(machine["cpu_count"])),
        engine="CPU",
        recipe=changes.pop("recipe", "toy"),
        stages_ms={"engine": {"p50_ms": 5.0, "p99_ms": 8.0}},
    )
    values: dict[str, Any] = {
        "format_version": 1, "shares": {}, "counts": {}, "stamp_clock_ms": {}, "hardware": (known,)
    }  # fmt: skip
    return Budgets(**{**values, **changes})


def test_known_hardware_is_held_to_its_times_and_a_breach_names_stage_got_and_allowed() -> None:
    verdict = judge(report(), budgets())
    assert verdict.known_hardware
    assert verdict.num_checked == 2
    assert verdict.breaches == ("p99_ms of engine: got 9, allowed 8",)


def test_on_unknown_hardware_only_shares_and_counts_are_judged() -> None:
    verdict = judge(
        report(),
        budgets(
            recipe="other",
            shares={"dropped": 0.4, "incomplete": 0.1, "invalid": 0.0},
            counts={"engine_failures": 1, "dropped_boxes": 0},
        ),
    )
    assert not verdict.known_hardware
    assert "not judged" in verdict.text()
    # 10 of 20 dropped; 1 of 10 incomplete is allowed
    assert verdict.breaches == (
        "share of dropped frames: got 0.5, allowed 0.4", "engine_failures: got 2, allowed 1"
    )  # fmt: skip


def test_every_share_can_be_broken() -> None:
    bad = {**report(), "frames_incomplete": 3, "frames_by_mode": {"fusion": 8, "invalid": 2}}
    limits = budgets(shares={"dropped": 0.49, "incomplete": 0.29, "invalid": 0.19}, recipe="other")
    # of 20 that came 10 were dropped; of 10 given out 3 were incomplete and 2 invalid
    assert judge(bad, limits).breaches == (
        "share of dropped frames: got 0.5, allowed 0.49",
        "share of incomplete frames: got 0.3, allowed 0.29",
        "share of invalid frames: got 0.2, allowed 0.19",
    )
    kept = budgets(shares={"dropped": 0.5, "incomplete": 0.3, "invalid": 0.2}, recipe="other")
    assert judge(bad, kept).breaches == ()


@pytest.mark.parametrize(
    "other", [{"processor": "of another maker"}, {"cpu_count": 4096}, {"engine": "TensorRT"}]
)
def test_times_of_other_hardware_judge_nothing(other: dict[str, Any]) -> None:
    (known,) = budgets().hardware
    verdict = judge(report(), budgets(hardware=(dataclasses.replace(known, **other),)))
    assert (verdict.known_hardware, verdict.num_checked) == (False, 0)


def test_waits_by_the_stamps_are_judged_on_the_virtual_clock_only() -> None:
    limits = budgets(stamp_clock_ms={"waiting for sensors": {"max_ms": 49.0}}, recipe="other")
    assert judge(report(), limits).breaches == (
        "max_ms of waiting for sensors: got 50, allowed 49",
    )
    assert judge(report("wall"), limits).num_checked == 0


def test_a_budget_of_something_that_is_not_measured_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_budgets(tmp_path / "none.json")
    content = json.loads(OWN_FILE.read_text())
    wrong = tmp_path / "wrong.json"
    (hardware,) = content["hardware"]
    for part, words in (
        ({"shares": {"lost": 0.1}}, "shares name 'lost', expected one of dropped"),
        ({"counts": {"engine_failure": 0}}, "counts name 'engine_failure', expected one of frames"),
        ({"stamp_clock_ms": {"motor": {"p50_ms": 1.0}}}, "stages name 'motor'"),
        ({"stamp_clock_ms": {"engine": {"p42_ms": 1.0}}}, "statistics name 'p42_ms'"),
        ({"hardware": [{**hardware, "stages_ms": {"motor": {}}}]}, "stages name 'motor'"),
    ):
        wrong.write_text(json.dumps({**content, **part}))
        with pytest.raises(InputError, match=words):
            read_budgets(wrong)


def test_what_was_not_measured_keeps_no_limit() -> None:
    limits = budgets(
        stamp_clock_ms={"total": {"p50_ms": 1e9}, "waiting for pipeline": {"p50_ms": 1.0}},
        recipe="other",
    )
    # nothing waits for the pipeline on a virtual clock
    assert judge(report(), limits).breaches == ("p50_ms of total: not measured, allowed 1e+09",)


def test_every_counter_and_stage_of_the_runtime_can_be_limited() -> None:
    runtime = Path(budgets_module.__file__).parent
    text = "".join((runtime / name).read_text() for name in ("pipeline.py", "ladder.py"))
    counted = set(re.findall(r'ounters\["(\w+)"\]', text))
    assert counted == set(COUNTERS)
    timed = set(re.findall(r'[rR]ecorder\.add\("([^"]+)"', "".join(
        (runtime / name).read_text() for name in ("log_feed.py", "output_times.py")
    )))  # fmt: skip
    assert timed <= set(STAGES)
