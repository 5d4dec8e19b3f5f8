import json

import pytest
import torch
from torch import nn

from perception.errors import InputError
from training.training_state import (
    CheckpointStore,
    Snapshot,
    TrainingState,
    optimizer_tensors,
    restore_optimizer,
)


def snapshot(step, **state):
    return Snapshot(
        model={"w": torch.full((2, 3), float(step)), "n": torch.tensor(step)},
        optimizer={},
        ema={"w": torch.zeros(2)},
        state=TrainingState(step=step, **state),
    )


def test_round_trip(tmp_path):
    store = CheckpointStore(tmp_path)
    state = {"damaged": {"a": ("b", "c")}, "known_map_classes": ("divider",), "loss_scale": 0.1}
    store.save(snapshot(5, **state))
    loaded = store.load(5)
    assert loaded.state == TrainingState(step=5, **state)
    assert torch.equal(loaded.model["w"], torch.full((2, 3), 5.0))
    assert loaded.model["n"].dtype == torch.int64
    assert loaded.optimizer == {}
    assert not list(tmp_path.rglob("*.pt"))


def test_the_newest_three_are_kept(tmp_path):
    store = CheckpointStore(tmp_path)
    assert store.newest_whole() == (None, [])
    for step in (0, 10, 20, 100):
        store.save(snapshot(step))
    assert store.steps() == [10, 20, 100]
    assert store.newest_whole()[0].state.step == 100


def test_leftovers_are_no_checkpoints_and_are_removed(tmp_path):
    store = CheckpointStore(tmp_path)
    store.save(snapshot(1))
    (store.folder / ".step_00000002.123.tmp").mkdir()
    (store.folder / ".step_00000000.removed").mkdir()
    assert store.steps() == [1]
    store.remove_leftovers()
    assert [path.name for path in store.folder.iterdir()] == ["step_00000001"]


def damage_tensors(path):
    content = bytearray((path / "model.safetensors").read_bytes())
    content[-1] ^= 1  # safetensors itself loads this without a word
    (path / "model.safetensors").write_bytes(content)


def damage_state(path):
    text = (path / "state.json").read_text()
    (path / "state.json").write_text(text.replace('"step": 2', '"step": 3'))


def truncate_state(path):
    (path / "state.json").write_text("{")


def lose_a_file(path):
    (path / "ema.safetensors").unlink()


def forget_the_digests(path):
    (path / "state.json").write_text(json.dumps({"state": {}}))


@pytest.mark.parametrize(
    "damage", [damage_tensors, damage_state, truncate_state, lose_a_file, forget_the_digests]
)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, damage):
    store = CheckpointStore(tmp_path)
    store.save(snapshot(1))
    store.save(snapshot(2))
    damage(store.path(2))
    with pytest.raises(InputError, match="is damaged"):
        store.load(2)
    found, complaints = store.newest_whole()
    assert found.state.step == 1
    assert len(complaints) == 1
    assert store.steps() == [1]
    damage(store.path(1))
    if damage is not damage_state:  # which only changes a step 2
        with pytest.raises(InputError, match=r"All checkpoints in .* are damaged"):
            store.newest_whole()


def test_an_optimizer_goes_on_as_if_nothing_had_happened():
    def train(net, optimizer, steps):
        for step in steps:
            optimizer.zero_grad()
            net(torch.full((1, 3), float(step))).sum().square().backward()
            optimizer.step()

    torch.manual_seed(0)
    net = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
    train(net, optimizer, range(3))
    tensors = optimizer_tensors(optimizer, dict(net.named_parameters()))
    assert set(tensors) >= {"exp_avg/weight", "exp_avg_sq/bias", "step/weight"}

    other = nn.Linear(3, 2)
    other.load_state_dict(net.state_dict())
    restored = torch.optim.AdamW(other.parameters(), lr=0.1)
    restore_optimizer(restored, dict(other.named_parameters()), tensors)
    for each in ((net, optimizer), (other, restored)):
        train(*each, range(3, 6))
    assert torch.equal(net.weight, other.weight)
    assert torch.equal(net.bias, other.bias)
