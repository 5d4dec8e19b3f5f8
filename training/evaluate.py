"""Score a run on a log: `python training/evaluate.py RUN --log ROOT`."""

import argparse
import dataclasses
import itertools
import shlex
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, get_args

import numpy as np
import torch
from jaxtyping import UInt8
from nuscenes import NuScenes
from rich.console import Console
from rich.progress import track

from perception import atomic_file, provenance
from perception.checkpoint import Checkpoint, load_checkpoint
from perception.data.map_layers import MapLayers, MapRaster
from perception.data.nuscenes_dataset import ego_pose, training_boxes
from perception.data.nuscenes_log import Annotations, NuScenesLog
from perception.drawing import draw_frame, save_png
from perception.errors import InputError, positive_int, run_command
from perception.messages import Detections, MapMask, PerceptionResult, SensorFrame
from perception.model_inputs import PreparedFrame, prepare_frame
from perception.taxonomy import DETECTION_CLASSES, MAP_CLASSES
from training.detection_metrics import DetectionReport, OfficialEvaluation, write_results
from training.distance_bands import DEFAULT_EDGES, DistanceBand, distance_bands
from training.evaluation_report import (
    BandReport,
    EvaluationReport,
    SubsetReport,
    mean,
    print_report,
)
from training.map_metrics import MapIou
from training.prediction import Precision, predict_batch
from training.report import EVALUATION_FILE, EVALUATION_FOLDER, write_report
from training.run_log import METRICS_FILE
from training.sensor_subsets import SensorSubset, SubsetChoice, sensor_subsets
from training.splits import ALL_SCENES, split_tokens

RESULTS_FILE = "results_nusc.json"
PICTURE_FILES = "keyframe_{}.png"

Key = TypeVar("Key")
Value = TypeVar("Value")


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """How much is evaluated, and how."""

    num_pictures: int = 0
    """Keyframes drawn, spread over the scenes."""
    max_keyframes: int | None = None
    """Keyframes scored, spread over the scenes; None takes all."""
    subsets: SubsetChoice = "none"
    """Sensors that are lost on trial."""
    bands: tuple[DistanceBand, ...] = distance_bands(DEFAULT_EDGES)
    """Distances that are scored apart, too."""
    precision: Precision = "fp32"
    """Of the network's layers."""
    batch_size: int | None = None
    """Frames that go through the network at once; None: 8 on a GPU, 1 on a CPU, where larger
    batches are slower (measured on two cores)."""
    num_workers: int = 2
    """Threads that read and prepare keyframes."""


class _Predictions:
    """What the network said of all keyframes with one subset of the sensors."""

    def __init__(self, subset: SensorSubset, bands: Sequence[DistanceBand]) -> None:
        self.subset = subset
        self.results: dict[str, PerceptionResult] = {}
        self.map_iou = MapIou(bands)

    def add(self, token: str, result: PerceptionResult, raster: MapRaster) -> None:
        """Count the map and keep the boxes: the rasters of a whole split fill a memory."""
        self.map_iou.add(result.map_mask, raster)
        grid = result.map_mask.grid
        nothing = MapMask(prob=np.zeros((0, grid.ny, grid.nx), np.float32), classes=(), grid=grid)
        self.results[token] = dataclasses.replace(result, map_mask=nothing)


@dataclass(frozen=True, kw_only=True)
class _Keyframe:
    """One keyframe, read once for all subsets of the sensors."""

    token: str
    frame: SensorFrame
    raster: MapRaster


def evaluate_run(
    run: Path,
    log: NuScenesLog,
    split: str,
    frames: str,
    out: Path,
    options: EvaluationOptions = EvaluationOptions(),
) -> EvaluationReport:
    """Predict the keyframes of a split and score them officially.

    Args:
        run: Run folder with a checkpoint.
        log: The log.
        split: Official split, one of the log's own, or "all".
        frames: "all" keyframes, or only "complete" ones.
        out: Folder for the result file, the report and the pictures.
        options: How much is evaluated, and how.
    """
    started = time.perf_counter()
    checkpoint = load_checkpoint(run)
    checkpoint.detector.to("cuda" if torch.cuda.is_available() else "cpu")
    tokens = spread(split_tokens(log, split, frames), options.max_keyframes)
    out.mkdir(parents=True, exist_ok=True)
    predictions = _predict_all(checkpoint, log, tokens, out, options)
    full = predictions[0]
    write_results(out / RESULTS_FILE, full.results)
    nusc = NuScenes(version=log.version, dataroot=str(log.root), verbose=False)
    official = OfficialEvaluation(nusc, tokens)
    boxes = official.predictions(full.results)
    detection = official.score(boxes)
    report = EvaluationReport(
        detection=detection,
        map_iou=full.map_iou.result(),
        distance_bands=tuple(
            _band_report(band, official.score(boxes, band), full.map_iou.result(band))
            for band in options.bands
        ),
        sensor_subsets=_subset_reports(predictions, detection, official),
        num_keyframes=len(tokens),
        split=split,
        log=log.root.name,
        recipe=checkpoint.recipe,
        precision=options.precision,
        seconds=time.perf_counter() - started,
        command=shlex.join(sys.argv),
        environment=provenance.environment(),
    )
    atomic_file.write_text(out / EVALUATION_FILE, report.to_json())
    return report


def spread(tokens: Sequence[str], number: int | None) -> tuple[str, ...]:
    """`number` of the keyframes at equal steps, so from all scenes; None or too many: all."""
    if number is None or number >= len(tokens):
        return tuple(tokens)
    return tuple(tokens[(2 * i + 1) * len(tokens) // (2 * number)] for i in range(number))


def _predict_all(
    checkpoint: Checkpoint,
    log: NuScenesLog,
    tokens: Sequence[str],
    out: Path,
    options: EvaluationOptions,
) -> list[_Predictions]:
    """Predictions of every subset, all sensors first; leaves the pictures."""
    spec = checkpoint.config.inputs
    map_layers = MapLayers(log, checkpoint.config.map_head.grid)
    subsets = sensor_subsets(spec, options.subsets)
    predictions = [
        _Predictions(subset, options.bands if index == 0 else ())
        for index, subset in enumerate(subsets)
    ]

    def read(token: str) -> _Keyframe:
        frame = log.keyframe(token, spec.pillars.num_sweeps)
        raster = map_layers.at(log.scene_of(token), ego_pose(frame))
        return _Keyframe(token=token, frame=frame, raster=raster)

    def prepare(job: tuple[_Keyframe, int]) -> tuple[_Keyframe, int, SensorFrame, PreparedFrame]:
        keyframe, index = job
        frame = subsets[index].of(keyframe.frame)
        return keyframe, index, frame, prepare_frame(frame, spec)

    for old in out.glob(PICTURE_FILES.format("*")):
        old.unlink()
    pictures = spread(tokens, options.num_pictures)
    keyframes = read_ahead(tokens, read, options.num_workers)
    keyframes = with_progress(keyframes, len(tokens), "predicting keyframes")
    jobs = ((keyframe, index) for keyframe in keyframes for index in range(len(subsets)))
    work = read_ahead(jobs, prepare, options.num_workers)
    batch_size = options.batch_size or (8 if torch.cuda.is_available() else 1)
    while batch := list(itertools.islice(work, batch_size)):
        keyframes_of_batch, indices, frames, prepared = zip(*batch, strict=True)
        results = predict_batch(checkpoint, frames, prepared, options.precision)
        for keyframe, index, result in zip(keyframes_of_batch, indices, results, strict=True):
            predictions[index].add(keyframe.token, result, keyframe.raster)
            if index == 0 and keyframe.token in pictures:
                truth = log.annotations(keyframe.token)
                picture = draw_keyframe(keyframe.frame, result, truth, keyframe.raster)
                name = PICTURE_FILES.format(f"{pictures.index(keyframe.token):03d}")
                save_png(out / name, picture)
    return predictions


def read_ahead(
    keys: Iterable[Key], read: Callable[[Key], Value], num_workers: int
) -> Iterator[Value]:
    """`read(key)` of each key in order; threads read a few ahead."""
    with ThreadPoolExecutor(num_workers) as threads:
        waiting: deque[Future[Value]] = deque()
        for key in keys:
            waiting.append(threads.submit(read, key))
            if len(waiting) > num_workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def with_progress(items: Iterable[Value], total: int, what: str) -> Iterator[Value]:
    """The items, with a bar on a terminal and a line per tenth where stderr is piped."""
    console = Console(stderr=True)
    if console.is_terminal:
        yield from track(items, what, total, console=console)
        return
    for number, item in enumerate(items, start=1):
        yield item
        if number * 10 // total > (number - 1) * 10 // total:
            console.print(f"{what}: {number} of {total}", highlight=False)


def _band_report(
    band: DistanceBand, detection: DetectionReport, map_iou: dict[str, float]
) -> BandReport:
    return BandReport(
        name=band.name,
        near=band.near,
        far=band.far,
        mean_ap=mean(detection.ap),
        ap=detection.ap,
        num_ground_truth=detection.num_ground_truth,
        map_iou=map_iou,
        map_mean_iou=mean(map_iou),
    )


def _subset_reports(
    predictions: Sequence[_Predictions], full: DetectionReport, official: OfficialEvaluation
) -> tuple[SubsetReport, ...]:
    """Figures of each subset; none where only all sensors were evaluated."""
    if len(predictions) == 1:
        return ()
    others = with_progress(predictions[1:], len(predictions) - 1, "scoring subsets of the sensors")
    detections = [full, *(official.score(official.predictions(p.results)) for p in others)]
    return tuple(
        SubsetReport(
            name=p.subset.name,
            sensors=p.subset.sensors,
            nds=detection.nds,
            mean_ap=detection.mean_ap,
            map_mean_iou=mean(p.map_iou.result()),
        )
        for p, detection in zip(predictions, detections, strict=True)
    )


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


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="evaluate.py", description=__doc__)
    parser.add_argument("run", type=Path, help="run folder made by train.py")
    parser.add_argument("--log", type=Path, required=True, help="root of a nuScenes log")
    parser.add_argument("--version", help="folder of the tables, such as v1.0-mini")
    parser.add_argument(
        "--split", default="mini_val", help=f"official split, or {ALL_SCENES!r} (default: mini_val)"
    )
    parser.add_argument("--frames", choices=("all", "complete"), default="all")
    parser.add_argument("--max-keyframes", type=positive_int, help="score so many, over all scenes")
    parser.add_argument(
        "--subsets",
        choices=get_args(SubsetChoice),
        default="default",
        help="sensors lost on trial: none; the LiDAR, all cameras (kinds); each camera as well "
        "(default); or every subset",
    )
    parser.add_argument(
        "--bands",
        type=float,
        nargs="*",
        default=DEFAULT_EDGES,
        metavar="M",
        help="borders of the distance bands [m] (default: 0 20 30 40 50)",
    )
    parser.add_argument("--precision", choices=get_args(Precision), default="fp32")
    parser.add_argument(
        "--batch", type=positive_int, help="frames at once (default: 8 on a GPU, else 1)"
    )
    parser.add_argument(
        "--workers", type=positive_int, default=2, help="threads that read keyframes (default: 2)"
    )
    parser.add_argument("--pictures", type=int, default=1, help="keyframes drawn (default: 1)")
    parser.add_argument("--out", type=Path, help="folder of the report (default: RUN/evaluation)")
    return parser.parse_args()


def main() -> None:
    """Read the command line, evaluate, print and write the report."""
    arguments = _arguments()
    run: Path = arguments.run
    if not run.is_dir():
        raise InputError(f"{run} is no folder: give a run folder made by train.py.")
    options = EvaluationOptions(
        num_pictures=arguments.pictures,
        max_keyframes=arguments.max_keyframes,
        subsets=arguments.subsets,
        bands=distance_bands(arguments.bands),
        precision=arguments.precision,
        batch_size=arguments.batch,
        num_workers=arguments.workers,
    )
    log = NuScenesLog(arguments.log, arguments.version)
    out = arguments.out or run / EVALUATION_FOLDER
    print_report(evaluate_run(run, log, arguments.split, arguments.frames, out, options))
    sys.stdout.write(f"report and pictures: {out}\n")
    if (run / METRICS_FILE).is_file():
        sys.stdout.write(f"the run on one page: {write_report(run)}\n")


if __name__ == "__main__":
    run_command(main)
