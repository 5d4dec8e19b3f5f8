import json
import subprocess
import sys
from pathlib import Path

import pytest

from perception.checkpoint import load_checkpoint

REPOSITORY = Path(__file__).resolve().parents[2]
FAST = [
    "--optim.steps", "1", "--optim.batch-size", "1", "--num-workers", "0", "--data.split", "all",
    "--detector.inputs.image.height-px", "32", "--detector.inputs.image.width-px", "96",
    "--detector.image-encoder.stem-channels", "8",
    "--detector.image-encoder.stage-channels", "8", "8", "8", "8",
    "--detector.image-encoder.stage-depths", "1", "1", "1", "1",
]  # fmt: skip


def train(*arguments):
    command = [sys.executable, "training/train.py", *map(str, arguments)]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)


def test_a_run_folder_holds_config_metrics_and_checkpoint(small_log_root, tmp_path):
    run = tmp_path / "run"
    done = train("tiny", "--data.log", small_log_root, "--out", run, *FAST)
    assert done.returncode == 0, done.stderr
    names = {path.name for path in run.iterdir()}
    assert names == {"config.json", "environment.json", "metrics.jsonl", "checkpoint.safetensors"}
    assert json.loads((run / "config.json").read_text())["optim"]["steps"] == 1
    checkpoint = load_checkpoint(run)
    assert checkpoint.recipe == "tiny"
    assert checkpoint.trained_map_classes == ("drivable_area",)  # all that the small log knows
    again = train("tiny", "--data.log", small_log_root, "--out", run, *FAST)
    assert again.returncode == 2
    assert "exists already" in again.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["tinny"], "did you mean 'tiny'"),
        (["tiny"], "No log given"),
        (["tiny", "--data.log", "nowhere"], "nowhere"),
        (["tiny", "--data.log", "LOG", "--data.split", "mini_vall"], "no split 'mini_vall'"),
        (["tiny", "--data.log", "LOG", "--data.split", "test"], "no all keyframe in the split"),
    ],
)
def test_a_mistake_is_one_sentence(small_log_root, tmp_path, arguments, said):
    arguments = [small_log_root if a == "LOG" else a for a in arguments]
    done = train(*arguments, "--out", tmp_path / "run") if len(arguments) > 1 else train(*arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_impossible_value_is_a_usage_error(small_log_root, tmp_path):
    done = train(
        "tiny", "--data.log", small_log_root, "--out", tmp_path / "run",
        "--detector.inputs.bev.cell", "0.7",
    )  # fmt: skip
    assert done.returncode == 2
    assert "expected a positive whole number" in done.stderr
    assert "Traceback" not in done.stderr
