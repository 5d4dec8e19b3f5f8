import dataclasses
import itertools

import numpy as np
import pytest
import torch
from small_detector import small_config

from export.parity_frames import noise_frame, with_missing_sensors
from perception.data.collate import collate_inputs
from perception.model_inputs import TENSOR_NAMES
from perception.models.detector import build_detector

CONFIG = small_config()
SPEC = CONFIG.inputs


@pytest.fixture(scope="module")
def detector():
    torch.manual_seed(0)
    return build_detector(CONFIG).eval()


@torch.no_grad()
def run(detector, *frames):
    return detector(collate_inputs(frames, SPEC))


@torch.no_grad()
def run_spec(detector, spec, *frames):
    return detector(collate_inputs(frames, spec))


def assert_same(a, b, **tolerance):
    for x, y in ((a.boxes.heatmap_logits, b.boxes.heatmap_logits), (a.map.logits, b.map.logits)):
        torch.testing.assert_close(x, y, **tolerance)


def test_shapes(detector):
    output = run(detector, noise_frame(SPEC))
    assert output.boxes.heatmap_logits.shape == (1, 10, 32, 32)
    assert output.boxes.code.shape == (1, 1, 10, 32, 32)  # one group of classes
    assert output.map.logits.shape == (1, 6, 50, 50)


def test_a_batch_is_its_frames_one_by_one(detector):
    frames = [noise_frame(SPEC, seed) for seed in (1, 2)]
    frames.append(with_missing_sensors(frames[0])[0])
    together = run(detector, *frames)
    for index, frame in enumerate(frames):
        alone = run(detector, frame)
        torch.testing.assert_close(
            together.boxes.heatmap_logits[index],
            alone.boxes.heatmap_logits[0],
            atol=1e-4,
            rtol=1e-4,
        )
        torch.testing.assert_close(
            together.map.logits[index], alone.map.logits[0], atol=1e-4, rtol=1e-4
        )


@pytest.mark.parametrize("camera", range(6))
def test_a_masked_camera_has_no_influence_whatever_its_buffer_holds(detector, camera):
    frame = noise_frame(SPEC)
    mask = frame.camera_mask.copy()
    mask[camera] = 0
    garbage = frame.images.copy()
    garbage[camera] = np.random.default_rng(9).integers(0, 256, garbage[camera].shape)
    a = run(detector, dataclasses.replace(frame, camera_mask=mask))
    b = run(detector, dataclasses.replace(frame, camera_mask=mask, images=garbage))
    assert_same(a, b, atol=0, rtol=0)
    assert not torch.equal(a.map.logits, run(detector, frame).map.logits)


def test_a_masked_camera_adds_nothing_to_the_grid(detector):
    # the same as if none of its frustum points were listed
    frame = noise_frame(SPEC)
    mask = np.array([1, 1, 0, 1, 1, 1], np.float32)
    per_camera = SPEC.frustum.num_depths * SPEC.feature_height * SPEC.feature_width
    others = frame.pool_runs[:, 0] // per_camera != 2
    cell = np.repeat(np.arange(SPEC.bev.num_cells), np.diff(frame.cell_start))[others]
    counts = np.bincount(cell, minlength=SPEC.bev.num_cells)
    unlisted = dataclasses.replace(
        frame,
        camera_mask=mask,
        pool_runs=frame.pool_runs[others],
        cell_start=np.concatenate([[0], np.cumsum(counts)]).astype(np.int32),
    )
    masked = dataclasses.replace(frame, camera_mask=mask)
    assert others.sum() < len(others)
    assert_same(run(detector, masked), run(detector, unlisted), atol=1e-5, rtol=1e-5)


def test_a_masked_camera_is_black_from_the_start(detector):
    # so that its pictures do not reach the batch statistics of the image encoder either
    frame = noise_frame(SPEC)
    images = torch.from_numpy(frame.images)[None]
    mask = torch.tensor([[1.0, 0, 1, 1, 1, 1]])
    with torch.no_grad():
        a = detector.image_encoder(images, mask)
        b = detector.image_encoder(images * mask[0].to(torch.uint8).view(1, 6, 1, 1, 1), mask)
    assert torch.equal(a, b)


def test_fusion_takes_in_nothing_of_a_masked_branch(detector):
    camera, lidar = torch.rand(2, 8, 32, 32), torch.rand(2, 16, 32, 32)
    no_lidar, no_camera = torch.zeros(2, 1), torch.zeros(2, 6)
    with torch.no_grad():
        fuse = detector.fusion
        a = fuse(camera, lidar, torch.ones(2, 6), no_lidar)
        assert torch.equal(a, fuse(camera, lidar + 5, torch.ones(2, 6), no_lidar))
        b = fuse(camera, lidar, no_camera, torch.ones(2, 1))
        assert torch.equal(b, fuse(camera + 5, lidar, no_camera, torch.ones(2, 1)))
    assert not torch.equal(a, b)


@pytest.mark.parametrize("training", [False, True])
def test_fusion_reads_the_camera_first_and_then_the_lidar(training):
    # without the weights of the first 8 channels the camera's map is not seen, the LiDAR's is
    fuse = build_detector(CONFIG).fusion.train(training)
    masks = torch.ones(1, 6), torch.ones(1, 1)
    camera, lidar = torch.rand(1, 8, 32, 32), torch.rand(1, 16, 32, 32)
    with torch.no_grad():
        fuse.mix[0].weight[:, :8] = 0
        seen = fuse(camera, lidar, *masks)
        assert torch.equal(seen, fuse(camera + 5, lidar, *masks))
        assert not torch.equal(seen, fuse(camera, lidar.flip(3), *masks))


def test_a_dropped_lidar_map_leaves_the_cameras_to_learn_from():
    fuse = build_detector(dataclasses.replace(CONFIG, lidar_dropout=0.5)).fusion
    fuse.mix = torch.nn.Identity()  # what would be convolved
    camera, lidar = torch.ones(400, 8, 2, 2), torch.ones(400, 16, 2, 2)
    masks = torch.ones(400, 6), torch.ones(400, 1)
    masks[0][:100] = 0  # frames without cameras keep their LiDAR
    torch.manual_seed(0)
    kept = fuse.train()(camera, lidar, *masks)[:, 8:].amax(dim=(1, 2, 3))
    assert kept[:100].eq(1).all()
    assert 0.4 < kept[100:].mean() < 0.6
    assert fuse.eval()(camera, lidar, *masks)[:, 8:].eq(1).all()


def test_a_masked_lidar_has_no_influence(detector):
    frame = noise_frame(SPEC)
    masked = dataclasses.replace(frame, lidar_mask=np.zeros(1, np.float32))
    empty = with_missing_sensors(frame)[0]
    assert_same(run(detector, masked), run(detector, empty), atol=0, rtol=0)


def test_every_subset_of_missing_sensors_gives_finite_output(detector):
    frame = noise_frame(SPEC)
    for kept in itertools.product((0.0, 1.0), repeat=2):
        for lidar in (0.0, 1.0):
            mask = np.array([kept[0], kept[1], 1, 0, 0, 0], np.float32) * max(kept)
            changed = dataclasses.replace(
                frame, camera_mask=mask, lidar_mask=np.array([lidar], np.float32)
            )
            output = run(detector, changed)
            assert torch.isfinite(output.boxes.heatmap_logits).all()
            assert torch.isfinite(output.boxes.code).all()
            assert torch.isfinite(output.map.logits).all()
    for changed in with_missing_sensors(frame):
        assert torch.isfinite(run(detector, changed).map.logits).all()


def test_inputs_are_not_modified(detector):
    inputs = collate_inputs([noise_frame(SPEC)], SPEC)
    before = {name: getattr(inputs, name).clone() for name in TENSOR_NAMES}
    with torch.no_grad():
        detector(inputs)
    for name, tensor in before.items():
        assert torch.equal(tensor, getattr(inputs, name)), name


def test_one_pillar_lands_in_its_own_cell(detector):
    # a point at x = 20, y = -7: pillar column (20 + 51.2) / 1.6 = 44.5, row (-7 + 51.2) / 1.6 =
    # 27.6; the first convolution (kernel 3, stride 2) spreads it to BEV cells 22 and 13, 14
    from perception.geometry.pillars import build_pillars

    points = np.array([[20.0], [-7.0], [0.5], [100.0], [0.0]], np.float32)
    pillars = build_pillars(points, SPEC.pillars)
    encoder = detector.point_encoder
    with torch.no_grad():
        lidar = [torch.from_numpy(x) for x in (pillars.points, pillars.num_points, pillars.cell)]
        one = encoder(*lidar, torch.from_numpy(pillars.cell_pillar), torch.ones(1, 1))
        none = encoder(
            torch.zeros(0, 10, 5),
            torch.zeros(0, dtype=torch.int32),
            torch.zeros(0, dtype=torch.int32),
            torch.zeros(64 * 64, dtype=torch.int32),
            torch.ones(1, 1),
        )
    rows, columns = torch.nonzero((one - none).abs().sum(dim=(0, 1)) > 0, as_tuple=True)
    # two 3x3 convolutions after the pillar: one cell more on each side
    assert set(columns.tolist()) <= set(range(20, 25))
    assert set(rows.tolist()) <= set(range(12, 16))
    assert len(rows) > 0


def test_a_network_without_cameras_sees_the_lidar():
    config = dataclasses.replace(
        CONFIG,
        inputs=dataclasses.replace(SPEC, cameras=(), depth_image=False),
        image_encoder=None,
        view_transform=None,
    )
    torch.manual_seed(0)
    lidar_only = build_detector(config).eval()
    frame = noise_frame(config.inputs)
    assert frame.images.shape[0] == 0
    with torch.no_grad():
        seen = lidar_only(collate_inputs([frame], config.inputs))
        empty = lidar_only(collate_inputs([with_missing_sensors(frame)[0]], config.inputs))
    assert torch.isfinite(seen.map.logits).all()
    assert not torch.equal(seen.map.logits, empty.map.logits)


def test_a_network_without_lidar_sees_the_cameras():
    inputs = dataclasses.replace(SPEC, use_lidar=False, depth_image=False)
    config = dataclasses.replace(CONFIG, inputs=inputs, point_encoder=None)
    torch.manual_seed(0)
    camera_only = build_detector(config).eval()
    frame = noise_frame(inputs)
    assert frame.pillar_points.shape[0] == 0
    assert frame.lidar_mask.tolist() == [0.0]
    seen = run_spec(camera_only, inputs, frame)
    blind = run_spec(camera_only, inputs, with_missing_sensors(frame)[1])
    assert torch.isfinite(seen.map.logits).all()
    assert not torch.equal(seen.map.logits, blind.map.logits)
    assert seen.depth_logits.shape == (1, 6, SPEC.frustum.num_depths, 4, 12)


def test_the_depth_image_of_a_masked_camera_or_lidar_has_no_influence(detector):
    frame = noise_frame(SPEC)
    assert frame.depth_img.max() > 1
    masked = dataclasses.replace(frame, camera_mask=np.array([1, 0, 1, 1, 1, 1], np.float32))
    blank = frame.depth_img.copy()
    blank[1] = 0
    same = dataclasses.replace(masked, depth_img=blank)
    assert_same(run(detector, masked), run(detector, same), atol=0, rtol=0)
    changed = dataclasses.replace(frame, depth_img=frame.depth_img[::-1].copy())
    assert not torch.equal(run(detector, frame).map.logits, run(detector, changed).map.logits)


def test_tasks_share_the_fused_map_only_when_each_has_its_own_encoder():
    # the map's loss reaches the boxes' encoder in the shared network, not in the other one
    for separate in (False, True):
        config = dataclasses.replace(CONFIG, separate_bev_encoders=separate)
        torch.manual_seed(0)
        network = build_detector(config)
        output = network(collate_inputs([noise_frame(SPEC)], SPEC))
        output.map.logits.square().mean().backward()
        reached = [p.grad is not None for p in network.bev_encoder.parameters()]
        assert set(reached) == {not separate}
        assert all(p.grad is not None for p in network.fusion.parameters())


def test_the_second_encoder_keeps_the_size_and_stacks_its_stages():
    # 2 stages x 24 neck channels; odd sizes do not divide: 20 x 12 cells do
    from perception.models.bev_encoder import SecondBevEncoder, SecondBevEncoderConfig

    config = SecondBevEncoderConfig(
        channels=6, stage_channels=(8, 16), num_convs=2, neck_channels=24
    )
    encoder = SecondBevEncoder(config)
    assert encoder.out_channels == 48
    assert encoder(torch.rand(2, 6, 12, 20)).shape == (2, 48, 12, 20)
    # each stage: a first convolution and num_convs more
    assert sum(isinstance(m, torch.nn.Conv2d) for m in encoder.stages.modules()) == 2 * 3


def test_coordinates_are_not_rounded_under_autocast(detector):
    # two points 0.06 m apart at 50 m are one number in bfloat16, whose steps are 0.25 m there
    inputs = collate_inputs([noise_frame(SPEC)], SPEC)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        recorded = []
        hook = detector.point_encoder.point_net.register_forward_hook(
            lambda module, arguments, output: recorded.append(output.dtype)
        )
        detector(inputs)
        hook.remove()
    assert recorded == [torch.float32]


@pytest.mark.parametrize("missing", ["image_encoder", "view_transform"])
def test_cameras_without_a_camera_branch_are_refused(missing):
    with pytest.raises(ValueError, match="expected image_encoder and view_transform to be given"):
        dataclasses.replace(CONFIG, **{missing: None})
