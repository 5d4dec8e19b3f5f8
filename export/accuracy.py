"""What precision costs: `python export/accuracy.py FP32 FP16 INT8 --log ROOT --split NAME`.

Bundles of one network run frame by frame in turn, by the code that runs in the car, and are scored
by the official evaluation. The first is what the others are measured against. The exit code is 1
when one of them loses more than is allowed.
"""

import argparse
import dataclasses
import json
import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from nuscenes import NuScenes

from export.parity import match_boxes
from export.quantize import REPORT_FILE, model_digest
from perception import atomic_file, provenance
from perception.bundle import Bundle, load_bundle
from perception.data.map_layers import MapLayers
from perception.data.nuscenes_dataset import ego_pose
from perception.data.nuscenes_log import NuScenesLog
from perception.errors import InputError, run_command
from perception.messages import MapMask, PerceptionResult
from runtime.engines.base import ModelOutputs
from runtime.pipeline import Pipeline
from training.detection_metrics import OfficialEvaluation
from training.evaluate import spread, with_progress
from training.evaluation_report import mean
from training.map_metrics import MapIou
from training.splits import split_tokens

MIN_SCORE = 0.1
"""Boxes of the first bundle that are looked for in the others; there half of it is enough, so that
no box is lost by a score at the border. Source: ours."""

MATCH_DISTANCE = 0.5
"""Centres of the same box, and the same class [m]: the official metric's strictest. Source:
nuScenes devkit, `detection_cvpr_2019`."""

MAX_NDS_LOSS = MAX_MIOU_LOSS = 0.01
"""Loss that is allowed unless something else is asked for. Source: ours."""


@dataclass(frozen=True, kw_only=True)
class AccuracyRow:
    """One bundle."""

    bundle: str
    precision: str
    nds: float
    mean_ap: float
    map_mean_iou: float
    """NaN where the log knows no map layer."""
    matched_share: float
    """Boxes of the first bundle that this one has, too, 0..1."""
    engine_ms: float
    """Median time of the engine per frame [ms]."""
    model_bytes: int


@dataclass(frozen=True, kw_only=True)
class AccuracyReport:
    """The comparison of bundles on the same frames."""

    rows: tuple[AccuracyRow, ...]
    """The first is what the others are measured against."""
    max_nds_loss: float
    max_miou_loss: float
    num_keyframes: int
    split: str
    log: str
    engine: str
    command: str
    environment: dict[str, object]

    def losses(self, row: AccuracyRow) -> tuple[float, float]:
        """NDS and mIoU that a bundle loses against the first; mIoU 0 where the log has no map."""
        first = self.rows[0]
        has_map = not math.isnan(first.map_mean_iou)
        return first.nds - row.nds, first.map_mean_iou - row.map_mean_iou if has_map else 0.0

    def row_passed(self, row: AccuracyRow) -> bool:
        """Whether a bundle loses no more than is allowed; what is not a number does."""
        nds_loss, miou_loss = self.losses(row)
        return nds_loss <= self.max_nds_loss and miou_loss <= self.max_miou_loss

    @property
    def passed(self) -> bool:
        """Whether no bundle loses more than is allowed."""
        return all(self.row_passed(row) for row in self.rows)

    def markdown(self) -> str:
        """Table with a line of what was measured."""
        first = self.rows[0]
        lines = [
            "| bundle | precision | NDS | mAP | mIoU | boxes found again | ms per frame | MB | |",
            "|---|---|---:|---:|---:|---:|---:|---:|---|",
        ]
        for row in self.rows:
            lines.append(
                f"| {row.bundle} | {row.precision} | {row.nds:.4f} | {row.mean_ap:.4f} | "
                f"{row.map_mean_iou:.4f} | {row.matched_share:.1%} | {row.engine_ms:.1f} "
                f"({row.engine_ms / first.engine_ms:.2f}x) | {row.model_bytes / 1e6:.1f} | "
                f"{'' if self.row_passed(row) else 'FAILED'} |"
            )
        lines += [
            "",
            f"{self.num_keyframes} keyframes of {self.log}, split {self.split}; {self.engine}. "
            f"Allowed losses: NDS {self.max_nds_loss:g}, mIoU {self.max_miou_loss:g}.",
        ]
        return "\n".join(lines)

    def to_json(self) -> str:
        """All figures; a figure that is not known (NaN) is null."""
        figures = dataclasses.asdict(self)
        for row in figures["rows"]:
            row.update({k: None for k, v in row.items() if isinstance(v, float) and math.isnan(v)})
        return json.dumps(figures, indent=2, allow_nan=False) + "\n"


class _Candidate:
    """One bundle at work: its pipeline, and what it said so far."""

    def __init__(self, bundle: Bundle, num_threads: int) -> None:
        self.bundle = bundle
        self.pipeline = Pipeline(bundle, num_threads=num_threads)
        self.pipeline.warm_up()
        self.results: dict[str, PerceptionResult] = {}
        self.map_iou = MapIou()
        self.num_expected = self.num_matched = 0

    def keep(self, token: str, result: PerceptionResult) -> None:
        """Keep the boxes: the maps of a whole split fill a memory."""
        grid = result.map_mask.grid
        nothing = MapMask(prob=np.zeros((0, grid.ny, grid.nx), np.float32), classes=(), grid=grid)
        self.results[token] = dataclasses.replace(result, map_mask=nothing)

    def row(self, official: OfficialEvaluation) -> AccuracyRow:
        """Score what was kept."""
        detection = official.score(official.predictions(self.results))
        times = [result.stage_ms["engine"] for result in self.results.values()]
        return AccuracyRow(
            bundle=self.bundle.path.name,
            precision=self.bundle.card.precision,
            nds=detection.nds,
            mean_ap=detection.mean_ap,
            map_mean_iou=mean(self.map_iou.result()),
            matched_share=self.num_matched / max(1, self.num_expected),
            engine_ms=float(np.median(times)),
            model_bytes=self.bundle.model_path.stat().st_size,
        )


def compare_accuracy(
    bundles: Sequence[Bundle],
    log: NuScenesLog,
    split: str,
    *,
    max_keyframes: int | None = None,
    num_threads: int = 0,
    max_nds_loss: float = MAX_NDS_LOSS,
    max_miou_loss: float = MAX_MIOU_LOSS,
) -> AccuracyReport:
    """Run bundles on the same keyframes and score each.

    Args:
        bundles: Of one network; the first is what the others are measured against.
        log: The log.
        split: Official split, one of the log's own, or "all".
        max_keyframes: Keyframes scored, spread over the scenes; None takes all.
        num_threads: Threads within the engine; 0 for one per core.
        max_nds_loss: NDS that may be lost.
        max_miou_loss: mIoU that may be lost.

    Raises:
        InputError: The bundles are of different networks, or the engine refuses one.
    """
    _check_alike(bundles)
    tokens = spread(split_tokens(log, split, "all"), max_keyframes)
    candidates = [_Candidate(bundle, num_threads) for bundle in bundles]
    try:
        _run(candidates, log, tokens)
    finally:
        for candidate in candidates:
            candidate.pipeline.close()
    nusc = NuScenes(version=log.version, dataroot=str(log.root), verbose=False)
    official = OfficialEvaluation(nusc, tokens)
    return AccuracyReport(
        rows=tuple(candidate.row(official) for candidate in candidates),
        max_nds_loss=max_nds_loss,
        max_miou_loss=max_miou_loss,
        num_keyframes=len(tokens),
        split=split,
        log=log.root.name,
        engine=candidates[0].pipeline.engine.description,
        command=shlex.join(sys.argv),
        environment=provenance.environment(),
    )


def num_found_again(expected: PerceptionResult, got: PerceptionResult) -> tuple[int, int]:
    """Count boxes that are well seen in `expected`, and those of them that `got` has, too."""
    first, other = _boxes_above(expected, MIN_SCORE), _boxes_above(got, MIN_SCORE / 2)
    is_compared = np.ones(len(first.scores), bool)
    if not len(first.scores) or not len(other.scores):
        return len(first.scores), 0
    return len(first.scores), len(match_boxes(first, other, is_compared, MATCH_DISTANCE))


def _run(candidates: Sequence[_Candidate], log: NuScenesLog, tokens: Sequence[str]) -> None:
    """Let every bundle see every keyframe, one after the other."""
    card = candidates[0].bundle.card
    map_layers = MapLayers(log, card.map_grid)
    for token in with_progress(tokens, len(tokens), "running keyframes"):
        frame = log.keyframe(token, card.inputs.pillars.num_sweeps)
        raster = map_layers.at(log.scene_of(token), ego_pose(frame))
        results = [candidate.pipeline.process(frame) for candidate in candidates]
        for candidate, result in zip(candidates, results, strict=True):
            num_expected, num_matched = num_found_again(results[0], result)
            candidate.num_expected += num_expected
            candidate.num_matched += num_matched
            candidate.map_iou.add(result.map_mask, raster)
            candidate.keep(token, result)
    for candidate in candidates:
        if failed := candidate.pipeline.counters["engine_failures"]:
            raise InputError(
                f"{candidate.bundle.path}: the engine failed on {failed} of {len(tokens)} frames, "
                "so its figures would be of other frames: export the bundle again."
            )


def _boxes_above(result: PerceptionResult, min_score: float) -> ModelOutputs:
    found = result.detections
    kept = found.scores >= min_score
    return ModelOutputs(
        boxes_ego=found.boxes_ego[kept],
        scores=found.scores[kept],
        labels=found.labels[kept],
        map_prob=result.map_mask.prob,
    )


def _check_alike(bundles: Sequence[Bundle]) -> None:
    first = bundles[0]
    for bundle in bundles[1:]:
        alike: Mapping[str, bool] = {
            "recipe": bundle.card.recipe == first.card.recipe,
            "inputs": bundle.card.inputs == first.card.inputs,
            "map grid": bundle.card.map_grid == first.card.map_grid,
            "detection classes": bundle.card.detection_classes == first.card.detection_classes,
            "map classes": bundle.card.map_classes == first.card.map_classes,
            "sparse levels": bundle.card.sparse_levels == first.card.sparse_levels,
            "training": _of_one_training(first, bundle),
        }
        if not all(alike.values()):
            what = ", ".join(name for name, same in alike.items() if not same)
            raise InputError(
                f"{bundle.path} differs from {first.path} in {what}, expected bundles of one "
                "network: give those that quantize.py made of the first."
            )


def _of_one_training(a: Bundle, b: Bundle) -> bool:
    """Whether bundles are of the same weights, as far as they say where they come from."""
    is_said = any((bundle.path / REPORT_FILE).is_file() for bundle in (a, b))
    return not is_said or bool(_origins(a) & _origins(b))


def _origins(bundle: Bundle) -> set[str]:
    """Digests of the fp32 bundle that a bundle was made of, or is, and of its graph."""
    report = bundle.path / REPORT_FILE
    if not report.is_file():
        return {bundle.digest, model_digest(bundle)}
    try:
        said = json.loads(report.read_text())
        return {said["source_digest"], said.get("source_model", said["source_digest"])}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{report} does not say what the bundle was made of: make it again with quantize.py."
        ) from error


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="accuracy.py", description=__doc__)
    parser.add_argument("bundles", type=Path, nargs="+", help="bundles, the fp32 one first")
    parser.add_argument("--log", type=Path, required=True, help="root of a nuScenes log")
    parser.add_argument("--version", help="folder of the tables, such as v1.0-mini")
    parser.add_argument("--split", default="mini_val", help="(default: mini_val)")
    parser.add_argument("--max-keyframes", type=int, help="score so many, over all scenes")
    parser.add_argument("--threads", type=int, default=0, help="of the engine (default: all)")
    parser.add_argument("--max-nds-loss", type=float, default=MAX_NDS_LOSS)
    parser.add_argument("--max-miou-loss", type=float, default=MAX_MIOU_LOSS)
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    return parser.parse_args()


def main() -> int:
    """Read the command line, compare, print the table."""
    arguments = _arguments()
    if arguments.max_keyframes is not None and arguments.max_keyframes < 1:
        raise InputError(f"--max-keyframes is {arguments.max_keyframes}, expected 1 or more.")
    report = compare_accuracy(
        [load_bundle(path) for path in arguments.bundles],
        NuScenesLog(arguments.log, arguments.version),
        arguments.split,
        max_keyframes=arguments.max_keyframes,
        num_threads=arguments.threads,
        max_nds_loss=arguments.max_nds_loss,
        max_miou_loss=arguments.max_miou_loss,
    )
    sys.stdout.write(f"{report.markdown()}\n")
    if arguments.out is not None:
        atomic_file.write_text(arguments.out, report.to_json())
    if report.passed:
        return 0
    failed = [row.bundle for row in report.rows if not report.row_passed(row)]
    sys.stderr.write(f"error: {', '.join(failed)} lost more than is allowed (table above).\n")
    return 1


if __name__ == "__main__":
    run_command(main)
