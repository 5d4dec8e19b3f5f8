import dataclasses
import json
import sys

import numpy as np
import pytest
from nuscenes_writer import VERSION
from settled_detector import settled_checkpoint
from small_detector import small_config

from perception.checkpoint import CHECKPOINT_FILE, save_checkpoint
from perception.data.nuscenes_log import NuScenesLog
from perception.model_inputs import prepare_frame
from perception.taxonomy import CAMERAS, LIDAR
from training import evaluate
from training.evaluate import EvaluationOptions, evaluate_run, read_ahead, spread, with_progress
from training.sensor_subsets import sensor_subsets

SPEC = small_config().inputs


@pytest.fixture(scope="module")
def run(tmp_path_factory, small_log_root):
    folder = tmp_path_factory.mktemp("run")
    save_checkpoint(folder / CHECKPOINT_FILE, settled_checkpoint(NuScenesLog(small_log_root)))
    return folder


def same_inputs(one, other):
    arrays = dataclasses.asdict(one), dataclasses.asdict(other)
    return all(np.array_equal(arrays[0][name], arrays[1][name]) for name in arrays[0])


def test_default_subsets_lose_one_sensor_each_and_all_cameras():
    subsets = sensor_subsets(SPEC, "default")
    assert [subset.name for subset in subsets] == [
        "full",
        *(f"without {camera}" for camera in CAMERAS),
        f"without {LIDAR}",
        "without cameras",
    ]
    assert subsets[0].sensors == (*CAMERAS, LIDAR)
    assert subsets[-2].sensors == CAMERAS
    assert subsets[-1].sensors == (LIDAR,)


def test_all_subsets_of_seven_sensors_are_127():
    subsets = sensor_subsets(SPEC, "all")
    assert len({subset.sensors for subset in subsets}) == len(subsets) == 127
    assert len({subset.name for subset in subsets}) == 127
    assert subsets[0].name == "full"
    assert [s.name for s in subsets if s.sensors == ("CAM_BACK",)] == ["only CAM_BACK"]


def test_a_network_for_one_modality_has_fewer_subsets():
    lidar = dataclasses.replace(SPEC, cameras=(), depth_image=False)
    camera = dataclasses.replace(SPEC, use_lidar=False, depth_image=False)
    assert [subset.name for subset in sensor_subsets(lidar, "default")] == ["full"]
    assert [subset.sensors for subset in sensor_subsets(lidar, "all")] == [(LIDAR,)]
    names = [subset.name for subset in sensor_subsets(camera, "default")]
    assert names == ["full", *(f"without {name}" for name in CAMERAS)]
    assert [subset.name for subset in sensor_subsets(SPEC, "none")] == ["full"]


@pytest.mark.parametrize("name", ["without CAM_FRONT_LEFT", f"without {LIDAR}", "without cameras"])
def test_a_lost_sensor_is_a_log_without_its_files(name, small_log_root, own_log_root):
    subset = next(s for s in sensor_subsets(SPEC, "default") if s.name == name)
    for sensor in {*CAMERAS, LIDAR} - set(subset.sensors):
        for folder in ("samples", "sweeps"):
            for file in (own_log_root / folder / sensor).iterdir():
                file.unlink()
    log = NuScenesLog(small_log_root)
    token = log.keyframe_tokens()[1]
    whole, damaged = log.keyframe(token), NuScenesLog(own_log_root).keyframe(token)
    lost = subset.of(whole)
    assert (lost.stamp_ns, lost.T_global_ego.tolist()) == (
        whole.stamp_ns,
        whole.T_global_ego.tolist(),
    )
    expected, found = prepare_frame(damaged, SPEC), prepare_frame(lost, SPEC)
    assert found.sensors_used == expected.sensors_used == subset.sensors
    assert set(found.sensors_missing) == set(expected.sensors_missing)
    assert same_inputs(found.inputs, expected.inputs)
    assert not same_inputs(found.inputs, prepare_frame(whole, SPEC).inputs)


def test_all_sensors_leave_the_frame_as_it_is(small_log_root):
    log = NuScenesLog(small_log_root)
    frame = log.keyframe(log.keyframe_tokens()[0])
    full = sensor_subsets(SPEC, "none")[0].of(frame)
    assert same_inputs(prepare_frame(full, SPEC).inputs, prepare_frame(frame, SPEC).inputs)


def test_a_run_is_scored_with_bands_subsets_and_pictures(run, small_log_root, tmp_path):
    (tmp_path / "keyframe_007.png").write_text("of an earlier evaluation")
    options = EvaluationOptions(num_pictures=2, subsets="default", batch_size=5, max_keyframes=4)
    report = evaluate_run(run, NuScenesLog(small_log_root), "all", "all", tmp_path, options)
    found = json.loads((tmp_path / "evaluation.json").read_text())
    assert (found["num_keyframes"], found["split"], found["precision"]) == (4, "all", "fp32")
    assert found["map_mean_iou"] == pytest.approx(report.mean_iou)
    assert set(found["map_iou"]) == {"drivable_area"}
    assert {"nds", "mean_ap", "ap", "true_positive_errors"} <= set(found["detection"])
    bands = found["distance_bands"]
    assert [band["name"] for band in bands] == ["0-20 m", "20-30 m", "30-40 m", "40-50 m"]
    objects = sum(sum(band["num_ground_truth"].values()) for band in bands)
    assert objects == sum(found["detection"]["num_ground_truth"].values()) == 8
    assert bands[3]["mean_ap"] is None  # no object there: no figure, and no NaN in the JSON
    subsets = found["sensor_subsets"]
    assert len(subsets) == 9
    assert set(subsets[0]) == {"name", "sensors", "nds", "mean_ap", "map_mean_iou"}
    assert subsets[0]["map_mean_iou"] == found["map_mean_iou"]
    assert subsets[0]["nds"] == found["detection"]["nds"]
    assert len({subset["map_mean_iou"] for subset in subsets}) == 9
    assert [path.name for path in sorted(tmp_path.glob("*.png"))] == [
        "keyframe_000.png",
        "keyframe_001.png",
    ]
    submission = json.loads((tmp_path / "results_nusc.json").read_text())
    assert (submission["meta"]["use_camera"], submission["meta"]["use_lidar"]) == (True, True)
    assert [len(boxes) for boxes in submission["results"].values()] == 4 * [50]


def test_batch_size_and_the_other_subsets_do_not_change_the_figures(run, small_log_root, tmp_path):
    log = NuScenesLog(small_log_root)
    alone, among = (
        evaluate_run(run, log, "mini_val", "all", tmp_path / str(size), options)
        for size, options in (
            (1, EvaluationOptions(batch_size=1, num_workers=1)),
            (3, EvaluationOptions(batch_size=3, subsets="default")),
        )
    )
    assert alone.sensor_subsets == ()
    assert alone.map_iou == pytest.approx(among.map_iou, abs=1e-3)
    assert alone.detection.nds == pytest.approx(among.detection.nds, abs=1e-3)


def test_the_command_prints_tables_and_renews_the_page_of_the_run(
    run, small_log_root, tmp_path, monkeypatch, capsys
):
    pages = []
    monkeypatch.setattr(evaluate, "write_report", lambda run: pages.append(run) or run / "page")
    options = ["--split", "all", "--max-keyframes", "2", "--subsets", "none", "--bands", "0", "20"]
    command = ["evaluate.py", str(run), "--log", str(small_log_root), *options]
    monkeypatch.setattr(sys, "argv", [*command, "--version", VERSION, "--out", str(tmp_path)])
    evaluate.main()
    assert pages == []  # nothing was trained here
    (run / evaluate.METRICS_FILE).touch()
    evaluate.main()
    assert pages == [run]
    out, err = capsys.readouterr()
    for word in ("pedestrian", "NDS 0.", "map mIoU", "0-20 m", "report and pictures"):
        assert word in out
    assert "by sensors" not in out
    assert "predicting keyframes: 2 of 2" in err
    assert json.loads((tmp_path / "evaluation.json").read_text())["command"].endswith(str(tmp_path))


def test_spread_takes_from_the_whole_range():
    # the middles of three thirds of nine
    assert spread(tuple("abcdefghi"), 3) == ("b", "e", "h")
    assert spread(("a", "b"), 5) == ("a", "b")
    assert spread(("a", "b"), None) == ("a", "b")
    assert spread(("a", "b"), 0) == ()


def test_reading_ahead_keeps_the_order_and_stays_near():
    started = []

    def read(key):
        started.append(key)
        return key * key

    items = read_ahead(range(20), read, 3)
    assert next(items) == 0
    assert len(started) <= 4
    assert list(items) == [key * key for key in range(1, 20)]


def test_progress_is_a_line_per_tenth_where_output_is_piped(capsys):
    assert list(with_progress(range(100), 100, "reading")) == list(range(100))
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"reading: {10 * tenth} of 100" for tenth in range(1, 11)]
