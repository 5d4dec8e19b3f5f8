import json
import math
from pathlib import Path

import pytest

from perception.errors import InputError
from training.ablation_table import Cell, Figures, figures_of, gains, spread, to_json, to_markdown

ENVIRONMENT = {"commit": "abc", "date_utc": "2026-01-01", "processor": "P", "cpu_count": 2}


def cell(arm, boxes, of_map, seed):
    return Cell(arm=arm, box_weight=boxes, map_weight=of_map, seed=seed)


def figures(mean_ap, mean_iou, **subsets):
    return Figures(mean_ap=mean_ap, mean_ap_4m=0.5, nds=0.25, mean_iou=mean_iou, subsets=subsets)


STUDY = {
    cell("none", 1.0, 1.0, 0): figures(0.20, 0.40, lidar=(0.15, 0.10)),
    cell("none", 1.0, 1.0, 1): figures(0.30, 0.50, lidar=(0.15, 0.10)),
    cell("none", 10.0, 1.0, 0): figures(0.40, 0.10, lidar=(0.15, 0.10)),
    cell("none", 10.0, 1.0, 1): figures(0.60, 0.20, lidar=(0.15, 0.10)),
    cell("both", 1.0, 1.0, 0): figures(0.25, 0.45, lidar=(0.25, 0.40)),
    cell("both", 1.0, 1.0, 1): figures(0.29, 0.55, lidar=(0.25, 0.40)),
    cell("both", 10.0, 1.0, 0): figures(0.30, 0.40, lidar=(0.25, 0.40)),
    cell("both", 10.0, 1.0, 1): figures(0.32, 0.50, lidar=(0.25, 0.40)),
}


def rows(text, heading):
    """Cells of the table below a heading, without its two head lines."""
    lines = text.split(f"## {heading}")[1].split("## ")[0].splitlines()
    table = [[part.strip() for part in line.split("|")[1:-1]] for line in lines if "|" in line]
    return table[2:]


def test_means_and_standard_deviations_by_hand():
    # mAP of none at 1:1: mean of 0.2 and 0.3; sample standard deviation 0.1 / sqrt(2) = 0.0707
    found = rows(to_markdown(STUDY, "command", ENVIRONMENT), "Figures")
    assert found[0][:3] == ["1:1", "none", "0.2500 ± 0.0707"]
    assert [row[:2] for row in found] == [
        ["1:1", "none"], ["1:1", "both"], ["10:1", "none"], ["10:1", "both"]
    ]  # fmt: skip
    assert found[3][5] == "0.4500 ± 0.0707"


def test_gains_are_of_the_same_seed_and_weights():
    # mAP at 1:1: 0.25 - 0.20 = +0.05 and 0.29 - 0.30 = -0.01: mean +0.02, sd 0.06 / sqrt(2)
    assert gains(STUDY, "both", "none", "1:1", "mean_ap") == pytest.approx([0.05, -0.01])
    found = rows(to_markdown(STUDY, "command", ENVIRONMENT), "Gain over `none`")
    assert found[0][:3] == ["1:1", "both", "+0.0200 ± 0.0424 (1 of 2)"]
    assert found[0][5] == "+0.0500 ± 0.0000 (2 of 2)"


def test_spread_over_the_weights_is_between_means():
    # mAP of none: 0.25 at 1:1, 0.50 at 10:1; of both: 0.27 and 0.31
    assert spread(STUDY, "none", "mean_ap") == pytest.approx(0.25)
    assert spread(STUDY, "both", "mean_ap") == pytest.approx(0.04)
    found = rows(to_markdown(STUDY, "command", ENVIRONMENT), "Spread over the weights")
    assert found[0][:2] == ["none", "0.2500"]
    assert found[1][:2] == ["both", "0.0400 (0.16 x)"]


def test_losses_of_sensors_are_against_the_same_training():
    # none: mAP 0.2, 0.3, 0.4, 0.6 in full and 0.15 without: losses 0.05, 0.15, 0.25, 0.45
    found = rows(to_markdown(STUDY, "command", ENVIRONMENT), "Sensors lost in the evaluation")
    assert found[0] == ["lidar", "none", "0.1500 ± 0.0000", "0.2250 ± 0.1708",
                        "0.1000 ± 0.0000", "0.2000 ± 0.1826"]  # fmt: skip


def test_tables_that_would_say_nothing_are_left_out():
    alone = {cell("none", 1.0, 1.0, 0): figures(0.2, 0.4)}
    text = to_markdown(alone, "command", ENVIRONMENT)
    assert text.count("## ") == 1
    assert rows(text, "Figures") == [["1:1", "none", "0.2000", "0.5000", "0.2500", "0.4000"]]


def test_unknown_figures_are_null_in_json():
    study = {cell("none", 1.0, 1.0, 0): figures(0.2, math.nan, lidar=(0.1, math.nan))}
    (found,) = json.loads(to_json(study, "command", ENVIRONMENT))["cells"]
    assert (found["arm"], found["seed"], found["mean_ap"]) == ("none", 0, 0.2)
    assert found["mean_iou"] is None
    assert found["subsets"] == {"lidar": [0.1, None]}


def test_an_evaluation_of_another_version_is_named():
    with pytest.raises(InputError, match=r"old\.json is no evaluation of this version"):
        figures_of({"detection": {"nds": 0.1}}, Path("old.json"))
