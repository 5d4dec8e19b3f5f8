import dataclasses

import numpy as np
import pytest
from nuscenes import NuScenes

from perception.data.map_layers import MapRaster
from perception.data.nuscenes_log import NuScenesLog
from perception.geometry import boxes as box_geometry
from perception.geometry import rigid
from perception.geometry.grid import BevGrid
from perception.messages import Detections, MapMask, PerceptionResult
from perception.taxonomy import DETECTION_CLASS_OF_CATEGORY, DETECTION_CLASSES, MAP_CLASSES
from training.detection_metrics import evaluate_detections, write_results
from training.map_metrics import THRESHOLDS, MapIou

RASTER = BevGrid(x_min=-1.0, x_max=1.0, y_min=-1.0, y_max=1.0, cell=1.0)


@pytest.fixture(scope="module")
def log(small_log_root):
    return NuScenesLog(small_log_root)


@pytest.fixture(scope="module")
def nusc(small_log_root):
    return NuScenes("v1.0-mini", str(small_log_root), verbose=False)


def ground_truth_as_result(log, token, shift=0.0):
    """Annotations as if a network had said them, moved along x by `shift` [m]."""
    frame, annotations = log.keyframe(token), log.annotations(token)
    boxes_ego = box_geometry.transform(rigid.inverse(frame.T_global_ego), annotations.boxes_global)
    boxes_ego[:, 0] += shift
    names = [DETECTION_CLASS_OF_CATEGORY[name] for name in annotations.categories]
    return PerceptionResult(
        stamp_ns=frame.stamp_ns,
        T_global_ego=frame.T_global_ego,
        detections=Detections(
            boxes_ego=np.nan_to_num(boxes_ego).astype(np.float32),
            scores=np.full(len(names), 0.9, np.float32),
            labels=np.array([DETECTION_CLASSES.index(name) for name in names], np.int64),
            classes=DETECTION_CLASSES,
        ),
        map_mask=MapMask(prob=np.zeros((6, 2, 2), np.float32), classes=MAP_CLASSES, grid=RASTER),
        sensors_used=(),
        sensors_missing={},
        stage_ms={},
    )


def score(log, nusc, path, shift=0.0, drop=()):
    results = {t: ground_truth_as_result(log, t, shift) for t in log.keyframe_tokens()}
    for token in drop:
        empty = dataclasses.replace(
            results[token].detections,
            boxes_ego=np.zeros((0, 9), np.float32),
            scores=np.zeros(0, np.float32),
            labels=np.zeros(0, np.int64),
        )
        results[token] = dataclasses.replace(results[token], detections=empty)
    write_results(path, results)
    return evaluate_detections(nusc, path)


def test_ground_truth_scores_one(log, nusc, tmp_path):
    report = score(log, nusc, tmp_path / "results.json")
    assert set(report.num_ground_truth) == {"car", "pedestrian"}
    assert report.mean_ap_4m_present == pytest.approx(1.0)
    assert report.ap == pytest.approx({"car": 1.0, "pedestrian": 1.0})
    # 2 of 10 classes are there; each error is 0 for them and 1 for the 8 others (7 and 6 count)
    assert report.mean_ap == pytest.approx(0.2)
    assert report.true_positive_errors["trans_err"] == pytest.approx(0.8, abs=1e-3)
    assert report.true_positive_errors["scale_err"] == pytest.approx(0.8, abs=1e-3)
    assert report.true_positive_errors["orient_err"] == pytest.approx(7 / 9, abs=1e-3)


def test_a_shift_of_three_metres_is_found_at_four_only(log, nusc, tmp_path):
    report = score(log, nusc, tmp_path / "results.json", shift=3.0)
    assert report.mean_ap_4m_present == pytest.approx(1.0)
    assert report.ap["car"] == pytest.approx(0.25)


def test_no_prediction_at_all_scores_zero(log, nusc, tmp_path):
    report = score(log, nusc, tmp_path / "results.json", drop=log.keyframe_tokens())
    assert report.nds == 0.0
    assert report.mean_ap_4m_present == 0.0


def said(prob, classes=MAP_CLASSES):
    return MapMask(prob=prob, classes=classes, grid=RASTER)


def test_map_iou_by_hand():
    # layer 0: 4 cells, 2 true; probability 0.6 on one true and one wrong cell, 0.36 on the other
    # true cell. Up to 0.35 three cells are said: IoU 2 / 3; from 0.40 two: IoU 1 / 3
    prob, mask = np.zeros((1, 2, 2), np.float32), np.zeros((6, 2, 2), np.float32)
    prob[0] = [[0.6, 0.36], [0.6, 0.0]]
    mask[0] = [[1, 1], [0, 0]]
    mask[2] = 1
    labelled = np.array([1, 0, 1, 0, 0, 0], np.float32)
    iou = MapIou()
    iou.add(said(prob, ("drivable_area",)), MapRaster(mask=mask, labelled=labelled))
    # the walkway is known and was not predicted at all
    assert iou.result() == {"drivable_area": pytest.approx(2 / 3), "walkway": 0.0}
    assert THRESHOLDS[0] == 0.35


def test_map_iou_of_truth_is_one_and_halves_add_up():
    random = np.random.default_rng(0)
    mask = (random.random((4, 6, 5, 5)) > 0.5).astype(np.float32)
    prob = random.random((4, 6, 5, 5)).astype(np.float32)
    perfect, whole, halves = MapIou(), MapIou(), MapIou()
    for i in range(4):
        truth = MapRaster(mask=mask[i], labelled=np.ones(6, np.float32))
        perfect.add(said(mask[i]), truth)
        whole.add(said(prob[i]), truth)
    for half in ((0, 1), (2, 3)):
        for i in half:
            truth = MapRaster(mask=mask[i], labelled=np.ones(6, np.float32))
            halves.add(said(prob[i]), truth)
    assert min(perfect.result().values()) > 0.999
    assert whole.result() == halves.result()
