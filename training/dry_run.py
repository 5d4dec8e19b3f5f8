"""What a run would be like: everything is tried once, nothing is written."""

import resource
import time
from collections.abc import Iterator

import torch

from perception.data.nuscenes_dataset import NuScenesDataset
from perception.models.detector import BevDetector
from training.config import TrainConfig
from training.distributed import Ranks, use_cross_rank_batch_norm
from training.initial_weights import initial_detector
from training.loop import sample_order
from training.step import DetectorLosses, TrainStep

NUM_STEPS = 3
"""Steps that are tried; the last is timed. Ours."""


def describe(config: TrainConfig, dataset: NuScenesDataset, ranks: Ranks) -> str:
    """Prepare the first batch, do a few steps on it, and say what that took.

    Raises:
        InputError: The batch or the initial weights cannot be used.
    """
    order = sample_order(config, dataset, ranks)
    detector, notes = initial_detector(config)
    lines = list(_parameters(detector))
    lines += notes
    if ranks.world_size > 1 or config.optim.cross_rank_batch_norm:
        use_cross_rank_batch_norm(detector)
    losses = DetectorLosses(detector.to(ranks.device).train(), config.optim)
    step = TrainStep(
        losses, config.optim, ranks, config.seed, inter=config.inter, intra=config.intra
    )
    started = time.perf_counter()
    batches = [dataset.collate([dataset[key] for key in keys]) for keys in order.step(0)]
    data_seconds = time.perf_counter() - started
    damaged = [sample for batch in batches for sample in batch.damaged]
    lines += [f"damaged: {sample.token}: {sample.reasons[0]}" for sample in damaged]
    for number in range(NUM_STEPS):
        started = time.perf_counter()
        result = step(batches, number)
        seconds = time.perf_counter() - started
        if number == 0:
            values = " ".join(f"{name}={value:.4g}" for name, value in result.values.items())
            lines.append(
                f"first step: {values}{' (bad: ' + result.bad + ')' if result.bad else ''}"
            )
    lines += _figures(config, order.steps_per_epoch, seconds, data_seconds)
    lines.append(f"peak memory of a process: {_peak_memory(ranks) / 2**30:.2f} GiB")
    return "\n".join(lines)


def _figures(
    config: TrainConfig, steps_per_epoch: int, compute: float, data_seconds: float
) -> Iterator[str]:
    workers, steps = config.data.num_workers, config.optim.steps
    guess = max(compute, data_seconds / workers) if workers else compute + data_seconds
    yield f"steps: {steps}, {steps_per_epoch} per epoch, {steps / steps_per_epoch:.1f} epochs"
    yield (
        f"seconds per step: about {guess:.2f} (network {compute:.2f}, samples {data_seconds:.2f} "
        f"in one process, {workers} workers); the whole run: about {guess * steps / 3600:.1f} h"
    )


def _parameters(detector: BevDetector) -> Iterator[str]:
    total = sum(p.numel() for p in detector.parameters())
    yield f"parameters: {total:,}"
    for name, part in detector.named_children():
        yield f"  {name}: {sum(p.numel() for p in part.parameters()):,}"


def _peak_memory(ranks: Ranks) -> int:
    """Largest memory [bytes]: the device's where it is a GPU, else the process's."""
    if ranks.device.type == "cuda":
        return torch.cuda.max_memory_allocated(ranks.device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
