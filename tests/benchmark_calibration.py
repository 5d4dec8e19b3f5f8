"""Time of a training step with calibration over one backward pass of the plain sum.

    python tests/benchmark_calibration.py --log ROOT [--recipe tiny_fusion] [--rounds 20]

Every kind of step is done once per round on the same batch, in an order that changes from round to
round; what is printed are medians, and the median over the rounds of each step over the plain one
of the same round. CPU time of one thread: what else the machine does counts little.
"""

import argparse
import dataclasses
import statistics
import sys
import time
from pathlib import Path

import torch

from perception.data.nuscenes_dataset import Batch, NuScenesDataset, SampleKey
from perception.data.nuscenes_log import NuScenesLog
from perception.errors import run_command
from perception.models.depth_supervision import depth_loss
from perception.models.detector import build_detector
from training.config import TrainConfig
from training.distributed import Ranks
from training.gradient_calibration import EqualConfig, IntraConfig
from training.loop import sample_config
from training.recipes import recipe_by_name
from training.step import DetectorLosses, TrainStep
from training.task_rules import InterConfig
from training.two_phase import TaskGraph

PLAIN = "one backward pass of the sum"
KINDS: dict[str, tuple[InterConfig | None, IntraConfig | None]] = {
    PLAIN: (None, None),
    "two phases, no calibration": (None, None),
    "between tasks, at the last layer": (InterConfig(), None),
    "between tasks, at the feature": (InterConfig(site="feature"), None),
    "between sensors": (None, EqualConfig()),
    "between both": (InterConfig(), EqualConfig()),
}


class OnePassLosses(DetectorLosses):
    """Losses on one graph, as if the tasks had nothing to do with each other."""

    def forward(self, batch: Batch, counts: dict[str, torch.Tensor]) -> TaskGraph:
        """Losses of a batch."""
        output = self.detector(batch.inputs)
        losses = {
            "boxes": self.detector.box_head.loss(output.boxes, batch.boxes, counts),
            "map": self.detector.map_head.loss(output.map, batch.map, counts),
        }
        if "depth" in self.task_weights and batch.depth is not None:
            losses["depth"] = depth_loss(output.depth_logits, batch.depth, counts)
        return TaskGraph(losses=losses)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--recipe", default="tiny_fusion")
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    torch.set_num_threads(1)
    config = recipe_by_name(options.recipe)
    batch = first_batch(config, NuScenesLog(options.log))
    steps = {kind: make_step(config, kind) for kind in KINDS}
    seconds = {kind: [] for kind in KINDS}
    kinds = list(KINDS)
    for number in range(options.rounds + 1):
        kinds.append(kinds.pop(0))
        for kind in kinds:
            started = time.process_time()
            steps[kind]([batch], number)
            if number > 0:  # the first allocates
                seconds[kind].append(time.process_time() - started)
    for kind, taken in seconds.items():
        ratios = [mine / plain for mine, plain in zip(taken, seconds[PLAIN], strict=True)]
        sys.stdout.write(
            f"{kind:34} {1e3 * statistics.median(taken):8.1f} ms"
            f"  x {statistics.median(ratios):.3f}\n"
        )


def first_batch(config: TrainConfig, log: NuScenesLog) -> Batch:
    """The first frames of a log, as the recipe sees them."""
    sampling = dataclasses.replace(sample_config(config), skip_damaged=False)
    tokens = log.keyframe_tokens()[: config.optim.batch_size]
    dataset = NuScenesDataset(log, tokens, config.detector, sampling, seed=0)
    return dataset.collate([dataset[SampleKey(i, i)] for i in range(len(tokens))])


def make_step(config: TrainConfig, kind: str) -> TrainStep:
    """A step of one kind, on a network of its own."""
    torch.manual_seed(0)
    make = OnePassLosses if kind == PLAIN else DetectorLosses
    losses = make(build_detector(config.detector).train(), config.optim)
    inter, intra = KINDS[kind]
    return TrainStep(losses, config.optim, Ranks(), inter=inter, intra=intra)


if __name__ == "__main__":
    run_command(main)
