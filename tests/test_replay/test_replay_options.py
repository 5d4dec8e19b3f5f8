"""Every option reaches what it is for."""

import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import pytest
from mcap.reader import make_reader
from replay_command import run_cli
from toy_frames import frame

from perception.bundle import load_bundle, write_manifest
from perception.errors import InputError
from perception.messages import PerceptionResult, SensorFrame
from perception.model_inputs import prepare_frame
from perception.taxonomy import CAMERAS
from runtime import replay, replay_setup
from runtime.message_source import NuScenesSource
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

    monkeypatch.setattr(replay_setup, "BagSource", keep)
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

    monkeypatch.setattr(replay_setup, "open_engine", keep)
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


@pytest.fixture
def short_run(toy_bundle: Path, small_log_root: Path) -> list[object]:
    """Three frames of one scene."""
    run = [toy_bundle, "--log", small_log_root, "--scene", SCENE]
    return [*run, "--speed", 0, "--period", 600, "--threads", 1]


@pytest.mark.parametrize(
    ("text", "words"), [(None, "cannot be read"), ("{", "cannot be read"), ("[]", "format None"),
                        ('{"format_version": 1}', "format 1")],
)  # fmt: skip
def test_an_unusable_golden_file_is_refused_before_the_run_and_replaced_by_accept(
    short_run: list[object], tmp_path: Path, text: str | None, words: str
) -> None:
    accepted = tmp_path / "golden.json"
    if text is not None:
        accepted.write_text(text)
    run = [*short_run, "--golden", accepted]
    refused = run_cli(*run)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert words in refused.stderr
    assert "--accept" in refused.stderr
    assert run_cli(*run, "--accept").returncode == 0
    assert run_cli(*run).returncode == 0


def test_a_report_is_written_though_nothing_can_be_accepted(
    short_run: list[object], tmp_path: Path
) -> None:
    run = [*short_run, "--golden", tmp_path / "golden.json", "--accept", "--out", tmp_path / "out"]
    done = run_cli(*run, "--score-threshold", 1.0)
    assert done.returncode == 2
    assert "without a box" in done.stderr
    assert json.loads((tmp_path / "out" / "replay.json").read_text())["frames_out"] == 3


@pytest.mark.parametrize(
    ("error", "code"), [(KeyboardInterrupt(), 130), (InputError("gone"), 2)]
)  # fmt: skip
def test_what_was_replayed_before_an_interruption_or_an_error_can_be_seen(
    short_run: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    error: BaseException, code: int,
) -> None:  # fmt: skip
    def failing(self: Pipeline, frame: SensorFrame) -> PerceptionResult:
        if self.counters["frames"] == 2:
            raise error
        return process(self, frame)

    process = Pipeline.process
    monkeypatch.setattr(Pipeline, "process", failing)
    (tmp_path / "golden.json").write_text("kept")
    done = run_cli(
        *short_run, "--mcap", tmp_path / "drive.mcap", "--video", tmp_path / "drive.mp4",
        "--out", tmp_path / "out", "--golden", tmp_path / "golden.json", "--accept",
    )  # fmt: skip
    assert done.returncode == code
    with (tmp_path / "drive.mcap").open("rb") as file:
        assert len(list(make_reader(file).iter_messages(topics=["/status"]))) == 2
    video = cv2.VideoCapture(str(tmp_path / "drive.mp4"))
    assert sum(iter(lambda: video.read()[0], False)) == 2
    assert not list(tmp_path.glob(".*"))
    assert (tmp_path / "golden.json").read_text() == "kept"
    if code == 130:
        report = json.loads((tmp_path / "out" / "replay.json").read_text())
        assert (report["ended_early"], report["frames_out"]) == (["interrupted"], 2)
        assert report["messages"]
        assert "interrupted: not compared" in done.stdout


def test_a_recording_that_ends_early_says_so_in_the_report(
    short_run: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(NuScenesSource, "damage", "log cannot be read on: disk gone")
    done = run_cli(*short_run)
    assert done.returncode == 0
    assert "ended early       log cannot be read on: disk gone" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--log", "LOG", "--calibration", "rig.json"), "--calibration is for --bag"),
        (("--log", "LOG", "--topic", "CAM_FRONT=/left"), "--topic is for --bag"),
        (("--log", "LOG", "--base-frame", "car"), "--base-frame is for --bag"),
        (("--bag", "drive.mcap", "--version", "v1.0-mini"), "--version is for --log"),
        (("--log", "LOG", "--accept"), "add --golden FILE"),
        (("--log", "LOG", "--mcap", "TMP/a.mcap"), "--mcap takes one scene, got 2"),
        (("--log", "LOG", "--scene", SCENE, "--mcap", "TMP/a.mcap", "--video", "TMP/a.avi"),
         "expected .mp4"),
        (("--log", "LOG", "--out", "/dev/null/x"), "Cannot make"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused_before_anything_is_computed(
    toy_bundle: Path, small_log_root: Path, tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    names = {"LOG": str(small_log_root), "TMP/": f"{tmp_path}/"}
    for name, path in names.items():
        arguments = tuple(argument.replace(name, path) for argument in arguments)
    done = run_cli(toy_bundle, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_scene_that_is_named_twice_is_replayed_once(
    short_run: list[object], tmp_path: Path
) -> None:
    done = run_cli(*short_run, "--scene", SCENE, SCENE, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "replay.json").read_text())
    assert (report["scenes"], report["frames_out"]) == ([SCENE], 3)
    # keyframes of the small log: images each 100 ms, sweeps each 50 ms, as far apart as in nuScenes
    assert report["sensors"]["LIDAR_TOP"]["rate_hz"] == pytest.approx(20.0)
    assert report["sensors"]["CAM_FRONT"]["rate_hz"] == pytest.approx(10.0)
    assert "## Sensors" in (tmp_path / "replay.md").read_text()
