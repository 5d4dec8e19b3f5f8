import importlib.util

import numpy as np
import pytest
import torch
from torch import nn

from perception import json_codec
from perception.errors import InputError
from perception.geometry.grid import BevGrid
from perception.geometry.pillars import PillarConfig, build_pillars
from perception.geometry.sparse_tables import ConvShape
from perception.models.sparse_conv_spconv import our_weight, spconv_weight
from perception.models.sparse_encoder import (
    SparseConvNorm,
    SparseEncoder,
    SparseEncoderConfig,
    voxel_features,
)
from perception.ops.sparse_conv import sparse_conv_table

NO_CELL_PILLAR = torch.zeros(0, dtype=torch.int32)


def pillar_config(grid, num_slices=40, **other):
    limits = {"max_points": 10, "max_pillars": 2000} | other
    return PillarConfig(
        grid=grid, z_min=-5.0, z_max=3.0, num_sweeps=10, num_slices=num_slices, **limits
    )


def grids(cell, **limits):
    """Voxel grid and BEV grid."""
    return BevGrid(**limits, cell=cell), BevGrid(**limits, cell=8 * cell)


# 64 voxels along x, 32 along y: 8 x 4 BEV cells
VOXELS, BEV = grids(0.2, x_min=-6.4, x_max=6.4, y_min=-3.2, y_max=3.2)


def assert_same(result, expected):
    """Equal up to the order of summation, against the largest number."""
    assert result.shape == expected.shape
    assert (result - expected).abs().max() <= 1e-5 * expected.abs().max()


def small_encoder(num_slices=20, grid=VOXELS, bev=BEV, **config):
    """A narrow encoder with lively weights and statistics."""
    torch.manual_seed(0)
    channels = config.pop("channels", (4, 6, 8, 10))
    config = SparseEncoderConfig(channels=channels, **config)
    encoder = SparseEncoder(config, pillar_config(grid, num_slices), bev)
    for module in encoder.modules():
        if isinstance(module, SparseConvNorm):
            nn.init.normal_(module.weight, std=0.3)
        if isinstance(module, nn.BatchNorm1d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return encoder.eval()


def cell_of(encoder, iz, iy, ix, frame=0):
    _, ny, nx = encoder.size
    return ((frame * encoder.num_slices + iz) * ny + iy) * nx + ix


def voxels(encoder, num, seed=0, frame=0):
    """Random voxels: points, number of points, cells."""
    generator = torch.Generator().manual_seed(seed)
    places = cell_of(encoder, 0, 0, 0, frame=1)
    cell = torch.randint(places, (2 * num,), generator=generator).unique()
    cell = cell[torch.randperm(len(cell), generator=generator)[:num]].sort().values
    cell = cell + frame * places
    points = torch.randn(num, 3, 5, generator=generator)
    num_points = torch.randint(1, 4, (num,), generator=generator)
    points[torch.arange(3)[None, :] >= num_points[:, None]] = 0.0
    return points, num_points.int(), cell.int()


def encode(encoder, frames, mask=None):
    """The encoder's result for frames laid end to end."""
    points, num_points, cell = (torch.cat(parts) for parts in zip(*frames, strict=True))
    mask = torch.ones(len(frames), 1) if mask is None else torch.tensor(mask).unsqueeze(1)
    return encoder(points, num_points, cell, NO_CELL_PILLAR, mask)


def test_p075_gives_256_channels_on_180_x_180_cells():
    voxel_grid, bev = grids(0.075, x_min=-54.0, x_max=54.0, y_min=-54.0, y_max=54.0)
    encoder = SparseEncoder(SparseEncoderConfig(), pillar_config(voxel_grid), bev).eval()
    assert encoder.size == (41, 1440, 1440)
    assert [encoder.output_size, encoder.out_channels] == [(2, 180, 180), 256]
    with torch.no_grad():
        result = encode(encoder, [voxels(encoder, 5)])
    assert result.shape == (1, 256, 180, 180)


@pytest.mark.parametrize(
    ("num_slices", "z_sizes"),
    # three halvings, then a kernel of at most what is left: 21, 11, 6, 2 leaves a kernel of 2
    [
        (8, [9, 5, 3, 1, 1]),
        (20, [21, 11, 6, 2, 1]),
        (25, [26, 13, 7, 3, 1]),
        (40, [41, 21, 11, 5, 2]),
    ],
)
def test_other_numbers_of_slices(num_slices, z_sizes):
    encoder = small_encoder(num_slices)
    sizes = [encoder.size]
    for conv in encoder.convs:
        sizes.append(conv.output_size(sizes[-1]))
    assert [size[0] for size in sizes] == z_sizes
    assert encoder.out_channels == 10 * z_sizes[-1]
    assert encode(encoder, [voxels(encoder, 50)]).shape == (1, encoder.out_channels, 4, 8)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="num_slices is 7, expected at least 8"):
        small_encoder(num_slices=7)
    with pytest.raises(
        ValueError, match=r"cell=0.2\) under .*cell=0.8\), expected the same range and 8 cells"
    ):
        small_encoder(bev=BevGrid(x_min=-6.4, x_max=6.4, y_min=-3.2, y_max=3.2, cell=0.8))
    with pytest.raises(ValueError, match="expected the same range"):
        small_encoder(bev=BevGrid(x_min=-6.2, x_max=6.6, y_min=-3.2, y_max=3.2, cell=1.6))
    with pytest.raises(ValueError, match="expected channels of at least 1"):
        SparseEncoderConfig(channels=(0, 1, 1, 1))


@pytest.mark.parametrize(
    ("iy", "ix", "rows", "columns"),
    [
        # output o of a halving sees inputs 2o - 1 .. 2o + 1: an even input is seen by its half
        # alone, an odd one by both neighbours. 16 -> 8 -> 4 -> 2; 40 -> 20 -> 10 -> 5
        (16, 40, {2}, {5}),
        # 17 -> 8, 9 -> 4, 4 | 5 -> 2 | 2, 3;  39 -> 19, 20 -> 9, 10 | 10 -> 4, 5 | 5
        (17, 39, {2, 3}, {4, 5}),
        # the last voxels: 31 -> 15 (16 is outside) -> 7 (8) -> 3 (4); 63 -> 31 -> 15 -> 7
        (31, 63, {3}, {7}),
        (0, 0, {0}, {0}),
    ],
)
def test_one_voxel_shows_at_its_cell_and_nowhere_else(iy, ix, rows, columns):
    encoder = small_encoder()
    cell = torch.tensor([cell_of(encoder, 9, iy, ix)], dtype=torch.int32)
    bev = encode(encoder, [(torch.randn(1, 3, 5), torch.tensor([3], dtype=torch.int32), cell)])
    seen = torch.nonzero(bev[0].abs().amax(dim=0))
    assert {(y, x) for y, x in seen.tolist()} == {(y, x) for y in rows for x in columns}


def test_height_lands_in_its_part_of_the_channels():
    # 40 slices give two at the output; channel c * 2 + z. Slice 4 -> 2 -> 1 -> 0 -> 0 only,
    # slice 36 -> 18 -> 9 -> 4 (unpadded: o sees 2o .. 2o + 2) -> 1 only (o sees 2o .. 2o + 2)
    encoder = small_encoder(num_slices=40)
    for iz, z in ((4, 0), (36, 1)):
        cell = torch.tensor([cell_of(encoder, iz, 16, 40)], dtype=torch.int32)
        bev = encode(encoder, [(torch.randn(1, 3, 5), torch.tensor([3], dtype=torch.int32), cell)])
        by_height = bev[0, :, 2, 5].reshape(10, 2).abs().sum(dim=0)
        assert by_height[z] > 0
        assert by_height[1 - z] == 0


def test_a_point_lands_in_the_cell_of_its_metres():
    # x 1.62 m is voxel (1.62 + 6.4) / 0.2 = 40, BEV column 5; y 0.05 m is voxel 16, row 2
    points_ego = np.array([[1.62], [0.05], [0.3], [80.0], [0.1]], np.float32)
    config = pillar_config(VOXELS, num_slices=20)
    pillars = build_pillars(points_ego, config)
    frame = [torch.from_numpy(a) for a in (pillars.points, pillars.num_points, pillars.cell)]
    assert pillars.cell_pillar.size == 0
    bev = encode(small_encoder(), [frame])
    assert torch.nonzero(bev[0].abs().amax(dim=0)).tolist() == [[2, 5]]


def test_a_voxel_is_the_mean_of_at_most_ten_points():
    # twelve points of one voxel, x rising by a centimetre; the first ten (the newest) count
    x = 1.61 + 0.01 * np.arange(12)
    points_ego = np.stack([x, 0 * x + 0.1, 0 * x + 0.1, 10.0 * np.arange(12), 0 * x + 0.05])
    pillars = build_pillars(points_ego.astype(np.float32), pillar_config(VOXELS, num_slices=20))
    points, num_points = torch.from_numpy(pillars.points), torch.from_numpy(pillars.num_points)
    assert num_points.tolist() == [10]
    # mean of 0..9 is 4.5: x 1.61 + 0.045, intensity 45 of 255
    expected = torch.tensor([[1.655, 0.1, 0.1, 45.0 / 255.0, 0.05]])
    torch.testing.assert_close(voxel_features(points, num_points), expected)
    three = build_pillars(
        points_ego[:, :3].astype(np.float32), pillar_config(VOXELS, num_slices=20)
    )
    features = voxel_features(torch.from_numpy(three.points), torch.from_numpy(three.num_points))
    expected = torch.tensor([[1.62, 0.1, 0.1, 10.0 / 255.0, 0.05]])
    torch.testing.assert_close(features, expected)


def test_the_number_of_voxels_is_capped():
    rng = np.random.default_rng(0)
    points_ego = rng.uniform(-3.0, 3.0, (5, 500)).astype(np.float32)
    pillars = build_pillars(points_ego, pillar_config(VOXELS, max_pillars=100))
    assert len(pillars.cell) == 100
    assert pillars.num_dropped_pillars > 0


def test_the_order_of_voxels_changes_nothing():
    encoder = small_encoder()
    frame = voxels(encoder, 200)
    order = torch.randperm(200)
    bev = encode(encoder, [frame])
    permuted = encode(encoder, [[part[order] for part in frame]])
    assert_same(permuted, bev)


def test_a_batch_equals_its_frames():
    encoder = small_encoder()
    first, second = voxels(encoder, 150, seed=1), voxels(encoder, 90, seed=2)
    batch = encode(encoder, [first, voxels(encoder, 90, seed=2, frame=1)])
    single = torch.cat([encode(encoder, [first]), encode(encoder, [second])])
    assert_same(batch, single)


@pytest.mark.parametrize("training", [False, True])
def test_a_masked_lidar_has_no_influence(training):
    encoder = small_encoder().train(training)
    alone, beside = small_encoder().train(training), voxels(encoder, 100, seed=3)
    seen = encode(encoder, [beside, voxels(encoder, 120, seed=4, frame=1)], mask=[1.0, 0.0])
    assert not seen[1].any()
    assert torch.equal(seen[:1], encode(alone, [beside]))
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, alone.state_dict()[name]), name


@pytest.mark.parametrize("num", [0, 1, 2])
@pytest.mark.parametrize("training", [False, True])
def test_hardly_any_voxels(num, training):
    encoder = small_encoder().train(training)
    frame = voxels(encoder, num)
    bev = encode(encoder, [frame])
    bev.square().sum().backward()
    assert bev.shape == (1, 10, 4, 8)
    assert bev.any() == (num > 0)
    assert bev.isfinite().all()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert all(value.isfinite().all() for value in encoder.state_dict().values())


def test_the_table_form_is_the_pairs_form():
    encoder = small_encoder(num_slices=40)
    frames = [voxels(encoder, 150, seed=5), voxels(encoder, 70, seed=6, frame=1)]
    mask = [1.0, 1.0]
    points, num_points, cell = (torch.cat(parts) for parts in zip(*frames, strict=True))
    order = torch.randperm(len(cell))  # rows need no order
    points, num_points, cell = points[order], num_points[order], cell[order]
    tables = encoder.tables(cell, num_frames=2)
    bev = encoder.encode_tables(points, num_points, tables, torch.tensor(mask).unsqueeze(1))
    assert_same(bev, encode(encoder, frames, mask))
    blank = encoder.encode_tables(points, num_points, tables, torch.zeros(2, 1))
    assert not blank.any()


def test_training_learns_every_parameter_and_normalises_rows():
    encoder = small_encoder().train()
    frame = voxels(encoder, 200)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    encode(encoder, [frame]).sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad.abs().sum() > 0, name
    # momentum 0.01: one per cent of the way from the stored mean to the batch's
    features = voxel_features(frame[0], frame[1])
    table = encoder.tables(frame[2]).stages[0]
    with torch.no_grad():
        rows = sparse_conv_table(features, encoder.stem.weight, torch.zeros(4), table)
    expected = 0.99 * before["stem.norm.running_mean"] + 0.01 * rows.mean(dim=0)
    torch.testing.assert_close(encoder.stem.norm.running_mean, expected)
    assert {m.eps for m in encoder.modules() if isinstance(m, nn.BatchNorm1d)} == {1e-3}


def test_a_block_adds_two_convolutions_to_its_input():
    encoder = small_encoder()
    block = encoder.stages[0].blocks[0]
    nn.init.zeros_(block.second.weight)
    nn.init.zeros_(block.second.norm.weight)
    nn.init.zeros_(block.second.norm.bias)
    x = torch.randn(3, 4)
    table = torch.zeros(3, 27, dtype=torch.int32)
    assert torch.equal(block(x, table), torch.relu(x))


def test_autocast_keeps_statistics_and_result_in_32_bits():
    encoder = small_encoder().train()
    frame = voxels(encoder, 300)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = encode(encoder, [frame])
    half.square().sum().backward()
    full = encode(small_encoder().train(), [frame])
    assert half.dtype == torch.float32
    assert encoder.stem.norm.running_mean.dtype == torch.float32
    assert encoder.stem.weight.grad.dtype == torch.float32
    assert not torch.equal(half, full)
    # 21 convolutions with 8 bits of mantissa each: some per cent
    assert (half - full).norm() < 0.1 * full.norm()


def test_metres_are_not_rounded_to_16_bits():
    # bf16 keeps 8 bits: 53.97 m would become 54.0 m
    encoder = small_encoder()
    points = torch.tensor([[[53.97, 0.0, 0.0, 0.0, 0.0]]])
    one = (points, torch.ones(1, dtype=torch.int32), torch.tensor([100], dtype=torch.int32))
    seen = []
    encoder.stem.register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        encode(encoder, [one])
    encode(encoder, [one])
    assert torch.equal(seen[0], seen[1])


def test_configuration_survives_json():
    config = SparseEncoderConfig(channels=(8, 16, 32, 64), num_blocks=1)
    assert json_codec.from_json(SparseEncoderConfig, json_codec.to_json(config), "test") == config


def test_weights_go_to_spconv_and_back():
    shape = ConvShape(kernel=(3, 2, 1))
    weight = torch.randn(6, 4, 5)
    theirs = spconv_weight(weight, shape)
    assert theirs.shape == (5, 3, 2, 1, 4)
    # offset (z 2, y 1, x 0) is the last of 3 * 2 * 1
    assert theirs[3, 2, 1, 0, 1] == weight[5, 1, 3]
    assert torch.equal(our_weight(theirs), weight)


def test_spconv_is_refused_on_a_cpu():
    encoder = small_encoder(accelerator="spconv")
    with pytest.raises(InputError, match="expected an NVIDIA GPU: set point_encoder"):
        encode(encoder, [voxels(encoder, 10)])


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available() or importlib.util.find_spec("spconv") is None,
    reason="needs an NVIDIA GPU and the extra spconv",
)
def test_spconv_computes_the_same_network():
    plain = small_encoder(num_slices=40, channels=(16, 32, 64, 128)).cuda()
    fast = small_encoder(num_slices=40, channels=(16, 32, 64, 128), accelerator="spconv").cuda()
    frames = [voxels(plain, 1500, seed=8), voxels(plain, 900, seed=9, frame=1)]
    points, num_points, cell = (torch.cat(parts).cuda() for parts in zip(*frames, strict=True))
    arguments = (points, num_points, cell, NO_CELL_PILLAR.cuda(), torch.ones(2, 1).cuda())
    for training in (False, True):
        expected, result = (m.train(training)(*arguments) for m in (plain, fast))
        torch.testing.assert_close(result, expected, rtol=1e-3, atol=1e-3)
        expected.square().mean().backward()
        result.square().mean().backward()
    mine, theirs = dict(plain.named_parameters()), dict(fast.named_parameters())
    for name, parameter in mine.items():
        error = (theirs[name].grad - parameter.grad).norm()
        assert error < 1e-2 * parameter.grad.norm() + 1e-6, name
