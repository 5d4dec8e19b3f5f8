import dataclasses
import json
import os
import signal
import time

import numpy as np
import pytest
from training_processes import curve, start, train_and_die, training_config

from perception.checkpoint import load_checkpoint
from perception.errors import InputError
from training.run_folder import opened_run
from training.train import Options, run_training

NUM_STEPS = 12


@pytest.fixture(scope="module")
def uninterrupted(small_log_root, tmp_path_factory):
    run = tmp_path_factory.mktemp("uninterrupted") / "run"
    process = start(train_and_die, training_config(small_log_root), run)
    process.join(120)
    assert process.exitcode == 0
    assert len(curve(run)) == NUM_STEPS
    return run


def events(run):
    """Events but those that say that there was a kill."""
    lines = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] != "resumed"]


def assert_same(run, other):
    assert curve(run) == curve(other)
    assert events(run) == events(other)
    ours, theirs = (load_checkpoint(r).detector.state_dict() for r in (run, other))
    assert all((ours[name] == theirs[name]).all() for name in theirs)
    assert not list(run.rglob(".*"))  # nothing half written is left


def wait_for_steps(run, number):
    while not (run / "metrics.jsonl").exists() or len(curve_so_far(run)) < number:
        time.sleep(0.005)


def curve_so_far(run):
    return (run / "metrics.jsonl").read_bytes().splitlines()


@pytest.mark.parametrize("num_workers", [0, 1])
def test_kills_at_random_instants_leave_no_trace(
    uninterrupted, small_log_root, tmp_path, num_workers
):
    rng = np.random.default_rng(num_workers)
    run, config = tmp_path / "run", training_config(small_log_root, num_workers=num_workers)
    for number in (1, 5, 8):  # a resumed run is back at 0, 3, 6: each kill comes some steps later
        process = start(train_and_die, config, run)
        wait_for_steps(run, number)
        time.sleep(rng.uniform(0, 0.15))
        os.kill(process.pid, signal.SIGKILL)
        process.join(120)
        assert process.exitcode == -signal.SIGKILL
    process = start(train_and_die, config, run)
    process.join(120)
    assert process.exitcode == 0
    assert_same(run, uninterrupted)


def test_kills_during_saves_leave_no_trace(uninterrupted, small_log_root, tmp_path):
    run, config = tmp_path / "run", training_config(small_log_root)
    for deadly_file, whole in (
        ("run/config.json", []),
        ("step_00000000/optimizer.safetensors", []),
        ("step_00000003/model.safetensors", [0]),
        ("step_00000006/state.json", [0, 3]),
        ("step_00000012/ema.safetensors", [3, 6, 9]),
        ("run/checkpoint.safetensors", [6, 9, 12]),
    ):
        process = start(train_and_die, config, run, deadly_file)
        process.join(120)
        assert process.exitcode == -signal.SIGKILL
        steps = sorted(int(path.name[5:]) for path in (run / "checkpoints").glob("step_*"))
        assert steps == whole
    process = start(train_and_die, config, run)
    process.join(120)
    assert process.exitcode == 0
    assert_same(run, uninterrupted)


def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(
    uninterrupted, small_log_root, tmp_path
):
    run, config = tmp_path / "run", training_config(small_log_root)
    process = start(train_and_die, config, run, "step_00000006/model.safetensors")
    process.join(120)
    path = run / "checkpoints" / "step_00000003" / "optimizer.safetensors"
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    process = start(train_and_die, config, run)
    process.join(120)
    assert process.exitcode == 0
    assert curve(run) == curve(uninterrupted)
    kinds = {event["kind"]: event["text"] for event in events(run)}
    assert "step_00000003 is damaged" in kinds["checkpoint_damaged"]


def test_ctrl_c_finishes_the_step_and_saves(uninterrupted, small_log_root, tmp_path):
    run, config = tmp_path / "run", training_config(small_log_root, num_workers=1)
    process = start(train_and_die, config, run)
    wait_for_steps(run, 2)
    os.kill(process.pid, signal.SIGINT)
    process.join(120)
    assert process.exitcode == 0
    done = len(curve(run))
    assert 2 <= done < NUM_STEPS
    assert (run / "checkpoints" / f"step_{done:08d}").is_dir()
    process = start(train_and_die, config, run)
    process.join(120)
    assert curve(run) == curve(uninterrupted)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "is a finished run"),
        ({"lr": 2e-3}, r"exists already with optim.lr = 0.001 instead of 0.002"),
    ],
)
def test_another_run_in_the_folder_is_refused(
    uninterrupted, small_log_root, tmp_path, changes, said
):
    run = uninterrupted
    if changes:
        run = tmp_path / "run"
        with opened_run(run, training_config(small_log_root), False, {}):
            pass
    config = training_config(small_log_root, **changes)
    with pytest.raises(InputError, match=said):
        run_training(config, Options(out=str(run)))


def test_a_folder_that_is_no_run_is_never_removed(small_log_root, tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    options = Options(out=str(tmp_path), overwrite=True)
    with pytest.raises(InputError, match="is no run"):
        run_training(training_config(small_log_root), options)
    assert (tmp_path / "letter.txt").is_file()


def hold(config, run, held):
    with opened_run(run, config, False, {}):
        held.set()
        time.sleep(60)


def test_an_unfinished_run_is_replaced_as_a_whole(small_log_root, tmp_path):
    run, config = tmp_path / "run", training_config(small_log_root)
    with opened_run(run, config, False, {}):
        (run / "checkpoints").mkdir()
        (run / "events.jsonl").write_text("{}")
    other = training_config(small_log_root, lr=2e-3)
    with opened_run(run, other, True, {}):
        assert {p.name for p in run.iterdir()} == {".lock", "config.json", "environment.json"}


def test_the_share_of_damage_may_be_raised_for_the_rest_of_a_run(small_log_root, tmp_path):
    config = training_config(small_log_root)
    with opened_run(tmp_path / "run", config, False, {}):
        pass
    data = dataclasses.replace(config.data, max_damaged_share=0.5)
    with opened_run(tmp_path / "run", dataclasses.replace(config, data=data), False, {}):
        pass


def test_two_processes_cannot_have_one_run(small_log_root, tmp_path):
    from training_processes import CONTEXT

    config, held = training_config(small_log_root), CONTEXT.Event()
    process = start(hold, config, tmp_path / "run", held)
    assert held.wait(30)
    for overwrite in (False, True):
        with (
            pytest.raises(InputError, match="being trained by another process"),
            opened_run(tmp_path / "run", config, overwrite, {}),
        ):
            pass
        assert (tmp_path / "run" / "config.json").is_file()
    process.kill()
    process.join()
    with opened_run(tmp_path / "run", config, False, {}):  # a killed holder holds nothing
        pass
