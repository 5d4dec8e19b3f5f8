import dataclasses
import json
import math

import numpy as np
import pytest
from onnx import numpy_helper
from toy_bundle import toy_card, toy_model, write_toy_bundle

from export import accuracy
from export.accuracy import AccuracyReport, AccuracyRow, compare_accuracy, num_found_again
from export.quantize import model_digest
from perception.bundle import load_bundle, write_manifest
from perception.data.nuscenes_log import NuScenesLog
from perception.errors import InputError
from perception.geometry.sparse_tables import encoder_levels
from perception.messages import Detections, MapMask, PerceptionResult
from perception.taxonomy import DETECTION_CLASSES


def toy(folder, card=None, **constants):
    """A toy bundle with other constants in its graph."""
    model = toy_model()
    for weight in model.graph.initializer:
        if weight.name in constants:
            value = np.asarray(constants[weight.name], numpy_helper.to_array(weight).dtype)
            weight.CopyFrom(numpy_helper.from_array(value, weight.name))
    return load_bundle(write_toy_bundle(folder, card, model))


def test_bundles_run_on_the_same_frames_and_are_held_against_the_first(small_log_root, tmp_path):
    # the map is 0.6 + 0.3 everywhere with all sensors; 0.6 - 0.6 is nowhere.
    # Boxes 0.4 m further are the same, 0.6 m further they are others.
    slot = np.arange(7, dtype=np.float32)[:, None]
    int8 = dataclasses.replace(toy_card(), precision="int8")
    bundles = [
        toy(tmp_path / "first"),
        toy(tmp_path / "near", slot_column=slot + 0.4),
        toy(tmp_path / "far", slot_column=slot + 0.6),
        toy(tmp_path / "blind", card=int8, for_lidar=-0.6),
    ]
    report = compare_accuracy(
        bundles, NuScenesLog(small_log_root), "all", max_keyframes=2, num_threads=1
    )
    first, near, far, blind = report.rows
    assert [row.bundle for row in report.rows] == ["first", "near", "far", "blind"]
    assert [row.precision for row in report.rows] == ["fp32", "fp32", "fp32", "int8"]
    # a bundle finds all its own boxes
    assert [row.matched_share for row in (first, near, far, blind)] == [1.0, 1.0, 0.0, 1.0]
    assert first.map_mean_iou == near.map_mean_iou > 0.05
    assert blind.map_mean_iou == 0.0
    assert report.losses(blind)[1] == first.map_mean_iou
    assert [report.row_passed(row) for row in report.rows] == [True, True, True, False]
    assert not report.passed
    assert report.num_keyframes == 2
    assert all(row.engine_ms > 0.0 and row.model_bytes > 1000 for row in report.rows)
    lines = report.markdown().splitlines()
    assert lines[2].endswith("(1.00x) | 0.0 |  |")
    assert "FAILED" in lines[5]
    assert json.loads(report.to_json())["rows"][3]["precision"] == "int8"


def row(nds, miou, **changes):
    figures = {
        "bundle": "b",
        "precision": "fp32",
        "nds": nds,
        "mean_ap": 0.25,
        "map_mean_iou": miou,
        "matched_share": 1.0,
        "engine_ms": 10.0,
        "model_bytes": 1_500_000,
    }
    return AccuracyRow(**{**figures, **changes})


def report_of(*rows):
    return AccuracyReport(
        rows=rows,
        max_nds_loss=0.01,
        max_miou_loss=0.02,
        num_keyframes=1,
        split="all",
        log="log",
        engine="engine",
        command="",
        environment={},
    )


@pytest.mark.parametrize(
    ("nds", "miou", "passed"),
    [
        (0.5, 0.5, True),
        (0.6, 0.6, True),  # better is no loss
        (0.4905, 0.4805, True),
        (0.4895, 0.5, False),
        (0.5, 0.4795, False),
        (math.nan, 0.5, False),
        (0.5, math.nan, False),
    ],
)
def test_what_is_lost_is_held_against_the_bounds(nds, miou, passed):
    assert report_of(row(0.5, 0.5), row(nds, miou)).passed is passed


def test_a_log_without_a_map_has_no_miou_to_lose():
    report = report_of(row(0.5, math.nan), row(0.5, math.nan, engine_ms=5.0))
    assert report.passed
    assert "5.0 (0.50x) | 1.5 |" in report.markdown()
    assert json.loads(report.to_json())["rows"][1]["map_mean_iou"] is None


def result(boxes):
    """x [m], score and label of each box."""
    x, scores, labels = np.array(boxes, np.float32).reshape(-1, 3).T
    boxes_ego = np.zeros((len(x), 9), np.float32)
    boxes_ego[:, 0] = x
    grid = toy_card().map_grid
    return PerceptionResult(
        stamp_ns=0,
        T_global_ego=np.eye(4),
        detections=Detections(
            boxes_ego=boxes_ego,
            scores=scores,
            labels=labels.astype(np.int64),
            classes=DETECTION_CLASSES,
        ),
        map_mask=MapMask(prob=np.zeros((0, grid.ny, grid.nx), np.float32), classes=(), grid=grid),
        sensors_used=(),
        sensors_missing={},
        stage_ms={},
    )


@pytest.mark.parametrize(
    ("got", "matched"),
    [
        ([(0, 0.9, 0), (10, 0.2, 1)], 2),
        ([(0.45, 0.9, 0), (9.6, 0.06, 1)], 2),  # half of the score is enough
        ([(0.55, 0.9, 0), (10, 0.04, 1)], 0),
        ([(0, 0.9, 1), (10, 0.2, 0)], 0),  # other classes
        ([], 0),
    ],
)
def test_boxes_found_again_are_of_the_class_near_and_seen_well(got, matched):
    # the third box is seen too badly to be looked for
    expected = result([(0, 0.9, 0), (10, 0.11, 1), (20, 0.09, 2)])
    assert num_found_again(expected, result(got)) == (2, matched)


def test_bundles_of_other_networks_are_refused(small_log_root, tmp_path):
    other = dataclasses.replace(toy_card(), recipe="other")
    bundles = [toy(tmp_path / "first"), toy(tmp_path / "second", card=other)]
    with pytest.raises(InputError, match=r"second differs from .*first in recipe, expected"):
        compare_accuracy(bundles, NuScenesLog(small_log_root), "all")


DEEP = dataclasses.replace(toy_card().inputs.pillars, num_slices=8)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"detection_classes": ("car",)}, "detection classes"),
        ({"map_classes": ("walkway",)}, "map classes"),
        ({"sparse_levels": encoder_levels(DEEP)}, "sparse levels"),
    ],
)
def test_networks_that_say_or_read_something_else_are_refused(tmp_path, changes, what):
    first = toy(tmp_path / "first")
    other = dataclasses.replace(first, card=dataclasses.replace(first.card, **changes))
    with pytest.raises(InputError, match=f"in {what}, expected bundles of one network"):
        accuracy._check_alike([first, other])


def made_of(folder, **said):
    """A bundle that says what it was made of."""
    folder = toy(folder, card=dataclasses.replace(toy_card(), precision="int8")).path
    (folder / "precision.json").write_text(json.dumps(said))
    write_manifest(folder)
    return load_bundle(folder)


def test_bundles_of_other_trainings_are_refused(tmp_path):
    first, other = toy(tmp_path / "first"), toy(tmp_path / "other", for_lidar=0.2)
    same = made_of(tmp_path / "same", source_digest=first.digest)
    # exported a second time, so that the bundle has another digest, but not the graph
    graph = model_digest(first)
    again = made_of(tmp_path / "again", source_digest="0", source_model=graph)
    strange = made_of(tmp_path / "strange", source_digest=other.digest)
    accuracy._check_alike([first, same, again])
    accuracy._check_alike([same, first])
    accuracy._check_alike([other, strange])
    for wrong in ([first, strange], [other, same], [same, strange], [strange, first]):
        with pytest.raises(InputError, match="in training, expected bundles of one network"):
            accuracy._check_alike(wrong)
    with pytest.raises(InputError, match="does not say what the bundle was made of"):
        accuracy._check_alike([first, made_of(tmp_path / "mute")])


@pytest.mark.parametrize(("for_lidar", "code"), [(0.3, 0), (-0.6, 1)])
def test_the_exit_code_says_whether_too_much_was_lost(
    small_log_root, tmp_path, monkeypatch, capsys, for_lidar, code
):
    toy(tmp_path / "first")
    toy(tmp_path / "second", for_lidar=for_lidar)
    out = tmp_path / "accuracy.json"
    words = ["--log", small_log_root, "--split", "all", "--max-keyframes", "1", "--out", out]
    arguments = ["accuracy.py", tmp_path / "first", tmp_path / "second", *words]
    monkeypatch.setattr("sys.argv", [str(word) for word in arguments])
    assert accuracy.main() == code
    said = capsys.readouterr()
    assert "| second | fp32 |" in said.out
    assert ("second lost more than is allowed" in said.err) == bool(code)
    assert len(json.loads(out.read_text())["rows"]) == 2
