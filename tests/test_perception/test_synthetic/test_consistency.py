"""Cameras, LiDAR, boxes and tables tell of one and the same world."""

import numpy as np
import pytest
from nuscenes import NuScenes

from perception.data.nuscenes_dataset import NuScenesDataset, SampleConfig, training_boxes
from perception.data.nuscenes_log import NuScenesLog
from perception.geometry import boxes as box_geometry
from perception.geometry import camera, rigid
from perception.synthetic import rig
from perception.synthetic.casts import CameraView
from perception.synthetic.clutter import build_clutter
from perception.synthetic.ray_caster import cast_camera, cast_lidar
from perception.synthetic.scene_builder import build_scene
from perception.synthetic.street_builder import build_street_map
from perception.taxonomy import CAMERAS, LIDAR
from training.recipes import tiny_fusion


@pytest.fixture(scope="module")
def script():
    street_map = build_street_map("boston-seaport", 0)
    return build_scene(street_map, build_clutter(street_map, 0), "scene-0103", 0, 2.0)


def test_lidar_returns_lie_on_the_same_primitive_in_the_image(script):
    time = 1.0
    x, y, yaw = script.ego.poses(np.array([time]))[0].tolist()
    T_global_ego = rigid.transform_from_quaternion(rigid.quaternion_from_yaw(yaw), (x, y, 0.0))
    primitives = script.primitives_at(time, np.array([x, y]), 150.0)
    T_global_lidar = T_global_ego @ rig.T_ego_lidar()
    lidar = cast_lidar(primitives, T_global_lidar)
    hit = lidar.primitive >= 0
    points = rigid.apply(T_global_lidar, rig.lidar_directions()[hit] * lidar.range[hit, None])
    same, gaps, num_seen = 0, [], 0
    for name in CAMERAS:
        view = CameraView(
            K_cam=rig.intrinsics(name, 1600, 900),
            T_global_cam=T_global_ego @ rig.T_ego_cam(name),
            width_px=1600,
            height_px=900,
        )
        cast = cast_camera(primitives, view, len(script.actors))
        pixels, depth, in_front = camera.project(points, view.T_global_cam, view.K_cam)
        column, row = np.floor(pixels).astype(int).T
        inside = in_front & (column >= 0) & (column < 1600) & (row >= 0) & (row < 900)
        for k in np.flatnonzero(inside):
            seen = cast.depth[row[k], column[k]]
            if seen < depth[k] - 0.3:
                continue  # something hides it from the camera, which sits elsewhere
            num_seen += 1
            same += cast.primitive[row[k], column[k]] == lidar.primitive[hit][k]
            gaps.append(abs(seen - depth[k]))
    assert num_seen > 3000
    assert same / num_seen >= 0.995
    assert np.median(gaps) < 0.02


def test_returns_lie_inside_the_box_of_their_object(script):
    time = 1.0
    x, y, yaw = script.ego.poses(np.array([time]))[0].tolist()
    T_global_ego = rigid.transform_from_quaternion(rigid.quaternion_from_yaw(yaw), (x, y, 0.0))
    T_global_lidar = T_global_ego @ rig.T_ego_lidar()
    primitives = script.primitives_at(time, np.array([x, y]), 100.0)
    cast = cast_lidar(primitives, T_global_lidar)
    hit = np.flatnonzero(cast.primitive >= 0)
    points = rigid.apply(T_global_lidar, rig.lidar_directions()[hit] * cast.range[hit, None])
    owner = primitives.object_index[cast.primitive[hit]]
    num_objects = 0
    for index in np.unique(owner[owner >= 0]):
        actor = script.actors[index]
        px, py, pyaw = actor.track.poses(np.array([time]))[0].tolist()
        length, width, height = actor.size
        margin = 0.02  # float32 at 100 m
        size = [length + margin, width + margin, height + margin]
        box = np.array([[px, py, height / 2, *size, pyaw, 0.0, 0.0]])
        own = points[owner == index]
        assert box_geometry.points_inside(box, own).all(), actor.category
        num_objects += 1
    assert num_objects >= 10


def test_point_counts_are_those_of_the_file(synthetic_log_root):
    # the table counts rays that met the object; range noise moves a few over the box's border
    log = NuScenesLog(synthetic_log_root)
    token = log.keyframe_tokens("scene-0103")[1]
    frame, annotations = log.keyframe(token, num_sweeps=1), log.annotations(token)
    sweep = frame.sweeps[0]
    T_global_lidar = sweep.T_global_ego @ frame.calibration.T_ego_lidar
    points = rigid.apply(T_global_lidar, sweep.points_lidar[:3].T.astype(np.float64))
    grown = annotations.boxes_global.copy()
    grown[:, box_geometry.SIZE] += 0.2
    found = np.array([box_geometry.points_inside(row[None], points).sum() for row in grown])
    listed = annotations.num_lidar_points
    well_hit = listed >= 20
    assert well_hit.sum() >= 5
    # the grown box may take in a little of the ground or of a neighbour
    assert (found[well_hit] >= 0.97 * listed[well_hit]).all()
    assert np.corrcoef(found, listed)[0, 1] > 0.98


def test_velocities_are_the_differences_of_the_track(script, synthetic_log_root):
    log = NuScenesLog(synthetic_log_root)
    nusc = NuScenes("v1.0-mini", str(synthetic_log_root), verbose=False)
    _, second, _, _ = log.keyframe_tokens("scene-0103")
    now = log.annotations(second)
    speeds = []
    for token, box in zip(now.tokens, now.boxes_global, strict=True):
        official = nusc.box_velocity(token)[:2]
        np.testing.assert_allclose(box[box_geometry.VELOCITY], official, atol=1e-6)
        speeds.append(float(np.hypot(*official)))
        record = nusc.get("sample_annotation", token)
        if not record["prev"] or not record["next"]:
            continue
        ends = [nusc.get("sample_annotation", record[side]) for side in ("prev", "next")]
        step = np.subtract(ends[1]["translation"], ends[0]["translation"])[:2]
        np.testing.assert_allclose(official, step, atol=1e-5)  # keyframes 1 s apart
    assert max(speeds) > 2.0
    assert np.median(speeds) < 0.2  # most objects are parked or stand


def test_a_box_lies_where_its_actor_is(script, synthetic_log_root):
    # the same script, whose duration differs from the log's by half a second
    config_duration = 1.5
    street_map = build_street_map("boston-seaport", 0)
    same = build_scene(street_map, build_clutter(street_map, 0), "scene-0103", 0, config_duration)
    log = NuScenesLog(synthetic_log_root)
    token = log.keyframe_tokens("scene-0103")[2]  # 1 s after the start
    boxes_global = log.annotations(token).boxes_global
    poses = np.array([actor.track.poses(np.array([1.0]))[0] for actor in same.actors])
    for box in boxes_global:
        gap = np.hypot(*(poses[:, :2] - box[:2]).T)
        assert gap.min() < 1e-5
        turn = box_geometry.wrap_angle(poses[gap.argmin(), 2] - box[box_geometry.YAW])
        assert abs(turn) < 1e-6


def test_every_class_can_be_learnt_from_every_scene(synthetic_log_root):
    log = NuScenesLog(synthetic_log_root)
    for scene in log.scenes:
        labels = set()
        for token in log.keyframe_tokens(scene):
            frame = log.keyframe(token, num_sweeps=1)
            boxes_ego, found = training_boxes(log.annotations(token), frame)
            near = np.hypot(boxes_ego[:, 0], boxes_ego[:, 1]) < 38.0
            labels |= set(found[near].tolist())
        assert labels == set(range(10)), scene


def test_the_projects_reader_and_dataset_take_it_as_any_log(synthetic_log_root):
    log = NuScenesLog(synthetic_log_root)
    detector = tiny_fusion().detector
    tokens = log.keyframe_tokens("scene-0061")
    frame = log.keyframe(tokens[-1])
    assert not frame.missing
    assert set(frame.images) == set(CAMERAS)
    assert len(frame.sweeps) == 7  # 3 intervals of two sweeps, and the first
    sample = NuScenesDataset(log, tokens, detector, SampleConfig(), seed=0)[2]
    assert sample.map_raster.labelled.all()
    assert sample.inputs.camera_mask.all()
    assert sample.boxes.object_mask.sum() > 10
    sensors = {sensor for _, sensor in log.stamps("scene-0061")}
    assert sensors == {*CAMERAS, LIDAR}
