import itertools
import json
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from replay_command import run_cli

from perception.data.nuscenes_log import NuScenesLog
from perception.messages import PerceptionResult, SensorFrame
from perception.taxonomy import CAMERAS, LIDAR
from runtime import replay
from runtime.api import Pipeline, load_bundle, read_calibration
from runtime.log_feed import OVERTAKEN
from runtime.message_source import NuScenesSource
from runtime.replay_faults import FaultPlan, parse_fault

BUDGETS = Path(__file__).with_name("budgets.json")
REPOSITORY = Path(__file__).resolve().parents[2]
MS = 1_000_000


def outputs(folder: Path) -> tuple[dict, dict]:
    return (
        json.loads((folder / "replay.json").read_text()),
        json.loads((folder / "detections.json").read_text()),
    )


def started(pipeline: Pipeline, log: Path, speed: float, **config: object) -> replay.Replay:
    """A replay of scene-0061."""
    source = NuScenesSource(NuScenesLog(log))
    return replay.Replay(
        pipeline, source, ("scene-0061",), replay.ReplayConfig(speed=speed, **config)
    )


def struck(bundle: Path, log: Path, *faults: str, **plan: float) -> replay.Replay:
    """A replay of scene-0061 with faults, in virtual time, run to its end."""
    script = tuple(parse_fault(fault) for fault in faults)
    pipeline = Pipeline(load_bundle(bundle), num_threads=1)
    done = started(pipeline, log, 0.0, faults=FaultPlan(script=script, **plan))
    done.run()
    return done


@pytest.fixture
def own_log(small_log_root: Path, tmp_path: Path) -> Path:
    return shutil.copytree(small_log_root, tmp_path / "log")


def test_a_log_replays_to_boxes_report_and_table(
    toy_bundle: Path, small_log_root: Path, tmp_path: Path
) -> None:
    out = tmp_path / "new" / "out"
    done = run_cli(
        toy_bundle, "--log", small_log_root, "--speed", 0, "--out", out, "--verbose", "--threads", 1
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    for words in ("p50", "p99", "engine", "6 cameras + LiDAR, 7 boxes", "as if always free"):
        assert words in done.stdout
    report, detections = outputs(out)
    # Each scene lasts 1.5 s: 16 images per camera and 31 sweeps (both ends included). The first
    # sweep sets t(0), so that each second one is a frame's: 16.
    assert report["messages"] == {**dict.fromkeys(sorted(CAMERAS), 32), LIDAR: 62}
    assert report["frames_in"] == report["frames_out"] == len(detections["frames"])
    assert report["frames_in"] == 2 * 16
    assert report["frames_dropped"] == {}
    assert report["missing_files"] == {}
    assert report["latency"]["total"]["count"] == report["frames_out"]
    assert report["latency"]["decode"]["count"] == 6 * 32 + 62
    assert 0 < report["peak_memory_mib"] < 1536
    first = detections["frames"][0]
    assert first["sensors_used"] == [*CAMERAS, LIDAR]
    assert first["stamp_ns"] == 1532402927647951 * 1000
    assert first["labels"] == [6, 5, 4, 3, 2, 1, 0]
    # 0.1 * 6 + 0.3 = 0.9 > 0.5 on all of 40 x 40 cells of 1 m.
    assert first["map_area_m2"] == [1600.0] * 6


def test_the_virtual_clock_gives_the_same_bytes_twice_faults_included(
    toy_bundle: Path, small_log_root: Path
) -> None:
    def run(seed: int) -> replay.Replay:
        script = ("CAM_BACK:dead:0.3-0.8", "LIDAR_TOP:late:0.2-1:80", "CAM_FRONT:frozen:0-9")
        chances = {"jitter_ms": 20.0, "loss": 0.1, "bursts_per_minute": 30.0, "seed": seed}
        return struck(toy_bundle, small_log_root, *script, **chances)

    first, again, other = run(1), run(1), run(2)
    assert first.detections_text() == again.detections_text() != other.detections_text()
    report = first.report()
    assert report["faults"]["CAM_BACK: dead"] == 5  # at 12 Hz x 0.5 s, keyframe times 10 Hz: 5
    assert report["faults"] == again.report()["faults"]
    assert report["frames_incomplete"] > 0


def test_a_dead_lidar_goes_to_the_camera_mode_with_the_next_frame(
    toy_bundle: Path, small_log_root: Path
) -> None:
    done = struck(toy_bundle, small_log_root, "LIDAR_TOP:dead:0.5-9")
    report = done.report()
    # 0.5 s dead from the first image on, which is 43 ms before the first sweep: sweeps up to
    # 0.45 s come, the frame at 0.5 s still has that one, and no later frame has any.
    assert report["mode_switches"] == 1
    assert report["frames_by_mode"].keys() == {"fusion", "camera"}
    records = json.loads(done.detections_text())["frames"]
    modes = [record["mode"] for record in records]
    assert modes == ["fusion"] * 6 + ["camera"] * (len(records) - 6)
    steps = {b["stamp_ns"] - a["stamp_ns"] for a, b in itertools.pairwise(records)}
    assert max(steps) < 200 * MS  # no period without an output


def test_a_frozen_camera_is_seen_at_its_third_picture(
    toy_bundle: Path, small_log_root: Path
) -> None:
    done = struck(toy_bundle, small_log_root, "CAM_BACK:frozen:0.3-0.9")
    report = done.report()
    # of those with the picture before, the first is the second of a row, which is used
    num_alike = report["faults"]["CAM_BACK: frozen"]
    assert report["synchronizer"] == {"CAM_BACK: frozen": num_alike - 1}
    records = json.loads(done.detections_text())["frames"]
    missing = {reason for record in records for reason in record["sensors_missing"].values()}
    assert missing == {"message dropped: frozen"}


def test_a_simulator_without_noise_may_repeat_itself(
    toy_bundle: Path, small_log_root: Path
) -> None:
    done = run_cli(
        *(toy_bundle, "--log", small_log_root, "--scene", "scene-0061", "--speed", 0),
        *("--fault", "CAM_BACK:frozen:0.3-0.9", "--frozen-after", 0),
    )
    assert done.returncode == 0, done.stderr
    assert re.search("dropped messages +none", done.stdout)


def test_accepted_detections_and_budgets_decide_the_exit_code(
    toy_bundle: Path, small_log_root: Path, tmp_path: Path
) -> None:
    accepted, budget = tmp_path / "golden.json", tmp_path / "budget.json"
    base = [toy_bundle, "--log", small_log_root, "--scene", "scene-0061", "--speed", 0]
    base += ["--golden", accepted]
    refused = run_cli(*base)
    assert (refused.returncode, "--accept" in refused.stderr) == (2, True)
    assert run_cli(*base, "--accept").returncode == 0
    # Frames as in the first test: 16 x 7 boxes.
    good = run_cli(*base, "--budget", BUDGETS)
    assert good.returncode == 0, good.stdout
    assert "golden    equal: 16 frames and 112 boxes compared" in good.stdout
    changed = run_cli(*base, "--fault", "CAM_BACK:dead:0-9")
    assert changed.returncode == 1
    assert "to accept: python runtime/replay.py" in changed.stdout
    assert changed.stdout.rstrip().endswith("--fault CAM_BACK:dead:0-9 --accept")
    limits = json.loads(BUDGETS.read_text())
    limits["stamp_clock_ms"] = {"age of oldest sensor": {"p50_ms": 0.001}}
    budget.write_text(json.dumps(limits))
    slow = run_cli(*base, "--budget", budget)
    assert slow.returncode == 1
    # the oldest camera's picture is 43 ms old at the sweep, and 5 ms are for the LiDAR's jitter
    breach = re.search("p50_ms of age of oldest sensor: got ([0-9.]+), allowed 0.001", slow.stdout)
    assert breach is not None
    assert float(breach[1]) >= 48


def test_a_pipeline_that_is_too_slow_gets_the_newest_frame_and_the_rest_is_counted(
    toy_bundle: Path, small_log_root: Path
) -> None:
    class SlowPipeline(Pipeline):
        stamps: list[int] = []  # noqa: RUF012

        def process(self, frame: SensorFrame) -> PerceptionResult:
            self.stamps.append(frame.stamp_ns)
            waiting.wait(0.3)
            return super().process(frame)

    waiting = threading.Event()
    pipeline = SlowPipeline(load_bundle(toy_bundle), num_threads=1)
    done = started(pipeline, small_log_root, 1.0)
    done.run()
    report = done.report()
    # 1.5 s of log at 0.3 s per frame.
    assert 4 <= report["frames_out"] <= 8
    dropped = report["frames_dropped"][OVERTAKEN]
    assert dropped == report["frames_in"] - report["frames_out"] > 0
    assert pipeline.stamps == sorted(pipeline.stamps)


def test_a_bundle_or_log_that_fails_midway_ends_the_replay_with_its_error(
    toy_bundle: Path, small_log_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: NuScenesLog, scene: str) -> object:
        yield from list(messages(self, scene))[:5]
        raise OSError("disk gone")

    messages = NuScenesLog.messages
    monkeypatch.setattr(NuScenesLog, "messages", broken)
    pipeline = Pipeline(load_bundle(toy_bundle), num_threads=1)
    for speed in (0, 5):
        run = started(pipeline, small_log_root, speed)
        with pytest.raises(OSError, match="disk gone"):
            run.run()


def test_lost_files_are_named_and_their_sensors_masked(
    toy_bundle: Path, own_log: Path, tmp_path: Path
) -> None:
    shutil.rmtree(own_log / "samples" / LIDAR)
    shutil.rmtree(own_log / "sweeps" / LIDAR)
    victim = sorted((own_log / "samples" / "CAM_BACK").iterdir())[0]
    victim.write_bytes(victim.read_bytes()[:100])
    done = run_cli(
        toy_bundle,
        "--log",
        own_log,
        "--speed",
        0,
        "--out",
        tmp_path / "out",
        "--scene",
        "scene-0061",
    )
    assert done.returncode == 0, done.stderr
    report, detections = outputs(tmp_path / "out")
    assert report["missing_files"] == {"CAM_BACK": 1, LIDAR: 31}
    assert any(victim.name in reason for reason in report["missing_file_reasons"])
    assert detections["frames"]
    for frame in detections["frames"]:
        assert "is listed but missing" in frame["sensors_missing"][LIDAR]
        assert LIDAR not in frame["sensors_used"]
    assert "CAM_BACK" in detections["frames"][0]["sensors_missing"]
    assert "LIDAR_TOP 31" in done.stdout


def test_the_rig_of_a_scene_can_be_written(small_log_root: Path, tmp_path: Path) -> None:
    path = tmp_path / "rig.json"
    done = run_cli("--log", small_log_root, "--scene", "scene-0103", "--write-calibration", path)
    assert done.returncode == 0, done.stderr
    assert set(read_calibration(path).cameras) == set(CAMERAS)
    refused = run_cli("--log", small_log_root, "--write-calibration", path)
    assert refused.returncode == 2
    assert "add --scene" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("BUNDLE", "--log", "LOG/nowhere"), "nowhere"),
        (("LOG", "--log", "LOG"), "is no bundle"),
        (("--log", "LOG"), "no bundle given"),
        (("BUNDLE", "--log", "LOG", "--scene", "scene-0062"), "scene-0062"),
        (("BUNDLE", "--log", "LOG", "--version", "v9"), "v9"),
        (("BUNDLE", "--log", "LOG", "--speed", "-1"), "speed is -1"),
        (("BUNDLE", "--log", "LOG", "--speed", "nan"), "speed is nan"),
        (("BUNDLE", "--log", "LOG", "--score-threshold", "7"), "threshold is 7"),
        (("BUNDLE", "--log", "LOG", "--threads", "-2"), "num_threads is -2"),
        (("BUNDLE", "--log", "LOG", "--speed", "0", "--out", "/dev/null/x"), "Cannot make"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(
    toy_bundle: Path, small_log_root: Path, arguments: tuple[str, ...], words: str
) -> None:
    names = {"BUNDLE": str(toy_bundle), "LOG": str(small_log_root)}
    filled = [a.replace("BUNDLE", names["BUNDLE"]).replace("LOG", names["LOG"]) for a in arguments]
    done = run_cli(*filled)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_the_command_runs_as_a_process() -> None:
    command = [sys.executable, "runtime/replay.py", "--log", "nowhere"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")


def test_a_changed_bundle_is_refused(
    toy_bundle: Path, small_log_root: Path, tmp_path: Path
) -> None:
    changed = shutil.copytree(toy_bundle, tmp_path / "bundle")
    content = bytearray((changed / "model.onnx").read_bytes())
    content[100] ^= 1
    (changed / "model.onnx").write_bytes(content)
    done = run_cli(changed, "--log", small_log_root)
    assert done.returncode == 2
    assert "sha256" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.nuscenes
def test_a_real_log_keeps_its_stamps_offsets_and_gaps(
    toy_bundle: Path, real_log_root: Path, tmp_path: Path
) -> None:
    log = NuScenesLog(real_log_root)
    pipeline = Pipeline(load_bundle(toy_bundle), num_threads=1, score_threshold=0.1)
    frames: list[SensorFrame] = []
    process = pipeline.process
    pipeline.process = lambda frame: frames.append(frame) or process(frame)
    source = NuScenesSource(log)
    run = replay.Replay(
        pipeline, source, log.scenes, replay.ReplayConfig(speed=0.0, period_ms=500.0)
    )
    run.run()
    run.write(tmp_path)
    report, detections = outputs(tmp_path)

    listed = {entry for scene in log.scenes for entry in log.stamps(scene)}
    for frame in frames:
        for name, image in frame.images.items():
            assert (image.stamp_ns, name) in listed
        assert all((sweep.stamp_ns, LIDAR) in listed for sweep in frame.sweeps)
    # The complete first keyframe: offsets of the cameras against the LiDAR [ms], as in its tables.
    first = frames[0]
    assert first.stamp_ns == 1532402927647951 * 1000
    offsets = {n: (i.stamp_ns - first.stamp_ns) / MS for n, i in first.images.items()}
    assert offsets == pytest.approx(
        {
            "CAM_FRONT_LEFT": -43.1,
            "CAM_FRONT": -35.5,
            "CAM_FRONT_RIGHT": -27.6,
            "CAM_BACK_RIGHT": -20.1,
            "CAM_BACK": -10.4,
            "CAM_BACK_LEFT": -0.5,
        },
        abs=0.1,
    )
    # scene-0103 has six keyframes, no sweep after 0.45 s, and no file at all of the fifth.
    records = [r for r in detections["frames"] if r["scene"] == "scene-0103"]
    modes = [record["mode"] for record in records]
    assert modes == ["fusion", "fusion", "camera", "camera", "invalid", "camera"]
    for record in records:
        if record["mode"] == "camera":
            assert record["sensors_used"] == list(CAMERAS)
            assert LIDAR in record["sensors_missing"]
    assert report["missing_files"][LIDAR] == 5
    assert all(frame.T_global_ego is not None for frame in frames if not frame.missing)
