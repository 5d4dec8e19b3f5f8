import dataclasses
import hashlib
import json

import numpy as np
import pytest
import torch
from nuscenes_writer import edit_table
from small_detector import small_config
from torch.utils.data import DataLoader

from perception.data.augment import BevAugmentConfig, ImageAugmentConfig, draw_augmentation
from perception.data.faults import FaultConfig
from perception.data.nuscenes_dataset import (
    DamagedSample,
    NuScenesDataset,
    Sample,
    SampleConfig,
    SampleKey,
    classes_of_frames,
    training_boxes,
)
from perception.data.nuscenes_log import NuScenesLog
from perception.geometry import boxes as box_geometry
from perception.geometry import rigid
from perception.model_inputs import TENSOR_NAMES
from perception.models.depth_supervision import UNKNOWN
from perception.taxonomy import CAMERAS, DETECTION_CLASSES, LIDAR, MAP_CLASSES
from perception.usable_data import accumulate

CONFIG = small_config()
PLAIN = SampleConfig()
RANDOM = SampleConfig(
    image_augment=ImageAugmentConfig(),
    bev_augment=BevAugmentConfig(),
    faults=FaultConfig(
        drop_camera=0.1, drop_lidar=0.1, drop_all_cameras=0.1, late=0.2, frozen=0.2, noisy=0.2
    ),
    depth_targets=True,
)


@pytest.fixture(scope="module")
def log(small_log_root):
    return NuScenesLog(small_log_root)


def dataset_of(log, sampling=PLAIN, detector=CONFIG, tokens=None, seed=0):
    return NuScenesDataset(log, tokens or log.keyframe_tokens(), detector, sampling, seed)


def arrays_of(sample):
    parts = (sample.inputs, sample.boxes, sample.map_raster)
    found = [x for p in parts for x in vars(p).values() if isinstance(x, np.ndarray)]
    return found if sample.depth_bin is None else [*found, sample.depth_bin]


def digest(sample):
    return hashlib.sha256(b"".join(a.tobytes() for a in arrays_of(sample))).hexdigest()


# boxes


def test_boxes_and_points_meet_in_the_ego_frame(log):
    # the frame's LiDAR points lie inside the boxes as often as the annotation counts them
    token = log.keyframe_tokens()[1]
    frame, annotations = log.keyframe(token), log.annotations(token)
    points_ego = accumulate(frame, frame.sweeps[:1], CONFIG.inputs.pillars)[:3].T
    boxes_ego, _ = training_boxes(annotations, frame)
    kept = annotations.num_lidar_points > 0
    inside = box_geometry.points_inside(boxes_ego, points_ego.astype(np.float64)).sum(axis=1)
    assert inside.tolist() == annotations.num_lidar_points[kept].tolist()
    assert inside.sum() > 0


def test_training_boxes_are_the_hit_ones_of_the_ten_classes(log):
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


def test_a_box_that_leaves_the_grid_with_the_augmentation_is_left_out(log):
    # two boxes about 10 m away; a shift by a few hundred metres leaves none on the grid
    sampling = SampleConfig(bev_augment=BevAugmentConfig(translation_sigma=1e6))
    dataset = dataset_of(log, sampling)
    assert dataset[0].boxes.object_mask.sum() == 2
    far = dataset[SampleKey(0, 0)].boxes
    assert far.object_mask.sum() == 0
    assert not far.heatmap.any()


def test_classes_of_frames(log):
    car, pedestrian = (DETECTION_CLASSES.index(name) for name in ("car", "pedestrian"))
    assert classes_of_frames(log, log.keyframe_tokens()[:2]) == [{car, pedestrian}] * 2


# keys


def test_the_same_key_gives_the_same_bits_in_any_process_and_order(log):
    dataset = dataset_of(log, RANDOM, tokens=log.keyframe_tokens()[:4])
    keys = [SampleKey(index, draw) for draw, index in enumerate((0, 1, 2, 3, 1, 1))]
    here = [digest(dataset[key]) for key in keys]
    again = [digest(dataset[key]) for key in reversed(keys)]
    assert again[::-1] == here
    assert len(set(here)) == 6  # another draw is another sample
    loader = DataLoader(
        dataset, sampler=keys, batch_size=None, num_workers=2, collate_fn=_same, timeout=60
    )
    assert [digest(sample) for sample in loader] == here


def _same(sample):
    return sample


def test_the_seed_is_part_of_the_key(log):
    first, other = dataset_of(log, RANDOM, seed=1), dataset_of(log, RANDOM, seed=2)
    assert digest(first[SampleKey(0, 0)]) != digest(other[SampleKey(0, 0)])


def test_an_index_alone_is_without_anything_random(log):
    random, plain = dataset_of(log, RANDOM), dataset_of(log, SampleConfig(depth_targets=True))
    assert digest(random[1]) == digest(plain[1]) == digest(plain[SampleKey(1, 7)])
    assert digest(random[1]) != digest(random[SampleKey(1, 7)])


def test_faults_reach_the_masks_but_not_the_targets(log):
    broken = SampleConfig(faults=FaultConfig(drop_camera=1.0), depth_targets=True)
    clean = dataset_of(log, SampleConfig(depth_targets=True))[SampleKey(1, 0)]
    sample = dataset_of(log, broken)[SampleKey(1, 0)]
    assert not sample.inputs.camera_mask.any()
    assert sample.inputs.lidar_mask.all()
    assert (sample.boxes.heatmap == clean.boxes.heatmap).all()
    assert (sample.map_raster.mask == clean.map_raster.mask).all()
    assert (sample.depth_bin == UNKNOWN).all()  # no picture, nothing to say of its depths
    blind = SampleConfig(faults=FaultConfig(drop_lidar=1.0), depth_targets=True)
    dark = dataset_of(log, blind)[SampleKey(1, 0)]
    assert not dark.inputs.lidar_mask.any()
    assert (dark.depth_bin == clean.depth_bin).all()
    assert (clean.depth_bin != UNKNOWN).any()


# sensors


def lidar_network():
    changes = {"image_encoder": None, "view_transform": None}
    inputs = dataclasses.replace(CONFIG.inputs, cameras=(), depth_image=False)
    return dataclasses.replace(CONFIG, inputs=inputs, **changes)


def camera_network():
    inputs = dataclasses.replace(CONFIG.inputs, use_lidar=False, depth_image=False)
    return dataclasses.replace(CONFIG, inputs=inputs, point_encoder=None)


def remove(root, folder, sensor):
    files = sorted((root / folder / sensor).iterdir())
    for path in files:
        path.unlink()


def test_a_lidar_network_reads_no_picture(own_log_root):
    for camera in CAMERAS:
        remove(own_log_root, "samples", camera)
    dataset = dataset_of(
        NuScenesLog(own_log_root), SampleConfig(depth_targets=True), lidar_network()
    )
    sample = dataset[0]
    assert isinstance(sample, Sample)
    assert sample.inputs.lidar_mask.all()
    assert sample.depth_bin is None  # no picture, no depths
    assert dataset.collate([sample]).depth is None


def test_a_camera_network_reads_no_points_but_for_its_targets(own_log_root):
    log = NuScenesLog(own_log_root)
    with_depth = SampleConfig(depth_targets=True, faults=FaultConfig(drop_camera=1.0))
    dataset = dataset_of(log, with_depth, camera_network())
    assert (dataset[1].depth_bin != UNKNOWN).any()
    # dropout leaves one camera: the LiDAR, there for the targets alone, is no sensor of it
    assert dataset[SampleKey(1, 0)].inputs.camera_mask.sum() == 1
    remove(own_log_root, "samples", LIDAR)
    assert isinstance(dataset[1], DamagedSample)
    assert isinstance(dataset_of(log, PLAIN, camera_network())[1], Sample)


# damage


def keyframe_file(root, sensor, index):
    return sorted((root / "samples" / sensor).iterdir())[index]


def truncate_image(root):
    path = keyframe_file(root, "CAM_BACK", 1)
    path.write_bytes(path.read_bytes()[:300])
    return path.name


def remove_older_sweep(root):
    path = sorted((root / "sweeps" / LIDAR).iterdir())[5]  # 200 ms before the second keyframe
    path.unlink()
    return path.name


def annotation_of(root, token):
    """Position in the table of the first box of a keyframe, and its token."""
    records = json.loads((root / "v1.0-mini" / "sample_annotation.json").read_text())
    return next((k, r["token"]) for k, r in enumerate(records) if r["sample_token"] == token)


def break_box(column, value):
    def damage(root):
        token = NuScenesLog(root).keyframe_tokens()[1]
        index, name = annotation_of(root, token)
        edit_table(
            root, "sample_annotation", lambda records: records[index][column].__setitem__(1, value)
        )
        return name

    return damage


def break_pose(root):
    name = NuScenesLog(root).keyframe_tokens()[1]
    data = json.loads((root / "v1.0-mini" / "sample_data.json").read_text())
    record = next(r for r in data if r["sample_token"] == name and r["is_key_frame"])

    def edit(records):
        for pose in records:
            if pose["token"] == record["ego_pose_token"]:
                pose["rotation"] = [0.0, 0.0, 0.0, 0.0]

    edit_table(root, "ego_pose", edit)
    return record["ego_pose_token"]


@pytest.mark.parametrize(
    "damage",
    [
        truncate_image,
        remove_older_sweep,
        break_box("translation", float("nan")),
        break_box("size", float("nan")),
        break_box("size", float("inf")),
        break_box("size", 0.0),
        break_box("size", -1.0),
        break_pose,
    ],
    ids=[
        "truncated image", "older sweep", "NaN box", "NaN size", "infinite size", "no size",
        "negative size", "pose",
    ],
)  # fmt: skip
def test_a_damaged_sample_is_named_and_the_others_stay(damage, own_log_root, log):
    name = damage(own_log_root)
    damaged = dataset_of(NuScenesLog(own_log_root), RANDOM, tokens=log.keyframe_tokens()[:4])
    sample = damaged[SampleKey(1, 0)]
    assert isinstance(sample, DamagedSample)
    assert sample.token == log.keyframe_tokens()[1]
    assert any(name in reason for reason in sample.reasons)
    whole = dataset_of(log, RANDOM, tokens=log.keyframe_tokens()[:4])
    # keyframe 2 takes older sweeps from the damaged time; nothing else reaches over
    assert digest(damaged[SampleKey(3, 9)]) == digest(whole[SampleKey(3, 9)])
    before, expected = damaged[SampleKey(0, 9)], whole[SampleKey(0, 9)]
    for found, wanted in zip(arrays_of(before), arrays_of(expected), strict=True):
        # where the damaged box was the other end of a velocity, that is not known any more
        known = ~np.isnan(found)
        assert (found[known] == wanted[known]).all()
    assert np.isnan(before.boxes.code).sum() <= 2


def test_a_log_with_holes_trains_on_what_is_there(own_log_root):
    truncate_image(own_log_root)
    remove_older_sweep(own_log_root)
    name = break_box("size", 0.0)(own_log_root)
    dataset = dataset_of(NuScenesLog(own_log_root), SampleConfig(skip_damaged=False))
    sample = dataset[1]
    assert isinstance(sample, Sample), name
    camera = CONFIG.inputs.cameras.index("CAM_BACK")
    assert sample.inputs.camera_mask.tolist() == [float(k != camera) for k in range(6)]
    assert sample.inputs.lidar_mask.all()
    assert sample.boxes.object_mask.sum() == 1  # the other one


def test_broken_tables_are_no_class(own_log_root):
    break_box("translation", float("nan"))(own_log_root)
    log = NuScenesLog(own_log_root)
    assert [len(found) for found in classes_of_frames(log, log.keyframe_tokens()[:3])] == [2, 0, 2]


# batches


def test_a_batch_has_the_shapes_the_heads_want(log):
    dataset = dataset_of(log, SampleConfig(depth_targets=True))
    batch = dataset.collate([dataset[0], dataset[1]])
    assert batch.boxes.heatmap.shape == (2, 10, 32, 32)
    assert batch.boxes.object_mask.sum(dim=1).tolist() == [2, 2]
    assert batch.boxes.label.shape == batch.boxes.cell.shape
    assert batch.boxes.labelled.tolist() == [1.0, 1.0]
    assert batch.map.mask.shape == (2, 6, 50, 50)
    assert batch.map.labelled[:, 0].tolist() == [1.0, 1.0]
    assert batch.map.labelled[:, 1:].sum() == 0
    assert batch.inputs.images.shape == (2, 6, 32, 96, 3)
    assert batch.depth.bin.shape == (2, 6, 4, 12)
    assert batch.damaged == ()
    assert batch.to(torch.device("cpu")).depth.bin.shape == batch.depth.bin.shape


def test_damaged_samples_are_named_beside_the_tensors(log):
    dataset = dataset_of(log)
    damaged = DamagedSample(token="abc", reasons=("it is broken",))
    batch = dataset.collate([damaged, dataset[2]])
    alone = dataset.collate([dataset[2]])
    assert batch.damaged == (damaged,)
    assert batch.to(torch.device("cpu")).damaged == (damaged,)
    for name in TENSOR_NAMES:
        assert torch.equal(getattr(batch.inputs, name), getattr(alone.inputs, name))


def test_a_blank_sample_stands_in_where_all_are_damaged(log):
    dataset = dataset_of(log, SampleConfig(depth_targets=True))
    damaged = [DamagedSample(token=t, reasons=("broken",)) for t in ("a", "b")]
    batch = dataset.collate(damaged)
    assert batch.damaged == tuple(damaged)
    assert batch.inputs.images.shape == (1, 6, 32, 96, 3)
    assert not batch.inputs.camera_mask.any()
    assert not batch.inputs.lidar_mask.any()
    assert batch.boxes.labelled.tolist() == [0.0]
    assert not batch.map.labelled.any()
    assert (batch.depth.bin == UNKNOWN).all()


# ground truth stays registered


def clearly_on(mask, grid, xy):
    """1 or 0 where the nine cells round a place agree, None elsewhere and at the border."""
    column, row = np.floor(grid.cell_coordinates(xy)).astype(int)
    if not (1 <= column < grid.nx - 1 and 1 <= row < grid.ny - 1):
        return None
    around = mask[row - 1 : row + 2, column - 1 : column + 2]
    return around.max() if around.min() == around.max() else None


def test_boxes_on_the_road_stay_on_it(synthetic_log_root):
    log = NuScenesLog(synthetic_log_root)
    sampling = SampleConfig(bev_augment=BevAugmentConfig(scale=(1.1, 1.1)))
    dataset = dataset_of(log, sampling, lidar_network())
    grid, road = CONFIG.map_head.grid, MAP_CLASSES.index("drivable_area")
    on_road = far = 0
    for index, token in enumerate(log.keyframe_tokens()):
        plain, changed = dataset[index], dataset[SampleKey(index, index)]
        frame = log.read_keyframe(token, 1, [LIDAR]).frame
        boxes_ego, _ = training_boxes(log.annotations(token), frame)
        rng = np.random.default_rng([0, index])  # seed and draw, as the dataset does
        change = draw_augmentation(rng, None, sampling.bev_augment, dataset.spec)
        centers_aug = rigid.apply(change.T_ego_aug_ego, boxes_ego[:, :3])
        for before, after in zip(boxes_ego[:, :2], centers_aug[:, :2], strict=True):
            ground = clearly_on(plain.map_raster.mask[road], grid, before)
            ground_aug = clearly_on(changed.map_raster.mask[road], grid, after)
            if ground is not None and ground_aug is not None:
                assert ground_aug == ground
                on_road += int(ground)
                far += np.abs(before).max() > 25
        # and the heads are told of the same places
        cell, inside = CONFIG.inputs.bev.flat_index(centers_aug[:, 0], centers_aug[:, 1])
        targets = changed.boxes
        assert targets.cell[targets.object_mask].tolist() == cell[inside].tolist()
    assert on_road > 20
    assert far > 3
