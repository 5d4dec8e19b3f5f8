"""Score a run on a log: `python training/evaluate.py RUN --log ROOT`."""

import argparse
import dataclasses
import json
import sys
from dataclasses import dataclass
from pathlib import Path

from nuscenes import NuScenes
from rich.console import Console
from rich.progress import track
from rich.table import Table

from perception import atomic_file, provenance
from perception.checkpoint import load_checkpoint
from perception.data.map_layers import MapLayers
from perception.data.nuscenes_dataset import ego_pose
from perception.data.nuscenes_log import NuScenesLog
from perception.errors import InputError, run_command
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
    run: Path, log: NuScenesLog, split: str, frames: str, out: Path
) -> EvaluationReport:
    """Predict the keyframes of a split and score them officially.

    Args:
        run: Run folder with a checkpoint.
        log: The log.
        split: Official split or "all".
        frames: "all" keyframes, or only "complete" ones.
        out: Folder for the result file and the report.
    """
    checkpoint = load_checkpoint(run)
    tokens = split_tokens(log, split, frames)
    map_layers = MapLayers(log, checkpoint.config.map_head.grid)
    results, iou = {}, MapIou()
    for token in track(tokens, "predicting", console=Console(stderr=True)):
        frame = log.keyframe(token, checkpoint.config.inputs.pillars.num_sweeps)
        results[token] = predict(checkpoint.detector, checkpoint.config, frame)
        raster = map_layers.at(log.scene_of(token), ego_pose(frame))
        iou.add(results[token].map_mask.prob, raster.mask, raster.labelled)
    out.mkdir(parents=True, exist_ok=True)
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
    parser.add_argument("--out", type=Path, help="folder of the report (default: RUN/evaluation)")
    arguments = parser.parse_args()
    if not arguments.run.is_dir():
        raise InputError(f"{arguments.run} is no folder: give a run folder made by train.py.")
    log = NuScenesLog(arguments.log, arguments.version)
    out = arguments.out or arguments.run / "evaluation"
    print_report(evaluate_run(arguments.run, log, arguments.split, arguments.frames, out))
    sys.stdout.write(f"report: {out / REPORT_FILE}\n")


if __name__ == "__main__":
    run_command(main)
