"""One optimiser step: losses per task, their gradient, and what happens when it is not finite."""

import contextlib
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from perception.data.nuscenes_dataset import Batch
from perception.models.depth_supervision import depth_counts, depth_loss
from perception.models.detector import BevDetector
from training.config import OptimConfig
from training.distributed import Ranks
from training.gradient_calibration import IntraConfig
from training.schedule import learning_rate
from training.task_rules import InterConfig
from training.two_phase import TaskGraph, TaskLosses, TwoPhaseBackward, cut_at, weighted_losses

SMALLEST_SETTLING_SCALE = 1.0
"""fp16 overflows above this loss scale are its scaler settling, others are bad steps. Ours."""

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}

Section = Callable[[str], AbstractContextManager[Any]]


class DetectorLosses(nn.Module):
    """The detector with its losses behind it: what `DistributedDataParallel` wraps."""

    def __init__(self, detector: BevDetector, optim: OptimConfig):
        super().__init__()
        self.detector = detector
        self.precision = optim.precision
        self.task_weights = {"boxes": optim.box_weight, "map": optim.map_weight}
        if optim.depth_weight > 0:
            self.task_weights["depth"] = optim.depth_weight

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """What each loss is divided by, as far as this batch goes; a matter of targets alone."""
        counts = self.detector.box_head.counts(batch.boxes)
        counts = counts | self.detector.map_head.counts(batch.map)
        if "depth" in self.task_weights and batch.depth is not None:
            counts = counts | depth_counts(batch.depth)
        return counts

    def forward(self, batch: Batch, counts: dict[str, Tensor]) -> TaskGraph:
        """Losses of a batch that is a part of what was counted."""
        dtype = _AUTOCAST.get(self.precision)
        with torch.autocast(batch.inputs.images.device.type, dtype, enabled=dtype is not None):
            shared, depth_logits = self.detector.shared_part(batch.inputs)
            entries = cut_at(shared, ("boxes", "map"))
            boxes: Any = self.detector.boxes_part(entries["boxes"])
            layers = self.detector.map_part(entries["map"])
        losses = {
            "boxes": self.detector.box_head.loss(boxes, batch.boxes, counts),
            "map": self.detector.map_head.loss(layers, batch.map, counts),
        }
        if "depth" in self.task_weights and batch.depth is not None:
            if depth_logits is not None:
                losses["depth"] = depth_loss(depth_logits, batch.depth, counts)
        return TaskGraph(losses=losses, shared=shared, entries=entries)

    def last_shared_parameters(self) -> list[nn.Parameter]:
        """Weights of the layer that makes the map that the tasks share."""
        return [p for p in self.detector.last_shared_parameters if p.requires_grad]

    def task_parameters(self, task: str) -> list[nn.Parameter]:
        """Weights that only this task uses."""
        return self.detector.task_parameters[task]

    def shared_parameters(self) -> list[nn.Parameter]:
        """All other weights."""
        own = {id(p) for part in self.detector.task_parameters.values() for p in part}
        return [p for p in self.detector.parameters() if id(p) not in own]


def weighted_sum(losses: TaskLosses, task_weights: dict[str, float]) -> Tensor:
    """The one number that is minimised."""
    return torch.stack(list(weighted_losses(losses, task_weights).values())).sum()


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What a step came to."""

    values: dict[str, float]
    """Each loss, "total", "grad_norm" (before clipping; NaN where there was none), "lr" and what
    calibration found ("gradient/...", see `training.two_phase`)."""
    bad: str
    """Why the step was skipped; empty where it was not."""
    settling: bool = False
    """Whether it was skipped because fp16's loss scale was still too large."""
    notes: tuple[str, ...] = ()
    """What calibration had to leave out, a sentence each."""


class TrainStep:
    """Everything that a step changes: weights, optimiser, loss scale, moving average.

    Args:
        losses: Module with `detector`, `task_weights`, `counts` and the losses as forward.
        optim: Optimiser and schedule.
        ranks: The processes that train together.
        seed: With step and rank, fixes dropout.
        section: Context managers that measure time by name.
        inter: Calibration between the tasks, if any.
        intra: Calibration between the sensors, if any.
    """

    def __init__(
        self,
        losses: DetectorLosses,
        optim: OptimConfig,
        ranks: Ranks,
        seed: int = 0,
        section: Section = contextlib.nullcontext,
        inter: InterConfig | None = None,
        intra: IntraConfig | None = None,
    ):
        self.losses, self.optim, self.ranks, self.seed = losses, optim, ranks, seed
        self.section = section
        self.optimizer = torch.optim.AdamW(
            losses.parameters(), lr=optim.lr, weight_decay=optim.weight_decay
        )
        self.scaler = torch.amp.GradScaler(ranks.device.type, enabled=optim.precision == "fp16")
        self.backward = TwoPhaseBackward(
            losses, inter, intra, ranks, self.scaler, seed, optim.max_bad_steps
        )
        self._loss_names: dict[str, list[str]] = {}
        self.ema: dict[str, Tensor] = {}
        if optim.ema_decay:
            state = losses.detector.state_dict()
            self.ema = {name: value.detach().clone() for name, value in state.items()}
        self._parallel: nn.Module = losses
        if ranks.world_size > 1:
            self._parallel = _parallel(losses)

    def __call__(self, batches: Sequence[Batch], step: int) -> StepResult:
        """Do a step, or leave everything as it was where loss or gradient are not finite.

        Args:
            batches: The micro-batches of this rank.
            step: Number of the step, from 0.
        """
        self._seed_dropout(step)
        lr = learning_rate(step, self.optim)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        norms = _batch_norm_buffers(self.losses)
        self.backward.start_step(step)
        values = self._accumulate(batches)
        if not np.isfinite(values["total"]):
            _restore(norms)
            return StepResult(values=values | _norm_and_lr(float("nan"), lr), bad=_bad_loss(values))
        with self.section("optimiser"):
            bad, settling, norm = self._update(step)
        if bad:
            _restore(norms)
        else:
            self.backward.learn(values, self._loss_names)
        values |= _norm_and_lr(norm, lr) | self.backward.figures()
        notes = tuple(self.backward.notes())
        return StepResult(values=values, bad=bad, settling=settling, notes=notes)

    def _seed_dropout(self, step: int) -> None:
        words = np.random.SeedSequence([self.seed, step, self.ranks.rank]).generate_state(2)
        torch.manual_seed(int(words[0]) << 31 ^ int(words[1]))

    def _accumulate(self, batches: Sequence[Batch]) -> dict[str, float]:
        """Gradient of all micro-batches and ranks; returns at once after a loss that is bad."""
        counts = self._global_counts(batches)
        values: dict[str, float] = {}
        for place, batch in enumerate(batches):
            is_last = place == len(batches) - 1
            with self._gradient_sync(is_last):
                with self.section("forward"):
                    graph = self._parallel(batch.to(self.ranks.device), counts)
                    total = weighted_sum(graph.losses, self.losses.task_weights)
                    self._add_values(values, graph.losses, total)
                if not np.isfinite(values["total"]):
                    return values
                with self.section("backward"):
                    self.backward(graph)
        self._loss_names = {task: list(graph.losses[task]) for task in graph.entries}
        return values

    def _global_counts(self, batches: Sequence[Batch]) -> dict[str, Tensor]:
        per_batch = [self.losses.counts(batch) for batch in batches]
        names = list(per_batch[0])
        flat = torch.stack(
            [torch.cat([c[name].double().flatten() for name in names]) for c in per_batch]
        ).sum(dim=0)
        flat = self.ranks.sum(flat.to(self.ranks.device)).float()
        shapes = [per_batch[0][name].shape for name in names]
        parts = flat.split([shape.numel() for shape in shapes])
        return {
            name: part.reshape(shape)
            for name, part, shape in zip(names, parts, shapes, strict=True)
        }

    def _add_values(self, values: dict[str, float], losses: TaskLosses, total: Tensor) -> None:
        named = {name: loss for task in losses.values() for name, loss in task.items()}
        named["total"] = total
        summed = self.ranks.sum(torch.stack([loss.detach().float() for loss in named.values()]))
        for name, value in zip(named, summed.tolist(), strict=True):
            values[name] = values.get(name, 0.0) + value

    def _gradient_sync(self, is_last: bool) -> AbstractContextManager[Any]:
        if isinstance(self._parallel, DistributedDataParallel) and not is_last:
            return self._parallel.no_sync()
        return contextlib.nullcontext()

    def _update(self, step: int) -> tuple[str, bool, float]:
        if broken := self.backward.mend():
            return broken, False, float("nan")
        self.scaler.unscale_(self.optimizer)
        norm = float(nn.utils.clip_grad_norm_(self.losses.parameters(), self.optim.clip_norm))
        scale = self.scaler.get_scale()
        if np.isfinite(norm):
            self.scaler.step(self.optimizer)
            self._update_ema(step)
        self.scaler.update()
        if np.isfinite(norm):
            return "", False, norm
        settling = self.scaler.get_scale() < scale and scale > SMALLEST_SETTLING_SCALE
        return f"the norm of the gradient is {norm}", settling, norm

    @torch.no_grad()
    def _update_ema(self, step: int) -> None:
        if not self.ema:
            return
        # young averages forget faster, so that the initial weights do not stay in them; ours
        decay = min(self.optim.ema_decay, (1 + step) / (10 + step))
        for name, value in self.losses.detector.state_dict().items():
            if value.is_floating_point():
                self.ema[name].lerp_(value, 1 - decay)
            else:
                self.ema[name].copy_(value)


def _parallel(losses: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        # torch 2.13 renames the argument, torch 2.6 only knows it by this name
        warnings.simplefilter("ignore", FutureWarning)
        # batch norm keeps the buffers of all ranks equal by itself
        parallel = DistributedDataParallel(losses, broadcast_buffers=False)
    # a 1x1 convolution's gradient has another stride than its weight: one copy, no more
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    return parallel


def _bad_loss(values: dict[str, float]) -> str:
    names = [name for name, value in values.items() if not np.isfinite(value)]
    return f"the loss {names[0]} is {values[names[0]]}"


def _norm_and_lr(norm: float, lr: float) -> dict[str, float]:
    return {"grad_norm": norm, "lr": lr}


def _batch_norm_buffers(module: nn.Module) -> list[tuple[Tensor, Tensor]]:
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.training]
    return [(buffer, buffer.clone()) for norm in norms for buffer in norm.buffers(recurse=False)]


@torch.no_grad()
def _restore(buffers: list[tuple[Tensor, Tensor]]) -> None:
    for buffer, before in buffers:
        buffer.copy_(before)
