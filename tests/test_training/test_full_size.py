"""The full-size network on a GPU: it trains on the synthetic world, and bf16 agrees with fp32."""

import dataclasses
import statistics

import pytest
import torch

from perception.data.nuscenes_dataset import NuScenesDataset
from perception.data.nuscenes_log import NuScenesLog
from perception.synthetic.generator import generate_log
from perception.synthetic.log_plan import LogConfig
from training.distributed import Ranks
from training.initial_weights import initial_detector
from training.loop import sample_config
from training.recipes import p075_fusion
from training.run_log import STEP_TIME, read_metrics
from training.step import DetectorLosses, TrainStep
from training.train import Options, run_training

FULL_SIZE = LogConfig(
    num_scenes=2,
    num_keyframes=6,
    sweeps_per_keyframe=10,
    image_width_px=1600,
    image_height_px=900,
)
NUM_STEPS = 40

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def log_root(tmp_path_factory):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return generate_log(tmp_path_factory.mktemp("full") / "log", FULL_SIZE, workers=2).root


def recipe(log_root, **optim):
    full = p075_fusion()
    return dataclasses.replace(
        full,
        data=dataclasses.replace(full.data, log=str(log_root), split="all", num_workers=4),
        optim=dataclasses.replace(full.optim, **optim),
    )


def test_the_full_network_trains_on_the_synthetic_world(log_root, tmp_path):
    config = recipe(log_root, steps=NUM_STEPS, batch_size=1, precision="bf16")
    torch.cuda.reset_peak_memory_stats()
    assert run_training(config, Options(out=str(tmp_path / "run"), tensorboard=False))
    lines = read_metrics(tmp_path / "run")
    seconds = statistics.median(line["timing"][STEP_TIME] for line in lines[5:])
    memory = torch.cuda.max_memory_allocated() / 2**30
    print(  # noqa: T201
        f"\n{torch.cuda.get_device_name()}: p075_fusion, bf16, batch 1: {seconds:.3f} s per step, "
        f"peak memory {memory:.2f} GiB"
    )
    totals = [line["total"] for line in lines]
    assert all(total is not None for total in totals)
    assert statistics.mean(totals[-10:]) < 0.7 * statistics.mean(totals[:5])


def test_losses_in_bf16_and_fp32_agree(log_root):
    config = recipe(log_root, steps=2, batch_size=1)
    ranks = Ranks(device=torch.device("cuda"))
    log = NuScenesLog(log_root)
    dataset = NuScenesDataset(
        log, log.keyframe_tokens()[1:2], config.detector, sample_config(config), config.seed
    )
    batch = dataset.collate([dataset[0]])
    values = {}
    for precision in ("fp32", "bf16"):
        optim = dataclasses.replace(config.optim, precision=precision)
        detector, _ = initial_detector(config)
        losses = DetectorLosses(detector.to(ranks.device).train(), optim)
        values[precision] = TrainStep(losses, optim, ranks)([batch], 0).values
    # bfloat16 has 8 bits: a relative error of 2^-8 per product, less in the mean
    for name in ("heatmap", "map", "total"):
        assert values["bf16"][name] == pytest.approx(values["fp32"][name], rel=0.03), name
