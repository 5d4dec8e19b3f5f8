import io
import json
import math
import re
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from small_detector import small_config
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from training.config import DataConfig, OptimConfig, TrainConfig
from training.run_log import (
    EVENTS_FILE,
    LINE_SECONDS,
    METRICS_FILE,
    TENSORBOARD_FOLDER,
    RunLog,
    read_events,
    read_metrics,
)

CONFIG = TrainConfig(
    recipe="small",
    detector=small_config(),
    data=DataConfig(split="all", frames="all"),
    optim=OptimConfig(steps=8, batch_size=2, lr=1e-3),
)


def quiet():
    return Console(file=io.StringIO(), soft_wrap=True)


def values_at(step):
    return {"box": 1.0 / step, "total": 0.1 + 0.2 / step, "grad_norm": 3.0, "lr": 1e-3}


def note_steps(run, first_step, last_step, tensorboard=False, console=None):
    with RunLog(run, CONFIG, first_step, tensorboard, console or quiet()) as log:
        for step in range(first_step + 1, last_step + 1):
            if step % 3 == 0:
                log.event(step, "skipped", f"Step {step} was skipped.")
            log.step(step, values_at(step), {"step": 0.5, "data_wait": 0.05})


def test_each_step_is_one_strict_json_object_with_times_apart(tmp_path):
    with RunLog(tmp_path, CONFIG, 0, False, quiet()) as log:
        log.step(1, values_at(1), {"step": 0.5})
        log.step(2, {"total": math.nan, "grad_norm": math.inf}, {"step": 0.25})

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    text = (tmp_path / METRICS_FILE).read_text()
    first, second = (json.loads(line, parse_constant=refuse) for line in text.splitlines())
    assert first == {"step": 1} | values_at(1) | {"timing": {"step": 0.5}}
    assert second == {"step": 2, "total": None, "grad_norm": None, "timing": {"step": 0.25}}
    assert read_metrics(tmp_path) == [first, second]


def test_a_line_is_in_the_file_as_soon_as_its_step_is_done(tmp_path):
    with RunLog(tmp_path, CONFIG, 0, False, quiet()) as log:
        log.step(1, values_at(1), {})
        log.event(1, "damaged", "a.jpg is cut short.")
        log.sync()
        assert len(read_metrics(tmp_path)) == 1
        assert read_events(tmp_path) == [
            {"step": 1, "kind": "damaged", "text": "a.jpg is cut short."}
        ]


def test_resuming_forgets_what_came_after_the_checkpoint(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for run in (whole, broken):
        run.mkdir()
    note_steps(whole, 0, 8)
    note_steps(broken, 0, 7)  # killed after step 7; the checkpoint is of step 4
    with (broken / METRICS_FILE).open("a") as file:
        file.write('{"step": 8, "box"')
    note_steps(broken, 4, 8)
    for name in (METRICS_FILE, EVENTS_FILE):
        assert (broken / name).read_bytes() == (whole / name).read_bytes()
    assert [line["step"] for line in read_metrics(broken)] == list(range(1, 9))


def test_a_line_that_lacks_only_its_end_is_dropped(tmp_path):
    note_steps(tmp_path, 0, 2)  # what is appended to it would be on the same line
    content = (tmp_path / METRICS_FILE).read_bytes()
    (tmp_path / METRICS_FILE).write_bytes(content[:-1])
    note_steps(tmp_path, 2, 3)
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 3]


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_files_cut_anywhere_by_a_kill_are_made_whole(data):
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder)
        note_steps(run, 0, 6)
        steps, events = read_metrics(run), read_events(run)
        for name in (METRICS_FILE, EVENTS_FILE):
            content = (run / name).read_bytes()
            kept = data.draw(st.integers(0, len(content)))
            (run / name).write_bytes(content[:kept])
            lines = content[:kept].count(b"\n")
            first_step = data.draw(st.integers(0, 6))
            expected = (steps if name == METRICS_FILE else events)[:lines]
            RunLog(run, CONFIG, first_step, False, quiet()).close()
            found = read_metrics(run) if name == METRICS_FILE else read_events(run)
            assert found == [line for line in expected if line["step"] <= first_step]
            text = (run / name).read_text()
            assert text == "" or text.endswith("\n")


def scalars(run, tag):
    reader = EventAccumulator(str(run / TENSORBOARD_FOLDER))
    reader.Reload()
    return [(event.step, event.value) for event in reader.Scalars(tag)], reader.Tags()["scalars"]


def test_tensorboard_shows_the_same_numbers_and_forgets_on_resume(tmp_path):
    with RunLog(tmp_path, CONFIG, 0, True, quiet()) as log:
        for step in range(1, 5):
            values = {"total": float(step), "lr": 1e-3, "gradient/alpha_map": 0.5}
            log.step(step, values, {"step": 0.5})
    shown, tags = scalars(tmp_path, "loss/total")
    assert shown == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0)]
    assert set(tags) == {"loss/total", "optim/lr", "time/step", "gradient/alpha_map"}
    with RunLog(tmp_path, CONFIG, 2, True, quiet()) as log:
        log.step(3, {"total": 30.0, "lr": 1e-3}, {"step": 0.5})
    assert scalars(tmp_path, "loss/total")[0] == [(1, 1.0), (2, 2.0), (3, 30.0)]


def test_training_goes_on_without_tensorboard(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    console = quiet()
    note_steps(tmp_path, 0, 2, tensorboard=True, console=console)
    assert console.file.getvalue().splitlines()[0].startswith("TensorBoard is not installed")
    assert len(read_metrics(tmp_path)) == 2
    assert not (tmp_path / TENSORBOARD_FOLDER).exists()


def test_no_tensorboard_where_none_is_wanted(tmp_path):
    console = quiet()
    note_steps(tmp_path, 0, 1, tensorboard=False, console=console)
    assert not (tmp_path / TENSORBOARD_FOLDER).exists()
    assert "TensorBoard" not in console.file.getvalue()


def fields(line):
    return dict(pair.split("=", 1) for pair in line.split())


def test_piped_output_is_lines_of_keys_and_values(tmp_path, capsys):
    with RunLog(tmp_path, CONFIG, 0, False) as log:
        for step in range(1, 9):
            if step == 3:
                log.event(step, "skipped", "The loss is not finite [camera] :warning:.")
            log.step(step, values_at(1), {"step": 0.5, "data_wait": 0.05})
    lines = capsys.readouterr().out.splitlines()
    assert not any("\x1b" in line or "\r" in line for line in lines)
    # fast steps: the first, the event, and the last
    assert len(lines) == 3
    assert lines[1] == "event step=3 kind=skipped The loss is not finite [camera] :warning:."
    first, last = fields(lines[0]), fields(lines[2])
    assert (first["step"], last["step"]) == ("1/8", "8/8")
    # 0.5 s per step of 2 frames: 4 per second, a tenth of it waiting; 7 steps are left
    assert first["samples_per_s"] == "4"
    assert first["data_wait_percent"] == "10.0"
    assert first["eta"] == "0:00:04"  # 3.5 s
    assert first["total"] == "0.3"
    assert float(first["lr"]) == 1e-3
    assert "skipped" not in first
    assert last["skipped"] == "1"


def test_piped_output_comes_again_after_a_while(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("training.run_log.time.perf_counter", lambda: now[0])
    console = quiet()
    with RunLog(tmp_path, CONFIG, 0, False, console) as log:
        for step in range(1, 7):
            now[0] += 0.45 * LINE_SECONDS
            log.step(step, values_at(step), {})
    shown = [fields(line)["step"] for line in console.file.getvalue().splitlines()]
    # at 0.45, then 1.80 (0.90 and 1.35 are less than 1 later), and what is last, at 2.70
    assert shown == ["1/8", "4/8", "6/8"]


def test_shown_losses_are_means_of_what_is_finite(tmp_path):
    console = quiet()
    with RunLog(tmp_path, CONFIG, 0, False, console) as log:
        log.step(1, {"total": 1.0}, {"step": 1.0})
        log.step(2, {"total": math.nan}, {"step": 1.0})
        log.step(3, {"total": 3.0}, {"step": 1.0})
    # weights of an exponential mean over 20 steps: 0.95 and 1 -> (0.95 * 1 + 3) / 1.95 = 2.0256
    assert fields(console.file.getvalue().splitlines()[-1])["total"] == "2.026"


def test_a_terminal_shows_a_bar_and_everything_that_matters(tmp_path):
    console = Console(file=io.StringIO(), force_terminal=True, width=140)
    note_steps(tmp_path, 0, 8, console=console)
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", console.file.getvalue())
    assert "step 8 of 8" in shown
    assert "━" in shown
    last = shown[shown.rindex("step 8 of 8") :]
    for text in ("total 0.1", "4 samples/s", "waits for data 10.0 %", "0:00:00 left", "lr 0.001"):
        assert text in last
    assert "skipped 2" in last
    assert "Step 3 was skipped." in shown


def test_events_before_the_checkpoint_still_count(tmp_path):
    note_steps(tmp_path, 0, 7)  # events at 3 and 6
    console = quiet()
    note_steps(tmp_path, 4, 5, console=console)  # only the one at 3 is left
    assert fields(console.file.getvalue().splitlines()[-1])["skipped"] == "1"


def test_an_error_in_training_leaves_whole_files(tmp_path):
    log = RunLog(tmp_path, CONFIG, 0, False, quiet())

    def broken_training():
        with log:
            log.step(1, values_at(1), {})
            raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"):
        broken_training()
    log.close()  # a second time does nothing
    assert len(read_metrics(tmp_path)) == 1


def test_a_run_without_files_has_no_steps(tmp_path):
    assert read_metrics(tmp_path) == []
    assert read_events(tmp_path) == []
