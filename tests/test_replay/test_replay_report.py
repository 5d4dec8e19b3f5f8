from pathlib import Path
from typing import Any

import pytest
from matplotlib.axes import Axes

from perception.errors import InputError
from runtime import replay_report

LATENCY = {
    name: {"count": 4, "mean_ms": base + 1.0, "p50_ms": base + 2.0, "p95_ms": base + 3.0,
           "p99_ms": base + 4.0, "max_ms": base + 5.0}
    for name, base in (("engine", 10.0), ("total", 20.0))
}  # fmt: skip
REPORT: dict[str, Any] = {
    "bundles": [{"name": "b", "recipe": "toy", "sha256": "0123456789abcdef", "frames": 4}],
    "engine": "CPU", "warm_up_ms": 1.0, "log": "log", "scenes": ["scene"], "clock": "virtual",
    "period_ms": 100.0, "messages": {}, "missing_files": {"CAM_BACK": 1}, "faults": {},
    "frames_in": 5, "frames_out": 4, "frames_dropped": {"overtaken": 1}, "frames_incomplete": 2,
    "frames_by_sensors_used": {}, "frames_by_mode": {"fusion": 4}, "mode_switches": 3,
    "frames_without": {"CAM_BACK": 2}, "synchronizer": {"CAM_BACK: late": 6}, "pipeline": {},
    "ended_early": ["bag cannot be read on"],
    "sensors": {
        "CAM_BACK": {"offset_min_ms": -43.2, "offset_median_ms": -10.4, "offset_max_ms": 2.04,
                     "rate_hz": 11.96},
        "LIDAR_TOP": {"offset_min_ms": 0.0, "offset_median_ms": 0.0, "offset_max_ms": 0.0,
                      "rate_hz": None},
    },
    "latency": LATENCY, "latency_meaning": "meaning", "clock_held_back_s": 0.5,
    "environment": {"cpu_count": 2, "processor": "P", "commit": "c", "date_utc": "d"},
}  # fmt: skip


def test_the_page_has_each_time_under_its_name_and_every_verdict() -> None:
    page = replay_report.markdown(REPORT, "the command", ["golden equal\n"], "latency.png")
    lines = page.split("## Latency")[1].splitlines()
    head = next(line for line in lines if line.startswith("| stage |"))
    names = [cell.strip() for cell in head.strip("|").split("|")]
    for stage, times in LATENCY.items():
        row = next(line for line in lines if line.startswith(f"| {stage} |"))
        cells = dict(zip(names, (cell.strip() for cell in row.strip("|").split("|")), strict=True))
        assert cells["n"] == "4"
        for name in ("mean", "p50", "p95", "p99", "max"):
            assert float(cells[name]) == times[f"{name}_ms"]
    for words in (
        "5 in, 4 out, dropped: overtaken 1; 2 incomplete", "fusion 4; 3 switches",
        "| ended early | bag cannot be read on |", "| sensor [ms] | min | median | max | Hz |",
        "| CAM_BACK | -43.2 | -10.4 | 2.0 | 12.0 |", "| LIDAR_TOP | 0.0 | 0.0 | 0.0 | - |",
        "CAM_BACK: late 6", "`the command`", "golden equal", "](latency.png)",
    ):  # fmt: skip
        assert words in page


def test_the_picture_marks_the_percentiles_of_its_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels: list[str] = []
    draw = Axes.axvline

    def axvline(axes: Axes, *place: float, label: str, **style: str) -> object:
        labels.append(label)
        return draw(axes, *place, label=label, **style)

    monkeypatch.setattr(Axes, "axvline", axvline)
    # 1..200 ms in another order: half are <= 100, 99 of 100 are <= 198
    samples = {"total": [float(1 + i * 7 % 200) for i in range(200)], "jitter": [3.0]}
    replay_report.save_histogram(tmp_path / "a.png", samples, "title")
    assert labels == ["p50 100.0", "p99 198.0", "p50 3.0", "p99 3.0"]
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_memory_is_in_mebibytes() -> None:
    # a Python with numpy takes tens of MiB, and no test takes a hundred GiB
    assert 20 < replay_report.peak_memory_mib() < 100_000


def test_a_report_without_its_picture_is_refused_before_the_replay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"needs matplotlib: pip install"):
        replay_report.make_folder(tmp_path / "report")
    assert not (tmp_path / "report").exists()
