"""The training loop: samples in, steps, checkpoints, and weights out.

    samples (order.py) -> TrainStep (step.py) -> log (run_log.py) -> checkpoint (training_state.py)

Whatever ends the process, the same command goes on from the last checkpoint, and on a CPU every
number that follows is the same as if nothing had happened.
"""

import contextlib
import dataclasses
import json
import time
from collections.abc import Generator
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
import torch
from jaxtyping import Int64
from torch.utils.data import DataLoader

from perception import atomic_file, json_codec, provenance
from perception.checkpoint import CHECKPOINT_FILE, Checkpoint, save_checkpoint
from perception.data.nuscenes_dataset import (
    Batch,
    NuScenesDataset,
    SampleConfig,
    classes_of_frames,
)
from perception.data.sampling import cbgs_indices
from perception.errors import InputError
from perception.taxonomy import DETECTION_CLASSES, MAP_CLASSES
from training.config import TrainConfig
from training.distributed import Ranks, use_cross_rank_batch_norm
from training.initial_weights import initial_detector
from training.order import SampleOrder
from training.profiling import DATA_WAIT, StepProfile
from training.run_log import DATA_WAIT_TIME, STEP_TIME
from training.step import DetectorLosses, StepResult, TrainStep
from training.stop_request import StopRequest, ignore_stop_requests
from training.training_state import (
    CheckpointStore,
    Snapshot,
    TrainingState,
    optimizer_tensors,
    restore_optimizer,
)

DAMAGED_FILE = "damaged.json"


class Log(Protocol):
    """What a training tells of itself; `training.run_log.RunLog`."""

    def step(self, step: int, values: dict[str, float], timing: dict[str, float]) -> None:
        """Numbers of a step that is done, counted from 1."""

    def event(self, step: int, kind: str, text: str) -> None:
        """Something that does not happen every step."""

    def sync(self) -> None:
        """Bring what was told to the disk."""


class SilentLog:
    """The log of every process but the first."""

    def step(self, step: int, values: dict[str, float], timing: dict[str, float]) -> None:
        """Say nothing."""

    def event(self, step: int, kind: str, text: str) -> None:
        """Say nothing."""

    def sync(self) -> None:
        """Do nothing."""


def sample_config(config: TrainConfig) -> SampleConfig:
    """How the samples of a run are made."""
    return SampleConfig(
        image_augment=config.data.image_augment,
        bev_augment=config.data.bev_augment,
        faults=config.data.faults,
        depth_targets=config.optim.depth_weight > 0,
        skip_damaged=config.data.skip_damaged,
    )


def epoch_indices(config: TrainConfig, dataset: NuScenesDataset) -> Int64[np.ndarray, " n"]:
    """Keyframes of an epoch: each once, or resampled so that rare classes are seen more often."""
    if not config.data.cbgs:
        return np.arange(len(dataset.tokens), dtype=np.int64)
    classes = classes_of_frames(dataset.log, dataset.tokens)
    return cbgs_indices(classes, len(DETECTION_CLASSES), config.seed)


def sample_order(config: TrainConfig, dataset: NuScenesDataset, ranks: Ranks) -> SampleOrder:
    """The order of this rank's samples.

    Raises:
        InputError: The batch is larger than the epoch or does not split evenly.
    """
    return SampleOrder(
        indices=epoch_indices(config, dataset),
        batch_size=config.optim.batch_size,
        micro_batch=config.optim.micro_batch,
        seed=config.seed,
        rank=ranks.rank,
        world_size=ranks.world_size,
    )


class Training:
    """A run in the making. Opening one goes on from the newest checkpoint, if there is any.

    Args:
        config: The run.
        dataset: Its samples.
        run: Its folder; exists.
        ranks: The processes that train together.
        profile: Where the time of the steps goes; None does not ask.

    Raises:
        InputError: Batch, initial weights or checkpoints cannot be used.
    """

    def __init__(
        self,
        config: TrainConfig,
        dataset: NuScenesDataset,
        run: Path,
        ranks: Ranks,
        profile: StepProfile | None = None,
    ):
        self.config, self.dataset, self.run, self.ranks = config, dataset, run, ranks
        self.profile = profile
        self.order = sample_order(config, dataset, ranks)
        self._num_bad = 0
        self._last_notes: tuple[str, ...] = ()
        self._store = CheckpointStore(run)
        if ranks.is_first:
            self._store.remove_leftovers()
        snapshot, complaints = self._shared_snapshot()
        self.notes = [("checkpoint_damaged", text) for text in complaints]
        """Kind and text of the events that opening the run came with."""
        self.detector, sources = initial_detector(config, random_only=snapshot is not None)
        self.notes += [("weights", text) for text in sources]
        if ranks.world_size > 1 or config.optim.cross_rank_batch_norm:
            use_cross_rank_batch_norm(self.detector)
        self.detector.to(ranks.device).train()
        self._section = profile.section if profile else contextlib.nullcontext
        losses = DetectorLosses(self.detector, config.optim)
        self.step = TrainStep(
            losses, config.optim, ranks, config.seed, self._section, config.inter, config.intra
        )
        if profile:
            profile.watch(self.detector)
        self.state = TrainingState()
        if snapshot is not None:
            self._restore(snapshot)
            self.state = snapshot.state
            made_with = f"commit {provenance.commit_name()}, {ranks.world_size} processes"
            self.notes.append(("resumed", f"resumed after step {self.state.step}: {made_with}"))

    def train(self, log: Log) -> bool:
        """Do the steps that are left.

        Returns:
            Whether all steps are done; False if somebody asked to stop.

        Raises:
            InputError: Too many samples are damaged, or training cannot be stabilised.
        """
        first, num_steps = self.state.step, self.config.optim.steps
        for kind, text in self.notes:
            log.event(first, kind, text)
        if first == 0 and not self._store.steps():
            self._save(log)
        with StopRequest() as stop, contextlib.closing(self._batches()) as batches:
            for step in range(first, num_steps):
                is_good = self._one_step(step, batches, log)
                asked = self._any_rank(stop.is_asked)
                is_due = self.state.step % self.config.optim.checkpoint_every == 0
                # before a bad step the weights may have been bad already: only a good one saves
                if is_good and (is_due or asked or self.state.step == num_steps):
                    with self._section("checkpoint"):
                        self._save(log)
                if self.profile:
                    self.profile.end_step()
                if asked and is_good and self.state.step < num_steps:
                    return False
        return True

    def finish(self) -> None:
        """Leave the trained detector in the run folder: its moving average, if there is one."""
        if not self.ranks.is_first:
            return
        if self.step.ema:
            self.detector.load_state_dict(self.step.ema)
        trained = Checkpoint(
            detector=self.detector,
            config=self.config.detector,
            recipe=self.config.recipe,
            trained_map_classes=self.state.known_map_classes,
        )
        save_checkpoint(self.run / CHECKPOINT_FILE, trained)

    def _one_step(self, step: int, batches: Generator[list[Batch], None, None], log: Log) -> bool:
        """Do a step; returns whether it changed the weights."""
        started = time.perf_counter()
        with self._section(DATA_WAIT):
            micro_batches = next(batches)
        waited = time.perf_counter() - started
        self._note_data(micro_batches, step, log)
        result = self.step(micro_batches, step)
        self.state = dataclasses.replace(self.state, step=step + 1)
        timing = {STEP_TIME: time.perf_counter() - started, DATA_WAIT_TIME: waited}
        log.step(step + 1, result.values, timing)
        for text in result.notes:
            if text not in self._last_notes:  # what goes on is said once
                log.event(step + 1, "calibration", text)
        self._last_notes = result.notes
        self._judge(result, log)
        return not result.bad

    def _judge(self, result: StepResult, log: Log) -> None:
        """Count bad steps, and go back to the last checkpoint after too many in a row."""
        step = self.state.step
        if result.settling:
            log.event(step, "loss_scale", f"the loss scale was too large: {result.bad}")
        elif result.bad:
            self._num_bad += 1
            self.state = dataclasses.replace(self.state, num_skipped=self.state.num_skipped + 1)
            log.event(step, "skipped", f"step {step} is skipped: {result.bad}")
        else:
            self._num_bad = 0
        if self._num_bad == self.config.optim.max_bad_steps:
            self._roll_back(log)

    def _roll_back(self, log: Log) -> None:
        step = self.state.step
        snapshot, complaints = self._shared_snapshot()
        for text in complaints:
            log.event(step, "checkpoint_damaged", text)
        if snapshot is None or snapshot.state.step == self.state.rolled_back_to:
            raise InputError(
                f"Training is not stable: {self._num_bad} steps in a row before step {step} had a "
                "loss or gradient that is not finite, and going back to the checkpoint of step "
                f"{self.state.rolled_back_to} has not helped; lower --optim.lr."
            )
        self._restore(snapshot)
        self._num_bad = 0
        target = snapshot.state.step
        self.state = dataclasses.replace(self.state, rolled_back_to=target)
        log.event(step, "rolled_back", f"weights and optimiser are those of step {target} again")

    def _note_data(self, batches: list[Batch], step: int, log: Log) -> None:
        """Agree on the map layers that are known and on the samples that are damaged."""
        known = torch.stack([(batch.map.labelled > 0).any(dim=0) for batch in batches]).any(dim=0)
        damaged = {s.token: list(s.reasons) for batch in batches for s in batch.damaged}
        mine = torch.cat([known.float(), torch.tensor([float(len(damaged))])])
        *known_by, num_damaged = self.ranks.sum(mine.to(self.ranks.device)).tolist()
        layers = {name for name, number in zip(MAP_CLASSES, known_by, strict=True) if number}
        layers |= set(self.state.known_map_classes)
        if layers != set(self.state.known_map_classes):
            names = tuple(name for name in MAP_CLASSES if name in layers)
            self.state = dataclasses.replace(self.state, known_map_classes=names)
        if num_damaged:
            self._note_damaged(damaged, step, log)

    def _note_damaged(self, damaged: dict[str, list[str]], step: int, log: Log) -> None:
        known = dict(self.state.damaged)
        for text in self.ranks.gather_texts(json.dumps(damaged)):
            for token, reasons in json.loads(text).items():
                if token not in known:
                    known[token] = tuple(reasons)
                    log.event(step + 1, "damaged", f"keyframe {token} is left out: {reasons[0]}")
        if len(known) == len(self.state.damaged):
            return
        self.state = dataclasses.replace(self.state, damaged=known)
        path = self.run / DAMAGED_FILE
        if self.ranks.is_first:
            atomic_file.write_text(path, json.dumps(known, indent=2) + "\n")
        num_frames, share = len(self.dataset.tokens), self.config.data.max_damaged_share
        if len(known) > max(1.0, share * num_frames):
            raise InputError(
                f"{len(known)} of {num_frames} keyframes are damaged, more than the share of "
                f"{share:g} that may be: mend the files that {path} lists or raise "
                "--data.max-damaged-share."
            )

    def _batches(self) -> Generator[list[Batch], None, None]:
        """The micro-batches of each step that is left."""
        num_workers = self.config.data.num_workers
        # the cores are the network's and the workers'; a worker that is a fork must not inherit
        # OpenCV's threads, whose like it does not have
        cv2.setNumThreads(1)
        loader = DataLoader(
            self.dataset,
            batch_sampler=self.order.micro_batches(self.state.step, self.config.optim.steps),
            collate_fn=self.dataset.collate,
            num_workers=num_workers,
            worker_init_fn=ignore_stop_requests,
            persistent_workers=num_workers > 0,
        )
        batches = iter(loader)
        for _ in range(self.state.step, self.config.optim.steps):
            yield [next(batches) for _ in range(self.order.num_micro)]

    def _any_rank(self, asked: bool) -> bool:
        return bool(self.ranks.sum(torch.tensor([float(asked)], device=self.ranks.device)).item())

    def _save(self, log: Log) -> None:
        if not self.ranks.is_first:
            return
        log.sync()
        scaler = self.step.scaler.state_dict()
        self.state = dataclasses.replace(
            self.state,
            loss_scale=float(scaler.get("scale", 0.0)),
            num_good_scales=int(scaler.get("_growth_tracker", 0)),
            task_rule=dict(self.step.backward.state),
        )
        self._store.save(
            Snapshot(
                model=_on_cpu(self.detector.state_dict()),
                optimizer=optimizer_tensors(self.step.optimizer, self._parameters()),
                ema=_on_cpu(self.step.ema),
                state=self.state,
            )
        )

    def _shared_snapshot(self) -> tuple[Snapshot | None, list[str]]:
        """The newest whole checkpoint as the first rank has it; the others may have no files."""
        snapshot, complaints = self._store.newest_whole() if self.ranks.is_first else (None, [])
        if self.ranks.world_size == 1:
            return snapshot, complaints
        state = None if snapshot is None else dataclasses.asdict(snapshot.state)
        state = json.loads(self.ranks.share_text(json.dumps(state)))
        if state is None:
            return None, complaints
        tensors = {
            name: self.ranks.share_tensors(getattr(snapshot, name) if snapshot else {})
            for name in ("model", "optimizer", "ema")
        }
        text = json.dumps(state)
        shared = json_codec.from_json(TrainingState, text, "the first process's state")
        return Snapshot(**tensors, state=shared), complaints

    def _restore(self, snapshot: Snapshot) -> None:
        self.detector.load_state_dict(snapshot.model)
        restore_optimizer(self.step.optimizer, self._parameters(), snapshot.optimizer)
        for name, value in snapshot.ema.items():
            self.step.ema[name].copy_(value)
        self.step.backward.state = dict(snapshot.state.task_rule)
        if scaler := self.step.scaler.state_dict():
            scaler |= {
                "scale": snapshot.state.loss_scale,
                "_growth_tracker": snapshot.state.num_good_scales,
            }
            self.step.scaler.load_state_dict(scaler)

    def _parameters(self) -> dict[str, torch.Tensor]:
        return dict(self.detector.named_parameters())


def _on_cpu(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.detach().cpu().clone() for name, value in tensors.items()}
