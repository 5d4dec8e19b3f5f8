"""Score a run on a log: `python training/evaluate.py RUN --log ROOT`."""

import argparse
import dataclasses
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from nuscenes import NuScenes
from rich.console import Console
from rich.progress import track
from rich.table import Table

from perception import atomic_file, provenance
from perception.checkpoint import load_checkpoint
from perception.data.map_layers import MapLayers, MapRaster
from perception.data.nuscenes_dataset import ego_pose, training_boxes
from perception.data.nuscenes_log import Annotations, NuScenesLog
from perception.drawing import draw_frame, save_png
from perception.errors import InputError, run_command
from perception.messages import Detections, MapMask, PerceptionResult, SensorFrame
from perception.taxonomy import DETECTION_CLASSES, MAP_CLASSES
from training.detection_metrics import DetectionReport, evaluate_detections, write_results
from training.map_metrics import MapIou
from training.prediction import predict
from training.splits import ALL_SCENES, split_tokens

REPORT_FILE = "evaluation.json"
RESULTS_FILE = "results_nusc.json"


@dataclass(frozen=True, kw_only=True)
class EvaluationReport:
    """Figures of one evaluation."""

    detection: DetectionReport
    map_iou: dict[str, float]
    """IoU per layer that the log knows, at its best threshold."""
    num_keyframes: int
    split: str
    log: str
    environment: dict[str, object]

    @property
    def mean_iou(self) -> float:
        """Mean over the layers that the log knows; NaN where it knows none."""
        return sum(self.map_iou.values()) / len(self.map_iou) if self.map_iou else float("nan")


def evaluate_run(
    run: Path, log: NuScenesLog, split: str, frames: str, out: Path, num_pictures: int = 0
) -> EvaluationReport:
    """Predict the keyframes of a split and score them officially.

    Args:
        run: Run folder with a checkpoint.
        log: The log.
        split: Official split or "all".
        frames: "all" keyframes, or only "complete" ones.
        out: Folder for the result file, the report and the pictures.
        num_pictures: Keyframes drawn, beginning with the first.
    """
    checkpoint = load_checkpoint(run)
    tokens = split_tokens(log, split, frames)
    map_layers = MapLayers(log, checkpoint.config.map_head.grid)
    results, iou = {}, MapIou()
    out.mkdir(parents=True, exist_ok=True)
    for index, token in enumerate(track(tokens, "predicting", console=Console(stderr=True))):
        frame = log.keyframe(token, checkpoint.config.inputs.pillars.num_sweeps)
        results[token] = predict(checkpoint, frame)
        raster = map_layers.at(log.scene_of(token), ego_pose(frame))
        iou.add(results[token].map_mask, raster)
        if index < num_pictures:
            picture = draw_keyframe(frame, results[token], log.annotations(token), raster)
            save_png(out / f"keyframe_{index:03d}.png", picture)
    write_results(out / RESULTS_FILE, results)
    nusc = NuScenes(version=log.version, dataroot=str(log.root), verbose=False)
    report = EvaluationReport(
        detection=evaluate_detections(nusc, out / RESULTS_FILE),
        map_iou=iou.result(),
        num_keyframes=len(tokens),
        split=split,
        log=log.root.name,
        environment=provenance.environment(),
    )
    text = json.dumps(dataclasses.asdict(report) | {"map_mean_iou": report.mean_iou}, indent=2)
    atomic_file.write_text(out / REPORT_FILE, text + "\n")
    return report


def draw_keyframe(
    frame: SensorFrame, result: PerceptionResult, annotations: Annotations, raster: MapRaster
) -> UInt8[np.ndarray, "h w 3"]:
    """Prediction beside ground truth: six cameras, and the car from above."""
    boxes_ego, labels = training_boxes(annotations, frame)
    truth = Detections(
        boxes_ego=boxes_ego.astype(np.float32),
        scores=np.ones(len(labels), np.float32),
        labels=labels,
        classes=DETECTION_CLASSES,
    )
    known = raster.mask * raster.labelled[:, None, None]
    return draw_frame(
        frame,
        result.detections,
        map_mask=result.map_mask,
        truth=truth,
        truth_map=MapMask(prob=known, classes=MAP_CLASSES, grid=result.map_mask.grid),
    )


def print_report(report: EvaluationReport) -> None:
    """Print the figures as tables."""
    found = report.detection
    console = Console()
    boxes = Table(title=f"boxes, {report.num_keyframes} keyframes, split {report.split}")
    for column in ("class", "objects", "AP", "AP at 4 m"):
        boxes.add_column(column, justify="left" if column == "class" else "right")
    for name, count in found.num_ground_truth.items():
        boxes.add_row(name, str(count), f"{found.ap[name]:.3f}", f"{found.ap_4m[name]:.3f}")
    console.print(boxes)
    errors = ", ".join(f"{name} {value:.3f}" for name, value in found.true_positive_errors.items())
    console.print(f"NDS {found.nds:.4f}   mAP {found.mean_ap:.4f}   ({errors})")
    console.print(f"mAP at 4 m over the classes present: {found.mean_ap_4m_present:.4f}")
    layers = ", ".join(f"{name} {value:.3f}" for name, value in report.map_iou.items())
    console.print(f"map mIoU {report.mean_iou:.4f} over the layers the log knows ({layers})")


def main() -> None:
    """Read the command line, evaluate, print and write the report."""
    parser = argparse.ArgumentParser(prog="evaluate.py", description=__doc__)
    parser.add_argument("run", type=Path, help="run folder made by train.py")
    parser.add_argument("--log", type=Path, required=True, help="root of a nuScenes log")
    parser.add_argument("--version", help="folder of the tables, such as v1.0-mini")
    parser.add_argument(
        "--split", default="mini_val", help=f"official split, or {ALL_SCENES!r} (default: mini_val)"
    )
    parser.add_argument("--frames", choices=("all", "complete"), default="all")
    parser.add_argument("--pictures", type=int, default=1, help="keyframes drawn (default: 1)")
    parser.add_argument("--out", type=Path, help="folder of the report (default: RUN/evaluation)")
    arguments = parser.parse_args()
    if not arguments.run.is_dir():
        raise InputError(f"{arguments.run} is no folder: give a run folder made by train.py.")
    log = NuScenesLog(arguments.log, arguments.version)
    out = arguments.out or arguments.run / "evaluation"
    report = evaluate_run(
        arguments.run, log, arguments.split, arguments.frames, out, arguments.pictures
    )
    print_report(report)
    sys.stdout.write(f"report and pictures: {out}\n")


if __name__ == "__main__":
    run_command(main)
