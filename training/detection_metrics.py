"""Official nuScenes detection metrics, computed by the devkit itself."""

import contextlib
import io
import json
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
    load_prediction_of_sample_tokens,
)
from nuscenes.eval.detection.data_classes import DetectionBox, DetectionConfig
from nuscenes.eval.detection.evaluate import DetectionEval

from perception import atomic_file
from perception.geometry import boxes as box_geometry
from perception.geometry import rigid
from perception.messages import PerceptionResult
from perception.taxonomy import DETECTION_CLASSES, attribute_name

CONFIG_NAME = "detection_cvpr_2019"
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


class _ChosenKeyframesEval(DetectionEval):
    """The devkit's evaluation on given boxes; its own constructor only takes whole splits."""

    def __init__(self, nusc: NuScenes, config: DetectionConfig, gt: EvalBoxes, pred: EvalBoxes):
        self.nusc = nusc
        self.cfg = config
        self.verbose = False
        self.gt_boxes = _within_range(nusc, config, gt)
        self.pred_boxes = _within_range(nusc, config, pred)
        self.sample_tokens = self.gt_boxes.sample_tokens


def evaluate_detections(nusc: NuScenes, results_path: Path) -> DetectionReport:
    """Score a result file in the official format on the keyframes that it holds."""
    config = config_factory(CONFIG_NAME)
    tokens = list(json.loads(results_path.read_text())["results"])
    with contextlib.redirect_stderr(io.StringIO()):  # the devkit's own progress bar
        gt = load_gt_of_sample_tokens(nusc, tokens, DetectionBox)
    pred, _meta = load_prediction_of_sample_tokens(
        str(results_path), config.max_boxes_per_sample, DetectionBox, tokens
    )
    metrics, _curves = (evaluation := _ChosenKeyframesEval(nusc, config, gt, pred)).evaluate()
    boxes = [box for token in tokens for box in evaluation.gt_boxes[token]]
    present = [c for c in DETECTION_CLASSES if any(b.detection_name == c for b in boxes)]
    ap_4m = {name: float(metrics.get_label_ap(name, FAR_MATCH)) for name in present}
    return DetectionReport(
        nds=float(metrics.nd_score),
        mean_ap=float(metrics.mean_ap),
        mean_ap_4m_present=float(np.mean(list(ap_4m.values()))) if present else float("nan"),
        true_positive_errors={name: float(v) for name, v in metrics.tp_errors.items()},
        ap_4m=ap_4m,
        ap={name: float(metrics.mean_dist_aps[name]) for name in present},
        num_ground_truth={
            name: sum(box.detection_name == name for box in boxes) for name in present
        },
    )


def write_results(path: Path, results: dict[str, PerceptionResult], max_boxes: int = 500) -> None:
    """Write detections in the official format: global frame, sizes as width, length, height.

    Args:
        path: JSON file to write.
        results: Keyframe token -> what the network said of it.
        max_boxes: Boxes per keyframe that the official evaluation takes.
    """
    sensors = {"use_camera": True, "use_lidar": True}
    meta = sensors | {"use_radar": False, "use_map": False, "use_external": False}
    boxes = {token: _official_boxes(token, r)[:max_boxes] for token, r in results.items()}
    atomic_file.write_text(path, json.dumps({"meta": meta, "results": boxes}))


def _official_boxes(token: str, result: PerceptionResult) -> list[dict[str, object]]:
    if result.T_global_ego is None:
        raise ValueError("the result has no ego pose, expected one: a log's keyframes have")
    found = result.detections
    boxes_global = box_geometry.transform(result.T_global_ego, found.boxes_ego.astype(np.float64))
    official = []
    for box, score, label in zip(boxes_global, found.scores, found.labels, strict=True):
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


def _within_range(nusc: NuScenes, config: DetectionConfig, boxes: EvalBoxes) -> EvalBoxes:
    boxes = add_center_dist(nusc, boxes)
    if not boxes.all:  # the devkit cannot filter nothing
        return boxes
    return filter_eval_boxes(nusc, boxes, config.class_range)
