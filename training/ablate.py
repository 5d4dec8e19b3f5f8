"""Compare arms over seeds: `python training/ablate.py RECIPE --data.log ROOT --val-split NAME`.

Every arm is trained with every pair of loss weights and every seed, and evaluated on held-out
scenes. The same command goes on where it was interrupted. Options of the recipe are those of
`train.py`.

    OUT/ARM_BOXES_MAP_SEED/    a run folder with its evaluation; .txt is what it printed
    OUT/ablation.json          all figures
    OUT/ablation.md            tables of means and standard deviations, and the command
"""

import contextlib
import dataclasses
import functools
import itertools
import json
import multiprocessing
import os
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from perception import atomic_file, provenance
from perception.checkpoint import CHECKPOINT_FILE
from perception.data.nuscenes_log import NuScenesLog
from perception.errors import InputError, run_command
from training import train
from training.ablation_table import Cell, Figures, figures_of, to_json, to_markdown
from training.config import TrainConfig
from training.evaluate import EvaluationOptions, evaluate_run, spread
from training.gradient_calibration import EqualConfig, ImtlGConfig, IntraConfig
from training.recipes import RECIPES, recipe_by_name
from training.report import EVALUATION_FILE, EVALUATION_FOLDER
from training.run_folder import check_same
from training.sensor_subsets import SubsetChoice, sensor_subsets
from training.splits import split_tokens
from training.task_rules import (
    EqualNormConfig,
    GradNormConfig,
    InterConfig,
    MgdaConfig,
    PcGradConfig,
    UncertaintyConfig,
)

ArmName = Literal[
    "none", "inter", "intra", "both", "uncertainty", "grad_norm", "mgda", "pc_grad", "equal_norm"
]

ARMS: dict[str, tuple[InterConfig | None, IntraConfig | None]] = {
    "none": (None, None),
    "inter": (InterConfig(rule=ImtlGConfig()), None),
    "intra": (None, EqualConfig()),
    "both": (InterConfig(rule=ImtlGConfig()), EqualConfig()),
    "uncertainty": (InterConfig(rule=UncertaintyConfig()), None),
    "grad_norm": (InterConfig(rule=GradNormConfig()), None),
    "mgda": (InterConfig(rule=MgdaConfig(), site="feature"), None),
    "pc_grad": (InterConfig(rule=PcGradConfig()), None),
    "equal_norm": (InterConfig(rule=EqualNormConfig()), None),
}
"""What replaces `inter` and `intra` of the recipe; nothing else differs between arms."""

JSON_FILE = "ablation.json"
MARKDOWN_FILE = "ablation.md"


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is compared, and on what."""

    val_split: str
    """Split that is scored: official, or the log's own. Its scenes must not be trained on."""
    val_log: str = ""
    """Log of that split; empty takes the one that is trained on."""
    out: str = ""
    """Folder of all runs and the tables; empty makes runs/ablation_RECIPE."""
    arms: tuple[ArmName, ...] = ("none", "inter", "intra", "both")
    """The first is what the others are compared with."""
    weights: tuple[str, ...] = ("1:1",)
    """Weights of the losses, BOXES:MAP, such as 1:1 10:1 1:10."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Each trains all arms: initial weights and order of the keyframes are the same in each arm."""
    subsets: SubsetChoice = "none"
    """Sensors that are lost on trial in the evaluation."""
    max_keyframes: int | None = None
    """Keyframes scored, spread over the scenes; None takes all."""
    processes: int = 1
    """Runs that are trained side by side; torch's threads are divided between them."""


@dataclass(frozen=True, kw_only=True)
class Command:
    """Train and evaluate arms of a recipe with several seeds, and compare them."""

    config: Annotated[TrainConfig, tyro.conf.arg(name="")]
    options: Annotated[Options, tyro.conf.arg(name="")]


@dataclass(frozen=True, kw_only=True)
class _Job:
    """A cell with all that its process needs."""

    cell: Cell
    run: Path
    config: TrainConfig
    options: Options

    def __call__(self) -> Figures | None:
        """Do what is left to do; None where somebody asked to stop."""
        self.run.parent.mkdir(parents=True, exist_ok=True)
        with _output_to(self.run.with_name(self.run.name + ".txt")):
            if not _is_trained(self.run, self.config) and not train.run_training(
                self.config, train.Options(out=str(self.run), tensorboard=False)
            ):
                return None
            return _evaluated(self.run, self.config, self.options)


def main() -> int:
    """Read the command line, do every cell, write and print the tables."""
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        names = "\n".join(f"  {name}" for name in RECIPES)
        sys.stdout.write(
            "usage: ablate.py RECIPE --data.log ROOT --val-split NAME [options]\n"
            f"       ablate.py RECIPE --help    all options\n\nrecipes:\n{names}\n"
        )
        return 0
    command = tyro.cli(
        Command,
        default=Command(config=recipe_by_name(sys.argv[1]), options=Options(val_split="")),
        args=sys.argv[2:],
        prog=f"ablate.py {sys.argv[1]}",
        config=(tyro.conf.AvoidSubcommands,),
    )
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # both leave no process behind
    figures = run_ablation(command.config, command.options)
    if figures is None:
        sys.stdout.write("stopped: the same command goes on from there\n")
        return 130
    return 0


def run_ablation(config: TrainConfig, options: Options) -> dict[Cell, Figures] | None:
    """Train and evaluate what is missing, and write the tables.

    Returns:
        Figures of all cells; None where somebody asked to stop.

    Raises:
        InputError: An option, the log or a folder cannot be used.
    """
    _check(config, options)
    out = Path(options.out) if options.out else Path("runs") / f"ablation_{config.recipe}"
    jobs = [_job(cell, out, config, options) for cell in _cells(options)]
    figures: dict[Cell, Figures] = {}
    started = time.monotonic()
    for job, found in _done(jobs, options.processes):
        if found is None:
            return None
        figures[job.cell] = found
        minutes = (time.monotonic() - started) / 60
        sys.stdout.write(
            f"{len(figures)} of {len(jobs)} after {minutes:.1f} min: {job.cell.name}: "
            f"mAP {found.mean_ap:.4f}  NDS {found.nds:.4f}  mIoU {found.mean_iou:.4f}\n"
        )
        sys.stdout.flush()
    figures = {job.cell: figures[job.cell] for job in jobs}
    command, environment = shlex.join(sys.argv), provenance.environment()
    atomic_file.write_text(out / JSON_FILE, to_json(figures, command, environment))
    text = to_markdown(figures, command, environment)
    atomic_file.write_text(out / MARKDOWN_FILE, text)
    sys.stdout.write(f"\n{text}\nwritten to {out / MARKDOWN_FILE}\n")
    return figures


def _cells(options: Options) -> list[Cell]:
    """By seed first: an interrupted study has all arms of some seeds."""
    weights = [_weights(text) for text in options.weights]
    return [
        Cell(arm=arm, box_weight=boxes, map_weight=of_map, seed=seed)
        for seed, (boxes, of_map), arm in itertools.product(options.seeds, weights, options.arms)
    ]


def _job(cell: Cell, out: Path, config: TrainConfig, options: Options) -> _Job:
    inter, intra = ARMS[cell.arm]
    num_threads = config.num_threads or max(1, (os.cpu_count() or 1) // options.processes)
    config = dataclasses.replace(
        config,
        inter=inter,
        intra=intra,
        seed=cell.seed,
        num_threads=num_threads,
        optim=dataclasses.replace(
            config.optim, box_weight=cell.box_weight, map_weight=cell.map_weight
        ),
    )
    return _Job(cell=cell, run=out / cell.name, config=config, options=options)


def _done(jobs: Sequence[_Job], processes: int) -> Iterator[tuple[_Job, Figures | None]]:
    """Jobs with what they found, as they end."""
    if processes == 1:
        yield from ((job, job()) for job in jobs)
        return
    # spawn: a fork would inherit threads of torch and OpenCV that it does not have
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        waiting = {pool.submit(job): job for job in jobs}
        try:
            for future in as_completed(waiting):
                yield waiting[future], future.result()
        except BaseException:
            for child in multiprocessing.active_children():
                child.terminate()  # a training finishes its step and can be gone on with
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _is_trained(run: Path, config: TrainConfig) -> bool:
    if not (run / CHECKPOINT_FILE).is_file():
        return False
    check_same(run, config)
    return True


def _evaluated(run: Path, config: TrainConfig, options: Options) -> Figures:
    """Figures of a trained run: those that lie there if they are of the same keyframes."""
    log = _val_log(config, options)
    tokens = spread(split_tokens(log, options.val_split, "all"), options.max_keyframes)
    subsets = sensor_subsets(config.detector.inputs, options.subsets)
    path = run / EVALUATION_FOLDER / EVALUATION_FILE
    wanted = {
        "log": log.root.name,
        "split": options.val_split,
        "num_keyframes": len(tokens),
        "sensor_subsets": [subset.name for subset in subsets] if len(subsets) > 1 else [],
    }
    if not path.is_file() or _asked_for(json.loads(path.read_text())) != wanted:
        how = EvaluationOptions(
            max_keyframes=options.max_keyframes, subsets=options.subsets, bands=()
        )
        evaluate_run(run, log, options.val_split, "all", path.parent, how)
    return figures_of(json.loads(path.read_text()), path)


def _asked_for(evaluation: dict[str, Any]) -> dict[str, Any]:
    """What an evaluation was asked for, of which its figures are."""
    names = ("log", "split", "num_keyframes")
    subsets = [subset["name"] for subset in evaluation.get("sensor_subsets", ())]
    return {name: evaluation.get(name) for name in names} | {"sensor_subsets": subsets}


def _val_log(config: TrainConfig, options: Options) -> NuScenesLog:
    return _open(options.val_log) if options.val_log else _train_log(config)


def _train_log(config: TrainConfig) -> NuScenesLog:
    return _open(config.data.log, config.data.version)


@functools.lru_cache(maxsize=2)
def _open(root: str, version: str = "") -> NuScenesLog:
    return NuScenesLog(Path(root), version or None)


def _check(config: TrainConfig, options: Options) -> None:
    """Refuse what would fail after hours, or compare nothing."""
    if not config.data.log:
        raise InputError("No log given: pass --data.log ROOT, the folder that holds v1.0-*/.")
    if not options.val_split:
        raise InputError("No split to score given: pass --val-split NAME, such as mini_val.")
    if options.processes < 1:
        raise InputError(f"--processes is {options.processes}, expected 1 or more.")
    for name in ("arms", "weights", "seeds"):
        values = getattr(options, name)
        if not values or len(set(values)) < len(values):
            raise InputError(f"--{name} is {values}, expected one or more, each once.")
    for text in options.weights:
        _weights(text)
    inputs = config.detector.inputs
    if not (inputs.cameras and inputs.use_lidar):
        needing = [arm for arm in options.arms if ARMS[arm][1] is not None]
        if needing:
            raise InputError(
                f"{config.recipe} has one kind of sensor and the arms {', '.join(needing)} need "
                "two: leave them out of --arms."
            )
    trained = split_tokens(_train_log(config), config.data.split, config.data.frames)
    scored = split_tokens(_val_log(config, options), options.val_split, "all")
    if both := set(trained) & set(scored):
        raise InputError(
            f"{len(both)} keyframes of {options.val_split!r} are trained on by "
            f"{config.data.split!r}: choose splits of different scenes."
        )


def _weights(text: str) -> tuple[float, float]:
    try:
        boxes, of_map = (float(part) for part in text.split(":"))
    except ValueError:
        boxes = of_map = float("nan")
    if not (0.0 < boxes < float("inf") and 0.0 < of_map < float("inf")):
        raise InputError(f"--weights has {text!r}, expected BOXES:MAP above 0 such as 10:1.")
    return boxes, of_map


@contextlib.contextmanager
def _output_to(path: Path) -> Iterator[None]:
    """What is printed goes to the end of a file: several runs at once cannot share a terminal."""
    with (
        path.open("a", buffering=1) as file,
        contextlib.redirect_stdout(file),
        contextlib.redirect_stderr(file),
    ):
        yield


if __name__ == "__main__":
    run_command(main)
