import dataclasses
import json

import pytest
import torch
from small_detector import small_config

from export.parity_frames import noise_frame, with_missing_sensors
from perception.data.collate import collate_inputs
from perception.data.nuscenes_dataset import Batch, NuScenesDataset
from perception.data.nuscenes_log import NuScenesLog
from perception.models.detector import build_detector
from perception.models.heads.center_head import BoxTargets
from perception.models.heads.map_head import MapTargets
from training.config import DataConfig, OptimConfig, TrainConfig
from training.loop import METRICS_FILE, detector_losses, drop_sensors, one_cycle, train

CONFIG = TrainConfig(
    recipe="small",
    detector=small_config(),
    data=DataConfig(split="all", frames="all"),
    optim=OptimConfig(steps=4, batch_size=2, lr=1e-3, sensor_dropout=0.3),
    num_workers=0,
)


@pytest.fixture(scope="module")
def dataset(small_log_root):
    log = NuScenesLog(small_log_root)
    detector = small_config()
    return NuScenesDataset(log, log.keyframe_tokens()[:4], detector.inputs, detector.map_head.grid)


def loss_curve(run):
    lines = [json.loads(line) for line in (run / METRICS_FILE).read_text().splitlines()]
    return [line["total"] for line in lines]


def test_the_same_seed_gives_the_same_losses_bit_for_bit(dataset, tmp_path):
    curves = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        train(CONFIG, dataset, tmp_path / name)
        curves.append(loss_curve(tmp_path / name))
    assert len(curves[0]) == 4
    assert curves[0] == curves[1]
    (tmp_path / "c").mkdir()
    train(dataclasses.replace(CONFIG, seed=1), dataset, tmp_path / "c")
    assert loss_curve(tmp_path / "c") != curves[0]


def test_training_lowers_the_loss(dataset, tmp_path):
    optim = OptimConfig(steps=25, batch_size=4, lr=3e-3, sensor_dropout=0.0)
    train(dataclasses.replace(CONFIG, optim=optim, cache_samples=True), dataset, tmp_path)
    curve = loss_curve(tmp_path)
    assert curve[-1] < 0.5 * curve[0]


def test_workers_prepare_the_same_samples(dataset, tmp_path):
    curves = []
    for workers in (0, 1):
        run = tmp_path / str(workers)
        run.mkdir()
        optim = dataclasses.replace(CONFIG.optim, steps=2)
        train(dataclasses.replace(CONFIG, optim=optim, num_workers=workers), dataset, run)
        curves.append(loss_curve(run))
    assert curves[0] == curves[1]


def test_a_batch_without_any_label_has_no_loss_and_a_finite_gradient():
    spec = small_config().inputs
    torch.manual_seed(0)
    detector = build_detector(small_config())
    frames = [noise_frame(spec), with_missing_sensors(noise_frame(spec))[2]]
    batch = Batch(
        inputs=collate_inputs(frames, spec),
        boxes=BoxTargets(
            heatmap=torch.zeros(2, 10, 32, 32),
            cell=torch.zeros(2, 5, dtype=torch.int64),
            code=torch.zeros(2, 5, 10),
            object_mask=torch.zeros(2, 5, dtype=torch.bool),
            labelled=torch.zeros(2),
        ),
        map=MapTargets(mask=torch.zeros(2, 6, 50, 50), labelled=torch.zeros(2, 6)),
    )
    losses = detector_losses(detector, batch, CONFIG.optim)
    assert losses["total"].item() == 0
    losses["total"].backward()
    gradients = [p.grad for p in detector.parameters() if p.grad is not None]
    assert gradients
    assert all(torch.isfinite(g).all() for g in gradients)


def test_sensor_dropout_masks_about_its_share_and_never_everything(dataset):
    batch = dataset.collate([dataset[0]] * 8)
    generator = torch.Generator().manual_seed(0)
    dropped = [drop_sensors(batch, 0.5, generator).inputs for _ in range(50)]
    masks = torch.cat([torch.cat([x.camera_mask, x.lidar_mask], dim=1) for x in dropped])
    assert masks.shape == (400, 7)
    assert (masks.sum(dim=1) > 0).all()
    assert 0.45 < masks.mean() < 0.56  # half, and the frames that would have lost everything
    assert drop_sensors(batch, 0.0, generator) is batch
    kept = drop_sensors(batch, 1.0, generator).inputs  # would lose everything: keeps everything
    assert torch.equal(kept.camera_mask, batch.inputs.camera_mask)
    assert torch.equal(kept.lidar_mask, batch.inputs.lidar_mask)


def test_one_cycle_rises_in_a_line_and_falls_to_nothing():
    # 10 steps: two up (1/2, 1), then a cosine over eight
    shares = [one_cycle(step, 10) for step in range(11)]
    assert shares[:3] == [0.5, 1.0, 1.0]
    assert shares[6] == pytest.approx(0.5)
    assert shares[10] == pytest.approx(0.0)
    assert one_cycle(0, 1) == 1.0


def test_half_precision_changes_the_losses_a_little_only(dataset, tmp_path):
    optim = dataclasses.replace(CONFIG.optim, precision="bf16")
    for name, config in (
        ("fp32", CONFIG),
        ("bf16", dataclasses.replace(CONFIG, optim=optim)),
    ):
        (tmp_path / name).mkdir()
        train(config, dataset, tmp_path / name)
    full, half = loss_curve(tmp_path / "fp32"), loss_curve(tmp_path / "bf16")
    assert half != full
    # bfloat16 has 8 bits: a relative error of 2^-8 per product, less in the mean
    assert half[0] == pytest.approx(full[0], rel=0.01)
