"""The proof that geometry, targets and decoding agree, on real sensor data."""

import dataclasses
import time
from pathlib import Path

import pytest

from perception.data.nuscenes_log import NuScenesLog
from training.evaluate import evaluate_run, print_report
from training.recipes import tiny_overfit
from training.train import Options, run_training

MAX_MINUTES = 10.0


@pytest.mark.slow
@pytest.mark.nuscenes
@pytest.mark.timeout(1800)
def test_the_tiny_network_finds_its_own_training_boxes_again(real_log_root: Path, tmp_path: Path):
    recipe = tiny_overfit()
    data = dataclasses.replace(recipe.data, log=str(real_log_root))
    started = time.monotonic()
    run = tmp_path / "run"
    assert run_training(dataclasses.replace(recipe, data=data), Options(out=str(run)))
    minutes = (time.monotonic() - started) / 60
    report = evaluate_run(
        run, NuScenesLog(real_log_root), "all", "complete", tmp_path / "evaluation"
    )
    print_report(report)
    print(f"training took {minutes:.1f} minutes")  # noqa: T201
    assert report.num_keyframes == 2
    assert sum(report.detection.num_ground_truth.values()) >= 40
    assert report.detection.mean_ap_4m_present >= 0.9
    assert report.map_iou["drivable_area"] >= 0.8
    assert minutes <= MAX_MINUTES
