import dataclasses

import numpy as np
import pytest
import torch
from small_detector import small_config

from export.deploy_graph import DeployGraph
from export.parity import (
    ParityReport,
    ParityRow,
    agreeing,
    decided,
    frame_errors,
    match_boxes,
    run_with_leads,
)
from export.parity_frames import noise_frame
from export.to_onnx import export_checkpoint
from perception.checkpoint import Checkpoint, load_checkpoint
from perception.data.collate import collate_inputs
from perception.models.detector import build_detector
from perception.models.heads.query_box_head import QueryBoxHeadConfig
from perception.models.heads.query_map_head import QueryMapHeadConfig
from perception.taxonomy import MAP_CLASSES
from runtime.engines.base import ModelOutputs


def outputs(centers, labels, scores, yaw=0.0):
    boxes = np.zeros((len(centers), 9), np.float32)
    boxes[:, :2] = centers
    boxes[:, 6] = yaw
    return ModelOutputs(
        boxes_ego=boxes,
        scores=np.array(scores, np.float32),
        labels=np.array(labels, np.int64),
        map_prob=np.zeros((1, 2, 2), np.float32),
    )


def test_boxes_are_matched_whatever_their_order_and_by_class():
    a = outputs([(0, 0), (5, 5), (9, 9), (1, 1)], [1, 2, 3, 0], [0.9, 0.8, 0.7, 0.1])
    b = outputs([(5.01, 5), (0, 0.01), (9, 9), (1, 1)], [2, 1, 4, 0], [0.8, 0.9, 0.7, 0.1])
    # the third has another class; the last is left out
    assert sorted(match_boxes(a, b, np.array([True, True, True, False]))) == [(0, 1), (1, 0)]


def test_a_box_at_the_end_of_either_list_or_level_with_a_neighbour_is_a_tie():
    a = outputs([(k, 0) for k in range(4)], [0] * 4, [0.9, 0.5, 0.3, 0.2])
    b = outputs([(k, 0) for k in range(4)], [0] * 4, [0.9, 0.5, 0.4, 0.3])
    # 0.3 is the last of the file's boxes; the second leads its neighbours by rounding alone
    lead = np.array([0.1, 1e-7, 0.1, 0.1], np.float32)
    assert decided(a, b, lead).tolist() == [True, False, False, False]


def test_a_tie_that_came_out_alike_is_compared():
    a = outputs([(k, 0) for k in range(4)], [0] * 4, [0.9, 0.5, 0.3, 0.2])
    # the second is 2 mm off, the third's score 0.01, the fourth is not there
    b = outputs([(0, 0), (1.002, 0), (2, 0), (9, 0)], [0] * 4, [0.9, 0.5, 0.31, 0.2])
    assert agreeing(a, b).tolist() == [True, False, False, False]


def test_the_lead_of_a_peak_is_over_the_cells_around_it(small_run):
    checkpoint = load_checkpoint(small_run)
    frame = noise_frame(checkpoint.config.inputs)
    graph = DeployGraph(checkpoint)
    with torch.no_grad():
        raw = checkpoint.detector(collate_inputs([frame], checkpoint.config.inputs))
    score = torch.sigmoid(raw.boxes.heatmap_logits[0]).numpy()
    scores, labels, cell = (x[0].numpy() for x in checkpoint.detector.box_head.peaks(raw.boxes))
    outputs, lead = run_with_leads(graph, frame)
    assert (outputs.scores == scores).all()
    for k in range(0, len(scores), 7):
        row, column = divmod(int(cell[k]), score.shape[2])
        rows = slice(max(row - 1, 0), row + 2)
        patch = score[labels[k], rows, max(column - 1, 0) : column + 2].ravel()
        second = np.sort(patch)[-2]
        assert lead[k] == pytest.approx(scores[k] - second, abs=1e-7)


def test_query_heads_come_out_of_the_file_as_they_are_in_torch(tmp_path):
    torch.manual_seed(0)
    small, size = small_config(), {"channels": 16, "num_heads": 2, "ffn_channels": 16}
    config = dataclasses.replace(
        small,
        box_head=QueryBoxHeadConfig(num_queries=50, branch_channels=16, **size),
        map_head=QueryMapHeadConfig(grid=small.map_head.grid, **size),
    )
    detector = build_detector(config)
    with torch.no_grad():
        detector.box_head.heatmap[-1].weight *= 100  # peaks as clear as after training
    checkpoint = Checkpoint(
        detector=detector,
        config=config,
        recipe="queries",
        trained_map_classes=MAP_CLASSES,
    )
    report = export_checkpoint(checkpoint, tmp_path / "bundle", [])
    # noise, and three frames without sensors; the one without any is as flat as can be
    assert report.num_frames == 4
    assert report.num_matched == report.num_boxes >= 50


def test_yaw_wraps_round():
    a = outputs([(0, 0), (50, 50)], [0, 0], [0.9, 0.1], yaw=np.pi - 0.001)
    b = outputs([(0, 0), (50, 50)], [0, 0], [0.9, 0.1], yaw=-np.pi + 0.001)
    errors = frame_errors(a, b, match_boxes(a, b, np.array([True, False])))
    assert errors["yaw [rad]"] == pytest.approx(0.002, abs=1e-5)


@pytest.mark.parametrize(
    ("error", "matched", "boxes", "ties", "passed"),
    [(1e-6, 3, 3, 27, True), (2e-4, 3, 3, 0, False), (np.nan, 3, 3, 0, False),
     (0.0, 2, 3, 0, False), (0.0, 0, 0, 0, False), (0.0, 3, 3, 28, False)],
)  # fmt: skip
def test_what_passes(error, matched, boxes, ties, passed):
    row = ParityRow(output="map_prob", max_error=error, bound=1e-4)
    report = ParityReport(
        rows=(row,), num_frames=1, num_boxes=boxes, num_matched=matched, num_ties=ties
    )
    assert report.passed is passed
