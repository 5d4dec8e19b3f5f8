"""Where the time of a training step goes, by section and by part of the network."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

DATA_WAIT = "data wait"
"""Section in which a step waits for its samples; the rest of the step counts as compute."""
NUM_WARMUP_STEPS = 3
"""First steps that are left out: allocation, choice of kernels, start of workers. Source: ours."""

OTHER = "other"
"""What no section of a step covers."""

SectionPath = tuple[str, ...]
"""Names of a section and of those round it, outermost first; empty for the whole step."""


class StepProfile:
    """Stop watch for sections that lie inside each other; sections of a step add up.

        with StepProfile(device) as profile:
            profile.watch(detector)
            for _ in range(20):
                with profile.section(DATA_WAIT):
                    batch = next(batches)
                with profile.section("forward"):  # holds a section per part of the network
                    ...
                profile.end_step()
        profile.table()

    A step lasts from the end of the one before it to `end_step`; what no section covers is "other".

    Args:
        device: Where the network runs. On CUDA each border of a section waits for the device, so
            that a section's time is its own; a profiled step is a little slower than another.
        num_warmup: Steps that are left out.
    """

    def __init__(self, device: torch.device | None = None, num_warmup: int = NUM_WARMUP_STEPS):
        self._device = device
        self._num_warmup = num_warmup
        self._open: list[tuple[SectionPath, float]] = []
        self._current: dict[SectionPath, float] = {}
        self._steps: list[dict[SectionPath, float]] = []
        self._step_started: float | None = None
        self._hooks: list[RemovableHandle] = []

    def __enter__(self) -> "StepProfile":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    @contextmanager
    def section(self, name: str) -> Iterator[None]:
        """Time a block; one of the same name in the same step adds to it."""
        depth = len(self._open)
        self._enter(name)
        try:
            yield
        finally:
            del self._open[depth + 1 :]  # parts that an exception has left
            self._leave()

    def watch(self, detector: nn.Module) -> None:
        """Time the forward pass of each part, inside of the section that calls the network."""
        for name, part in _parts(detector):
            self._hooks.append(part.register_forward_pre_hook(self._enter_hook(name)))
            self._hooks.append(part.register_forward_hook(self._leave_hook))

    def end_step(self) -> None:
        """The step is done; what follows belongs to the next."""
        now = self._now()
        if self._step_started is not None:
            whole = now - self._step_started
            covered = sum(taken for path, taken in self._current.items() if len(path) == 1)
            self._steps.append(self._current | {(OTHER,): whole - covered, (): whole})
        self._current = {}
        self._step_started = now

    @property
    def num_steps(self) -> int:
        """Steps that count."""
        return max(0, len(self._steps) - self._num_warmup)

    def compute_share(self) -> float:
        """Share of the steps in which they did not wait for data, 0 to 1; NaN if none was timed."""
        counted = self._steps[self._num_warmup :]
        whole = sum(step[()] for step in counted)
        if not any((DATA_WAIT,) in step for step in counted):
            return math.nan
        return 1 - sum(step.get((DATA_WAIT,), 0.0) for step in counted) / whole

    def table(self) -> str:
        """Milliseconds per step of every section, as text for people."""
        counted = self._steps[self._num_warmup :]
        if not counted:
            return (
                f"No step to show: {len(self._steps)} were timed and the first "
                f"{self._num_warmup} are left out as warm-up."
            )
        paths = _tree_order(counted)
        width = max(24, *(2 * len(path) + len(path[-1]) for path in paths if path))
        title = "section of a step [ms]"
        rows = [f"{title:<{width}}{'mean':>10}{'p50':>10}{'p95':>10}{'share':>9}"]
        whole = _milliseconds(counted, ())
        for path in paths:
            taken = _milliseconds(counted, path)
            name = "  " * (len(path) - 1) + path[-1] if path else "whole step"
            p50, p95 = np.percentile(taken, (50, 95))
            share = 100 * taken.mean() / whole.mean()
            rows.append(
                f"{name:<{width}}{taken.mean():>10.2f}{p50:>10.2f}{p95:>10.2f}{share:>8.1f}%"
            )
        rows.append(f"{len(counted)} steps; the first {self._num_warmup} are left out as warm-up")
        if not math.isnan(share := self.compute_share()):
            rows.append(f"compute share of the step: {100 * share:.1f} %")
        return "\n".join(rows)

    def _enter(self, name: str) -> None:
        now = self._now()
        if self._step_started is None:
            self._step_started = now
        outer = self._open[-1][0] if self._open else ()
        # a place in the order of the table, before any section inside of it takes one
        self._current.setdefault((*outer, name), 0.0)
        self._open.append(((*outer, name), now))

    def _leave(self) -> None:
        path, started = self._open.pop()
        self._current[path] = self._current.get(path, 0.0) + self._now() - started

    def _enter_hook(self, name: str) -> Any:
        def enter(module: nn.Module, inputs: Any) -> None:
            self._enter(name)

        return enter

    def _leave_hook(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self._leave()

    def _now(self) -> float:
        if self._device is not None and self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


def _parts(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Children with their names; a container is never called, so its members stand for it."""
    for name, child in module.named_children():
        if isinstance(child, (nn.ModuleList, nn.ModuleDict)):
            yield from _parts(child, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", child


def _tree_order(steps: list[dict[SectionPath, float]]) -> list[SectionPath]:
    """Sections in the order in which they first came, each followed by what lies in it."""
    seen = list(dict.fromkeys(path for step in steps for path in step))
    place = {path: index for index, path in enumerate(seen)}

    def key(path: SectionPath) -> list[int]:
        return [place[path[: depth + 1]] for depth in range(len(path))]

    named = [path for path in seen if path not in ((), (OTHER,))]
    return [*sorted(named, key=key), (OTHER,), ()]


def _milliseconds(steps: list[dict[SectionPath, float]], path: SectionPath) -> np.ndarray:
    return 1e3 * np.array([step.get(path, 0.0) for step in steps])
