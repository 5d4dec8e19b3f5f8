import numpy as np
import pytest

from export.parity import ParityReport, ParityRow, frame_errors, match_boxes
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
    # the third has another class; the last is at the cut
    assert sorted(match_boxes(a, b)) == [(0, 1), (1, 0)]


def test_yaw_wraps_round():
    a = outputs([(0, 0), (50, 50)], [0, 0], [0.9, 0.1], yaw=np.pi - 0.001)
    b = outputs([(0, 0), (50, 50)], [0, 0], [0.9, 0.1], yaw=-np.pi + 0.001)
    errors = frame_errors(a, b, match_boxes(a, b))
    assert errors["yaw [rad]"] == pytest.approx(0.002, abs=1e-5)


@pytest.mark.parametrize(
    ("error", "matched", "boxes", "passed"),
    [(1e-6, 3, 3, True), (2e-4, 3, 3, False), (np.nan, 3, 3, False), (0.0, 2, 3, False),
     (0.0, 0, 0, False)],
)  # fmt: skip
def test_what_passes(error, matched, boxes, passed):
    row = ParityRow(output="map_prob", max_error=error, bound=1e-4)
    report = ParityReport(rows=(row,), num_frames=1, num_boxes=boxes, num_matched=matched)
    assert report.passed is passed
