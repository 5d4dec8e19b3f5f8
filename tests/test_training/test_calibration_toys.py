"""What calibration is for, on networks of a few weights: a weak task and a slow sensor are kept."""

import numpy as np
import pytest
import torch
from calibration_toy import NUM_INPUTS, ToyBatch, ToyLosses, toy_batch
from torch import nn

from training.config import OptimConfig
from training.distributed import Ranks
from training.gradient_calibration import EqualConfig
from training.step import TrainStep
from training.task_rules import InterConfig

NUM_STEPS = 120


def explained(target, said):
    """Share of a target's variance that is explained."""
    return 1 - float((target - said).square().mean() / target.var())


def weak_task_after_training(decades, inter):
    """What the map's head explains in the end, its loss weighted with 10 ** -decades."""
    torch.manual_seed(1)
    losses = ToyLosses({"boxes": 1.0, "map": 10.0**-decades})
    optim = OptimConfig(steps=NUM_STEPS, batch_size=16, lr=0.04, weight_decay=0.0)
    step = TrainStep(losses, optim, Ranks(), inter=inter)
    for number in range(NUM_STEPS):
        step([toy_batch(seed=number)], number)
    batch = toy_batch(500, seed=10**6)
    with torch.no_grad():
        said = losses.detector.heads["map"](losses.shared_part(batch))[:, 0]
    return explained(batch.targets["map"], said)


def test_a_weak_task_is_lost_in_the_plain_sum_and_kept_by_calibration():
    plain = [weak_task_after_training(decades, None) for decades in (0, 2, 4)]
    kept = [weak_task_after_training(decades, InterConfig()) for decades in (0, 2, 4)]
    # the boxes' labels are noisy, so their gradient never ends: the weaker the map, the less the
    # shared part, of two channels for two tasks, learns of it
    assert plain[0] > 0.99
    assert plain[1] < 0.1
    assert plain[2] < 0.1
    assert min(kept) > 0.99


def slow_sensor_after_training(intra, num_steps=60):
    """What the camera's branch knows of what only the camera sees, and what the network explains.

    The fuser takes in a tenth as much of the camera at first, so its branch learns ten times as
    slowly. SGD: AdamW would undo any constant factor.
    """
    torch.manual_seed(2)
    losses = ToyLosses(branch=1, shared=1)
    net = losses.detector
    with torch.no_grad():
        net.fusion.mix.weight.copy_(torch.tensor([[0.1, 1.0]]))
        net.encoder.weight.fill_(1.0)
        net.heads["boxes"].weight.fill_(1.0)
        for branch in (net.camera, net.lidar):
            branch.weight.copy_(0.1 * torch.ones(1, NUM_INPUTS))
    optim = OptimConfig(steps=num_steps, batch_size=64, lr=0.002, warmup_share=0.0)
    step = TrainStep(losses, optim, Ranks(), intra=intra)
    step.optimizer = torch.optim.SGD(losses.parameters(), lr=0.002, momentum=0.9)
    for number in range(num_steps):
        step([only_boxes(64, number)], number)
    batch = only_boxes(500, 10**6)
    with torch.no_grad():
        known = net.camera(batch.camera)[:, 0]
        said = net.heads["boxes"](losses.shared_part(batch))[:, 0]
    probe = np.corrcoef(known.numpy(), batch.camera[:, 0].numpy())[0, 1] ** 2
    return probe, explained(batch.targets["boxes"], said)


def only_boxes(num, seed):
    """The sum of what each sensor sees first; the map wants nothing."""
    batch = toy_batch(num, seed)
    return ToyBatch(
        batch.camera, batch.lidar, batch.camera[:, 0] + batch.lidar[:, 0], torch.zeros(num)
    )


def test_a_slow_sensor_learns_with_calibration_and_the_whole_does_not_suffer():
    (probe, joint), (probe_on, joint_on) = (
        slow_sensor_after_training(intra) for intra in (None, EqualConfig())
    )
    # found: 0.37 and 0.48 without, 0.88 and 0.54 with it
    assert probe < 0.5
    assert probe_on > 0.8
    assert joint_on >= joint


@pytest.mark.parametrize("inter", [None, InterConfig()])
def test_a_constant_factor_means_nothing_to_adamw(inter):
    # a control: with AdamW the weight of ALL losses together changes nothing
    ends = []
    for scale in (1.0, 1e-3):
        torch.manual_seed(0)
        losses = ToyLosses({"boxes": scale, "map": scale})
        optim = OptimConfig(steps=20, batch_size=16, lr=0.02, weight_decay=0.0)
        step = TrainStep(losses, optim, Ranks(), inter=inter)
        for number in range(20):
            step([toy_batch(seed=number)], number)
        ends.append(nn.utils.parameters_to_vector(losses.parameters()))
    torch.testing.assert_close(*ends, rtol=1e-2, atol=1e-3)
