"""Two sensors, two tasks, a few numbers: what calibration does, without a detector around it."""

import torch
from torch import Tensor, nn

from training.two_phase import TaskGraph, cut_at

NUM_INPUTS = 8
"""Numbers that each sensor sees."""


class ToyBatch:
    """What the sensors see, and what the tasks want of it."""

    def __init__(self, camera: Tensor, lidar: Tensor, boxes: Tensor, layers: Tensor):
        self.camera, self.lidar = camera, lidar
        self.targets = {"boxes": boxes, "map": layers}

    def to(self, device):
        return self


class ToyFusion(nn.Module):
    """A linear fuser of two maps of one cell."""

    def __init__(self, c_camera: int, c_lidar: int, channels: int):
        super().__init__()
        self.c_camera, self.c_lidar = c_camera, c_lidar
        self.mix = nn.Linear(c_camera + c_lidar, channels, bias=False)

    def forward(self, camera: Tensor, lidar: Tensor) -> Tensor:
        return self.mix(torch.cat([camera, lidar], dim=1))


class ToyDetector(nn.Module):
    """Two branches, a fuser, an encoder, two heads."""

    def __init__(self, branch: int, shared: int):
        super().__init__()
        self.camera = nn.Linear(NUM_INPUTS, branch, bias=False)
        self.lidar = nn.Linear(NUM_INPUTS, branch, bias=False)
        self.fusion = ToyFusion(branch, branch, shared)
        self.encoder = nn.Linear(shared, shared, bias=False)
        self.heads = nn.ModuleDict({t: nn.Linear(shared, 1, bias=False) for t in ("boxes", "map")})


class ToyLosses(nn.Module):
    """Mean squared errors; `act` is put behind a task's head, to spoil its gradient.

    The interface of `training.step.DetectorLosses`.
    """

    def __init__(self, task_weights=None, branch=2, shared=2, act=None):
        super().__init__()
        self.detector = ToyDetector(branch, shared)
        self.task_weights = task_weights or {"boxes": 1.0, "map": 1.0}
        self.act = act or {}

    def counts(self, batch):
        return {"frames": torch.tensor(float(len(batch.camera)))}

    def shared_part(self, batch):
        net = self.detector
        return net.encoder(net.fusion(net.camera(batch.camera), net.lidar(batch.lidar)))

    def task_loss(self, task, shared, batch, counts):
        said = self.act.get(task, lambda x: x)(self.detector.heads[task](shared))
        return (said[:, 0] - batch.targets[task]).square().sum() / counts["frames"]

    def forward(self, batch, counts):
        shared = self.shared_part(batch)
        entries = cut_at(shared, ("boxes", "map"))
        losses = {t: {t: self.task_loss(t, x, batch, counts)} for t, x in entries.items()}
        return TaskGraph(losses=losses, shared=shared, entries=entries)

    def last_shared_parameters(self):
        return list(self.detector.encoder.parameters())

    def task_parameters(self, task):
        return list(self.detector.heads[task].parameters())

    def shared_parameters(self):
        parts = self.detector.camera, self.detector.lidar, self.detector.fusion
        return [p for part in (*parts, self.detector.encoder) for p in part.parameters()]


def toy_batch(num=16, seed=0):
    """Random numbers; the boxes depend on the first of both sensors, the map on the second."""
    generator = torch.Generator().manual_seed(seed)
    camera, lidar = torch.randn(2, num, NUM_INPUTS, generator=generator)
    noise = torch.randn(2, num, generator=generator)
    boxes = camera[:, 0] + lidar[:, 0] + noise[0]
    return ToyBatch(camera, lidar, boxes, camera[:, 1] + lidar[:, 1])
