"""BEV pool: for each cell the sum of depth probability times image feature over its frustum points.

The table of runs comes from `perception.geometry.pool_table`. `bev_pool_reference` is the
definition; `bev_pool` is the same sum without materialising the products, differentiable and
exportable: the compiled kernel where there is one (fp32 on a CPU), torch's embedding bag elsewhere.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from perception import native

POINTS_AT_ONCE = 1 << 16
"""Points whose products the backward pass holds at a time. At full size (1.6 million points of 80
channels) the passes take 0.5 GB instead of 1.8 and half the time of one CPU core. Source: ours."""


def bev_pool_reference(
    depth: Float[Tensor, "n d h w"],
    feat: Float[Tensor, "n h w c"],
    runs: Int[Tensor, "r 3"],
    cell_start: Int[Tensor, " g_plus_1"],
) -> Float[Tensor, "g c"]:
    """Sum the products cell by cell, in the plainest way.

    Args:
        depth: Probability per depth bin; sums to at most 1 over d. n counts cameras (of frames).
        feat: Image features, channels last.
        runs: First index into the flattened depth, first pixel of the flattened `feat`, number of
            rows; rows behind the last cell's are padding.
        cell_start: The runs of cell g are `cell_start[g]` to `cell_start[g + 1]`, excluded.

    Source: Philion & Fidler 2020, section 3.2.
    """
    point_depth, point_feat, cell = _points(runs, cell_start, depth.shape[-1])
    product = depth.reshape(-1, 1)[point_depth] * feat.flatten(0, 2)[point_feat]
    bev = product.new_zeros(len(cell_start) - 1, feat.shape[-1])
    return bev.index_add(0, cell, product)


@torch.library.custom_op("perception::bev_pool", mutates_args=())
def bev_pool(depth: Tensor, feat: Tensor, runs: Tensor, cell_start: Tensor) -> Tensor:
    """Fast form of `bev_pool_reference`.

    Shapes and meaning are those of `bev_pool_reference`; int32 table.
    Note: agreement with the reference 1e-6 relative in fp32 (another order of summation).

    Raises:
        ValueError: On a CPU in fp32: the table reaches outside depth or feat.
    """
    library = _compiled(depth, feat, runs, cell_start)
    if library is not None:
        bev = feat.new_empty(cell_start.shape[0] - 1, feat.shape[-1])
        library.bev_pool_forward(
            _numpy(depth),
            _numpy(feat),
            _numpy(runs),
            _numpy(cell_start),
            _numpy(bev),
            torch.get_num_threads(),
        )
        return bev
    point_depth, point_feat, cell = _points(runs, cell_start, depth.shape[-1])
    point_start = _starts(cell, len(cell_start) - 1)
    weight = depth.reshape(-1).index_select(0, point_depth)
    return _bag(point_feat, feat.flatten(0, 2), point_start, weight)


@bev_pool.register_fake
def _(depth: Tensor, feat: Tensor, runs: Tensor, cell_start: Tensor) -> Tensor:
    return feat.new_empty(cell_start.shape[0] - 1, feat.shape[-1])


@torch.library.custom_op("perception::bev_pool_backward", mutates_args=())
def bev_pool_backward(
    grad_bev: Tensor, depth: Tensor, feat: Tensor, runs: Tensor, cell_start: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of `bev_pool` with respect to depth and feat.

    Depth's is one product of a point's cell and pixel, added up should it be in several runs; a
    pixel's is the weighted sum over its depth bins, again a bag, with the points listed per pixel.
    """
    library = _compiled(depth, feat, runs, cell_start)
    if library is not None:
        grads = depth.new_empty(depth.shape), feat.new_empty(feat.shape)
        library.bev_pool_backward(
            _numpy(grad_bev),
            _numpy(depth),
            _numpy(feat),
            _numpy(runs),
            _numpy(cell_start),
            _numpy(grads[0]),
            _numpy(grads[1]),
            torch.get_num_threads(),
        )
        return grads
    pixels = feat.flatten(0, 2)
    point_depth, point_feat, cell = _points(runs, cell_start, depth.shape[-1])
    grad_depth = depth.new_zeros(depth.numel())
    for start in range(0, len(cell), POINTS_AT_ONCE):
        part = slice(start, start + POINTS_AT_ONCE)
        products = grad_bev.index_select(0, cell[part]) * pixels.index_select(0, point_feat[part])
        grad_depth.index_add_(0, point_depth[part], products.sum(1))
    order = torch.argsort(point_feat, stable=True)
    weight = depth.reshape(-1).index_select(0, point_depth[order])
    grad_feat = _bag(cell[order], grad_bev, _starts(point_feat, len(pixels)), weight)
    return grad_depth.reshape(depth.shape), grad_feat.reshape(feat.shape)


@bev_pool_backward.register_fake
def _(
    grad_bev: Tensor, depth: Tensor, feat: Tensor, runs: Tensor, cell_start: Tensor
) -> tuple[Tensor, Tensor]:
    return depth.new_empty(depth.shape), feat.new_empty(feat.shape)


def _compiled(
    depth: Tensor, feat: Tensor, runs: Tensor, cell_start: Tensor
) -> native.NativeLibrary | None:
    """The compiled kernel, where it can do these tensors; it would follow a bad table anywhere."""
    can = all(x.device.type == "cpu" and x.dtype == torch.float32 for x in (depth, feat))
    library = native.library() if can else None
    if library is not None:
        n, d, h, w = depth.shape
        fault = library.pool_table_fault(_numpy(runs), _numpy(cell_start), (n, d, h, w))
        if fault is not None:
            raise ValueError(f"the pool table does not fit depth of {[n, d, h, w]}: {fault}")
    return library


def _numpy(tensor: Tensor):
    return tensor.detach().contiguous().numpy()


def _points(
    runs: Int[Tensor, "r 3"], cell_start: Int[Tensor, " g_plus_1"], width: int
) -> tuple[Int[Tensor, " p"], Int[Tensor, " p"], Int[Tensor, " p"]]:
    """Depth index, pixel index and cell of every point, in the runs' order."""
    runs = runs[: int(cell_start[-1])].long()
    rows = runs[:, 2]
    run = torch.repeat_interleave(rows)
    row = torch.arange(len(run), device=runs.device) - (rows.cumsum(0) - rows)[run]
    cell = torch.repeat_interleave(cell_start.diff().long())
    return runs[run, 0] + row * width, runs[run, 1] + row * width, cell[run]


def _starts(keys: Int[Tensor, " p"], number: int) -> Int[Tensor, " number_plus_1"]:
    """Where the entries of each key begin, once they are sorted by it."""
    return F.pad(torch.bincount(keys, minlength=number).cumsum(0), (1, 0))


def _bag(rows: Tensor, table: Tensor, start: Tensor, weight: Tensor) -> Tensor:
    """Weighted sum of `table[rows]` per list; int64 indices are the faster ones on a CPU."""
    return F.embedding_bag(
        rows, table, start, mode="sum", per_sample_weights=weight, include_last_offset=True
    )


def _save_inputs(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx, grad_bev):
    return (*bev_pool_backward(grad_bev.contiguous(), *ctx.saved_tensors), None, None)


bev_pool.register_autograd(_backward, setup_context=_save_inputs)
