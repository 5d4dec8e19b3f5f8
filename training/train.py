"""Train a recipe: `python training/train.py RECIPE --data.log ROOT [--overrides]`."""

import dataclasses
import json
import sys
from datetime import datetime
from pathlib import Path
from typing import Annotated

import tyro

from perception import atomic_file, json_codec, provenance
from perception.data.nuscenes_dataset import NuScenesDataset
from perception.data.nuscenes_log import NuScenesLog
from perception.errors import InputError, run_command
from training.config import TrainConfig
from training.loop import train
from training.recipes import RECIPES, recipe_by_name
from training.splits import split_tokens

CONFIG_FILE = "config.json"
ENVIRONMENT_FILE = "environment.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """Train a recipe on a nuScenes log."""

    config: Annotated[TrainConfig, tyro.conf.arg(name="")]
    out: str = ""
    """Run folder; empty makes runs/RECIPE-TIME."""
    overwrite: bool = False
    """Replace an existing run folder."""


def main() -> None:
    """Read the command line, train, leave a run folder."""
    usage = f"usage: train.py {{{','.join(RECIPES)}}} --data.log ROOT [--help]\n"
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        sys.stdout.write(usage)
        return
    recipe = recipe_by_name(sys.argv[1])
    command = tyro.cli(
        Command,
        default=Command(config=recipe),
        args=sys.argv[2:],
        prog=f"train.py {sys.argv[1]}",
        # a part that a recipe lacks is no subcommand: the recipe has decided
        config=(tyro.conf.AvoidSubcommands,),
    )
    run_training(command.config, Path(command.out) if command.out else None, command.overwrite)


def run_training(config: TrainConfig, out: Path | None = None, overwrite: bool = False) -> Path:
    """Train and return the run folder.

    The folder appears under its name when the run is complete.

    Raises:
        InputError: The log cannot be used, or the folder exists.
    """
    if not config.data.log:
        raise InputError("No log given: pass --data.log ROOT, the folder that holds v1.0-*/.")
    log = NuScenesLog(Path(config.data.log), config.data.version or None)
    tokens = split_tokens(log, config.data.split, config.data.frames)
    dataset = NuScenesDataset(log, tokens, config.detector.inputs, config.detector.map_head.grid)
    if out is None:
        out = Path("runs") / f"{config.recipe}-{datetime.now():%Y%m%d-%H%M%S}"
    with atomic_file.new_folder(out, overwrite) as folder:
        atomic_file.write_text(folder / CONFIG_FILE, json_codec.to_json(config))
        environment = provenance.environment() | {"keyframes": list(tokens)}
        text = json.dumps(environment, indent=2) + "\n"
        atomic_file.write_text(folder / ENVIRONMENT_FILE, text)
        train(config, dataset, folder)
    sys.stdout.write(f"trained on {len(tokens)} keyframes: {out}\n")
    return out


if __name__ == "__main__":
    run_command(main)
