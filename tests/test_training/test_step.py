import copy

import numpy as np
import pytest
import torch
from small_detector import small_config
from torch import Tensor, nn

from perception.data.nuscenes_dataset import NuScenesDataset, SampleConfig, SampleKey
from perception.data.nuscenes_log import NuScenesLog
from perception.models.detector import build_detector
from training.config import OptimConfig
from training.distributed import Ranks
from training.step import DetectorLosses, TrainStep, weighted_sum
from training.two_phase import TaskGraph


def settings(**changes):
    return OptimConfig(**({"steps": 10, "batch_size": 4, "lr": 0.1, "weight_decay": 0.0} | changes))


@pytest.fixture(scope="module")
def batches(small_log_root):
    """Four frames at once and in two halves."""
    log, config = NuScenesLog(small_log_root), small_config()
    sampling = SampleConfig(depth_targets=True)
    dataset = NuScenesDataset(log, log.keyframe_tokens()[:4], config, sampling, seed=0)
    samples = [dataset[SampleKey(index, index)] for index in range(4)]
    return [dataset.collate(samples)], [dataset.collate(samples[:2]), dataset.collate(samples[2:])]


def detector_step(**changes):
    torch.manual_seed(0)
    optim = settings(lr=1e-3, depth_weight=0.1, **changes)
    detector = build_detector(small_config()).train()
    return TrainStep(DetectorLosses(detector, optim), optim, Ranks())


def test_micro_batches_give_the_step_of_the_whole_batch(batches):
    whole, halves = batches
    outcomes = []
    for parts in (whole, halves):
        step = detector_step()
        step.losses.eval()  # batch norm in training sees a micro-batch: that is another network
        for number in range(3):
            result = step(parts, number)
        outcomes.append((result.values, dict(step.losses.named_parameters())))
    (one, weights), (two, others) = outcomes
    assert set(one) == {"heatmap", "box", "map", "depth", "total", "grad_norm", "lr"}
    assert two == pytest.approx(one, rel=1e-5)
    for name, weight in weights.items():
        assert torch.allclose(weight, others[name], rtol=1e-3, atol=1e-5), name


def test_dropout_is_a_matter_of_seed_step_and_rank():
    def numbers(seed, step, rank):
        TrainStep(Toy(), settings(), Ranks(rank=rank), seed)._seed_dropout(step)
        return torch.rand(4).tolist()

    drawn = [numbers(*key) for key in ((0, 0, 0), (0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))]
    assert drawn[0] == drawn[1]
    assert len({tuple(d) for d in drawn}) == 4


class ToyBatch:
    """One number per frame."""

    def __init__(self, *values: float):
        self.values = torch.tensor(values)

    def to(self, device):
        return self


class Toy(nn.Module):
    """Loss "pull": mean of w * value, behind a batch norm that sees the values."""

    def __init__(self, act=lambda x: x):
        super().__init__()
        self.detector = nn.Module()
        self.detector.w = nn.Parameter(torch.tensor(1.0))
        self.detector.norm = nn.BatchNorm1d(1)
        self.task_weights = {"boxes": 2.0, "map": 1.0}
        self.act = act

    def counts(self, batch):
        return {"pull": torch.tensor(len(batch.values)), "rest": torch.ones(2)}

    def forward(self, batch, counts):
        self.detector.norm(batch.values[:, None])
        pull = self.act(self.detector.w * batch.values).sum() / counts["pull"]
        rest = 0.0 * self.detector.norm.weight.sum()
        return TaskGraph(losses={"boxes": {"pull": pull}, "map": {"rest": rest}})


def everything(step):
    state = {**step.losses.state_dict(), **{f"ema.{k}": v for k, v in step.ema.items()}}
    for index, moments in enumerate(step.optimizer.state.values()):
        state |= {f"{index}.{kind}": value for kind, value in moments.items()}
    return copy.deepcopy(state)


def assert_equal(state: dict[str, Tensor], other: dict[str, Tensor]):
    assert state.keys() == other.keys()
    assert all(torch.equal(state[name], other[name]) for name in state)


@pytest.mark.parametrize(
    ("act", "values", "said"),
    [
        (lambda x: x, (1.0, float("nan")), "the loss pull is nan"),
        (lambda x: x, (1.0, float("inf")), "the loss pull is inf"),
        # the square root of 0 is finite, its slope is not
        (lambda x: x.clamp(min=0).sqrt(), (1.0, 0.0), "the norm of the gradient is"),
    ],
)
@pytest.mark.parametrize("in_first_half", [True, False])
def test_a_bad_step_leaves_everything_as_it_was(act, values, said, in_first_half):
    step = TrainStep(Toy(act), settings(ema_decay=0.5), Ranks())
    good, bad = ToyBatch(2.0, 3.0), ToyBatch(*values)
    assert step([good, good], 0).bad == ""
    before = everything(step)
    result = step([bad, good] if in_first_half else [good, bad], 1)
    assert result.bad.startswith(said)
    assert not result.settling
    assert_equal(everything(step), before)
    assert step([good, good], 2).bad == ""
    assert not torch.equal(everything(step)["detector.w"], before["detector.w"])


def test_values_are_the_means_over_all_micro_batches_and_the_gradient_is_clipped_last():
    # pull = w * mean(1, 2, 3, 6) = 3; total = 2 * 3; d total / d w = 6, clipped to 0.5
    step = TrainStep(Toy(), settings(clip_norm=0.5), Ranks())
    result = step([ToyBatch(1.0, 2.0), ToyBatch(3.0, 6.0)], 0)
    assert result.values == pytest.approx(
        {"pull": 3.0, "rest": 0.0, "total": 6.0, "grad_norm": 6.0, "lr": 0.05}
    )
    assert step.losses.detector.w.grad.item() == pytest.approx(0.5)


def test_the_average_forgets_slower_the_older_it_is():
    # decay of step n: min(0.5, (1 + n) / (10 + n)) = 0.1, 2/11, ...; step 8: 9/18 = 0.5
    step = TrainStep(Toy(), settings(ema_decay=0.5), Ranks())
    expected = 1.0
    for number in range(12):
        step([ToyBatch(1.0, 2.0)], number)
        decay = min(0.5, (1 + number) / (10 + number))
        expected = decay * expected + (1 - decay) * step.losses.detector.w.item()
    assert step.ema["w"].item() == pytest.approx(expected, rel=1e-5)
    assert step.ema["norm.num_batches_tracked"].item() == 12


def test_fp16_settles_its_scale_without_a_bad_step():
    class Steep(torch.autograd.Function):
        """Gradient overflows fp16-like: above 1e4 it is infinite."""

        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return torch.where(grad.abs() > 1e4, float("inf"), grad)

    step = TrainStep(Toy(Steep.apply), settings(precision="fp16"), Ranks())
    results = [step([ToyBatch(1.0, 1.0)], number) for number in range(6)]
    # scale 65536, each of two terms has weight 2 / 2: too steep until 8192, three halvings
    assert [result.settling for result in results] == [True] * 3 + [False] * 3
    assert [bool(result.bad) for result in results] == [True] * 3 + [False] * 3
    assert np.isfinite(step.losses.detector.w.item())


def test_the_weighted_sum_is_by_task():
    losses = {
        "boxes": {"a": torch.tensor(1.0), "b": torch.tensor(2.0)},
        "map": {"c": torch.tensor(5.0)},
    }
    assert weighted_sum(losses, {"boxes": 10.0, "map": 2.0}).item() == 40.0
