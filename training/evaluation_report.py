"""What an evaluation found: figures, as JSON and as tables."""

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from training.detection_metrics import DetectionReport


@dataclass(frozen=True, kw_only=True)
class BandReport:
    """Figures of one distance band."""

    name: str
    near: float
    """Inner radius [m], included."""
    far: float
    """Outer radius [m], excluded."""
    mean_ap: float
    """Mean AP (four matching distances) over the classes that the band holds; NaN: none."""
    ap: dict[str, float]
    """Likewise, by class."""
    num_ground_truth: dict[str, int]
    """Boxes per class that count."""
    map_iou: dict[str, float]
    """IoU of the band's raster cells per layer, at the band's best threshold."""
    map_mean_iou: float


@dataclass(frozen=True, kw_only=True)
class SubsetReport:
    """Figures with some sensors only."""

    name: str
    sensors: tuple[str, ...]
    nds: float
    mean_ap: float
    map_mean_iou: float


@dataclass(frozen=True, kw_only=True)
class EvaluationReport:
    """Figures of one evaluation."""

    detection: DetectionReport
    map_iou: dict[str, float]
    """IoU per layer that the log knows, at its best threshold."""
    distance_bands: tuple[BandReport, ...]
    sensor_subsets: tuple[SubsetReport, ...]
    """The first has all sensors; empty where no subset was asked for."""
    num_keyframes: int
    split: str
    log: str
    recipe: str
    precision: str
    seconds: float
    """Time that the evaluation took [s]."""
    command: str
    """Command line."""
    environment: dict[str, object]

    @property
    def mean_iou(self) -> float:
        """Mean over the layers that the log knows; NaN where it knows none."""
        return mean(self.map_iou)

    def to_json(self) -> str:
        """All figures; a figure that is not known (NaN) is null."""
        figures = dataclasses.asdict(self) | {"map_mean_iou": self.mean_iou}
        return json.dumps(_known(figures), indent=2, allow_nan=False) + "\n"


def mean(figures: dict[str, float]) -> float:
    """Mean over the names; NaN where there is none."""
    return sum(figures.values()) / len(figures) if figures else float("nan")


def print_report(report: EvaluationReport, console: Console | None = None) -> None:
    """Print the figures as tables, on stdout unless another console is given."""
    console = console or Console()
    found = report.detection
    console.print(_class_table(report))
    errors = ", ".join(f"{name} {value:.3f}" for name, value in found.true_positive_errors.items())
    console.print(f"NDS {found.nds:.4f}   mAP {found.mean_ap:.4f}   ({errors})")
    console.print(f"mAP at 4 m over the classes present: {found.mean_ap_4m_present:.4f}")
    layers = ", ".join(f"{name} {value:.3f}" for name, value in report.map_iou.items())
    console.print(f"map mIoU {report.mean_iou:.4f} over the layers the log knows ({layers})")
    if report.distance_bands:
        console.print(_band_table(report.distance_bands))
    if report.sensor_subsets:
        console.print(_subset_table(report.sensor_subsets))


def _class_table(report: EvaluationReport) -> Table:
    found = report.detection
    title = f"boxes, {report.num_keyframes} keyframes, split {report.split}"
    table = _table(title, "class", "objects", "AP", "AP at 4 m")
    for name, count in found.num_ground_truth.items():
        table.add_row(name, str(count), f"{found.ap[name]:.3f}", f"{found.ap_4m[name]:.3f}")
    return table


def _band_table(bands: tuple[BandReport, ...]) -> Table:
    table = _table("by distance", "", *(band.name for band in bands))
    table.add_row("objects", *(str(sum(band.num_ground_truth.values())) for band in bands))
    table.add_row("mAP of the classes present", *(_figure(band.mean_ap) for band in bands))
    table.add_row("map mIoU", *(_figure(band.map_mean_iou) for band in bands), end_section=True)
    for layer in dict.fromkeys(layer for band in bands for layer in band.map_iou):
        iou = (band.map_iou.get(layer, float("nan")) for band in bands)
        table.add_row(f"IoU of {layer}", *map(_figure, iou))
    return table


def _subset_table(subsets: tuple[SubsetReport, ...]) -> Table:
    full = subsets[0]
    table = _table("by sensors", "sensors", "NDS", "loss", "mAP", "loss", "mIoU", "loss")
    for subset in subsets:
        cells = []
        for figure in ("nds", "mean_ap", "map_mean_iou"):
            value, of_full = getattr(subset, figure), getattr(full, figure)
            cells += [_figure(value), "" if subset is full else _figure(of_full - value)]
        table.add_row(subset.name, *cells)
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right")
    return table


def _figure(value: float) -> str:
    return "-" if math.isnan(value) else f"{round(value, 3) + 0.0:.3f}"  # no "-0.000"


def _known(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _known(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_known(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
