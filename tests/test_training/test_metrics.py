import dataclasses

import numpy as np
import pytest
from nuscenes import NuScenes
from nuscenes.eval.common.config import config_factory
from nuscenes.eval.detection.constants import TP_METRICS
from nuscenes.eval.detection.data_classes import DetectionMetrics

from perception.data.nuscenes_log import NuScenesLog
from perception.geometry import boxes as box_geometry
from perception.geometry import rigid
from perception.geometry.grid import BevGrid
from perception.messages import Detections, MapMask, PerceptionResult
from perception.taxonomy import DETECTION_CLASS_OF_CATEGORY, DETECTION_CLASSES, MAP_CLASSES
from training.detection_metrics import (
    MAX_BOXES,
    OfficialEvaluation,
    evaluate_detections,
    official_boxes,
    write_results,
)
from training.distance_bands import distance_bands

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


class OneFrame:
    """What the devkit asks a log for: one keyframe "frame", the car at the global origin."""

    def __init__(self, annotations):
        self.attribute = [{"token": a["attribute"], "name": a["attribute"]} for a in annotations]
        self._annotations = annotations

    def get(self, table, token):
        return {
            "sample": {"anns": list(range(len(self._annotations))), "data": {"LIDAR_TOP": "lidar"}},
            "sample_data": {"ego_pose_token": "pose"},
            "ego_pose": {"translation": [0.0, 0.0, 0.0]},
            "sample_annotation": self._record(token) if isinstance(token, int) else None,
        }[table]

    def box_velocity(self, token):
        return np.array([*self._annotations[token]["velocity"], 0.0])

    def _record(self, token):
        found = self._annotations[token]
        return {
            "token": token,
            "translation": [*found["xy"], 0.0],
            "size": [2.0, 4.0, 1.5],
            "rotation": [1.0, 0.0, 0.0, 0.0],
            "category_name": CATEGORY_OF_CLASS[found["name"]],
            "attribute_tokens": [found["attribute"]] if found["attribute"] else [],
            "num_lidar_pts": found["points"],
            "num_radar_pts": 0,
        }


CATEGORY_OF_CLASS = {name: category for category, name in DETECTION_CLASS_OF_CATEGORY.items()}
STILL = {
    "pedestrian": "pedestrian.standing",
    "bicycle": "cycle.without_rider",
    "motorcycle": "cycle.without_rider",
    "barrier": "",
    "traffic_cone": "",
}


def an_object(name, x, y=0.0, points=5):
    return {
        "name": name,
        "xy": (x, y),
        "attribute": STILL.get(name, "vehicle.parked"),
        "velocity": (0.0, 0.0),
        "points": points,
    }


def record(found, score=0.5, dx=0.0, velocity=(0.0, 0.0)):
    """An object as a record of a submission."""
    return {
        "sample_token": "frame",
        "translation": [found["xy"][0] + dx, found["xy"][1], 0.0],
        "size": [2.0, 4.0, 1.5],
        "rotation": [1.0, 0.0, 0.0, 0.0],
        "velocity": list(velocity),
        "detection_name": found["name"],
        "detection_score": score,
        "attribute_name": found["attribute"],
    }


TWO_OF_EACH = [an_object(name, 10.0, y) for y in (-12.0, 12.0) for name in DETECTION_CLASSES]


def evaluated(objects, records, band=None):
    evaluation = OfficialEvaluation(OneFrame(objects), ["frame"])
    return evaluation.score(evaluation.official({"frame": records}), band)


def test_perfect_predictions_of_all_classes_score_one():
    report = evaluated(TWO_OF_EACH, [record(found) for found in TWO_OF_EACH])
    assert report.mean_ap == pytest.approx(1.0)
    assert report.true_positive_errors == pytest.approx(dict.fromkeys(TP_METRICS, 0.0), abs=1e-9)
    assert report.nds == pytest.approx(1.0)
    assert report.num_ground_truth == dict.fromkeys(DETECTION_CLASSES, 2)


def test_no_predictions_score_zero_with_errors_of_one():
    report = evaluated(TWO_OF_EACH, [])
    assert report.mean_ap == 0.0
    assert report.true_positive_errors == dict.fromkeys(TP_METRICS, 1.0)
    assert report.nds == 0.0


def test_duplicates_with_lower_scores_cost_only_after_full_recall():
    # both objects of a class are found first, then come two duplicates: the precision is 1 until
    # the recall is 1 and 2 / 4 there. Of the 90 bins (0.11 to 1.00) only the last one sees it:
    # AP = (89 x 0.9 + 0.4) / 90 / 0.9
    found = [record(o, score=0.9) for o in TWO_OF_EACH]
    report = evaluated(TWO_OF_EACH, found + [record(o, score=0.1) for o in TWO_OF_EACH])
    assert report.mean_ap == pytest.approx((89 * 0.9 + 0.4) / 90 / 0.9)
    # a duplicate that is surer than an object still to be found costs much more
    first, second = TWO_OF_EACH[:10], TWO_OF_EACH[10:]
    surer = [record(o, score=0.9) for o in first] + [record(o, score=0.5) for o in first]
    assert evaluated(TWO_OF_EACH, surer + [record(o, score=0.1) for o in second]).mean_ap < 0.9


def test_nds_by_hand():
    # one of two objects found: recall 0.5 at precision 1, so 40 of the 90 bins (0.11 to 0.50) are
    # 1: AP 4 / 9. The found ones are off by 0.3 m (ATE 0.3) and by 1.7 m/s (AVE 1.7: adds nothing):
    # NDS = (5 x 4/9 + (1 - 0.3) + 1 + 1 + 0 + 1) / 10
    found = [record(o, dx=0.3, velocity=(1.7, 0.0)) for o in TWO_OF_EACH[:10]]
    report = evaluated(TWO_OF_EACH, found)
    assert report.mean_ap == pytest.approx(4 / 9)
    assert report.true_positive_errors["trans_err"] == pytest.approx(0.3)
    assert report.true_positive_errors["vel_err"] == pytest.approx(1.7)
    assert report.nds == pytest.approx((5 * 4 / 9 + 0.7 + 3) / 10)


@pytest.mark.parametrize(("velocity_error", "nds"), [(0.3, 0.6), (1.7, 0.53)])
def test_nds_formula(velocity_error, nds):
    # mAP 0.5, errors 0.3: (5 x 0.5 + 5 x 0.7) / 10; without the velocity (2.5 + 4 x 0.7) / 10
    metrics = DetectionMetrics(config_factory("detection_cvpr_2019"))
    for name in DETECTION_CLASSES:
        for distance in metrics.cfg.dist_ths:
            metrics.add_label_ap(name, distance, 0.5)
        for error in TP_METRICS:
            metrics.add_label_tp(name, error, velocity_error if error == "vel_err" else 0.3)
    assert metrics.nd_score == pytest.approx(nds)


def test_bands_by_hand():
    # cars at 10, 25, 35 and 45 m: the first and the third are found, one is dreamt of at 26 m, 1 m
    # from the second: matched at 2 and 4 m, not at 0.5 and 1 m (strictly closer): AP 1 / 2
    cars = [an_object("car", x) for x in (10.0, 25.0, 35.0, 45.0)]
    records = [record(cars[0]), record(cars[1], dx=1.0), record(cars[2])]
    bands = distance_bands((0.0, 20.0, 30.0, 40.0, 50.0))
    ap = [evaluated(cars, records, band).ap["car"] for band in bands]
    assert ap == pytest.approx([1.0, 0.5, 1.0, 0.0])
    assert evaluated(cars, records, bands[1]).num_ground_truth == {"car": 1}


def test_a_match_across_the_border_of_a_band_counts_in_neither():
    cars = [an_object("car", 29.9), an_object("car", 35.0)]
    records = [record(cars[0], score=0.9, dx=0.2), record(cars[1], score=0.5)]
    near, far = distance_bands((20.0, 30.0, 40.0))
    assert evaluated(cars, records).ap == {"car": pytest.approx(1.0)}
    assert evaluated(cars, records, near).ap == {"car": 0.0}
    # there the false box is the surer one: precision 1 / 2 up to full recall, (1/2 - 0.1) / 0.9;
    # numpy's interpolation between (recall 0, precision 0) and (1, 1/2) makes it a ramp
    ramp = np.clip(np.linspace(0.11, 1.0, 90) / 2 - 0.1, 0, None).mean() / 0.9
    assert evaluated(cars, records, far).ap == {"car": pytest.approx(ramp)}


def test_ground_truth_without_points_and_out_of_range_does_not_count():
    # cones count up to 30 m, cars up to 50 m
    objects = [an_object("traffic_cone", 31.0), an_object("car", 31.0), an_object("bus", 9, 0, 0)]
    assert evaluated(objects, []).num_ground_truth == {"car": 1}


def test_predictions_of_other_keyframes_are_refused():
    evaluation = OfficialEvaluation(OneFrame(TWO_OF_EACH), ["frame"])
    with pytest.raises(ValueError, match="boxes of 0 keyframes, expected those of the 1"):
        evaluation.official({})


def test_a_submission_is_global_with_width_first(log):
    # the car stands at (100, 50) and looks along +y: 10 m ahead is (100, 60), 2 m to the left is
    # x = 98; a speed of 3 m/s ahead is 3 m/s along y
    base = ground_truth_as_result(log, log.keyframe_tokens()[0])
    scores = np.linspace(0.0, 1.0, MAX_BOXES + 1, dtype=np.float32)  # the best is the last
    row = [10.0, 2.0, 1.0, 4.0, 2.0, 1.5, 0.0, 3.0, 0.0]
    result = dataclasses.replace(
        base,
        T_global_ego=rigid.transform_from_quaternion(
            rigid.quaternion_from_yaw(np.pi / 2), [100.0, 50.0, 0.0]
        ),
        detections=Detections(
            boxes_ego=np.array([row] * len(scores), np.float32),
            scores=scores,
            labels=np.zeros(len(scores), np.int64),
            classes=DETECTION_CLASSES,
        ),
    )
    records = official_boxes("token", result)
    assert len(records) == MAX_BOXES
    assert [records[0]["detection_score"], records[-1]["detection_score"]] == [
        1.0,
        pytest.approx(1 / MAX_BOXES),
    ]
    best = records[0]
    assert best["translation"] == pytest.approx([98.0, 60.0, 1.0])
    assert best["size"] == pytest.approx([2.0, 4.0, 1.5])
    assert best["rotation"] == pytest.approx([np.sqrt(0.5), 0.0, 0.0, np.sqrt(0.5)])
    assert best["velocity"] == pytest.approx([0.0, 3.0], abs=1e-6)
    assert best["attribute_name"] == "vehicle.moving"
