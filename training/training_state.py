"""Checkpoints that training resumes from, as if it had never stopped.

    run/checkpoints/step_00000500/model.safetensors      weights and buffers
                                  optimizer.safetensors  moments and step of each weight
                                  ema.safetensors        moving average of the weights, or nothing
                                  state.json             the rest, and a digest of each file

A folder appears under its name when it is complete; what a kill left half done is removed.
"""

import dataclasses
import hashlib
import json
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from perception import atomic_file, json_codec
from perception.errors import InputError

CHECKPOINTS_FOLDER = "checkpoints"
NUM_KEPT = 3
_STATE_FILE = "state.json"
_TENSOR_FILES = ("model", "optimizer", "ema")
_FOLDER_NAME = re.compile(r"step_(\d{8})")


@dataclass(frozen=True, kw_only=True)
class TrainingState:
    """Where a training stands, besides its tensors."""

    step: int = 0
    """Steps that are done."""
    num_skipped: int = 0
    """Steps that were skipped because loss or gradient was not finite."""
    rolled_back_to: int = -1
    """Checkpoint that was last gone back to; -1 if none was."""
    damaged: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Keyframes that could not be used, and why."""
    known_map_classes: tuple[str, ...] = ()
    """Map layers that any frame knew so far."""
    loss_scale: float = 0.0
    """fp16's loss scale; 0 in other precisions."""
    num_good_scales: int = 0
    """Steps since the loss scale changed."""
    task_rule: dict[str, float] = field(default_factory=dict)
    """What the rule that combines the tasks has learned."""


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """Everything that a training is, on the CPU."""

    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    ema: dict[str, Tensor]
    state: TrainingState


class CheckpointStore:
    """The checkpoints of a run folder."""

    def __init__(self, run: Path):
        self.folder = run / CHECKPOINTS_FOLDER

    def steps(self) -> list[int]:
        """Steps of which there is a checkpoint, oldest first."""
        names = [path.name for path in self.folder.glob("step_*")]
        return sorted(int(m[1]) for name in names if (m := _FOLDER_NAME.fullmatch(name)))

    def path(self, step: int) -> Path:
        """Folder of a step's checkpoint."""
        return self.folder / f"step_{step:08d}"

    def save(self, snapshot: Snapshot) -> None:
        """Write a checkpoint and remove all but the newest ones."""
        with atomic_file.new_folder(self.path(snapshot.state.step), overwrite=True) as folder:
            digests = {}
            for name in _TENSOR_FILES:
                tensors = {k: t.contiguous() for k, t in getattr(snapshot, name).items()}
                content = safetensors.torch.save(tensors)
                atomic_file.write_bytes(folder / f"{name}.safetensors", content)
                digests[name] = hashlib.sha256(content).hexdigest()
            state = dataclasses.asdict(snapshot.state)
            digests["state"] = _digest_of_state(state)
            text = json.dumps({"state": state, "sha256": digests}, indent=2) + "\n"
            atomic_file.write_text(folder / _STATE_FILE, text)
        for step in self.steps()[:-NUM_KEPT]:
            self.remove(step)

    def load(self, step: int) -> Snapshot:
        """Read a checkpoint.

        Raises:
            InputError: It is damaged.
        """
        path = self.path(step)
        try:
            content = json.loads((path / _STATE_FILE).read_text())
            state, digests = content["state"], content["sha256"]
            whole = digests["state"] == _digest_of_state(state)
            tensors = {}
            for name in _TENSOR_FILES:
                data = (path / f"{name}.safetensors").read_bytes()
                whole = whole and hashlib.sha256(data).hexdigest() == digests[name]
                if whole:
                    tensors[name] = safetensors.torch.load(data)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} is damaged ({error}).") from error
        if not whole:
            raise InputError(f"{path} is damaged (its files do not match their digests).")
        text = json.dumps(state)
        return Snapshot(
            **tensors, state=json_codec.from_json(TrainingState, text, str(path / _STATE_FILE))
        )

    def newest_whole(self) -> tuple[Snapshot | None, list[str]]:
        """The newest checkpoint that is whole; damaged newer ones are removed and complained of.

        Raises:
            InputError: There are checkpoints, and all are damaged.
        """
        complaints: list[str] = []
        damaged: list[int] = []
        for step in reversed(self.steps()):
            try:
                snapshot = self.load(step)
            except InputError as error:
                complaints.append(f"{error} The one before is used.")
                damaged.append(step)
                continue
            for newer in damaged:
                self.remove(newer)
            return snapshot, complaints
        if complaints:
            raise InputError(
                f"All checkpoints in {self.folder} are damaged: start again with --overwrite."
            )
        return None, complaints

    def remove(self, step: int) -> None:
        """Remove a checkpoint; no reader ever sees a part of it."""
        doomed = self.folder / f".{self.path(step).name}.removed"
        shutil.rmtree(doomed, ignore_errors=True)
        self.path(step).replace(doomed)
        shutil.rmtree(doomed, ignore_errors=True)

    def remove_leftovers(self) -> None:
        """Remove what kills left half written or half removed."""
        for path in self.folder.glob(".step_*"):
            shutil.rmtree(path, ignore_errors=True)


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, names: dict[str, Tensor]
) -> dict[str, Tensor]:
    """State of an optimiser by the names of its parameters: "exp_avg/NAME" and so on."""
    return {
        f"{kind}/{name}": value.detach().cpu().clone()
        for name, parameter in names.items()
        for kind, value in optimizer.state.get(parameter, {}).items()
    }


def restore_optimizer(
    optimizer: torch.optim.Optimizer, names: dict[str, Tensor], tensors: dict[str, Tensor]
) -> None:
    """Undo `optimizer_tensors`."""
    optimizer.state.clear()
    for key, value in tensors.items():
        kind, name = key.split("/", 1)
        parameter = names[name]
        # AdamW counts its steps on the CPU
        device = "cpu" if kind == "step" else parameter.device
        optimizer.state[parameter][kind] = value.clone().to(device)


def _digest_of_state(state: object) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()
