"""The backward pass in two phases: each task down to the map that all share, then once on.

    loss of boxes --> box head --> J_boxes --.
                                             +-> weighted sum --> BEV encoder --> fuser --.
    loss of map   --> map head --> J_map ----'                                            |
    loss of depth ---------------------------> image encoder <-- camera part x factor ----+
                                               point encoder <-- LiDAR part x factor -----'

Every run goes this way; without calibration the sum is plain and the factors are 1. Heads are
taught by their own losses alone.

Source: specs, FULLER sections 2.6, 2.7, 3.3 and 4.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from training.distributed import Ranks
from training.gradient_calibration import IntraConfig, has_direction, modality_factors
from training.task_rules import InterConfig, learned, loss_weights, shared_weights

TaskLosses = dict[str, dict[str, Tensor]]
"""Task ("boxes", "map", "depth") -> name of a loss -> its value over this batch."""

_BROKEN = "broken/"
FIGURE_PREFIX = "gradient/"
"""Of the names of what calibration says about a step."""


@dataclass(frozen=True, kw_only=True)
class TaskGraph:
    """Losses of a batch, on graphs that end at the map that the tasks share."""

    losses: TaskLosses
    shared: Tensor | None = None
    """That map, with the graph below it."""
    entries: Mapping[str, Tensor] = field(default_factory=dict)
    """Copies of it in which the graphs of the tasks end; a task without one reaches the weights
    below by itself."""


def cut_at(shared: Tensor, tasks: Sequence[str]) -> dict[str, Tensor]:
    """Copies of a map in which the graphs of the tasks shall end."""
    return {task: shared.detach().requires_grad_() for task in tasks}


def weighted_losses(losses: TaskLosses, task_weights: Mapping[str, float]) -> dict[str, Tensor]:
    """One number per task."""
    return {
        task: task_weights[task] * torch.stack(list(named.values())).sum()
        for task, named in losses.items()
    }


class TwoPhaseBackward:
    """Fills the gradients of a step, and says what it found.

    Args:
        losses: What makes `TaskGraph`s, see `training.step.DetectorLosses`.
        inter: How the tasks' gradients are combined; None adds them up.
        intra: How the sensors' gradients are brought together; None leaves them alone.
        ranks: The processes that train together: all come to the same weights.
        scaler: Of fp16.
        seed: Fixes rules that are random.
        max_broken: Steps in a row in which a task's gradient may be left out for not being finite.
    """

    def __init__(
        self,
        losses: Any,
        inter: InterConfig | None,
        intra: IntraConfig | None,
        ranks: Ranks,
        scaler: torch.amp.GradScaler,
        seed: int = 0,
        max_broken: int = 3,
    ):
        self.losses, self.inter, self.ranks, self.scaler = losses, inter, ranks, scaler
        self.seed, self.max_broken = seed, max_broken
        self.state: dict[str, float] = {}
        """What the rule has learned, and for how many steps a task has been broken."""
        self.unit = 1.0
        """What each loss is multiplied by in the backward pass: fp16's scale, times the ranks."""
        self._modalities: _ModalityBalance | None = None
        if intra is not None:
            self._modalities = _ModalityBalance(losses.detector.fusion, intra, self)
        self.start_step(0)

    def start_step(self, step: int) -> None:
        """Forget the step before."""
        self._rng = np.random.default_rng([self.seed, step])
        self._found: dict[str, list[float]] = defaultdict(list)
        self._notes: dict[str, None] = {}
        self._broken: set[str] = set()
        self._is_taught = self.inter is None

    def __call__(self, graph: TaskGraph) -> None:
        """Add the gradients of one micro-batch."""
        # DDP averages over ranks, each loss is a share of a sum
        one = torch.ones((), device=self.ranks.device)
        unit = self.unit = float(self.scaler.scale(one)) * self.ranks.world_size
        totals = weighted_losses(graph.losses, self.losses.task_weights)
        learned_weights = self._loss_weights(list(graph.entries))
        roots = [unit * loss for task, loss in totals.items() if task not in graph.entries]
        self._is_taught |= bool(roots)
        incoming: list[Tensor | None] = [None] * len(roots)
        if graph.shared is not None:
            scaled = {task: unit * learned_weights[task] * totals[task] for task in graph.entries}
            roots.append(graph.shared)
            incoming.append(self._down_to_shared(graph, graph.shared, scaled, learned_weights))
        torch.autograd.backward(roots, incoming)

    def mend(self) -> str:
        """After all ranks' gradients are there: take out those that no task has taught.

        Returns:
            Why the step must not be done; empty where it may.
        """
        for task in self._broken:
            _forget(self.losses.task_parameters(task))
        if not self._is_taught:
            _forget(self.losses.shared_parameters())
        before = {task: self.state.get(_BROKEN + task, 0.0) for task in self._broken}
        self.state = {name: x for name, x in self.state.items() if not name.startswith(_BROKEN)}
        for task in sorted(self._broken):
            num = self.state[_BROKEN + task] = before[task] + 1.0
            if num > self.max_broken or not self._is_taught:
                return f"the gradient of {task} is not finite"
        return ""

    def figures(self) -> dict[str, float]:
        """Means over the step's micro-batches, by names that start with `FIGURE_PREFIX`."""
        return {
            FIGURE_PREFIX + name: float(np.mean(values)) for name, values in self._found.items()
        }

    def notes(self) -> list[str]:
        """A sentence for each thing that was left out in this step."""
        return list(self._notes)

    def learn(self, values: Mapping[str, float], names: Mapping[str, Sequence[str]]) -> None:
        """The step was good: let the rule learn from it.

        Args:
            values: Losses by name, as `StepResult.values`.
            names: Names of each task's losses.
        """
        if self.inter is None:
            return
        task_weights = self.losses.task_weights
        losses = {t: task_weights[t] * sum(values[n] for n in names[t]) for t in names}
        norms = {t: float(np.mean(self._found.get(f"norm_{t}", [0.0]))) for t in names}
        there = [t for t in names if has_direction(norms[t]) and losses[t] > 0.0]
        self.state = learned(
            self.inter.rule,
            self.state,
            {task: losses[task] for task in there},
            {task: norms[task] for task in there},
        )

    def note(self, text: str) -> None:
        """Say that something was left out."""
        self._notes[text] = None

    def found(self, **figures: float) -> None:
        """Take down figures of a micro-batch."""
        for name, value in figures.items():
            self._found[name].append(value)

    def _loss_weights(self, tasks: Sequence[str]) -> dict[str, float]:
        if self.inter is None:
            return dict.fromkeys(tasks, 1.0)
        return loss_weights(self.inter.rule, self.state, tasks)

    def _down_to_shared(
        self,
        graph: TaskGraph,
        shared: Tensor,
        losses: Mapping[str, Tensor],
        learned_weights: Mapping[str, float],
    ) -> Tensor:
        """First phase: the heads' gradients, and the one that goes on from the shared map."""
        on_heads = self.inter is not None and self.inter.on_heads
        gradients: dict[str, Tensor] = {}
        for task, loss in losses.items():
            entry = graph.entries[task]
            if on_heads:
                (gradients[task],) = torch.autograd.grad(loss, entry, retain_graph=True)
            else:
                loss.backward()
                gradients[task] = torch.zeros_like(shared) if entry.grad is None else entry.grad
                entry.grad = None
        weights = self._task_weights(shared, gradients, learned_weights)
        if on_heads:
            for task, loss in losses.items():
                (weights[task] * loss).backward()
        combined = torch.zeros_like(shared)
        for task, gradient in gradients.items():
            if weights[task] != 0.0:  # what is left out may not be finite
                combined.add_(gradient, alpha=weights[task])
        return combined

    def _task_weights(
        self,
        shared: Tensor,
        gradients: Mapping[str, Tensor],
        learned_weights: Mapping[str, float],
    ) -> dict[str, float]:
        """Weights of the tasks' gradients, the same on all ranks."""
        if self.inter is None:
            return dict.fromkeys(gradients, 1.0)
        tasks = list(gradients)
        gram = self._gram(shared, list(gradients.values()))
        norms = np.sqrt(gram.diagonal())
        there = np.array([has_direction(norm) for norm in norms])
        weights = np.zeros(len(tasks))
        if self.scaler.is_enabled() and not np.isfinite(norms).all():
            weights[:] = 1.0  # an overflow: the scaler must see it
        else:
            if there.any():
                kept = gram[np.ix_(there, there)]
                weights[there] = shared_weights(self.inter.rule, kept, self._rng)
            self._note_missing(tasks, norms)
        self._is_taught |= bool(weights.any())
        for place, task in enumerate(tasks):
            # as if the rule's weight were not in the loss
            own = learned_weights[task]
            self.found(
                **{f"norm_{task}": norms[place] / own, f"alpha_{task}": weights[place] * own}
            )
        for i, j in combinations(np.flatnonzero(there), 2):
            cosine = gram[i, j] / (norms[i] * norms[j])
            self.found(**{f"cosine_{tasks[i]}_{tasks[j]}": cosine})
        return dict(zip(tasks, weights.tolist(), strict=True))

    def _note_missing(self, tasks: Sequence[str], norms: np.ndarray) -> None:
        for task, norm in zip(tasks, norms, strict=True):
            if norm == 0.0:
                self.note(f"the gradient of {task} is 0: the shared part does not learn from it")
            elif not np.isfinite(norm):
                self._broken.add(task)
                self.note(f"the gradient of {task} is not finite: the task is left out")

    def _gram(self, shared: Tensor, gradients: Sequence[Tensor]) -> np.ndarray:
        """Inner products of the tasks' gradients over all ranks, at the site of comparison."""
        if self.inter is not None and self.inter.site == "feature":
            # ranks hold different frames: products add up
            rows = torch.stack([gradient.flatten().float() for gradient in gradients])
            gram = self.ranks.sum((rows @ rows.T).double())
        else:
            weights = self.losses.last_shared_parameters()
            rows = torch.stack([_vjp(shared, weights, gradient) for gradient in gradients])
            # ranks hold shares of the same gradient: gradients add up
            rows = self.ranks.sum(rows).double()
            gram = rows @ rows.T
        return gram.cpu().numpy() / self.unit**2


class _ModalityBalance:
    """Scales the gradient of what a fuser concatenates, as it passes."""

    def __init__(self, fusion: Any, config: IntraConfig, backward: TwoPhaseBackward):
        self.fusion, self.config, self.backward = fusion, config, backward
        fusion.mix.register_forward_pre_hook(self._watch)

    def _watch(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        entered = inputs[0]
        if entered.requires_grad:
            # the fuser's zeros for a sensor that is masked have a gradient that reaches no branch
            there = [part.detach().flatten(1).any(dim=1) for part in self._parts(entered)]
            entered.register_hook(partial(self._scaled, there))

    def _parts(self, entered: Tensor) -> tuple[Tensor, Tensor]:
        camera, lidar = entered.split([self.fusion.c_camera, self.fusion.c_lidar], dim=1)
        return camera, lidar

    def _scaled(self, there: Sequence[Tensor], gradient: Tensor) -> Tensor:
        parts = self._parts(gradient)
        found = [_norm(part[seen]).square() for part, seen in zip(parts, there, strict=True)]
        num_seen = [seen.sum().to(gradient.device, torch.float32) for seen in there]
        *squares, num_camera, num_lidar = self.backward.ranks.sum(
            torch.stack([*found, *num_seen])
        ).tolist()
        camera, lidar = (square**0.5 for square in squares)
        if self.config.norm == "rms":
            camera /= self.fusion.c_camera**0.5
            lidar /= self.fusion.c_lidar**0.5
        unit = self.backward.unit
        if self.backward.scaler.is_enabled() and not math.isfinite(camera + lidar):
            return gradient  # an overflow: the scaler must see it
        factors = modality_factors(camera, lidar, self.config)
        for sensor, norm, num in (("camera", camera, num_camera), ("LiDAR", lidar, num_lidar)):
            if num and not has_direction(norm):
                kind = "0" if norm == 0.0 else "not finite"
                text = f"the gradient of the {sensor}'s BEV map is {kind}: both stay as they are"
                self.backward.note(text)
        self.backward.found(
            norm_camera=camera / unit,
            norm_lidar=lidar / unit,
            factor_camera=factors[0],
            factor_lidar=factors[1],
        )
        return torch.cat([k * part for k, part in zip(factors, parts, strict=True)], dim=1)


def _vjp(shared: Tensor, weights: Sequence[Tensor], gradient: Tensor) -> Tensor:
    """Gradient of weights from that of the map they make, as one vector."""
    found = torch.autograd.grad(shared, weights, gradient, retain_graph=True)
    return torch.cat([part.flatten().float() for part in found])


def _norm(part: Tensor) -> Tensor:
    return torch.linalg.vector_norm(part, dtype=torch.float32)


def _forget(parameters: Sequence[nn.Parameter]) -> None:
    """No gradient at all: the optimiser leaves them as they are."""
    for parameter in parameters:
        parameter.grad = None
