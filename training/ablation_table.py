"""Figures of an ablation, and their tables: means and standard deviations over seeds."""

import dataclasses
import json
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perception.errors import InputError

METRICS = {"mean_ap": "mAP", "mean_ap_4m": "mAP at 4 m", "nds": "NDS", "mean_iou": "mIoU"}
"""Figures that are compared, and what tables call them."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One training of the study."""

    arm: str
    box_weight: float
    map_weight: float
    seed: int

    @property
    def weights(self) -> str:
        """Weights of the losses, boxes before map."""
        return f"{self.box_weight:g}:{self.map_weight:g}"

    @property
    def name(self) -> str:
        """Folder of its run."""
        return f"{self.arm}_{self.box_weight:g}_{self.map_weight:g}_{self.seed}"


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What the evaluation of a cell found; NaN where a log does not know."""

    mean_ap: float
    mean_ap_4m: float
    """At the widest matching distance, over the classes that are there."""
    nds: float
    mean_iou: float
    subsets: dict[str, tuple[float, float]]
    """Sensors that were left -> mAP and mIoU; all sensors are not among them."""


Study = Mapping[Cell, Figures]


def figures_of(evaluation: Mapping[str, Any], source: Path) -> Figures:
    """Figures in what `evaluate.py` wrote.

    Raises:
        InputError: It is not what `evaluate.py` writes.
    """
    try:
        found = evaluation["detection"]
        return Figures(
            mean_ap=_number(found["mean_ap"]),
            mean_ap_4m=_number(found["mean_ap_4m_present"]),
            nds=_number(found["nds"]),
            mean_iou=_number(evaluation["map_mean_iou"]),
            subsets={
                subset["name"]: (_number(subset["mean_ap"]), _number(subset["map_mean_iou"]))
                for subset in evaluation["sensor_subsets"][1:]
            },
        )
    except (KeyError, TypeError) as error:
        raise InputError(
            f"{source} is no evaluation of this version ({error!r}): remove it, it is made again."
        ) from error


def to_json(study: Study, command: str, environment: Mapping[str, object]) -> str:
    """All figures of all cells; a figure that is not known is null."""
    cells = [dataclasses.asdict(cell) | _known(found) for cell, found in study.items()]
    whole = {"command": command, "environment": dict(environment), "cells": cells}
    return json.dumps(whole, indent=2, allow_nan=False) + "\n"


def to_markdown(study: Study, command: str, environment: Mapping[str, object]) -> str:
    """The study as tables: figures, spread over the weights, differences, lost sensors."""
    arms = list(dict.fromkeys(cell.arm for cell in study))
    weights = list(dict.fromkeys(cell.weights for cell in study))
    seeds = sorted({cell.seed for cell in study})
    parts = [
        f"```sh\n{command}\n```",
        f"Commit {environment['commit']}, {environment['date_utc']}, {environment['processor']}, "
        f"{environment['cpu_count']} cores. Means and standard deviations over the seeds "
        f"{', '.join(map(str, seeds))}.",
        "## Figures\n\n" + _figure_table(study, arms, weights),
    ]
    if len(arms) > 1:
        parts.append(
            f"## Gain over `{arms[0]}`\n\nThe same seed and weights; in brackets how many "
            "trainings gained.\n\n" + _gain_table(study, arms, weights)
        )
    if len(weights) > 1:
        parts.append(
            "## Spread over the weights\n\nLargest minus smallest of the means of the weights."
            "\n\n" + _spread_table(study, arms, weights)
        )
    if any(found.subsets for found in study.values()):
        parts.append(
            "## Sensors lost in the evaluation\n\nOver all weights and seeds.\n\n"
            + _subset_table(study, arms)
        )
    return "\n\n".join(parts) + "\n"


def spread(study: Study, arm: str, metric: str) -> float:
    """Largest minus smallest mean of a metric over the weights of the losses."""
    weights = {cell.weights for cell in study if cell.arm == arm}
    means = [statistics.mean(_values(study, metric, arm, of_weight)) for of_weight in weights]
    return max(means) - min(means)


def gains(study: Study, arm: str, reference: str, weights: str, metric: str) -> list[float]:
    """What an arm has more than another, for each seed that both have."""
    return [
        getattr(found, metric) - getattr(study[other], metric)
        for cell, found in study.items()
        if (cell.arm, cell.weights) == (arm, weights)
        and (other := dataclasses.replace(cell, arm=reference)) in study
    ]


def _values(study: Study, metric: str, arm: str, weights: str) -> list[float]:
    return [
        getattr(found, metric)
        for cell, found in study.items()
        if (cell.arm, cell.weights) == (arm, weights)
    ]


def _figure_table(study: Study, arms: Sequence[str], weights: Sequence[str]) -> str:
    return _by_weights(
        arms, weights, lambda arm, of, metric: _mean_and_sd(_values(study, metric, arm, of))
    )


def _gain_table(study: Study, arms: Sequence[str], weights: Sequence[str]) -> str:
    def gain(arm: str, of_weights: str, metric: str) -> str:
        found = gains(study, arm, arms[0], of_weights, metric)
        better = sum(value > 0.0 for value in found)
        return f"{_mean_and_sd(found, '+')} ({better} of {len(found)})"

    return _by_weights(arms[1:], weights, gain)


def _by_weights(
    arms: Sequence[str], weights: Sequence[str], text: Callable[[str, str, str], str]
) -> str:
    """A row for each pair of weights and each arm, a column for each metric."""
    rows = [
        [of_weights, arm, *(text(arm, of_weights, metric) for metric in METRICS)]
        for of_weights in weights
        for arm in arms
    ]
    return _table(["boxes:map", "arm", *METRICS.values()], rows)


def _spread_table(study: Study, arms: Sequence[str], weights: Sequence[str]) -> str:
    rows = []
    for arm in arms:
        spreads = [spread(study, arm, metric) for metric in METRICS]
        of_first = [spread(study, arms[0], metric) for metric in METRICS]
        texts = [
            f"{own:.4f}" + (f" ({own / first:.2f} x)" if arm != arms[0] and first > 0 else "")
            for own, first in zip(spreads, of_first, strict=True)
        ]
        rows.append([arm, *texts])
    return _table(["arm", *METRICS.values()], rows)


def _subset_table(study: Study, arms: Sequence[str]) -> str:
    names = dict.fromkeys(name for found in study.values() for name in found.subsets)
    rows = []
    for name in names:
        for arm in arms:
            pairs = [
                (found, found.subsets[name]) for cell, found in study.items() if cell.arm == arm
            ]
            boxes = [mean_ap for _, (mean_ap, _) in pairs]
            of_map = [iou for _, (_, iou) in pairs]
            lost_boxes = [found.mean_ap - mean_ap for found, (mean_ap, _) in pairs]
            lost_map = [found.mean_iou - iou for found, (_, iou) in pairs]
            rows.append([name, arm, *map(_mean_and_sd, (boxes, lost_boxes, of_map, lost_map))])
    return _table(["sensors", "arm", "mAP", "loss", "mIoU", "loss"], rows)


def _mean_and_sd(values: Sequence[float], sign: str = "") -> str:
    mean = f"{statistics.mean(values):{sign}.4f}"
    return f"{mean} ± {statistics.stdev(values):.4f}" if len(values) > 1 else mean


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)


def _known(found: Figures) -> dict[str, object]:
    def known(value: float) -> float | None:
        return value if math.isfinite(value) else None

    return {
        **{metric: known(getattr(found, metric)) for metric in METRICS},
        "subsets": {name: [known(value) for value in pair] for name, pair in found.subsets.items()},
    }
