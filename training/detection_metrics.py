"""Official nuScenes detection metrics, computed by the devkit itself."""

import contextlib
import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from nuscenes import NuScenes
from nuscenes.eval.common.config import config_factory
from nuscenes.eval.common.data_classes import EvalBoxes
from nuscenes.eval.common.loaders import (
    add_center_dist,
    filter_eval_boxes,
    load_gt_of_sample_tokens,
)
from nuscenes.eval.detection.data_classes import DetectionBox, DetectionConfig
from nuscenes.eval.detection.evaluate import DetectionEval

from perception import atomic_file
from perception.geometry import boxes as box_geometry
from perception.geometry import rigid
from perception.messages import PerceptionResult
from perception.taxonomy import DETECTION_CLASSES, LIDAR, attribute_name
from training.distance_bands import DistanceBand

CONFIG_NAME = "detection_cvpr_2019"
MAX_BOXES = 500
"""Boxes per keyframe that the official evaluation takes. Source: specs, base network 11.1."""
FAR_MATCH = 4.0
"""Widest matching distance of the official metric [m]."""


@dataclass(frozen=True, kw_only=True)
class DetectionReport:
    """Official figures over a set of keyframes."""

    nds: float
    mean_ap: float
    """Mean over ten classes and four matching distances."""
    mean_ap_4m_present: float
    """Mean AP at 4 m over the classes that the keyframes hold."""
    true_positive_errors: dict[str, float]
    """Official mean errors by name: trans_err [m], scale_err, orient_err [rad], vel_err [m/s],
    attr_err."""
    ap_4m: dict[str, float]
    """AP at 4 m of the classes that are present."""
    ap: dict[str, float]
    """Mean AP over the four distances of the classes that are present."""
    num_ground_truth: dict[str, int]
    """Boxes per class that count."""


class OfficialEvaluation:
    """The devkit's evaluation on chosen keyframes; ground truth is loaded once for many results.

    Args:
        nusc: The log as the devkit reads it.
        tokens: Keyframes to score.
    """

    def __init__(self, nusc: NuScenes, tokens: Sequence[str]) -> None:
        self._nusc = nusc
        self._config = config_factory(CONFIG_NAME)
        with contextlib.redirect_stderr(io.StringIO()):  # the devkit's own progress bar
            truth = load_gt_of_sample_tokens(nusc, list(tokens), DetectionBox)
        self._truth = self._within_range(truth)

    def predictions(self, results: Mapping[str, PerceptionResult]) -> EvalBoxes:
        """Detections by keyframe, as `score` takes them."""
        return self.official({token: official_boxes(token, r) for token, r in results.items()})

    def official(self, records: Mapping[str, list[dict[str, object]]]) -> EvalBoxes:
        """Records of the official format by keyframe, as `score` takes them.

        Raises:
            ValueError: These are other keyframes than those to score.
        """
        tokens = self._truth.sample_tokens
        if set(records) != set(tokens):
            raise ValueError(
                f"boxes of {len(records)} keyframes, expected those of the {len(tokens)} to score"
            )
        boxes = EvalBoxes.deserialize({token: records[token] for token in tokens}, DetectionBox)
        return self._within_range(boxes)

    def score(self, predictions: EvalBoxes, band: DistanceBand | None = None) -> DetectionReport:
        """Official figures of `predictions`.

        Args:
            predictions: Made by `predictions` or `official`.
            band: Only ground truth and only predictions whose own centre lies in it. A prediction
                across a border from its object is a false one in its band and the object is missed
                in the other, so bands are a little stricter than the whole: read them against
                each other. The classes' official ranges hold in a band, too.
        """
        truth = self._truth
        if band is not None:
            truth, predictions = _in_band(truth, band), _in_band(predictions, band)
        metrics, _curves = _BoxesEval(self._config, truth, predictions).evaluate()
        count = Counter(box.detection_name for box in truth.all)
        present = [name for name in DETECTION_CLASSES if count[name]]
        ap_4m = {name: float(metrics.get_label_ap(name, FAR_MATCH)) for name in present}
        return DetectionReport(
            nds=float(metrics.nd_score),
            mean_ap=float(metrics.mean_ap),
            mean_ap_4m_present=float(np.mean(list(ap_4m.values()))) if present else float("nan"),
            true_positive_errors={name: float(v) for name, v in metrics.tp_errors.items()},
            ap_4m=ap_4m,
            ap={name: float(metrics.mean_dist_aps[name]) for name in present},
            num_ground_truth={name: count[name] for name in present},
        )

    def _within_range(self, boxes: EvalBoxes) -> EvalBoxes:
        boxes = add_center_dist(self._nusc, boxes)
        if not boxes.all:  # the devkit cannot filter nothing
            return boxes
        return filter_eval_boxes(self._nusc, boxes, self._config.class_range)


class _BoxesEval(DetectionEval):
    """The devkit's evaluation on given boxes; its own constructor only takes whole splits."""

    def __init__(self, config: DetectionConfig, truth: EvalBoxes, predictions: EvalBoxes):
        self.cfg = config
        self.verbose = False
        self.gt_boxes, self.pred_boxes = truth, predictions


def evaluate_detections(nusc: NuScenes, results_path: Path) -> DetectionReport:
    """Score a result file in the official format on the keyframes that it holds."""
    records = json.loads(results_path.read_text())["results"]
    evaluation = OfficialEvaluation(nusc, tuple(records))
    return evaluation.score(evaluation.official(records))


def _in_band(boxes: EvalBoxes, band: DistanceBand) -> EvalBoxes:
    chosen = EvalBoxes()
    for token in boxes.sample_tokens:
        chosen.add_boxes(token, [b for b in boxes[token] if band.near <= b.ego_dist < band.far])
    return chosen


def write_results(path: Path, results: Mapping[str, PerceptionResult]) -> None:
    """Write detections in the official format: global frame, sizes as width, length, height.

    Args:
        path: JSON file to write.
        results: Keyframe token -> what the network said of it.
    """
    used = {sensor for result in results.values() for sensor in result.sensors_used}
    sensors = {"use_camera": bool(used - {LIDAR}), "use_lidar": LIDAR in used}
    meta = sensors | {"use_radar": False, "use_map": False, "use_external": False}
    boxes = {token: official_boxes(token, result) for token, result in results.items()}
    atomic_file.write_text(path, json.dumps({"meta": meta, "results": boxes}))


def official_boxes(token: str, result: PerceptionResult) -> list[dict[str, object]]:
    """Detections of one keyframe as records of the official format, the best `MAX_BOXES` of them.

    Raises:
        ValueError: The result has no ego pose.
    """
    if result.T_global_ego is None:
        raise ValueError("the result has no ego pose, expected one: a log's keyframes have")
    found = result.detections
    best = np.argsort(-found.scores, kind="stable")[:MAX_BOXES]
    boxes_global = box_geometry.transform(
        result.T_global_ego, found.boxes_ego[best].astype(np.float64)
    )
    official = []
    for box, score, label in zip(boxes_global, found.scores[best], found.labels[best], strict=True):
        length, width, height = box[box_geometry.SIZE].tolist()
        velocity = box[box_geometry.VELOCITY]
        name = found.classes[label]
        official.append(
            {
                "sample_token": token,
                "translation": box[box_geometry.CENTER].tolist(),
                "size": [width, length, height],
                "rotation": list(rigid.quaternion_from_yaw(box[box_geometry.YAW])),
                "velocity": velocity.tolist(),
                "detection_name": name,
                "detection_score": float(score),
                "attribute_name": attribute_name(name, float(np.hypot(*velocity))),
            }
        )
    return official
