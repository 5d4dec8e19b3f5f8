"""Several processes that train one network: who I am, what all agree on, batch norm over all.

The processes are started by `torchrun`, which says who is who in the environment. Without it there
is one process, and every function here is the identity.
"""

import contextlib
import json
import os
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from perception.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """The processes of a training, seen by one of them."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    """Where this process computes."""

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and talks."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Sum of every rank's values; the argument is left alone."""
        total = values.detach().clone()
        if self.world_size > 1:
            dist.all_reduce(total)
        return total

    def gather_texts(self, text: str) -> list[str]:
        """Every rank's text, in the order of the ranks."""
        if self.world_size == 1:
            return [text]
        return [self.share_text(text, source) for source in range(self.world_size)]

    def share_text(self, text: str, source: int = 0) -> str:
        """The text of one rank, for all."""
        if self.world_size == 1:
            return text
        content = list(text.encode())
        length = torch.tensor([len(content)], device=self.device)
        dist.broadcast(length, source)
        if self.rank != source:
            content = [0] * int(length.item())
        data = torch.tensor(content, dtype=torch.uint8, device=self.device)
        dist.broadcast(data, source)
        return bytes(data.tolist()).decode()

    def share_tensors(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Tensors of rank 0, for all; what the others pass is not looked at. On the CPU."""
        if self.world_size == 1:
            return tensors
        mine = {name: [str(t.dtype)[6:], list(t.shape)] for name, t in tensors.items()}
        shared = {}
        for name, (kind, shape) in json.loads(self.share_text(json.dumps(mine))).items():
            if self.is_first:
                value = tensors[name].contiguous().to(self.device)
            else:
                value = torch.empty(shape, dtype=getattr(torch, kind), device=self.device)
            dist.broadcast(value, 0)
            shared[name] = value.cpu()
        return shared


@contextlib.contextmanager
def join() -> Iterator[Ranks]:
    """Meet the other processes that `torchrun` started; gloo on CPUs, nccl on NVIDIA GPUs.

    Raises:
        InputError: There are more processes on this machine than GPUs.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cpu")
    if torch.cuda.is_available():
        num_local, num_gpus = (
            int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
            torch.cuda.device_count(),
        )
        if num_local > num_gpus:
            raise InputError(
                f"There are {num_local} processes on this machine and {num_gpus} GPUs: pass "
                f"torchrun --nproc-per-node {num_gpus} or fewer."
            )
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    if world_size == 1:
        yield Ranks(device=device)
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Ranks(rank=dist.get_rank(), world_size=world_size, device=device)
    except BaseException as error:
        # what DDP holds of the group must be gone before the group is: gloo may wait for ever
        traceback.clear_frames(error.__traceback__)
        raise
    finally:
        dist.destroy_process_group()


class _Normalise(torch.autograd.Function):
    """Normalise by mean and variance over the rows of all ranks. Source: Ioffe & Szegedy 2015."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, eps: float):
        axes = [axis for axis in range(x.dim()) if axis != 1]
        shape = [-1 if axis == 1 else 1 for axis in range(x.dim())]
        num_local = x.numel() // x.shape[1]
        rows = x.float()
        mean_local = rows.sum(axes) / max(num_local, 1)
        spread_local = (rows - mean_local.view(shape)).square().sum(axes)
        # float64: sums of squares of all ranks without loss, at the price of a few numbers
        mean_local, spread_local = mean_local.double(), spread_local.double()
        squares_local = spread_local + num_local * mean_local.square()
        count = torch.full_like(mean_local, num_local)
        total, squares, num_seen = _sum_over_ranks(
            torch.stack([num_local * mean_local, squares_local, count])
        )
        num = num_seen.clamp(min=1)
        mean = total / num
        variance = (squares / num - mean.square()).clamp(min=0)
        scale = torch.rsqrt(variance + eps).float()
        ctx.save_for_backward(x, weight, mean.float(), scale, num)
        ctx.mark_non_differentiable(mean, variance, num_seen)
        y = (rows - mean.float().view(shape)) * (scale * weight).view(shape) + bias.view(shape)
        return y.to(x.dtype), mean, variance, num_seen

    @staticmethod
    def backward(ctx, dy: Tensor, *_: Tensor):
        x, weight, mean, scale, num = ctx.saved_tensors
        axes = [axis for axis in range(x.dim()) if axis != 1]
        shape = [-1 if axis == 1 else 1 for axis in range(x.dim())]
        dy = dy.float()
        normal = (x.float() - mean.view(shape)) * scale.view(shape)
        d_bias, d_weight = dy.sum(axes), (dy * normal).sum(axes)
        over_ranks = _sum_over_ranks(torch.stack([d_bias, d_weight]).double()) / num
        through_mean, through_variance = (term.float().view(shape) for term in over_ranks)
        dx = (dy - through_mean - normal * through_variance) * (scale * weight).view(shape)
        return dx.to(x.dtype), d_weight, d_bias, None


def _sum_over_ranks(values: Tensor) -> Tensor:
    if dist.is_initialized():
        dist.all_reduce(values)
    return values


class CrossRankBatchNorm(_BatchNorm):
    """Batch norm over the rows of all ranks, which may have different numbers of them, even none.

    Same parameters, buffers and names as `nn.BatchNorm1d` and `nn.BatchNorm2d`. torch's own
    `SyncBatchNorm` refuses CPUs, and its batch norm for CPUs sums channels-last maps in fp32 one by
    one: off by 4e-4 where this one is off by 7e-7 (measured against float64, small network).
    """

    def _check_input_dim(self, input: Tensor) -> None:  # noqa: A002 - the base class says so
        if input.dim() < 2:
            raise ValueError(f"input has {input.dim()} axes, expected at least 2")

    def forward(self, x: Tensor) -> Tensor:
        """Normalise by the statistics of all ranks in training, else by the running ones."""
        if not self.training:
            return F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
        self._check_input_dim(x)
        y, mean, variance, num = _Normalise.apply(x, self.weight, self.bias, self.eps)
        self._track(mean, variance, num)
        return y

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, num: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or num[0] == 0:
            return  # nothing seen is no reason to forget
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        share = self.momentum
        if share is None:
            share = 1.0 / float(self.num_batches_tracked or 1)
        unbiased = variance * num / (num - 1).clamp(min=1)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), share)


def use_cross_rank_batch_norm(module: nn.Module) -> None:
    """Replace every batch norm with weights inside `module`; parameters, buffers, names stay."""
    for name, child in module.named_children():
        if not isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d) or not child.affine:
            use_cross_rank_batch_norm(child)
            continue
        norm = CrossRankBatchNorm(
            child.num_features, child.eps, child.momentum, child.affine, child.track_running_stats
        )
        norm._parameters, norm._buffers = child._parameters, child._buffers
        norm.train(child.training)
        setattr(module, name, norm)
