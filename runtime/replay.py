"""Replay a recorded drive through the pipeline: what comes out, how fast, and what was missing.

At `--speed 1` the messages arrive with the offsets at which they were recorded and the newest frame
wins, as in the car; at `--speed 0` a virtual clock gives every frame, the same ones in every run.
"""

import argparse
import json
import math
import shlex
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from perception import atomic_file
from perception.bundle import load_bundle
from perception.errors import InputError, run_command
from perception.messages import PerceptionResult, SensorFrame
from perception.provenance import environment
from runtime import golden, replay_options, replay_report
from runtime.budgets import Budgets, judge, read_budgets
from runtime.calibration_file import write_calibration
from runtime.ladder import Ladder
from runtime.latency import LatencyRecorder
from runtime.log_feed import FedFrame, LogFeed
from runtime.message_source import MessageSource
from runtime.output_times import OutputTimes, processing_ms
from runtime.pipeline import Pipeline
from runtime.replay_faults import FaultPlan
from runtime.replay_setup import fault_plan, open_model, open_source
from runtime.synchronizer import SynchronizerConfig

REPORT_FILE = "replay.json"
PAGE_FILE = "replay.md"
PICTURE_FILE = "latency.png"
DETECTIONS_FILE = "detections.json"
FORMAT_VERSION = 3
"""Of the report. 3: sensors, ended_early."""

INTERRUPTED = 130
"""Exit code after Ctrl-C. Source: 128 + SIGINT, as shells give it."""

MAX_NAMED_FILES = 100
"""Missing files named in the report, so that it stays readable."""


@runtime_checkable
class FrameSink(Protocol):
    """Something that keeps frames and their results, e.g. a video; `close` finishes its file."""

    def add(self, scene: str, frame: SensorFrame, result: PerceptionResult) -> None:
        """Take one frame."""


@dataclass(frozen=True, kw_only=True)
class ReplayConfig:
    """How a recording is replayed."""

    speed: float = 1.0
    """Seconds of the log per second; 0 for the virtual clock."""
    period_ms: float = 100.0
    """Time from frame to frame [ms]."""
    frozen_after: int = SynchronizerConfig.frozen_after
    """See there."""
    score_threshold: float = 0.0
    """The pipeline's, for the detections file."""
    faults: FaultPlan = field(default_factory=FaultPlan)
    """What is done to the messages."""
    verbose: bool = False
    """Whether each frame gets a line on stdout."""

    def __post_init__(self) -> None:
        """Refuse times that cannot be."""
        if not (math.isfinite(self.speed) and self.speed >= 0):
            raise InputError(f"speed is {self.speed}, expected 0 (as fast as possible) or more.")
        if not (math.isfinite(self.period_ms) and self.period_ms > 0):
            raise InputError(f"period is {self.period_ms} ms, expected more than 0.")


class Replay:
    """One run of a recording through a pipeline."""

    def __init__(
        self,
        pipeline: Pipeline | Ladder,
        source: MessageSource,
        scenes: Sequence[str],
        config: ReplayConfig,
        sinks: Sequence[FrameSink] = (),
    ) -> None:
        """Prepare; nothing is read yet.

        Args:
            pipeline: What computes the frames.
            source: The recording.
            scenes: Which scenes, in this order.
            config: How.
            sinks: Get each frame with its result; the time that they take is in no latency. Who
                opened them closes them.
        """
        self.was_interrupted = False
        """Whether it ended by Ctrl-C."""
        self._pipeline = pipeline
        self._source = source
        self._scenes = tuple(scenes)
        self._config = config
        self._sinks = tuple(sinks)
        self._recorder = LatencyRecorder()
        self._times = OutputTimes(self._recorder, config.speed)
        inputs, period_ns = pipeline.bundle.card.inputs, round(config.period_ms * 1e6)
        self._sensors = inputs.sensors
        synchronizer = SynchronizerConfig(
            cameras=inputs.cameras,
            period_ns=period_ns,
            wait_ns=min(period_ns, SynchronizerConfig.wait_ns),
            max_sweeps=inputs.pillars.num_sweeps,
            frozen_after=config.frozen_after,
        )
        self._feed = LogFeed(source, self._scenes, synchronizer, self._recorder, config.faults)
        self._records: list[golden.Record] = []
        self._sensors_used: Counter[str] = Counter()
        self._sensors_missing: Counter[str] = Counter()
        self._bundles_used: Counter[str] = Counter()
        self._modes: list[str] = []
        self._num_incomplete = 0
        self._warm_up_ms = 0.0
        self._environment = environment()

    def run(self) -> None:
        """Replay all scenes; Ctrl-C ends it, and what was replayed until then counts."""
        speed = self._config.speed
        try:
            self._warm_up_ms = self._pipeline.warm_up()
            for fed in self._feed.paced(speed) if speed > 0 else self._feed.virtual():
                start_s = time.perf_counter()
                result = self._pipeline.process(fed.frame)
                self._times.add(fed, result, start_s)
                self._keep(fed, result)
        except KeyboardInterrupt:
            self.was_interrupted = True
        if sys.stderr.isatty():
            sys.stderr.write("\n")

    def report(self) -> dict[str, Any]:
        """Everything that was measured, for JSON."""
        feed, bundle = self._feed, self._pipeline.bundle
        missing_files = Counter(missing.sensor for missing in feed.missing_files)
        pipelines = getattr(self._pipeline, "pipelines", (self._pipeline,))
        switches = sum(a != b for a, b in zip(self._modes, self._modes[1:], strict=False))
        return {
            "format_version": FORMAT_VERSION,
            "recipe": bundle.card.recipe,
            "bundles": [
                {
                    "name": p.bundle.path.name,
                    "recipe": p.bundle.card.recipe,
                    "sha256": p.bundle.digest,
                    "frames": self._bundles_used[p.bundle.digest],
                }
                for p in pipelines
            ],
            "engine": self._pipeline.engine.description,
            "log": self._source.description,
            "scenes": list(self._scenes),
            "ended_early": [
                *(["interrupted"] if self.was_interrupted else []),
                *([self._source.damage] if self._source.damage is not None else []),
            ],
            "clock": "wall" if self._config.speed > 0 else "virtual",
            "speed": self._config.speed,
            "period_ms": self._config.period_ms,
            "frozen_after": self._config.frozen_after,
            "messages": dict(sorted(feed.messages.items())),
            "missing_files": dict(sorted(missing_files.items())),
            "missing_file_reasons": [m.reason for m in feed.missing_files[:MAX_NAMED_FILES]],
            "faults": dict(sorted(feed.faults.items())),
            "frames_in": feed.num_frames,
            "frames_out": len(self._records),
            "frames_dropped": {k: v for k, v in feed.dropped_frames.items() if v},
            "frames_incomplete": self._num_incomplete,
            "frames_by_sensors_used": dict(self._sensors_used.most_common()),
            "frames_by_mode": dict(Counter(self._modes).most_common()),
            "mode_switches": switches,
            "frames_without": dict(sorted(self._sensors_missing.items())),
            "sensors": feed.sensor_times.table(),
            "synchronizer": dict(sorted(feed.synchronizer_counters.items())),
            "pipeline": dict(sorted(self._pipeline.counters.items())),
            "clock_held_back_s": feed.held_back_s,
            "warm_up_ms": self._warm_up_ms,
            "latency_meaning": self._times.meaning,
            "latency": {name: asdict(s) for name, s in self._recorder.summaries().items()},
            "peak_memory_mib": replay_report.peak_memory_mib(),
            "environment": self._environment,
        }

    def text(self) -> str:
        """The report for a terminal."""
        return replay_report.text(self.report(), self._recorder.table())

    def detections_text(self) -> str:
        """What was found, as the detections file."""
        threshold = self._config.score_threshold
        return golden.detections_text(self._pipeline.bundle, threshold, self._records)

    def write(self, folder: Path, command: str = "", verdicts: Sequence[str] = ()) -> None:
        """Write detections, report, page and picture.

        Args:
            folder: Made if it is not there.
            command: How to get them again, for the page.
            verdicts: Texts for the end of the page.

        Raises:
            InputError: The folder cannot be made or written, or matplotlib is missing.
        """
        replay_report.make_folder(folder)
        report = self.report()
        atomic_file.write_text(folder / DETECTIONS_FILE, self.detections_text())
        atomic_file.write_text(folder / REPORT_FILE, json.dumps(report, indent=2) + "\n")
        page = replay_report.markdown(report, command, verdicts, PICTURE_FILE)
        atomic_file.write_text(folder / PAGE_FILE, page)
        title = f"{report['engine']}, {report['environment']['processor']}"
        replay_report.save_histogram(folder / PICTURE_FILE, self._recorder.samples, title)

    def _keep(self, fed: FedFrame, result: PerceptionResult) -> None:
        self._sensors_used[replay_report.sensors_text(result.sensors_used)] += 1
        self._sensors_missing.update(result.sensors_missing.keys())
        self._num_incomplete += len(result.sensors_used) < len(self._sensors)
        self._bundles_used[result.bundle_digest] += 1
        self._modes.append(result.mode)
        self._feed.sensor_times.add_frame(fed.frame)
        self._records.append(golden.frame_record(fed.scene, result))
        for sink in self._sinks:
            sink.add(fed.scene, fed.frame, result)
        self._show(fed.scene, result)

    def _show(self, scene: str, result: PerceptionResult) -> None:
        total_ms = processing_ms(result)
        if self._config.verbose:
            missing = "; ".join(f"{name}: {why}" for name, why in result.sensors_missing.items())
            sys.stdout.write(
                f"{scene} {result.stamp_ns} {replay_report.sensors_text(result.sensors_used)}, "
                f"{len(result.detections.scores)} boxes, {total_ms:.1f} ms"
                f"{f' ({missing})' if missing else ''}\n"
            )
        elif sys.stderr.isatty():
            sys.stderr.write(f"\r{scene}  {len(self._records)} frames  {total_ms:.1f} ms ")
            sys.stderr.flush()


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line, see `--help`.

    Returns:
        1 if the detections are not the accepted ones or a budget is exceeded, 130 if the replay was
        interrupted, else 0.
    """
    options = replay_options.parse(arguments, (__doc__ or "").splitlines()[0])
    budgets = None if options.budget is None else read_budgets(options.budget)
    accepted = _accepted(options)
    bundle = None if options.bundle is None else load_bundle(options.bundle)
    source = open_source(options, bundle)
    scenes = tuple(dict.fromkeys(options.scene or source.scenes))
    for scene in scenes:
        source.calibration(scene)  # an unknown scene is refused before anything is computed
    if options.write_calibration is not None:
        return _write_calibration(options.write_calibration, source, scenes)
    if bundle is None:
        raise InputError("no bundle given: pass the folder that export/to_onnx.py made.")
    if options.mcap is not None:
        _require_one_scene("--mcap", scenes)
    if options.out is not None:
        replay_report.make_folder(options.out)
    config = ReplayConfig(
        speed=options.speed,
        period_ms=options.period,
        frozen_after=options.frozen_after,
        score_threshold=options.score_threshold,
        faults=fault_plan(options),
        verbose=options.verbose,
    )
    with _opened_sinks(options) as sinks:
        replay = Replay(open_model(options, bundle), source, scenes, config, sinks)
        replay.run()
    sys.stdout.write(replay.text())
    command = shlex.join(
        ["python", "runtime/replay.py", *(sys.argv[1:] if arguments is None else arguments)]
    )
    verdicts, code = _judged(replay, accepted, budgets, "" if options.accept else command)
    sys.stdout.write("".join(verdicts))
    if options.out is not None:
        replay.write(options.out, command, verdicts)
        sys.stdout.write(f"written to {options.out}\n")
    if options.accept and not replay.was_interrupted:
        golden.accept(options.golden, replay.detections_text())
        sys.stdout.write(f"golden    accepted: {options.golden}\n")
    return code


def _accepted(options: argparse.Namespace) -> golden.Record | None:
    """The accepted detections, where there are any; `--accept` replaces what cannot be read."""
    if options.golden is None:
        return None
    try:
        return golden.read(options.golden)
    except InputError:
        if options.accept:
            return None
        raise


def _judged(
    replay: Replay, accepted: golden.Record | None, budgets: Budgets | None, command: str
) -> tuple[list[str], int]:
    """Verdicts and exit code; no command: another result than the accepted one is meant."""
    if replay.was_interrupted:
        return ["interrupted: not compared and not judged\n"], INTERRUPTED
    verdicts, code = [], 0
    if accepted is not None:
        comparison = golden.compare(accepted, replay.detections_text())
        verdicts.append(comparison.text())
        if comparison.differences and command:
            verdicts[-1] += f"to accept: {command} --accept\n"
            code = 1
    if budgets is not None:
        judged = judge(replay.report(), budgets)
        verdicts.append(judged.text())
        code = max(code, int(bool(judged.breaches)))
    return verdicts, code


@contextmanager
def _opened_sinks(options: argparse.Namespace) -> Iterator[list[FrameSink]]:
    """Sinks whose files are finished whatever happens while they are open."""
    with ExitStack() as opened:
        sinks: list[FrameSink] = []
        if options.video is not None:
            from runtime.writers.video_writer import VideoWriter  # their packages are optional

            video = VideoWriter(options.video, fps=1000.0 / options.period)
            sinks.append(opened.enter_context(closing(video)))
        if options.mcap is not None:
            from runtime.writers.mcap_writer import McapWriter

            sinks.append(opened.enter_context(closing(McapWriter(options.mcap))))
        yield sinks


def _write_calibration(path: Path, source: MessageSource, scenes: Sequence[str]) -> int:
    _require_one_scene("--write-calibration", scenes)
    write_calibration(path, source.calibration(scenes[0]))
    sys.stdout.write(f"calibration of {scenes[0]} written to {path}\n")
    return 0


def _require_one_scene(option: str, scenes: Sequence[str]) -> None:
    if len(scenes) != 1:
        raise InputError(
            f"{option} takes one scene, got {len(scenes)}, each with a clock and a rig of its own: "
            "add --scene NAME."
        )


if __name__ == "__main__":
    run_command(main)
