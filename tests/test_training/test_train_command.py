import json
import subprocess
import sys
from pathlib import Path

import pytest

from perception.checkpoint import load_checkpoint
from perception.errors import run_command
from training import train

REPOSITORY = Path(__file__).resolve().parents[2]
FAST = [
    "--optim.steps", "1", "--optim.batch-size", "1", "--data.num-workers", "0",
    "--data.split", "all", "--detector.inputs.image.height-px", "32",
    "--detector.inputs.image.width-px", "96", "--no-tensorboard",
]  # fmt: skip


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    """Run the command in this process: exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "write_report", lambda run: None)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["train.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as done:
            run_command(train.main)
        captured = capsys.readouterr()
        return done.value.code, captured.out, captured.err

    return run


def test_a_run_folder_holds_what_made_it_and_what_came_out(command, small_log_root, tmp_path):
    code, out, err = command("tiny_lidar", "--data.log", small_log_root, *FAST)
    assert (code, err) == (0, "")
    assert "trained on 8 keyframes: runs/tiny_lidar" in out
    run = tmp_path / "runs" / "tiny_lidar"
    assert {path.name for path in run.iterdir()} == {
        "config.json", "environment.json", "metrics.jsonl", "events.jsonl", "checkpoints",
        "checkpoint.safetensors",
    }  # fmt: skip
    assert json.loads((run / "config.json").read_text())["optim"]["steps"] == 1
    environment = json.loads((run / "environment.json").read_text())
    assert environment["world_size"] == 1
    assert len(environment["keyframes"]) == 8
    checkpoint = load_checkpoint(run)
    assert checkpoint.recipe == "tiny_lidar"
    assert checkpoint.trained_map_classes == ("drivable_area",)  # all that the small log knows
    code, _, err = command("tiny_lidar", "--data.log", small_log_root, *FAST)
    assert code == 2
    assert "finished run" in err


def test_a_dry_run_tells_and_writes_nothing(command, small_log_root, tmp_path):
    code, out, _ = command("tiny_lidar", "--data.log", small_log_root, *FAST, "--dry-run")
    assert code == 0
    for said in ("keyframes: 8", "  box_head: ", "seconds per step", "peak memory", "total="):
        assert said in out
    assert list(tmp_path.iterdir()) == []


def test_the_configuration_is_printed_as_json(command, tmp_path):
    code, out, _ = command("tiny_fusion", "--seed", "7", "--print-config")
    assert code == 0
    assert json.loads(out)["seed"] == 7
    assert list(tmp_path.iterdir()) == []


def test_help_lists_every_recipe_with_a_line(command):
    code, out, _ = command("--help")
    assert code == 0
    for name in train.RECIPES:
        assert f"\n  {name} " in out


def test_a_profile_ends_in_a_table(command, small_log_root):
    code, out, _ = command("tiny_lidar", "--data.log", small_log_root, *FAST, "--profile")
    assert code == 0
    assert "left out as warm-up" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["tiny_fusoin"], "did you mean 'tiny_fusion'"),
        (["tiny_lidar"], "No log given"),
        (["tiny_lidar", "--data.log", "nowhere"], "nowhere"),
        (["tiny_lidar", "--data.log", "LOG", "--data.split", "mini_vall"], "no split 'mini_vall'"),
        (["tiny_lidar", "--data.log", "LOG", "--data.split", "test"], "no all keyframe in the"),
        (
            ["tiny_lidar", "--data.log", "LOG", "--data.split", "all", "--optim.batch-size", "9"],
            "fewer than the batch of 9",
        ),
        (
            ["tiny_lidar", "--data.log", "LOG", "--data.split", "all", "--init-from", "no_run"],
            "no_run holds no checkpoint",
        ),
    ],
)
def test_a_mistake_is_one_sentence(command, small_log_root, tmp_path, arguments, said):
    arguments = [small_log_root if a == "LOG" else a for a in arguments]
    if len(arguments) > 1:
        arguments += ["--dry-run"]
    code, _, err = command(*arguments)
    assert code == 2
    assert said in err
    assert len(err.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_an_impossible_value_is_a_usage_error(small_log_root, tmp_path):
    done = subprocess.run(
        [sys.executable, "training/train.py", "tiny_lidar", "--data.log", str(small_log_root),
         "--out", str(tmp_path / "run"), "--detector.inputs.bev.cell", "0.7"],
        cwd=REPOSITORY, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "expected a positive whole number" in done.stderr
    assert "Traceback" not in done.stderr
