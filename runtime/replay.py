"""Replay a recorded log through the pipeline: what comes out, how fast, and what was missing.

At `--speed 1` the messages arrive with the offsets at which they were recorded and the newest frame
wins, as in the car; at `--speed 0` a virtual clock gives every frame, the same ones in every run.
"""

import argparse
import json
import math
import resource
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

from perception import atomic_file
from perception.bundle import load_bundle
from perception.data.nuscenes_log import NuScenesLog
from perception.errors import InputError, run_command
from perception.messages import PerceptionResult
from perception.model_card import BOX_COLUMNS
from perception.taxonomy import LIDAR
from runtime.calibration_file import write_calibration
from runtime.engines.onnx_engine import BevPoolForm
from runtime.engines.selection import EngineKind, open_engine
from runtime.latency import LatencyRecorder
from runtime.log_feed import FedFrame, LogFeed
from runtime.pipeline import Pipeline
from runtime.synchronizer import SynchronizerConfig

REPORT_FILE = "replay.json"
DETECTIONS_FILE = "detections.json"
FORMAT_VERSION = 1
"""Of both files."""

MAP_THRESHOLD = 0.5
"""Probability above which a map cell counts as covered. Source: ours."""

MAX_NAMED_FILES = 100
"""Missing files named in the report, so that it stays readable."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line, see `--help`."""
    options = _parse(arguments)
    log = NuScenesLog(options.log, options.version)
    scenes = tuple(options.scene or log.scenes)
    for scene in scenes:
        log.calibration(scene)  # an unknown scene is refused before anything is computed
    if options.write_calibration is not None:
        if len(scenes) != 1:
            raise InputError(
                f"--write-calibration takes one scene's rig, got {len(scenes)} scenes: "
                "add --scene NAME."
            )
        write_calibration(options.write_calibration, log.calibration(scenes[0]))
        sys.stdout.write(f"calibration of {scenes[0]} written to {options.write_calibration}\n")
        return 0
    if options.bundle is None:
        raise InputError("no bundle given: pass the folder that export/to_onnx.py made.")
    bundle = load_bundle(options.bundle)
    engine = open_engine(bundle, options.engine, options.threads, options.bev_pool)
    pipeline = Pipeline(bundle, engine=engine, score_threshold=options.score_threshold)
    replay = Replay(pipeline, log, scenes, options.speed, verbose=options.verbose)
    replay.run()
    sys.stdout.write(replay.text())
    if options.out is not None:
        replay.write(options.out)
        sys.stdout.write(f"written to {options.out}\n")
    return 0


class Replay:
    """One run of a log through a pipeline."""

    def __init__(
        self,
        pipeline: Pipeline,
        log: NuScenesLog,
        scenes: Sequence[str],
        speed: float,
        *,
        verbose: bool = False,
    ) -> None:
        """Prepare; nothing is read yet.

        Args:
            pipeline: What computes the frames.
            log: The recording.
            scenes: Which scenes, in this order.
            speed: Seconds of the log per second; 0 for the virtual clock.
            verbose: Whether each frame gets a line on stdout.

        Raises:
            InputError: The speed is below 0 or not finite.
        """
        if not (math.isfinite(speed) and speed >= 0):
            raise InputError(f"speed is {speed}, expected 0 (as fast as possible) or more.")
        self._pipeline = pipeline
        self._log = log
        self._scenes = tuple(scenes)
        self._speed = speed
        self._verbose = verbose
        self._recorder = LatencyRecorder()
        config = SynchronizerConfig(
            cameras=pipeline.bundle.card.inputs.cameras,
            max_sweeps=pipeline.bundle.card.inputs.pillars.num_sweeps,
        )
        self._feed = LogFeed(log, self._scenes, config, self._recorder)
        self._records: list[dict[str, Any]] = []
        self._sensors_used: Counter[str] = Counter()
        self._sensors_missing: Counter[str] = Counter()
        self._warm_up_ms = 0.0

    def run(self) -> None:
        """Replay all scenes."""
        self._warm_up_ms = self._pipeline.warm_up()
        frames = self._feed.paced(self._speed) if self._speed > 0 else self._feed.virtual()
        for fed in frames:
            start_s = time.perf_counter()
            result = self._pipeline.process(fed.frame)
            self._record_times(fed, result, start_s)
            self._sensors_used[_sensors_text(result.sensors_used)] += 1
            self._sensors_missing.update(result.sensors_missing.keys())
            self._records.append(_frame_record(fed.scene, result))
            self._show(fed.scene, result)
        if sys.stderr.isatty():
            sys.stderr.write("\n")

    def report(self) -> dict[str, Any]:
        """Everything that was measured, for JSON."""
        feed, bundle = self._feed, self._pipeline.bundle
        missing_files = Counter(missing.sensor for missing in feed.missing_files)
        return {
            "format_version": FORMAT_VERSION,
            "bundle": bundle.path.name,
            "bundle_sha256": bundle.digest,
            "recipe": bundle.card.recipe,
            "engine": self._pipeline.engine.description,
            "log": str(self._log.root),
            "version": self._log.version,
            "scenes": list(self._scenes),
            "clock": "wall" if self._speed > 0 else "virtual",
            "speed": self._speed,
            "messages": dict(sorted(feed.messages.items())),
            "missing_files": dict(sorted(missing_files.items())),
            "missing_file_reasons": [m.reason for m in feed.missing_files[:MAX_NAMED_FILES]],
            "frames_in": feed.num_frames,
            "frames_out": len(self._records),
            "frames_dropped": {k: v for k, v in feed.dropped_frames.items() if v},
            "frames_by_sensors_used": dict(self._sensors_used.most_common()),
            "frames_without": dict(sorted(self._sensors_missing.items())),
            "synchronizer": dict(sorted(feed.synchronizer_counters.items())),
            "pipeline": dict(sorted(self._pipeline.counters.items())),
            "clock_held_back_s": feed.held_back_s,
            "warm_up_ms": self._warm_up_ms,
            "latency_meaning": self._latency_meaning(),
            "latency": {name: asdict(s) for name, s in self._recorder.summaries().items()},
            "peak_memory_mib": _peak_memory_mib(),
        }

    def text(self) -> str:
        """The report for people."""
        report = self.report()
        lines = [
            f"bundle    {report['bundle']} ({report['recipe']}, {report['bundle_sha256'][:12]})",
            f"engine    {report['engine']}, warm-up {report['warm_up_ms']:.1f} ms",
            f"log       {report['log']} {report['version']}: {', '.join(self._scenes)}",
            f"messages  {_counts(report['messages'])}",
            f"missing files  {_counts(report['missing_files'])}",
            f"frames    {report['frames_in']} in, {report['frames_out']} out, dropped: "
            f"{_counts(report['frames_dropped'])}",
            *(f"  {count} x {used}" for used, count in report["frames_by_sensors_used"].items()),
            f"frames without  {_counts(report['frames_without'])}",
            f"dropped messages  {_counts(report['synchronizer'])}",
            f"pipeline  {_counts(report['pipeline'])}",
            "",
            self._recorder.table().rstrip(),
            report["latency_meaning"],
            f"clock held back for decoding: {report['clock_held_back_s']:.3f} s",
            f"peak memory: {report['peak_memory_mib']:.0f} MiB",
        ]
        return "\n".join(lines) + "\n"

    def write(self, folder: Path) -> None:
        """Write report and detections.

        Raises:
            InputError: The folder cannot be made or written.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"Cannot make {folder}: {error.strerror}; check its parent."
            ) from error
        card = self._pipeline.bundle.card
        head = {
            "format_version": FORMAT_VERSION,
            "bundle_sha256": self._pipeline.bundle.digest,
            "classes": card.detection_classes,
            "box_columns": BOX_COLUMNS,
            "map_classes": card.map_classes,
        }
        frames = ",\n".join(json.dumps(record) for record in self._records)
        detections = f'{json.dumps(head)[:-1]}, "frames": [\n{frames}\n]}}\n'
        atomic_file.write_text(folder / DETECTIONS_FILE, detections)
        report = json.dumps(self.report(), indent=2) + "\n"
        atomic_file.write_text(folder / REPORT_FILE, report)

    def _record_times(self, fed: FedFrame, result: PerceptionResult, start_s: float) -> None:
        end_s = time.perf_counter()
        if fed.stamp_s is not None and fed.complete_s is not None:
            self._recorder.add("waiting for sensors", (fed.complete_s - fed.stamp_s) * 1e3)
            self._recorder.add("waiting for pipeline", (start_s - fed.complete_s) * 1e3)
        self._recorder.add_all(result.stage_ms)
        since_s = start_s if fed.stamp_s is None else fed.stamp_s
        self._recorder.add("total", (end_s - since_s) * 1e3)

    def _latency_meaning(self) -> str:
        if self._speed > 0:
            return (
                f"total: from the frame's sensor stamp to its result, wall clock at speed "
                f"{self._speed:g}; decode is not in it"
            )
        return "total: processing time only (virtual clock); decode is not in it"

    def _show(self, scene: str, result: PerceptionResult) -> None:
        total_ms = sum(result.stage_ms.values())
        if self._verbose:
            missing = "; ".join(f"{name}: {why}" for name, why in result.sensors_missing.items())
            sys.stdout.write(
                f"{scene} {result.stamp_ns} {_sensors_text(result.sensors_used)}, "
                f"{len(result.detections.scores)} boxes, {total_ms:.1f} ms"
                f"{f' ({missing})' if missing else ''}\n"
            )
        elif sys.stderr.isatty():
            sys.stderr.write(f"\r{scene}  {len(self._records)} frames  {total_ms:.1f} ms ")
            sys.stderr.flush()


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path, nargs="?", help="folder made by export/to_onnx.py")
    parser.add_argument("--log", type=Path, required=True, metavar="ROOT", help="nuScenes folder")
    parser.add_argument(
        "--version", help="folder of the tables, e.g. v1.0-mini; default: the only one"
    )
    parser.add_argument(
        "--scene", nargs="+", action="extend", metavar="NAME", help="scenes; default: all"
    )
    parser.add_argument(
        "--speed", type=float, default=1.0, help="1: as recorded; 0: every frame, no clock"
    )
    parser.add_argument("--score-threshold", type=float, default=0.1, help="0..1, default 0.1")
    parser.add_argument("--engine", choices=get_args(EngineKind), default="onnx")
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="0: one per core")
    parser.add_argument(
        "--bev-pool",
        choices=get_args(BevPoolForm),
        default="auto",
        help="in ONNX Runtime: compiled kernel, the model file's own function, or what there is",
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help=f"write {REPORT_FILE} and {DETECTIONS_FILE} there"
    )
    parser.add_argument("--verbose", action="store_true", help="one line per frame")
    parser.add_argument(
        "--write-calibration", type=Path, metavar="FILE", help="write the scene's rig and stop"
    )
    return parser.parse_args(arguments)


def _frame_record(scene: str, result: PerceptionResult) -> dict[str, Any]:
    """One frame for `detections.json`: no times, so that two runs can be compared byte by byte."""
    found, grid = result.detections, result.map_mask.grid
    covered = (result.map_mask.prob > MAP_THRESHOLD).sum(axis=(1, 2)) * grid.cell**2
    pose = result.T_global_ego
    return {
        "scene": scene,
        "stamp_ns": result.stamp_ns,
        "T_global_ego": None if pose is None else pose.tolist(),
        "sensors_used": result.sensors_used,
        "sensors_missing": result.sensors_missing,
        "boxes_ego": [[round(float(value), 4) for value in row] for row in found.boxes_ego],
        "scores": [round(float(score), 4) for score in found.scores],
        "labels": found.labels.tolist(),
        "map_area_m2": [round(float(area), 2) for area in covered],
    }


def _sensors_text(used: Sequence[str]) -> str:
    num_cameras = sum(name != LIDAR for name in used)
    parts = [f"{num_cameras} cameras"] * (num_cameras > 0) + ["LiDAR"] * (LIDAR in used)
    return " + ".join(parts) or "no sensor"


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items()) or "none"


def _peak_memory_mib() -> float:
    # Linux gives KiB, macOS bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


if __name__ == "__main__":
    run_command(main)
