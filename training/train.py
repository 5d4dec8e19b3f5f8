"""Train a recipe: `python training/train.py RECIPE --data.log ROOT [--overrides]`.

The same command goes on where a run was interrupted. Several processes: put
`torchrun --nproc-per-node N` in place of `python`.
"""

import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro

from perception import json_codec
from perception.data.nuscenes_dataset import NuScenesDataset
from perception.data.nuscenes_log import NuScenesLog
from perception.errors import InputError, run_command
from training import dry_run
from training.config import TrainConfig
from training.distributed import Ranks, join
from training.loop import SilentLog, Training, sample_config
from training.profiling import StepProfile
from training.recipes import RECIPES, recipe_by_name
from training.report import write_report
from training.run_folder import check_run, opened_run, run_environment
from training.run_log import RunLog
from training.splits import split_tokens


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the command does, besides what the run is."""

    out: str = ""
    """Run folder; empty makes runs/RECIPE. An unfinished run that lies there is gone on with."""
    overwrite: bool = False
    """Remove the run that lies in the folder."""
    dry_run: bool = False
    """Try everything once and say what the run would take; nothing is written."""
    print_config: bool = False
    """Print the complete configuration as JSON; nothing else is done."""
    profile: bool = False
    """Say at the end where the time of the steps went."""
    tensorboard: bool = True
    """Write scalars for TensorBoard into the run folder."""


@dataclass(frozen=True, kw_only=True)
class Command:
    """Train a recipe on a nuScenes log."""

    config: Annotated[TrainConfig, tyro.conf.arg(name="")]
    options: Annotated[Options, tyro.conf.arg(name="")]


def main() -> int:
    """Read the command line, train, leave a run folder."""
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        sys.stdout.write(usage())
        return 0
    recipe = recipe_by_name(sys.argv[1])
    command = tyro.cli(
        Command,
        default=Command(config=recipe, options=Options()),
        args=sys.argv[2:],
        prog=f"train.py {sys.argv[1]}",
        # a part that a recipe lacks is no subcommand: the recipe has decided
        config=(tyro.conf.AvoidSubcommands,),
    )
    if command.options.print_config:
        sys.stdout.write(json_codec.to_json(command.config))
        return 0
    with _errors_of_the_first_process():
        return 0 if run_training(command.config, command.options) else 130


def usage() -> str:
    """How the command is called, with a line for each recipe."""
    width = max(map(len, RECIPES))
    lines = [
        f"  {name:<{width}}  {(recipe.__doc__ or '').splitlines()[0]}"
        for name, recipe in RECIPES.items()
    ]
    return (
        "usage: train.py RECIPE --data.log ROOT [options]\n"
        "       train.py RECIPE --help    all options of a recipe\n\n"
        "recipes:\n" + "\n".join(lines) + "\n"
    )


def run_training(config: TrainConfig, options: Options | None = None) -> bool:
    """Train, or go on with the run that lies in the folder.

    Returns:
        Whether the run is finished; False where somebody asked it to stop.

    Raises:
        InputError: The log or the folder cannot be used.
    """
    options = options or Options()
    if not config.data.log:
        raise InputError("No log given: pass --data.log ROOT, the folder that holds v1.0-*/.")
    out = Path(options.out) if options.out else Path("runs") / config.recipe
    check_run(out, config, options.overwrite)
    log = NuScenesLog(Path(config.data.log), config.data.version or None)
    tokens = split_tokens(log, config.data.split, config.data.frames)
    dataset = NuScenesDataset(log, tokens, config.detector, sample_config(config), config.seed)
    if config.num_threads:
        torch.set_num_threads(config.num_threads)
    with join() as ranks:
        if options.dry_run:
            _say(ranks, f"keyframes: {len(tokens)}\n{dry_run.describe(config, dataset, ranks)}")
            return True
        return _train(config, options, dataset, out, ranks)


def _train(
    config: TrainConfig, options: Options, dataset: NuScenesDataset, out: Path, ranks: Ranks
) -> bool:
    environment = run_environment(config, dataset.tokens, ranks.world_size, ranks.device)
    with contextlib.ExitStack() as stack:
        if ranks.is_first:
            stack.enter_context(opened_run(out, config, options.overwrite, environment))
        profile = stack.enter_context(StepProfile(ranks.device)) if options.profile else None
        training = Training(config, dataset, out, ranks, profile)
        is_finished = _train_with_log(training, options, out)
        if profile is not None:
            _say(ranks, profile.table())
        if not is_finished:
            done = training.state.step
            _say(ranks, f"stopped after step {done}: the same command goes on from there ({out})")
            return False
        if ranks.is_first:
            write_report(out)
        training.finish()  # the last file: a run that has it is whole
    _say(ranks, f"trained on {len(dataset.tokens)} keyframes: {out}")
    return True


def _train_with_log(training: Training, options: Options, out: Path) -> bool:
    if not training.ranks.is_first:
        return training.train(SilentLog())
    with RunLog(out, training.config, training.state.step, options.tensorboard) as log:
        return training.train(log)


def _say(ranks: Ranks, text: str) -> None:
    if ranks.is_first:
        sys.stdout.write(text + "\n")


@contextlib.contextmanager
def _errors_of_the_first_process() -> Iterator[None]:
    """What all processes of a machine find wrong is said once."""
    try:
        yield
    except InputError:
        if int(os.environ.get("LOCAL_RANK", "0")) > 0:
            sys.exit(2)
        raise


if __name__ == "__main__":
    run_command(main)
