"""Calibration in several processes, and in one that is interrupted."""

import dataclasses
import threading

import pytest
import torch
from calibration_toy import ToyBatch, ToyLosses, toy_batch
from training_processes import curve, run_ranks, train_and_die, training_config

from perception.data.nuscenes_dataset import NuScenesDataset
from perception.data.nuscenes_log import NuScenesLog
from training.distributed import Ranks
from training.gradient_calibration import EqualConfig
from training.loop import Training, sample_config
from training.run_log import RunLog
from training.task_rules import GradNormConfig, InterConfig, PcGradConfig
from training.two_phase import TwoPhaseBackward

NUM_FRAMES = 16


def toy_model():
    torch.manual_seed(0)
    return ToyLosses()


def figures_of(losses, batch, ranks, inter, intra):
    """What one process finds in its share of the frames."""
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    backward = TwoPhaseBackward(losses, inter, intra, ranks, scaler)
    backward(losses(batch, {"frames": torch.tensor(float(NUM_FRAMES))}))
    return backward.figures()


class ThreadRanks(Ranks):
    """Ranks that are threads of one process."""

    def __new__(cls, **_):
        return object.__new__(cls)

    def meet_at(self, barrier, table):
        object.__setattr__(self, "barrier", barrier)
        object.__setattr__(self, "table", table)
        return self

    def sum(self, values):
        self.table[self.rank] = values.detach().clone()
        self.barrier.wait()
        total = torch.stack([self.table[r] for r in range(self.world_size)]).sum(dim=0)
        self.barrier.wait()
        return total


@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("site", ["param", "feature"])
def test_ranks_come_to_the_weights_and_factors_of_one_process(world_size, site):
    whole = toy_batch(16)
    inter, intra = InterConfig(site=site), EqualConfig()
    expected = figures_of(toy_model(), whole, Ranks(), inter, intra)
    parts = [
        ToyBatch(*fields)
        for fields in zip(
            *(t.split(16 // world_size) for t in (whole.camera, whole.lidar)),
            *(whole.targets[t].split(16 // world_size) for t in ("boxes", "map")),
            strict=True,
        )
    ]
    barrier, table, found = threading.Barrier(world_size), {}, {}

    def run(rank):
        ranks = ThreadRanks(rank=rank, world_size=world_size).meet_at(barrier, table)
        found[rank] = figures_of(models[rank], parts[rank], ranks, inter, intra)

    models = [toy_model() for _ in range(world_size)]
    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(found) == world_size
    for figures in found.values():
        assert figures == found[0]
        assert figures == pytest.approx(expected, rel=1e-4)


# small steps, as in test_distributed.py: AdamW's first steps turn rounding into whole steps
SETTINGS = {
    "lr": 2e-6,
    "steps": 3,
    "batch_size": 4,
    "depth_weight": 0.1,
    "cross_rank_batch_norm": True,
}


def test_two_processes_give_the_curve_and_the_figures_of_one(small_log_root, tmp_path):
    for world_size, micro_batch in ((1, 2), (2, 1)):
        config = training_config(small_log_root, **SETTINGS, micro_batch=micro_batch)
        config = dataclasses.replace(config, inter=InterConfig(), intra=EqualConfig())
        run_ranks(world_size, train_and_die, config, tmp_path / str(world_size))
    one, two = curve(tmp_path / "1"), curve(tmp_path / "2")
    assert len(one) == len(two) == SETTINGS["steps"]
    for line, other in zip(one, two, strict=True):
        assert "gradient/alpha_map" in line
        assert line == pytest.approx(other, rel=1e-3)


class StoppedError(Exception):
    """Stands for a kill."""


@pytest.mark.parametrize("rule", [GradNormConfig(), PcGradConfig()])
def test_what_a_rule_has_learned_survives_an_interruption(
    small_log_root, tmp_path, monkeypatch, rule
):
    config = training_config(small_log_root, steps=4, checkpoint_every=2)
    config = dataclasses.replace(config, inter=InterConfig(rule=rule), intra=EqualConfig())
    log = NuScenesLog(small_log_root)
    dataset = NuScenesDataset(
        log, log.keyframe_tokens(), config.detector, sample_config(config), config.seed
    )

    def train(run):
        run.mkdir(exist_ok=True)
        training = Training(config, dataset, run, Ranks())
        with RunLog(run, config, training.state.step, False) as run_log:
            training.train(run_log)
        return training.step.backward.state

    state = train(tmp_path / "whole")
    one_step = Training._one_step

    def dying(self, step, batches, run_log):
        if step == 3:
            raise StoppedError
        return one_step(self, step, batches, run_log)

    monkeypatch.setattr(Training, "_one_step", dying)
    with pytest.raises(StoppedError):
        train(tmp_path / "broken")
    monkeypatch.setattr(Training, "_one_step", one_step)
    assert train(tmp_path / "broken") == state
    assert curve(tmp_path / "broken") == curve(tmp_path / "whole")
    assert bool(state) == isinstance(rule, GradNormConfig)
