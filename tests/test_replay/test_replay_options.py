"""Every option reaches what it is for."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from replay_command import run_cli
from toy_frames import frame

from perception.bundle import load_bundle, write_manifest
from perception.errors import InputError
from perception.model_inputs import prepare_frame
from perception.taxonomy import CAMERAS
from runtime import replay
from runtime.pipeline import Pipeline
from runtime.replay_faults import FaultPlan, parse_fault
from runtime.self_test import write_golden

SCENE = "scene-0061"


def test_the_options_of_the_faults_are_the_plan_and_clocks_are_passed_on(
    toy_bundle: Path, small_log_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: dict[str, Any] = {}

    def keep(model: object, source: object, scenes: object, config: object, sinks: object) -> None:
        taken.update(scenes=scenes, config=config)
        raise InputError("seen enough")

    monkeypatch.setattr(replay, "Replay", keep)
    run_cli(
        toy_bundle, "--log", small_log_root, "--scene", SCENE, "--threads", 1,
        "--fault", "CAM_BACK:dead:0-1", "--jitter", 12, "--loss", 0.25, "--bursts", 7, "--seed", 5,
        "--speed", 3, "--period", 250, "--score-threshold", 0.4,
    )  # fmt: skip
    plan = FaultPlan(
        script=(parse_fault("CAM_BACK:dead:0-1"),),
        jitter_ms=12.0, loss=0.25, bursts_per_minute=7.0, seed=5,
    )  # fmt: skip
    assert taken["scenes"] == (SCENE,)
    assert taken["config"] == replay.ReplayConfig(
        speed=3.0, period_ms=250.0, score_threshold=0.4, faults=plan
    )


def test_the_options_of_a_bag_reach_it(
    toy_bundle: Path, small_log_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: dict[str, Any] = {}

    def keep(path: Path, **options: object) -> None:
        taken.update(options, path=path)
        raise InputError("seen enough")

    monkeypatch.setattr(replay, "BagSource", keep)
    rig = tmp_path / "rig.json"
    run_cli("--log", small_log_root, "--scene", SCENE, "--write-calibration", rig)
    run_cli(
        toy_bundle, "--bag", "drive.mcap", "--calibration", rig, "--base-frame", "rear_axle",
        "--topic", "CAM_FRONT=/left", "LIDAR_TOP=/roof",
    )  # fmt: skip
    assert (taken["path"], taken["cameras"]) == (Path("drive.mcap"), CAMERAS)
    assert taken["topics"] == {"CAM_FRONT": "/left", "LIDAR_TOP": "/roof"}
    assert taken["base_frame"] == "rear_axle"
    assert set(taken["calibration"].cameras) == set(CAMERAS)


def test_the_options_of_the_engine_reach_it(
    toy_bundle: Path, small_log_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[object] = []

    def keep(bundle: object, *options: object) -> None:
        taken.extend(options)
        raise InputError("seen enough")

    monkeypatch.setattr(replay, "open_engine", keep)
    run_cli(
        toy_bundle, "--log", small_log_root, "--engine", "onnx", "--threads", 3,
        "--bev-pool", "function",
    )  # fmt: skip
    assert taken == ["onnx", 3, "function"]


def test_the_threshold_reaches_the_pipeline_and_counts_the_report(
    toy_bundle: Path, small_log_root: Path, tmp_path: Path
) -> None:
    done = run_cli(
        toy_bundle, "--log", small_log_root, "--scene", SCENE, "--speed", 0, "--period", 300,
        "--threads", 1, "--score-threshold", 0.72, "--out", tmp_path,
        "--fault", "CAM_BACK:dead:0.5-0.9", "LIDAR_TOP:dead:0.8-9",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    frames = json.loads((tmp_path / "detections.json").read_text())["frames"]
    # scores are 0.5 + 0.05 i: the LiDAR's 0.8 and CAM_BACK_RIGHT's 0.75 are above
    assert [record["labels"] for record in frames] == [[6, 5]] * 3 + [[5]] * 3
    report = json.loads((tmp_path / "replay.json").read_text())
    assert report["frames_by_mode"] == {"fusion": 3, "camera": 3}
    assert report["mode_switches"] == 1
    # one frame without CAM_BACK, three without the LiDAR
    assert report["frames_without"] == {"CAM_BACK": 1, "LIDAR_TOP": 3}
    assert report["frames_incomplete"] == 4


def test_a_bundle_that_fails_its_self_test_is_not_replayed(
    toy_bundle: Path, small_log_root: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(toy_bundle, tmp_path / "bundle"))
    pipeline = Pipeline(load_bundle(folder), num_threads=1)
    inputs = prepare_frame(frame(), pipeline.bundle.card.inputs).inputs
    outputs = pipeline.engine.run(inputs)
    pipeline.close()
    run = [folder, "--log", small_log_root, "--scene", SCENE, "--speed", 0, "--period", 600]
    assert "self-test none" in run_cli(*run).stdout
    outputs.boxes_ego[:, 0] += 5.0  # where no box of the graph is
    write_golden(folder, inputs, outputs)
    write_manifest(folder)
    done = run_cli(*run)
    assert done.returncode == 2
    assert "self-test" in done.stderr


def test_a_broken_comparison_stays_broken_though_the_budget_is_kept(
    toy_bundle: Path, small_log_root: Path, tmp_path: Path
) -> None:
    accepted, budget = tmp_path / "golden.json", tmp_path / "budget.json"
    content = {"format_version": 1, "shares": {"dropped": 1.0}, "counts": {}, "stamp_clock_ms": {},
               "hardware": []}  # fmt: skip
    budget.write_text(json.dumps(content))
    run = [toy_bundle, "--log", small_log_root, "--scene", SCENE, "--speed", 0, "--period", 600]
    run += ["--threads", 1, "--golden", accepted, "--budget", budget]
    assert run_cli(*run, "--accept").returncode == 0
    assert run_cli(*run).returncode == 0
    assert run_cli(*run, "--fault", "CAM_FRONT:dead:0-9").returncode == 1
    # accepting what is found now, over what was accepted before
    done = run_cli(*run, "--fault", "CAM_FRONT:dead:0-9", "--accept")
    assert done.returncode == 0
    assert "golden    accepted" in done.stdout
    assert run_cli(*run, "--fault", "CAM_FRONT:dead:0-9").returncode == 0
