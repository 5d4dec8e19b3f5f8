"""What a run says while it trains: files for machines, TensorBoard, and lines or a bar for people.

metrics.jsonl   one object per step: step, losses, grad_norm, lr, and last "timing" [s]
events.jsonl    one object per event: step, kind, text
tensorboard/    the same numbers as scalars
"""

import json
import math
import os
import time
from collections import Counter
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import torch
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from perception import atomic_file, json_codec
from training.config import TrainConfig
from training.two_phase import FIGURE_PREFIX

METRICS_FILE = "metrics.jsonl"
EVENTS_FILE = "events.jsonl"
TENSORBOARD_FOLDER = "tensorboard"
NOT_LOSSES = frozenset({"grad_norm", "lr"})
"""Values of a step that are no losses, besides those of calibration: see `is_loss`."""
STEP_TIME = "step"
"""Key in `timing` of the whole step, the wait for its data included [s]."""
DATA_WAIT_TIME = "data_wait"
"""Key in `timing` of the time in which a step had no data to work on [s]."""
SMOOTHING_STEPS = 20
"""About as many steps count in a shown mean. Source: ours."""
LINE_SECONDS = 10.0
"""Between two lines where output is no terminal [s]. Source: ours."""
REFRESH_SECONDS = 0.2
"""Between two pictures of the bar [s]. Source: ours."""
TENSORBOARD_FLUSH_SECONDS = 10
"""A killed process loses that much of TensorBoard's scalars at most [s]. Source: ours."""


class RunLog:
    """Takes each step's numbers and each event, and puts them where they belong.

    A context manager. Opening it on a run that was interrupted forgets what came after
    `first_step`, so that the files end up as if nothing had happened. On any process but the first
    of a distributed run there must be none.

    Args:
        run: Run folder; exists.
        config: The run's configuration: number of steps, frames per step.
        first_step: Steps that are done already: 0 for a new run. The first call of `step` has 1
            more.
        tensorboard: Whether to write scalars for TensorBoard.
        console: Where to show progress; stdout if None.
    """

    def __init__(
        self,
        run: Path,
        config: TrainConfig,
        first_step: int,
        tensorboard: bool,
        console: Console | None = None,
    ):
        for name in (METRICS_FILE, EVENTS_FILE):
            _cut_back(run / name, first_step)
        self._progress = _Progress(config, first_step, console or Console(soft_wrap=True))
        self._progress.count(event["kind"] for event in read_events(run))
        self._metrics = (run / METRICS_FILE).open("a", encoding="utf-8")
        self._events = (run / EVENTS_FILE).open("a", encoding="utf-8")
        self._writer: Any = None
        if tensorboard:
            self._writer = _tensorboard_writer(run, config, first_step)
            if self._writer is None:
                self._progress.say(
                    "TensorBoard is not installed, so its scalars are left out: metrics.jsonl has "
                    "them all (pip install tensorboard)."
                )

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def step(self, step: int, values: dict[str, float], timing: dict[str, float]) -> None:
        """Note a finished step.

        Args:
            step: Its number, counted from 1.
            values: Losses by name with their weighted sum "total", "grad_norm", "lr", and what
                calibration found: what a repetition of the step would give again, bit for bit.
                What is not finite is noted as null.
            timing: What it would not give again [s]: `STEP_TIME`, `DATA_WAIT_TIME`, others.
        """
        line = {"step": step} | _finite_or_none(values) | {"timing": _finite_or_none(timing)}
        _write_line(self._metrics, line)
        if self._writer is not None:
            for name, value in values.items():
                group = "optim/" if name in NOT_LOSSES else "loss/" if is_loss(name) else ""
                self._writer.add_scalar(f"{group}{name}", value, step)
            for name, value in timing.items():
                self._writer.add_scalar(f"time/{name}", value, step)
        self._progress.step(step, values, timing)

    def event(self, step: int, kind: str, text: str) -> None:
        """Note what is not an ordinary step: a skipped one, a damaged sample, a resumption.

        Args:
            step: The step during which it happened.
            kind: A word; events are counted by it, such as "skipped" or "damaged".
            text: One sentence.
        """
        _write_line(self._events, {"step": step, "kind": kind, "text": text})
        self._progress.count([kind])
        self._progress.say(f"event step={step} kind={kind} {text}")

    def sync(self) -> None:
        """Bring everything to the disk: before a checkpoint, so that no line is older than it."""
        for file in (self._metrics, self._events):
            file.flush()
            os.fsync(file.fileno())
        if self._writer is not None:
            self._writer.flush()

    def close(self) -> None:
        """Finish the files and the display; a second call does nothing."""
        self._progress.close()
        self._metrics.close()
        self._events.close()
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """Steps of a run in their order; None stands for a value that was not finite.

    A line that a kill has cut short is left out. Empty where there is no such file.
    """
    return _read_lines(run / METRICS_FILE)


def read_events(run: Path) -> list[dict[str, Any]]:
    """Events of a run in their order, see `read_metrics`."""
    return _read_lines(run / EVENTS_FILE)


def is_loss(name: str) -> bool:
    """Whether a value of a step is a loss."""
    return name not in NOT_LOSSES and not name.startswith(FIGURE_PREFIX)


def _read_lines(path: Path) -> list[dict[str, Any]]:
    return [line for _text, line in _whole_lines(path)]


def _whole_lines(path: Path) -> list[tuple[str, dict[str, Any]]]:
    if not path.is_file():
        return []
    found = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if text.endswith("\n") and isinstance(line, dict) and isinstance(line.get("step"), int):
            found.append((text, line))
    return found


def _cut_back(path: Path, first_step: int) -> None:
    """Drop what came after a step, and what a kill has cut short."""
    if path.exists():
        kept = [text for text, line in _whole_lines(path) if line["step"] <= first_step]
        atomic_file.write_text(path, "".join(kept))


def _write_line(file: TextIO, line: dict[str, Any]) -> None:
    file.write(json.dumps(line, allow_nan=False) + "\n")
    file.flush()


def _finite_or_none(values: dict[str, float]) -> dict[str, float | None]:
    """JSON knows no NaN."""
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def _tensorboard_writer(run: Path, config: TrainConfig, first_step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:  # of the extra `train`; training does without
        return None
    writer = SummaryWriter(
        str(run / TENSORBOARD_FOLDER),
        purge_step=first_step + 1,  # hides what an interrupted run wrote after its checkpoint
        flush_secs=TENSORBOARD_FLUSH_SECONDS,
    )
    if first_step == 0:
        indented = json_codec.to_json(config).replace("\n", "\n    ")
        writer.add_text("config", f"    {indented}", 0)
    return writer


class _Mean:
    """Mean in which the newest values weigh most; what is not finite does not count."""

    def __init__(self) -> None:
        self._sum = self._weight = 0.0

    def add(self, value: float) -> None:
        if math.isfinite(value):
            keep = 1 - 1 / SMOOTHING_STEPS
            self._sum = keep * self._sum + (1 - keep) * value
            self._weight = keep * self._weight + (1 - keep)

    @property
    def value(self) -> float:
        return self._sum / self._weight if self._weight else math.nan


class _Progress:
    """A bar on a terminal; elsewhere a line of key=value now and then."""

    def __init__(self, config: TrainConfig, first_step: int, console: Console):
        self._num_steps = config.optim.steps
        self._batch_size = config.optim.batch_size
        self._console = console
        self._done = first_step
        self._losses: dict[str, _Mean] = {}
        self._latest: dict[str, float] = {}
        self._seconds, self._wait = _Mean(), _Mean()
        self._counts: Counter[str] = Counter()
        self._shown_at = -math.inf
        self._shown_step = first_step
        self._last_call = time.perf_counter()
        self._live: Live | None = None
        if console.is_terminal:
            # no thread of its own: data workers are forked from this process
            self._live = Live(self._picture(), console=console, auto_refresh=False)
            self._live.start()

    def count(self, kinds: Any) -> None:
        self._counts.update(kinds)

    def say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, emoji=False)

    def step(self, step: int, values: dict[str, float], timing: dict[str, float]) -> None:
        now = time.perf_counter()
        seconds = timing.get(STEP_TIME, now - self._last_call)
        self._last_call = now
        self._done = step
        self._seconds.add(seconds)
        self._wait.add(timing.get(DATA_WAIT_TIME, math.nan))
        for name, value in values.items():
            if is_loss(name):
                self._losses.setdefault(name, _Mean()).add(value)
            else:
                self._latest[name.removeprefix(FIGURE_PREFIX)] = value
        pause = REFRESH_SECONDS if self._live else LINE_SECONDS
        if now - self._shown_at >= pause or step == self._num_steps:
            self._show(now)

    def close(self) -> None:
        if self._shown_step != self._done:
            self._show(time.perf_counter())
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _show(self, now: float) -> None:
        self._shown_at, self._shown_step = now, self._done
        if self._live is not None:
            self._live.update(self._picture(), refresh=True)
        else:
            fields = {"step": f"{self._done}/{self._num_steps}"} | self._figures()
            self.say(" ".join(f"{name}={text}" for name, text in fields.items()))

    def _figures(self) -> dict[str, str]:
        """Everything that is shown besides the step, in the order in which it is."""
        fields = {name: f"{mean.value:.4g}" for name, mean in self._losses.items()}
        fields |= {name: f"{value:.3g}" for name, value in self._latest.items()}
        seconds = self._seconds.value
        if seconds > 0:
            left = timedelta(seconds=round((self._num_steps - self._done) * seconds))
            fields |= {"samples_per_s": f"{self._batch_size / seconds:.3g}"}
            if math.isfinite(self._wait.value):
                fields |= {"data_wait_percent": f"{100 * self._wait.value / seconds:.1f}"}
            fields |= {"eta": str(left).replace(" ", "")}
        if torch.cuda.is_available():
            fields |= {"gpu_gib": f"{torch.cuda.max_memory_allocated() / 2**30:.2f}"}
        return fields | {kind: str(count) for kind, count in sorted(self._counts.items())}

    def _picture(self) -> Group:
        fields = self._figures()
        losses = [f"{name} {fields.pop(name)}" for name in self._losses]
        labels = {
            "lr": "lr {}",
            "grad_norm": "|grad| {}",
            "samples_per_s": "{} samples/s",
            "data_wait_percent": "waits for data {} %",
            "eta": "{} left",
            "gpu_gib": "GPU {} GiB",
        }
        rest = [labels.get(name, f"{name} {{}}").format(text) for name, text in fields.items()]
        first = Table.grid(padding=(0, 1))
        first.add_row(
            f"step {self._done} of {self._num_steps}",
            ProgressBar(total=self._num_steps, completed=self._done, width=40),
        )
        return Group(
            first,
            Text("   ".join(losses), style="bold"),
            Text("   ".join(rest), style="dim"),
        )
