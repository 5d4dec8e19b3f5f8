import base64
import json
import math
import re
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest

from perception.errors import InputError
from training import report
from training.curves import loss_names, smoothed
from training.report import write_report

VOID = {"meta", "img", "br"}
UNKNOWN = "\N{EN DASH}"


class Page(HTMLParser):
    """Checks that tags are closed in order, collects texts, tables and pictures."""

    def __init__(self, text):
        super().__init__()
        self.open, self.texts, self.tags, self.images = [], [], [], []
        self.rows = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        for name, value in attributes:
            assert name not in ("href", "onclick", "srcset")
            if name == "src":
                self.images.append(value)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        self.texts.append(text)
        if self.open[-1:] in (["td"], ["th"]):
            self.rows[-1][-1] += text

    @property
    def text(self):
        return " ".join(self.texts)


def metrics_line(step, **losses):
    timing = {"step": 0.5, "data_wait": 0.01}
    return {"step": step, **losses, "grad_norm": 4.0, "lr": 1e-3, "timing": timing}


def write_lines(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture(autouse=True)
def _coarse_pictures(monkeypatch):
    monkeypatch.setattr("training.curves.DPI", 20)  # 252 pixels wide, and fast


@pytest.fixture
def _no_curves(monkeypatch):
    monkeypatch.setattr(report, "loss_curves", lambda *_: b"")
    monkeypatch.setattr(report, "step_curves", lambda *_: b"")


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "tiny_fusion"
    folder.mkdir()
    steps = [metrics_line(step, box=8.0 / step, total=10.0 / step) for step in range(1, 21)]
    write_lines(folder / "metrics.jsonl", steps)
    return folder


def page_of(run):
    return Page(write_report(run).read_text())


def test_a_run_of_steps_alone_has_a_page(run):
    page = page_of(run)
    assert "script" not in page.tags
    assert ["box", "8.000", "0.400", "0.400"] in page.rows  # window of a fiftieth: 1 step
    assert "20 of ?" in page.text
    assert "no step was skipped" in page.text
    assert "Evaluation" not in page.text
    # 0.5 s per step; 0.01 of it are 2 %
    assert "2.0 %" in page.text
    assert len(page.images) == 2


def test_figures_of_calibration_have_a_section_of_their_own(run):
    assert "Gradient calibration" not in page_of(run).text
    steps = [
        metrics_line(step, total=1.0) | {"gradient/alpha_map": step / 10, "gradient/norm_map": None}
        for step in range(1, 6)
    ]
    write_lines(run / "metrics.jsonl", steps)
    page = page_of(run)
    assert "Gradient calibration" in page.text
    assert ["alpha map", "0.100", "0.500", "0.100", "0.500"] in page.rows
    assert len(page.images) == 3
    assert loss_names(steps) == ["total"]


def test_every_picture_is_inside_of_the_page_and_whole(run):
    (run / "evaluation").mkdir()
    (run / "evaluation/evaluation.json").write_text('{"num_keyframes": 3}')
    cv2.imwrite(str(run / "evaluation/keyframe_000.png"), np.full((300, 3200, 3), 90, np.uint8))
    page = page_of(run)
    assert len(page.images) == 3
    sizes = []
    for source in page.images:
        kind, content = re.fullmatch(r"data:image/(png|jpeg);base64,(.*)", source).groups()
        pixels = cv2.imdecode(np.frombuffer(base64.b64decode(content), np.uint8), 1)
        sizes.append((kind, *pixels.shape[:2]))
    assert sizes[0] == ("jpeg", 150, 1600)  # half its size
    assert [kind for kind, *_ in sizes[1:]] == ["png", "png"]
    assert [width for _kind, _height, width in sizes[1:]] == [252, 252]


@pytest.mark.usefixtures("_no_curves")
def test_header_says_what_the_run_depends_on(run):
    config = {
        "recipe": "tiny_fusion",
        "data": {"log": "/somewhere/synthetic_log", "split": "train"},
        "optim": {"steps": 40, "batch_size": 8, "precision": "bf16"},
        "seed": 7,
    }
    environment = {
        "commit": "abc123",
        "date_utc": "2030-01-02",
        "processor": "Fast One",
        "cpu_count": 2,
        "gpu": "Big GPU",
        "device": "cuda:0",
        "world_size": 4,
        "versions": {"torch": "2.13.0", "onnx": None},
        "keyframes": ["a", "b", "c"],
    }
    (run / "config.json").write_text(json.dumps(config))
    (run / "environment.json").write_text(json.dumps(environment))
    page = page_of(run)
    facts = {row[0]: row[1] for row in page.rows if len(row) == 2}
    assert facts == {
        "commit": "abc123",
        "date": "2030-01-02",
        "hardware": "2 x Fast One, Big GPU",
        "device": "cuda:0",
        "ranks": "4",
        "versions": "torch 2.13.0",
        "seed": "7",
        "log": "synthetic_log",
        "split": "train",
        "keyframes": "3",
        "steps": "20 of 40",
        "global batch": "8",
        "precision": "bf16",
    }
    # 8 frames in 0.5 s
    assert "16.000" in page.text
    assert page.tags.count("details") == 2


@pytest.mark.usefixtures("_no_curves")
def test_events_are_counted_listed_and_escaped(run):
    write_lines(
        run / "events.jsonl",
        [
            {"step": 3, "kind": "skipped", "text": "The loss is <nan> & no number."},
            {"step": 4, "kind": "skipped", "text": "Again."},
            {"step": 4, "kind": "rolled_back", "text": "To step 0."},
            {"step": 9, "kind": "damaged", "text": "n015__CAM_FRONT.jpg is cut short."},
        ],
    )
    page = page_of(run)
    assert "skipped 2, rolled back 1, damaged 1" in page.text
    assert ["3", "skipped", "The loss is <nan> & no number."] in page.rows
    assert ["9", "damaged", "n015__CAM_FRONT.jpg is cut short."] in page.rows


@pytest.mark.usefixtures("_no_curves")
def test_many_events_are_cut(run, monkeypatch):
    monkeypatch.setattr(report, "MAX_EVENTS", 3)
    lines = [{"step": s, "kind": "skipped", "text": f"event {s}."} for s in range(1, 6)]
    write_lines(run / "events.jsonl", lines)
    page = page_of(run)
    assert "skipped 5" in page.text
    assert "event 3." in page.text
    assert "event 4." not in page.text
    assert "and 2 more in events.jsonl" in page.text


EVALUATION = {
    "detection": {
        "nds": 0.51,
        "mean_ap": 0.42,
        "true_positive_errors": {"trans_err": 0.3, "vel_err": None},
        "ap": {"car": 0.9, "bus": 0.8},
        "ap_4m": {"car": 0.95, "bus": 0.85},
        "num_ground_truth": {"car": 12, "bus": 2},
    },
    "map_iou": {"drivable_area": 0.8, "divider": 0.4},
    "map_mean_iou": 0.6,
    "distance_bands": [
        {"name": "0-20 m", "near": 0.0, "far": 20.0, "mean_ap": 0.7, "ap": {"car": 0.7}},
        {"name": "20-30 m", "near": 20.0, "far": 30.0, "mean_ap": None, "ap": {"bus": 0.5}},
    ],
    "sensor_subsets": [
        {"name": "full", "sensors": ["A", "B"], "nds": 0.51, "mean_ap": 0.42, "map_mean_iou": 0.6},
        {"name": "without B", "sensors": ["A"], "nds": 0.31, "mean_ap": 0.4, "map_mean_iou": None},
    ],
    "num_keyframes": 30,
    "split": "val",
    "log": "town",
}


@pytest.mark.usefixtures("_no_curves")
def test_evaluation_is_shown_in_tables(run):
    (run / "evaluation").mkdir()
    (run / "evaluation/evaluation.json").write_text(json.dumps(EVALUATION))
    page = page_of(run)
    assert "30 keyframes, val, town" in page.text
    for figure in ("0.510", "0.420", "0.600", "0.300"):
        assert figure in page.texts
    assert ["car", "12", "0.900", "0.950"] in page.rows
    assert ["divider", "0.400"] in page.rows
    assert ["20-30 m", UNKNOWN] in page.rows
    assert ["AP", "car", "bus"] in page.rows
    assert ["20-30 m", UNKNOWN, "0.500"] in page.rows
    # what is lost against all sensors: 0.51 - 0.31, 0.42 - 0.40
    assert ["without B", "0.310", "0.200", "0.400", "0.020", UNKNOWN, UNKNOWN] in page.rows


@pytest.mark.usefixtures("_no_curves")
@pytest.mark.parametrize("absent", [*EVALUATION, *EVALUATION["detection"]])
def test_no_key_of_an_evaluation_is_needed(run, absent):
    kept = {key: value for key, value in EVALUATION.items() if key != absent}
    if "detection" in kept:
        found = EVALUATION["detection"]
        kept["detection"] = {key: value for key, value in found.items() if key != absent}
    (run / "evaluation").mkdir()
    (run / "evaluation/evaluation.json").write_text(json.dumps(kept))
    assert "Evaluation" in page_of(run).text


@pytest.mark.usefixtures("_no_curves")
def test_an_evaluation_of_before_bands_and_subsets_is_shown(run):
    old = {key: EVALUATION[key] for key in ("detection", "map_iou", "map_mean_iou")}
    (run / "evaluation").mkdir()
    (run / "evaluation/evaluation.json").write_text(json.dumps(old))
    page = page_of(run)
    assert "By distance" not in page.text
    assert "By sensors" not in page.text


def test_steps_without_any_finite_loss_have_a_page(run):
    write_lines(run / "metrics.jsonl", [metrics_line(1, total=None), metrics_line(2, total=None)])
    assert "2 of ?" in page_of(run).text


def test_one_step_without_times_has_a_page(run):
    write_lines(run / "metrics.jsonl", [{"step": 1, "total": 0.0}])
    assert ["total", "0.000", "0.000", "0.000"] in page_of(run).rows


def test_a_folder_without_steps_is_refused(tmp_path):
    with pytest.raises(InputError, match="holds no step"):
        write_report(tmp_path)


def test_a_damaged_file_of_the_run_is_named(run):
    (run / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config\.json is no JSON"):
        write_report(run)


@pytest.mark.usefixtures("_no_curves")
def test_the_command_names_the_page(run, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["report.py", str(run)])
    report.main()
    assert capsys.readouterr().out == f"report: {run / 'report.html'}\n"
    assert (run / "report.html").is_file()


def test_smoothing_is_a_mean_of_what_is_finite():
    # window 2: each value counts half of what the next one does
    # [1]; [1, 3] -> (1 + 2 * 3) / 3; NaN changes nothing; [1, 3, 5] -> (1 + 2 * 3 + 4 * 5) / 7
    found = smoothed([math.nan, 1.0, 3.0, math.nan, 5.0], 2)
    assert math.isnan(found[0])
    assert found[1:].tolist() == pytest.approx([1, 7 / 3, 7 / 3, 27 / 7])
    assert smoothed([4.0, 2.0], 1).tolist() == [4.0, 2.0]


def test_the_sum_is_the_first_of_the_losses():
    steps = [metrics_line(1, box=1.0, total=2.0), metrics_line(2, box=1.0, map=1.0, total=2.0)]
    assert loss_names(steps) == ["total", "box", "map"]
