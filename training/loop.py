"""The training loop: batches in, weights and a line of metrics per step out."""

import dataclasses
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.data import DataLoader

from perception.checkpoint import CHECKPOINT_FILE, Checkpoint, save_checkpoint
from perception.data.nuscenes_dataset import Batch, NuScenesDataset, Sample
from perception.models.detector import BevDetector, InputTensors, build_detector
from perception.taxonomy import MAP_CLASSES
from training.config import OptimConfig, TrainConfig

METRICS_FILE = "metrics.jsonl"


def train(config: TrainConfig, dataset: NuScenesDataset, run: Path) -> None:
    """Train a detector and leave checkpoint and metrics in the run folder."""
    torch.manual_seed(config.seed)
    if config.num_threads:
        torch.set_num_threads(config.num_threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    detector = build_detector(config.detector).to(device).train()
    optim = config.optim
    optimizer = torch.optim.AdamW(
        detector.parameters(), lr=optim.lr, weight_decay=optim.weight_decay
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: one_cycle(step, optim.steps)
    )
    dropout = torch.Generator().manual_seed(config.seed)
    knows_layer = torch.zeros(len(MAP_CLASSES), dtype=torch.bool)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as progress, (run / METRICS_FILE).open("w") as metrics:
        bar = progress.add_task("training", total=optim.steps)
        for step, batch in enumerate(batches(config, dataset), start=1):
            started = time.perf_counter()
            batch = drop_sensors(batch.to(device), optim.sensor_dropout, dropout)
            knows_layer |= (batch.map.labelled > 0).any(dim=0).cpu()
            losses = detector_losses(detector, batch, optim)
            optimizer.zero_grad(set_to_none=True)
            losses["total"].backward()
            norm = torch.nn.utils.clip_grad_norm_(detector.parameters(), optim.clip_norm)
            learning_rate = float(schedule.get_last_lr()[0])
            optimizer.step()
            schedule.step()
            line = {name: value.item() for name, value in losses.items()}
            line |= {"grad_norm": norm.item(), "lr": learning_rate}
            line |= {"step_seconds": time.perf_counter() - started}
            _write_line(metrics, step, line)
            progress.update(bar, advance=1, description=f"loss {line['total']:.3f}")
    trained = Checkpoint(
        detector=detector,
        config=config.detector,
        recipe=config.recipe,
        trained_map_classes=tuple(MAP_CLASSES[k] for k in torch.nonzero(knows_layer).flatten()),
    )
    save_checkpoint(run / CHECKPOINT_FILE, trained)


def one_cycle(step: int, num_steps: int) -> float:
    """Share of the peak learning rate: up in a line over a fifth of the steps, down in a cosine.

    Source: Smith & Topin 2018, as the reference releases use it; the fifth is ours.
    """
    num_warmup = max(1, num_steps // 5)
    if step < num_warmup:
        return (step + 1) / num_warmup
    return 0.5 * (1 + math.cos(math.pi * (step - num_warmup) / max(1, num_steps - num_warmup)))


def detector_losses(
    detector: BevDetector, batch: Batch, optim: OptimConfig
) -> dict[str, torch.Tensor]:
    """Loss of each head, and their weighted sum as "total"."""
    device_type = batch.inputs.images.device.type
    with torch.autocast(device_type, torch.bfloat16, enabled=optim.precision == "bf16"):
        output = detector(batch.inputs)
    boxes = detector.box_head.loss(output.boxes, batch.boxes)
    map_layers = detector.map_head.loss(output.map_logits, batch.map)
    losses = {**boxes, **map_layers}
    weights = dict.fromkeys(boxes, optim.box_weight) | dict.fromkeys(map_layers, optim.map_weight)
    total = torch.stack([weights[name] * loss for name, loss in losses.items()]).sum()
    return losses | {"total": total}


def batches(config: TrainConfig, dataset: NuScenesDataset) -> Iterator[Batch]:
    """One batch per step; each pass over the data has its own seeded order."""
    order = torch.Generator().manual_seed(config.seed)
    source: NuScenesDataset | list[Sample] = dataset
    if config.cache_samples:
        source = [dataset[index] for index in range(len(dataset))]
    loader = DataLoader(
        source,  # type: ignore[arg-type]
        batch_size=min(config.optim.batch_size, len(dataset)),
        shuffle=True,
        drop_last=True,
        generator=order,
        collate_fn=dataset.collate,
        num_workers=0 if config.cache_samples else config.num_workers,
        persistent_workers=not config.cache_samples and config.num_workers > 0,
    )
    step = 0
    while True:
        for batch in loader:
            if step == config.optim.steps:
                return
            step += 1
            yield batch


def drop_sensors(batch: Batch, probability: float, generator: torch.Generator) -> Batch:
    """Mask sensors at random, each frame for itself; a frame that would lose all keeps all."""
    if probability == 0.0:
        return batch
    x = batch.inputs
    draw = torch.rand(x.camera_mask.shape[0], x.camera_mask.shape[1] + 1, generator=generator)
    kept = (draw >= probability).to(x.camera_mask)
    camera_mask, lidar_mask = x.camera_mask * kept[:, :-1], x.lidar_mask * kept[:, -1:]
    blind = (camera_mask.sum(1, keepdim=True) + lidar_mask) == 0
    inputs: InputTensors = dataclasses.replace(
        x,
        camera_mask=torch.where(blind, x.camera_mask, camera_mask),
        lidar_mask=torch.where(blind, x.lidar_mask, lidar_mask),
    )
    return dataclasses.replace(batch, inputs=inputs)


def _write_line(file: TextIO, step: int, values: dict[str, float]) -> None:
    file.write(json.dumps({"step": step} | values) + "\n")
    file.flush()
