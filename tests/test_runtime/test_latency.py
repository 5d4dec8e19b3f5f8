import numpy as np

from runtime.latency import LatencyRecorder


def test_percentiles_are_times_that_occurred() -> None:
    recorder = LatencyRecorder()
    for time_ms in np.random.default_rng(0).permutation(np.arange(1, 101)):  # 1..100 ms
        recorder.add("engine", float(time_ms))
    summary = recorder.summaries()["engine"]
    # Half of 100 samples are <= 50, 95 of them <= 95, 99 of them <= 99.
    assert (summary.p50_ms, summary.p95_ms, summary.p99_ms, summary.max_ms) == (50, 95, 99, 100)
    assert summary.mean_ms == 50.5
    assert summary.count == 100


def test_table_has_one_line_per_stage_in_the_order_of_the_frame() -> None:
    recorder = LatencyRecorder()
    recorder.add_all({"preprocess": 1.5, "engine": 20.0})
    recorder.add("total", 21.5)
    lines = recorder.table().splitlines()
    assert [line.split()[0] for line in lines] == ["stage", "preprocess", "engine", "total"]
    assert "20.00" in lines[2]
    assert len({len(line) for line in lines}) == 1


def test_memory_is_bounded_and_the_newest_samples_stay() -> None:
    recorder = LatencyRecorder(max_samples=3)
    for time_ms in (100, 1, 2, 3):
        recorder.add("engine", time_ms)
    assert recorder.summaries()["engine"].max_ms == 3


def test_nothing_recorded_is_no_error() -> None:
    assert LatencyRecorder().summaries() == {}
    assert LatencyRecorder().table().startswith("stage")
