import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from perception.geometry.sparse_tables import SUBMANIFOLD, ConvShape
from perception.ops.sparse_conv import (
    VoxelLevel,
    dense_table,
    neighbour_table,
    output_level,
    pairs_of_table,
    sparse_conv,
    sparse_conv_pairs,
    sparse_conv_table,
)

HALF = ConvShape(kernel=(3, 3, 3), stride=(2, 2, 2), padding=(1, 1, 1))
HALF_NO_Z = ConvShape(kernel=(3, 3, 3), stride=(2, 2, 2), padding=(0, 1, 1))
Z_ONLY = ConvShape(kernel=(3, 1, 1), stride=(2, 1, 1))
STRIDED = (HALF, HALF_NO_Z, Z_ONLY)


def random_level(seed, size, num, frames=2):
    """`num` occupied voxels of `frames` frames, rows in no order."""
    generator = torch.Generator().manual_seed(seed)
    places = frames * size[0] * size[1] * size[2]
    return VoxelLevel(torch.randperm(places, generator=generator)[:num], size)


def dense(x, level, frames=2):
    """Rows as a dense tensor [frame, c, z, y, x]."""
    volume = x.new_zeros(frames * level.size[0] * level.size[1] * level.size[2], x.shape[1])
    volume = volume.index_put((level.key,), x)
    return volume.reshape(frames, *level.size, -1).permute(0, 4, 1, 2, 3)


def rows(volume, level):
    """The places of a level out of a dense tensor."""
    return volume.permute(0, 2, 3, 4, 1).flatten(0, 3)[level.key]


def dense_weight(weight, conv):
    return weight.unflatten(0, conv.kernel).permute(4, 3, 0, 1, 2)


def pairs_between(level_in, level_out, conv):
    return pairs_of_table(neighbour_table(level_in, level_out, conv))


def key_of(size, z, y, x, frame=0):
    return ((frame * size[0] + z) * size[1] + y) * size[2] + x


def test_one_voxel_reaches_the_outputs_whose_kernel_covers_it():
    # output o covers inputs 2o - 1 .. 2o + 1: z 2 is covered by o = 1 alone, y 3 by 1 and 2,
    # x 4 by 2 alone
    size = (5, 6, 8)
    level = VoxelLevel(torch.tensor([key_of(size, 2, 3, 4)]), size)
    out = output_level(level, HALF)
    assert out.size == (3, 3, 4)
    assert out.key.tolist() == [key_of(out.size, 1, 1, 2), key_of(out.size, 1, 2, 2)]
    # seen from (1, 1, 2), the voxel lies at kernel offset z 2 - 1, y 3 - 1, x 4 - 3: 1, 2, 1
    table = neighbour_table(level, out, HALF)
    assert torch.nonzero(table).tolist() == [[0, 1 * 9 + 2 * 3 + 1], [1, 1 * 9 + 0 * 3 + 1]]
    assert table.max() == 1  # row 0, counted from 1


def test_a_line_s_last_voxel_is_no_neighbour_of_the_next_line_s_first():
    # keys 3 (x 3 of line y 0) and 4 (x 0 of line y 1) follow one another
    level = VoxelLevel(torch.tensor([3, 4]), (1, 2, 4))
    table = neighbour_table(level, level, SUBMANIFOLD)
    assert torch.nonzero(table).tolist() == [[0, 13], [1, 13]]  # each sees itself only


def test_frames_do_not_touch():
    # top slice of frame 0 and bottom slice of frame 1 follow one another in keys
    size = (2, 1, 1)
    level = VoxelLevel(torch.tensor([1, 2]), size)
    table = neighbour_table(level, level, SUBMANIFOLD)
    assert torch.nonzero(table).tolist() == [[0, 13], [1, 13]]
    assert output_level(level, HALF).key.tolist() == [0, 1]


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    size=st.tuples(st.integers(3, 6), st.integers(1, 6), st.integers(1, 6)),
    kernel=st.tuples(*[st.integers(1, 3)] * 3),
    stride=st.tuples(*[st.integers(1, 3)] * 3),
    share=st.floats(0, 1),
)
def test_strided_equals_dense_everywhere(seed, size, kernel, stride, share):
    padding = tuple(k // 2 for k in kernel)
    conv = ConvShape(kernel=kernel, stride=stride, padding=padding)
    level = random_level(seed, size, int(share * 2 * size[0] * size[1] * size[2]))
    torch.manual_seed(seed)
    x = torch.randn(level.num_rows, 3, dtype=torch.float64)
    weight = torch.randn(conv.num_offsets, 3, 2, dtype=torch.float64)
    out = output_level(level, conv)
    y = sparse_conv_pairs(x, weight, pairs_between(level, out, conv))
    expected = F.conv3d(dense(x, level), dense_weight(weight, conv), None, stride, padding)
    torch.testing.assert_close(dense(y, out), expected)
    # no output row without an input
    reached = F.conv3d(
        dense(torch.ones_like(x[:, :1]), level),
        torch.ones(1, 1, *kernel, dtype=torch.float64),
        None,
        stride,
        padding,
    )
    assert out.key.tolist() == torch.nonzero(reached.flatten())[:, 0].tolist()


@pytest.mark.parametrize("share", [0.1, 0.6])
def test_submanifold_equals_dense_at_occupied_places(share):
    size = (5, 7, 9)
    level = random_level(1, size, int(share * 2 * 5 * 7 * 9))
    x = torch.randn(level.num_rows, 4)
    weight = torch.randn(27, 4, 5)
    y = sparse_conv_pairs(x, weight, pairs_between(level, level, SUBMANIFOLD))
    volume = F.conv3d(dense(x, level), dense_weight(weight, SUBMANIFOLD), padding=1)
    torch.testing.assert_close(y, rows(volume, level), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("conv", [SUBMANIFOLD, *STRIDED])
def test_gradients_equal_the_dense_ones(conv):
    level = random_level(2, (5, 6, 7), 60)
    out = level if conv is SUBMANIFOLD else output_level(level, conv)
    x = torch.randn(60, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(conv.num_offsets, 3, 2, dtype=torch.float64, requires_grad=True)
    wanted = torch.randn(out.num_rows, 2, dtype=torch.float64)
    y = sparse_conv_pairs(x, weight, pairs_between(level, out, conv))
    sparse = torch.autograd.grad((y * wanted).sum(), (x, weight))
    volume = F.conv3d(dense(x, level), dense_weight(weight, conv), None, conv.stride, conv.padding)
    expected = torch.autograd.grad((rows(volume, out) * wanted).sum(), (x, weight))
    for mine, theirs in zip(sparse, expected, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_gradients_by_finite_differences():
    level = random_level(3, (3, 3, 3), 8)
    pairs = pairs_between(level, output_level(level, HALF), HALF)
    x = torch.randn(8, 2, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(27, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *both: sparse_conv_pairs(*both, pairs), (x, weight))


@pytest.mark.parametrize("conv", [SUBMANIFOLD, *STRIDED])
def test_the_table_form_is_the_pairs_form(conv):
    level = random_level(4, (5, 8, 8), 80)
    out = level if conv is SUBMANIFOLD else output_level(level, conv)
    table = neighbour_table(level, out, conv)
    assert table.dtype == torch.int32
    x, weight = torch.randn(80, 4), torch.randn(conv.num_offsets, 4, 6)
    bias = torch.randn(6)
    by_pairs = sparse_conv_pairs(x, weight, pairs_of_table(table)) + bias
    by_table = sparse_conv_table(x, weight, bias, table)
    torch.testing.assert_close(by_table, by_pairs)
    assert torch.equal(sparse_conv(x, table, weight, bias), by_table)


def test_rows_behind_those_of_a_table_are_seen_by_none():
    level = VoxelLevel(torch.tensor([0, 1, 7]), (1, 2, 4))
    table = neighbour_table(level, level, SUBMANIFOLD)
    longer = torch.cat([table, torch.full((2, 27), 5, dtype=torch.int32)])
    x, weight, bias = torch.randn(3, 2), torch.randn(27, 2, 2), torch.randn(2)
    rubbish = torch.cat([x, torch.full((2, 2), 9.0)])
    result = sparse_conv_table(rubbish, weight, bias, longer)[:3]
    torch.testing.assert_close(result, sparse_conv_table(x, weight, bias, table))


def test_the_operator_tells_its_shape_to_the_exporter():
    x, weight, bias = torch.randn(3, 2), torch.randn(27, 2, 4), torch.randn(4)
    table = torch.zeros(5, 27, dtype=torch.int32)
    torch.library.opcheck(sparse_conv, (x, table, weight, bias))


def test_the_order_of_rows_only_permutes_the_result():
    level = random_level(5, (4, 6, 6), 70)
    order = torch.randperm(70)
    permuted = VoxelLevel(level.key[order], level.size)
    x, weight = torch.randn(70, 3), torch.randn(27, 3, 3)
    y = sparse_conv_pairs(x, weight, pairs_between(level, level, SUBMANIFOLD))
    y_permuted = sparse_conv_pairs(x[order], weight, pairs_between(permuted, permuted, SUBMANIFOLD))
    torch.testing.assert_close(y_permuted, y[order])
    assert torch.equal(output_level(permuted, HALF).key, output_level(level, HALF).key)


def test_bits_do_not_change_from_run_to_run():
    level = random_level(6, (11, 40, 40), 3000)
    pairs = pairs_between(level, level, SUBMANIFOLD)
    x, weight = torch.randn(3000, 16), torch.randn(27, 16, 16)

    def run():
        a, b = x.clone().requires_grad_(), weight.clone().requires_grad_()
        y = sparse_conv_pairs(a, b, pairs)
        return y.detach(), *torch.autograd.grad(y.square().sum(), (a, b))

    first = run()
    for _ in range(3):
        assert all(map(torch.equal, run(), first))


def test_no_row_is_written_twice_within_an_offset():
    level = random_level(7, (5, 8, 8), 200)
    for conv in (SUBMANIFOLD, *STRIDED):
        out = level if conv is SUBMANIFOLD else output_level(level, conv)
        pairs = pairs_between(level, out, conv)
        assert sum(pairs.counts) == len(pairs.in_row)
        groups = itertools.chain(
            pairs.in_row.split(pairs.counts), pairs.out_row.split(pairs.counts)
        )
        assert all(len(group.unique()) == len(group) for group in groups)


def test_dense_table_holds_the_row_of_each_place():
    level = VoxelLevel(torch.tensor([5, 2, 9]), (1, 2, 3))
    # two frames of six places; rows are counted from 1, 0 says empty
    assert dense_table(level, 2).tolist() == [0, 0, 2, 0, 0, 1, 0, 0, 0, 3, 0, 0]


def test_nothing_gives_nothing():
    level = VoxelLevel(torch.zeros(0, dtype=torch.int32), (5, 4, 4))
    out = output_level(level, HALF)
    assert (out.num_rows, out.size) == (0, (3, 2, 2))
    weight = torch.randn(27, 2, 3, requires_grad=True)
    y = sparse_conv_pairs(torch.zeros(0, 2), weight, pairs_between(level, out, HALF))
    y.sum().backward()
    assert y.shape == (0, 3)
    assert torch.equal(weight.grad, torch.zeros(27, 2, 3))
    table = neighbour_table(level, out, HALF)
    assert sparse_conv_table(torch.zeros(0, 2), weight, torch.zeros(3), table).shape == (0, 3)


def test_a_grid_smaller_than_the_kernel_is_refused():
    level = VoxelLevel(torch.tensor([0]), (2, 4, 4))
    with pytest.raises(ValueError, match="expected at least the kernel"):
        output_level(level, HALF_NO_Z)


def test_products_in_16_bits_are_summed_in_32():
    level = random_level(8, (3, 10, 10), 300)
    pairs = pairs_between(level, level, SUBMANIFOLD)
    x, weight = torch.randn(300, 8), torch.randn(27, 8, 8)
    y = sparse_conv_pairs(x.bfloat16(), weight.bfloat16(), pairs)
    assert y.dtype == torch.float32
    # each product is rounded to 8 bits: 27 of them give errors well below one per cent of the sum
    exact = sparse_conv_pairs(x.bfloat16().float(), weight.bfloat16().float(), pairs)
    assert (y - exact).norm() < 3e-3 * exact.norm()


def test_an_autocast_region_does_not_change_the_type():
    level = random_level(9, (3, 6, 6), 60)
    pairs = pairs_between(level, level, SUBMANIFOLD)
    x, weight = torch.randn(60, 8), torch.randn(27, 8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = sparse_conv_pairs(x, weight, pairs)
    assert torch.equal(inside, sparse_conv_pairs(x, weight, pairs))
