import contextlib
import dataclasses
import json

import pytest
import torch
from training_processes import curve, training_config

from perception.checkpoint import load_checkpoint
from perception.data.nuscenes_dataset import NuScenesDataset
from perception.data.nuscenes_log import NuScenesLog
from perception.errors import InputError
from training.distributed import Ranks
from training.loop import SilentLog, Training, epoch_indices, sample_config
from training.run_log import RunLog
from training.step import TrainStep


def train(config, run, log_root):
    run.mkdir(exist_ok=True)
    log = NuScenesLog(log_root)
    dataset = NuScenesDataset(
        log, log.keyframe_tokens(), config.detector, sample_config(config), config.seed
    )
    training = Training(config, dataset, run, Ranks())
    with RunLog(run, config, training.state.step, False) as run_log:
        training.train(run_log)
    training.finish()
    return training


def losses(run):
    return [line["total"] for line in curve(run)]


def kinds(run):
    lines = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    return [(line["step"], line["kind"]) for line in lines]


def test_the_same_seed_gives_the_same_losses_whoever_prepares_the_samples(small_log_root, tmp_path):
    config = training_config(small_log_root, steps=3)
    workers = dataclasses.replace(config.data, num_workers=1)
    train(config, tmp_path / "a", small_log_root)
    train(dataclasses.replace(config, data=workers), tmp_path / "b", small_log_root)
    train(dataclasses.replace(config, seed=1), tmp_path / "c", small_log_root)
    assert len(curve(tmp_path / "a")) == 3
    assert curve(tmp_path / "a") == curve(tmp_path / "b")
    assert curve(tmp_path / "c") != curve(tmp_path / "a")


def test_training_lowers_the_loss(small_log_root, tmp_path):
    config = training_config(small_log_root, steps=25, batch_size=4, lr=3e-3, checkpoint_every=100)
    train(config, tmp_path / "run", small_log_root)
    found = losses(tmp_path / "run")
    assert found[-1] < 0.5 * found[0]
    assert load_checkpoint(tmp_path / "run").trained_map_classes == ("drivable_area",)


def test_bf16_changes_the_losses_a_little_only(small_log_root, tmp_path):
    for precision in ("fp32", "bf16"):
        config = training_config(small_log_root, steps=2, precision=precision)
        train(config, tmp_path / precision, small_log_root)
    full, half = losses(tmp_path / "fp32"), losses(tmp_path / "bf16")
    assert half != full
    # bfloat16 has 8 bits: a relative error of 2^-8 per product, less in the mean
    assert half[0] == pytest.approx(full[0], rel=0.01)


def test_the_final_model_is_the_moving_average(small_log_root, tmp_path):
    config = training_config(small_log_root, steps=2)
    training = train(config, tmp_path / "run", small_log_root)
    saved = load_checkpoint(tmp_path / "run").detector.state_dict()
    assert all(torch.equal(saved[name], value) for name, value in training.step.ema.items())
    path = tmp_path / "run" / "checkpoints" / "step_00000002" / "model.safetensors"
    assert path.stat().st_size > 0


@contextlib.contextmanager
def bad_losses(monkeypatch, steps):
    """Spoil the loss of some steps, counted from 1."""
    accumulate, seen = TrainStep._accumulate, []

    def spoilt(self, batches):
        seen.append(1)
        values = accumulate(self, batches)
        return values | ({"total": float("nan")} if len(seen) in steps else {})

    with monkeypatch.context() as patch:
        patch.setattr(TrainStep, "_accumulate", spoilt)
        yield


def test_a_bad_step_is_skipped_and_training_goes_on(small_log_root, tmp_path, monkeypatch):
    config = training_config(small_log_root, steps=5)
    with bad_losses(monkeypatch, {2, 3}):
        training = train(config, tmp_path / "run", small_log_root)
    assert kinds(tmp_path / "run") == [(2, "skipped"), (3, "skipped")]
    assert training.state.num_skipped == 2
    # step 3 was due for a checkpoint, but after a bad step there is none
    assert [path.name for path in sorted((tmp_path / "run" / "checkpoints").iterdir())] == [
        "step_00000000",
        "step_00000005",
    ]


def test_three_bad_steps_go_back_to_the_last_checkpoint(small_log_root, tmp_path, monkeypatch):
    config = training_config(small_log_root, steps=8, ema_decay=0.0)
    restored = []
    restore = Training._restore
    monkeypatch.setattr(
        Training, "_restore", lambda self, s: (restored.append(s.state.step), restore(self, s))[0]
    )
    with bad_losses(monkeypatch, {5, 6, 7}):
        training = train(config, tmp_path / "run", small_log_root)
    assert kinds(tmp_path / "run")[-1] == (7, "rolled_back")
    assert restored == [3]
    assert training.state.rolled_back_to == 3
    # the order goes on: step 8 sees other frames than step 4, with the weights of step 3
    assert [line["step"] for line in curve(tmp_path / "run")] == list(range(1, 9))


def test_going_back_twice_to_one_checkpoint_stops(small_log_root, tmp_path, monkeypatch):
    config = training_config(small_log_root, steps=12)
    with (
        bad_losses(monkeypatch, {4, 5, 6, 7, 8, 9}),
        pytest.raises(InputError, match=r"not stable: 3 steps in a row before step 9 .* of step 3"),
    ):
        train(config, tmp_path / "run", small_log_root)


def damage(log_root, number):
    for path in sorted((log_root / "samples" / "CAM_FRONT").glob("*.jpg"))[:number]:
        path.write_bytes(path.read_bytes()[:100])


def test_one_damaged_sample_is_named_once_and_left_out(own_log_root, tmp_path):
    damage(own_log_root, 1)
    config = training_config(own_log_root, steps=12)  # three epochs
    training = train(config, tmp_path / "run", own_log_root)
    found = [kind for _, kind in kinds(tmp_path / "run")]
    assert found == ["damaged"]
    listed = json.loads((tmp_path / "run" / "damaged.json").read_text())
    assert list(listed) == list(training.state.damaged)
    assert "CAM_FRONT" in str(listed)


def test_too_many_damaged_samples_stop_the_training(own_log_root, tmp_path):
    damage(own_log_root, 2)
    config = training_config(own_log_root, steps=12)
    with pytest.raises(InputError, match=r"2 of 8 keyframes are damaged.*damaged\.json"):
        train(config, tmp_path / "run", own_log_root)
    assert len(json.loads((tmp_path / "run" / "damaged.json").read_text())) == 2
    more = dataclasses.replace(config.data, max_damaged_share=0.25)
    train(dataclasses.replace(config, data=more), tmp_path / "other", own_log_root)


def test_a_run_starts_from_the_weights_of_others(small_log_root, tmp_path):
    config = training_config(small_log_root, steps=1)
    train(config, tmp_path / "first", small_log_root)
    head = dataclasses.replace(config.detector.map_head, channels=4)
    config = dataclasses.replace(
        config,
        detector=dataclasses.replace(config.detector, map_head=head),
        init_from=(str(tmp_path / "first"),),
        seed=5,
    )
    log = NuScenesLog(small_log_root)
    sampling = sample_config(config)
    dataset = NuScenesDataset(log, log.keyframe_tokens(), config.detector, sampling, 5)
    (tmp_path / "second").mkdir()
    training = Training(config, dataset, tmp_path / "second", Ranks())
    ((_, note),) = training.notes
    own, first = training.detector.state_dict(), load_checkpoint(tmp_path / "first").detector
    for name, value in first.state_dict().items():
        if not name.startswith("map_head"):
            assert torch.equal(own[name], value), name
    num = sum(name.startswith("fusion") for name in own)
    assert f"fusion {num} of {num}" in note
    assert training.train(SilentLog())


def test_rare_classes_are_seen_more_often(small_log_root, tmp_path):
    config = training_config(small_log_root)
    log = NuScenesLog(small_log_root)
    dataset = NuScenesDataset(
        log, log.keyframe_tokens(), config.detector, sample_config(config), config.seed
    )
    assert epoch_indices(config, dataset).tolist() == list(range(8))
    data = dataclasses.replace(config.data, cbgs=True)
    resampled = epoch_indices(dataclasses.replace(config, data=data), dataset)
    assert set(resampled.tolist()) <= set(range(8))
    assert resampled.tolist() != list(range(8))
