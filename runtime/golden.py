"""Detections of a replay as a file, and what differs from the ones that were accepted before."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from perception import atomic_file, json_codec
from perception.bundle import Bundle
from perception.errors import InputError
from perception.geometry import boxes
from perception.messages import PerceptionResult
from perception.model_card import BOX_COLUMNS

FORMAT_VERSION = 2
"""Of the detections file. 2: `mode`, `calibration_epoch` and `score_threshold`."""

MAP_THRESHOLD = 0.5
"""Probability above which a map cell counts as covered. Source: ours."""

MAX_SHOWN = 20
"""Differences that are printed; the rest is counted."""

Record = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """How far two replays may be apart: another processor sums in another order.

    All other fields have to be equal. Source: ours; exported networks agree with torch to 1e-4, a
    hundredth of this, and a change that anybody could see is beyond it.
    """

    length: float = 0.05
    """Of a box's centre and size [m]."""
    yaw: float = 0.02
    """Of a box's heading [rad]."""
    velocity: float = 0.1
    """[m/s]."""
    score: float = 0.01
    """Also how near to the score threshold a box may come and go."""
    map_area: float = 0.01
    """Of a layer's covered area, as a part of the larger one..."""
    map_area_m2: float = 2.0
    """...and this many square metres whatever its size."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What a replay and the accepted detections have in common, and what not."""

    num_frames: int
    """Frames that both have."""
    num_boxes: int
    """Boxes that were found again."""
    num_near_threshold: int
    """Boxes that came or went and may, being near the score threshold."""
    differences: tuple[str, ...]
    """One sentence each; none: the replay is accepted."""

    def text(self) -> str:
        """For people: one line, and the first differences."""
        shown = [f"  {difference}" for difference in self.differences[:MAX_SHOWN]]
        if len(self.differences) > MAX_SHOWN:
            shown.append(f"  ... and {len(self.differences) - MAX_SHOWN} more")
        verdict = f"{len(self.differences)} differences" if self.differences else "equal"
        line = (
            f"golden    {verdict}: {self.num_frames} frames and {self.num_boxes} boxes compared, "
            f"{self.num_near_threshold} boxes near the score threshold left out"
        )
        return "\n".join([line, *shown]) + "\n"


def frame_record(scene: str, result: PerceptionResult) -> Record:
    """One frame for the file: no times, so that two runs can be compared byte by byte."""
    found, grid = result.detections, result.map_mask.grid
    covered = (result.map_mask.prob > MAP_THRESHOLD).sum(axis=(1, 2)) * grid.cell**2
    pose = result.T_global_ego
    return {
        "scene": scene,
        "stamp_ns": result.stamp_ns,
        "T_global_ego": None if pose is None else pose.tolist(),
        "mode": result.mode,
        "calibration_epoch": result.calibration_epoch,
        "sensors_used": list(result.sensors_used),
        "sensors_missing": dict(result.sensors_missing),
        "boxes_ego": [[round(float(value), 4) for value in row] for row in found.boxes_ego],
        "scores": [round(float(score), 4) for score in found.scores],
        "labels": found.labels.tolist(),
        "map_area_m2": [round(float(area), 2) for area in covered],
    }


def detections_text(bundle: Bundle, score_threshold: float, records: Sequence[Record]) -> str:
    """The detections file: one frame per line."""
    head = {
        "format_version": FORMAT_VERSION,
        "bundle_sha256": bundle.digest,
        "score_threshold": score_threshold,
        "classes": bundle.card.detection_classes,
        "box_columns": BOX_COLUMNS,
        "map_classes": bundle.card.map_classes,
    }
    frames = ",\n".join(json.dumps(record) for record in records)
    return f'{json.dumps(head)[:-1]}, "frames": [\n{frames}\n]}}\n'


def accept(path: Path, text: str) -> None:
    """Make these detections the accepted ones.

    Raises:
        InputError: They hold no frame or no box, so that nothing could ever be compared with them,
            or the file cannot be written.
    """
    _require_boxes(json.loads(text), path)
    atomic_file.write_text(path, text)


def read(path: Path) -> Record:
    """Read the accepted detections.

    Raises:
        InputError: The file is absent, no detections file, or holds nothing to compare.
    """
    try:
        text = path.read_text()
        content = json.loads(text)
    except (OSError, ValueError) as error:
        raise InputError(
            f"Accepted detections {path} cannot be read ({error}): make them with --accept."
        ) from error
    version = content.get("format_version") if isinstance(content, dict) else None
    if version != FORMAT_VERSION:
        raise InputError(
            f"{path} has the format {version}, expected {FORMAT_VERSION}: make it again with "
            "--accept."
        )
    try:
        json_codec.from_json(_File, text, "it")
    except InputError as error:
        raise InputError(
            f"Accepted detections {path} are damaged ({error}): make them again with --accept."
        ) from error
    _require_boxes(content, path)
    return dict(content)


def compare(accepted: Record, text: str, tolerance: Tolerance | None = None) -> Comparison:
    """Compare a replay's detections with the accepted ones.

    Args:
        accepted: What `read` gives.
        text: The replay's detections file.
        tolerance: What may differ by how much; by default `Tolerance()`.
    """
    return _Comparer(accepted, tolerance or Tolerance()).compare(json.loads(text))


def _require_boxes(content: Record, path: Path) -> None:
    if not any(frame["labels"] for frame in content["frames"]):
        raise InputError(
            f"The detections for {path} are {len(content['frames'])} frames without a box, nothing "
            "could differ: replay more, or lower --score-threshold."
        )


@dataclass(frozen=True, kw_only=True)
class _Frame:
    """What `frame_record` gives, to check a file by."""

    scene: str
    stamp_ns: int
    T_global_ego: tuple[tuple[float, ...], ...] | None
    mode: str
    calibration_epoch: int
    sensors_used: tuple[str, ...]
    sensors_missing: dict[str, str]
    boxes_ego: tuple[tuple[float, ...], ...]
    scores: tuple[float, ...]
    labels: tuple[int, ...]
    map_area_m2: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class _File:
    """What `detections_text` gives, to check a file by."""

    format_version: int
    bundle_sha256: str
    score_threshold: float
    classes: tuple[str, ...]
    box_columns: tuple[str, ...]
    map_classes: tuple[str, ...]
    frames: tuple[_Frame, ...]

    def __post_init__(self) -> None:
        for frame in self.frames:
            num, layers = len(frame.labels), len(frame.map_area_m2)
            if (
                (len(frame.boxes_ego), len(frame.scores), layers)
                != (num, num, len(self.map_classes))
                or any(len(row) != boxes.NUM_COLUMNS for row in frame.boxes_ego)
                or not all(0 <= label < len(self.classes) for label in frame.labels)
            ):
                raise ValueError(
                    f"boxes, scores, labels or map areas of {frame.scene} {frame.stamp_ns} do not "
                    "belong together"
                )


class _Comparer:
    """Collects the differences from the accepted detections."""

    def __init__(self, expected: Record, tolerance: Tolerance) -> None:
        self._expected, self._tolerance = expected, tolerance
        self._classes: Sequence[str] = expected["classes"]
        self._got_classes = self._classes
        self._differences: list[str] = []
        self._num_boxes = 0
        self._num_near = 0

    def compare(self, got: Record) -> Comparison:
        self._got_classes = got["classes"]
        for name in ("classes", "box_columns", "map_classes", "score_threshold"):
            if got[name] != self._expected[name]:
                self._note(f"{name} is {got[name]}, accepted {self._expected[name]}")
        frames = {_key(frame): frame for frame in got["frames"]}
        known = {_key(frame): frame for frame in self._expected["frames"]}
        common = [key for key in known if key in frames]
        for title, keys in (
            ("is missing", known.keys() - frames),
            ("is new", frames.keys() - known),
        ):
            for scene, stamp_ns in sorted(keys):
                self._note(f"{scene} {stamp_ns}: the frame {title}")
        for key in common:
            self._compare_frame(f"{key[0]} {key[1]}", frames[key], known[key])
        return Comparison(
            num_frames=len(common),
            num_boxes=self._num_boxes,
            num_near_threshold=self._num_near,
            differences=tuple(self._differences),
        )

    def _note(self, difference: str) -> None:
        self._differences.append(difference)

    def _compare_frame(self, where: str, got: Record, expected: Record) -> None:
        for name in ("mode", "calibration_epoch", "sensors_used"):
            if got[name] != expected[name]:
                self._note(f"{where}: {name} is {got[name]}, accepted {expected[name]}")
        if got["sensors_missing"].keys() != expected["sensors_missing"].keys():
            self._note(
                f"{where}: missing are {sorted(got['sensors_missing'])}, accepted "
                f"{sorted(expected['sensors_missing'])}"
            )
        self._compare_boxes(where, _Boxes(got, self._got_classes), _Boxes(expected, self._classes))
        areas = zip(
            self._expected["map_classes"], got["map_area_m2"], expected["map_area_m2"], strict=False
        )
        for layer, area, accepted in areas:
            allowed = max(
                self._tolerance.map_area_m2, self._tolerance.map_area * max(area, accepted)
            )
            if abs(area - accepted) > allowed:
                self._note(f"{where}: {layer} covers {area} m2, accepted {accepted}")

    def _compare_boxes(self, where: str, got: "_Boxes", expected: "_Boxes") -> None:
        """Each accepted box takes the nearest free one of its class."""
        free = np.ones(len(got.labels), bool)
        for index, label in enumerate(expected.labels):
            candidates = np.flatnonzero(free & (got.labels == label))
            distance = np.linalg.norm(got.rows[candidates, :3] - expected.rows[index, :3], axis=1)
            nearest = candidates[distance.argmin()] if len(candidates) else None
            if nearest is None or distance.min() > self._tolerance.length:
                self._lost_or_new(where, "is missing", expected, index)
                continue
            free[nearest] = False
            self._num_boxes += 1
            self._compare_box(where, got, int(nearest), expected, index)
        for index in np.flatnonzero(free):
            self._lost_or_new(where, "is new", got, int(index))

    def _lost_or_new(self, where: str, title: str, found: "_Boxes", index: int) -> None:
        near = self._expected["score_threshold"] + self._tolerance.score
        if found.scores[index] <= near:
            self._num_near += 1
        else:
            self._note(f"{where}: {found.name(index)} {title}")

    def _compare_box(
        self, where: str, got: "_Boxes", index: int, expected: "_Boxes", expected_index: int
    ) -> None:
        row, accepted = got.rows[index], expected.rows[expected_index]
        limits = {
            "size": (boxes.SIZE, self._tolerance.length),
            "velocity": (boxes.VELOCITY, self._tolerance.velocity),
        }
        name = expected.name(expected_index)
        for what, (columns, allowed) in limits.items():
            if np.abs(row[columns] - accepted[columns]).max() > allowed:
                self._note(
                    f"{where}: {what} of {name} is {row[columns].tolist()}, accepted "
                    f"{accepted[columns].tolist()} within {allowed}"
                )
        turned = (row[boxes.YAW] - accepted[boxes.YAW] + np.pi) % (2 * np.pi) - np.pi
        if abs(turned) > self._tolerance.yaw:
            self._note(f"{where}: {name} is turned by {turned:.3f} rad")
        score, accepted_score = got.scores[index], expected.scores[expected_index]
        if abs(score - accepted_score) > self._tolerance.score:
            self._note(f"{where}: score of {name} is {score}, accepted {accepted_score}")


class _Boxes:
    """A record's boxes as arrays."""

    def __init__(self, record: Mapping[str, Any], classes: Sequence[str]) -> None:
        self._classes = classes
        self.rows = np.array(record["boxes_ego"], np.float64).reshape(-1, boxes.NUM_COLUMNS)
        self.scores = np.array(record["scores"], np.float64)
        self.labels = np.array(record["labels"], np.int64)

    def name(self, index: int) -> str:
        """A box for people."""
        x, y = self.rows[index, :2]
        label = self._classes[self.labels[index]]
        return f"{label} at ({x:.2f}, {y:.2f}) m with score {self.scores[index]:.2f}"


def _key(frame: Record) -> tuple[str, int]:
    return frame["scene"], frame["stamp_ns"]
