import dataclasses

import numpy as np
import pytest
import torch
from settled_detector import settled_checkpoint

from perception.data.nuscenes_log import NuScenesLog
from perception.model_inputs import prepare_frame
from training.prediction import predict, predict_batch


@pytest.fixture(scope="module")
def frames(small_log_root):
    log = NuScenesLog(small_log_root)
    return [log.keyframe(token) for token in (log.keyframe_tokens()[0], log.keyframe_tokens()[-1])]


@pytest.fixture(scope="module")
def checkpoint(small_log_root):
    return settled_checkpoint(NuScenesLog(small_log_root))


def prepared(frames, checkpoint):
    return [prepare_frame(frame, checkpoint.config.inputs) for frame in frames]


def test_a_batch_says_what_each_frame_says_alone(frames, checkpoint):
    together = predict_batch(checkpoint, frames, prepared(frames, checkpoint))
    assert len(together) == 2
    for frame, result in zip(frames, together, strict=True):
        alone = predict(checkpoint, frame)
        assert result.stamp_ns == frame.stamp_ns
        assert np.array_equal(result.T_global_ego, frame.T_global_ego)
        assert result.sensors_used == checkpoint.config.inputs.sensors
        np.testing.assert_allclose(result.map_mask.prob, alone.map_mask.prob, atol=1e-4)
        np.testing.assert_allclose(
            result.detections.scores, alone.detections.scores, atol=1e-4, rtol=1e-4
        )
    assert np.abs(together[0].map_mask.prob - together[1].map_mask.prob).max() > 0.1


def test_only_trained_layers_are_told(frames, checkpoint):
    whole = predict(checkpoint, frames[0]).map_mask
    two = dataclasses.replace(checkpoint, trained_map_classes=("ped_crossing", "divider"))
    told = predict(two, frames[0]).map_mask
    assert told.classes == ("ped_crossing", "divider")
    # torch's sigmoid rounds the end of a run of values otherwise than its middle: one unit at most
    np.testing.assert_allclose(told.prob, whole.prob[[1, 5]], rtol=2e-7)


def test_boxes_that_are_not_finite_are_dropped_as_in_the_car(frames, checkpoint, monkeypatch):
    box_head = checkpoint.detector.box_head
    decode = box_head.decode

    def broken(output):
        boxes, scores, labels = decode(output)
        boxes[:, 1, 3], scores[:, 2] = torch.inf, torch.nan
        return boxes, scores, labels

    whole = predict(checkpoint, frames[0]).detections
    monkeypatch.setattr(box_head, "decode", broken)
    left = predict(checkpoint, frames[0]).detections
    assert len(left.scores) == len(whole.scores) - 2
    assert np.array_equal(left.scores, np.delete(whole.scores, [1, 2]))


def test_bf16_differs_by_its_rounding_only(frames, checkpoint):
    inputs = prepared(frames, checkpoint)
    fp32 = predict_batch(checkpoint, frames, inputs, "fp32")[0].map_mask.prob
    bf16 = predict_batch(checkpoint, frames, inputs, "bf16")[0].map_mask.prob
    assert not np.array_equal(fp32, bf16)
    np.testing.assert_allclose(bf16, fp32, atol=0.1)
    assert np.abs(bf16 - fp32).mean() < 0.01
