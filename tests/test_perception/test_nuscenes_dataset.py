import numpy as np
import pytest
from small_detector import small_config

from perception.data.nuscenes_dataset import NuScenesDataset, training_boxes
from perception.data.nuscenes_log import NuScenesLog
from perception.geometry import boxes as box_geometry
from perception.geometry import rigid
from perception.taxonomy import DETECTION_CLASSES

CONFIG = small_config()


@pytest.fixture(scope="module")
def log(small_log_root):
    return NuScenesLog(small_log_root)


def test_boxes_and_points_meet_in_the_ego_frame(log):
    # the frame's LiDAR points lie inside the boxes as often as the annotation counts them
    from perception.model_inputs import accumulate

    token = log.keyframe_tokens()[1]
    frame, annotations = log.keyframe(token), log.annotations(token)
    points_ego = accumulate(frame, frame.sweeps[:1], CONFIG.inputs.pillars)[:3].T
    boxes_ego, _ = training_boxes(annotations, frame)
    kept = annotations.num_lidar_points > 0
    inside = box_geometry.points_inside(boxes_ego, points_ego.astype(np.float64)).sum(axis=1)
    assert inside.tolist() == annotations.num_lidar_points[kept].tolist()
    assert inside.sum() > 0


def test_training_boxes_are_the_hit_ones_of_the_ten_classes(log):
    import dataclasses

    token = log.keyframe_tokens()[0]
    frame, annotations = log.keyframe(token), log.annotations(token)
    boxes_ego, labels = training_boxes(annotations, frame)
    names = [DETECTION_CLASSES[label] for label in labels]
    assert set(names) == {"car", "pedestrian"}
    back = box_geometry.transform(frame.T_global_ego, boxes_ego)
    np.testing.assert_allclose(back[:, :6], annotations.boxes_global[:, :6], atol=1e-9)
    nothing = np.zeros_like(annotations.num_lidar_points)
    unhit = dataclasses.replace(annotations, num_lidar_points=nothing, num_radar_points=nothing)
    assert len(training_boxes(unhit, frame)[0]) == 0
    other = dataclasses.replace(annotations, categories=("animal",) * len(annotations.categories))
    assert len(training_boxes(other, frame)[0]) == 0


def test_velocity_is_turned_into_the_ego_frame(log):
    token = log.keyframe_tokens()[1]
    frame, annotations = log.keyframe(token), log.annotations(token)
    boxes_ego, _ = training_boxes(annotations, frame)
    R_ego_global = rigid.inverse(frame.T_global_ego)[:3, :3]
    velocity = np.pad(annotations.boxes_global[:, box_geometry.VELOCITY], ((0, 0), (0, 1)))
    expected = (velocity @ R_ego_global.T)[:, :2]
    np.testing.assert_allclose(boxes_ego[:, box_geometry.VELOCITY], expected, atol=1e-9)
    assert np.isfinite(expected).all()


def test_a_batch_has_the_shapes_the_heads_want(log):
    dataset = NuScenesDataset(log, log.keyframe_tokens()[:2], CONFIG.inputs, CONFIG.map_head.grid)
    batch = dataset.collate([dataset[0], dataset[1]])
    assert batch.boxes.heatmap.shape == (2, 10, 32, 32)
    assert batch.boxes.object_mask.sum(dim=1).tolist() == [2, 2]
    assert batch.map.mask.shape == (2, 6, 50, 50)
    assert batch.map.labelled[:, 0].tolist() == [1.0, 1.0]
    assert batch.map.labelled[:, 1:].sum() == 0
    assert batch.inputs.images.shape == (2, 6, 32, 96, 3)
