"""The folder of a run: whose it is, whether it goes on, and what it was made with.

    runs/RECIPE/config.json             complete
                environment.json        commit, versions, hardware, seed, ranks, keyframes
                metrics.jsonl           one line per step
                events.jsonl            one line per event
                damaged.json            samples that were left out, if any were
                checkpoints/            what training resumes from
                checkpoint.safetensors  the trained detector: the run is finished

Whether a folder's run is gone on with, finished or another's is decided here.
"""

import contextlib
import fcntl
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from perception import atomic_file, json_codec, provenance
from perception.checkpoint import CHECKPOINT_FILE
from perception.errors import InputError
from training.config import TrainConfig

CONFIG_FILE = "config.json"
ENVIRONMENT_FILE = "environment.json"
_LOCK_FILE = ".lock"

FREE_FIELDS = frozenset({"data.num_workers", "data.max_damaged_share"})
"""Fields that may differ when a run is gone on with: they change no number."""


@contextlib.contextmanager
def opened_run(
    run: Path, config: TrainConfig, overwrite: bool, environment: dict[str, object]
) -> Iterator[Path]:
    """Make a run's folder, or take the one that is there if it is of the same, unfinished run.

    As long as the block lasts no other process can open it.

    Args:
        run: The folder.
        config: The run.
        overwrite: Whether another run that lies there is removed.
        environment: What is noted beside commit, versions and hardware.

    Raises:
        InputError: The folder is another's, finished, in use or cannot be made.
    """
    check_run(run, config, overwrite)
    try:
        run.mkdir(parents=True, exist_ok=True)
        lock = (run / _LOCK_FILE).open("w")
    except OSError as error:
        raise InputError(f"Cannot make {run}: {error.strerror}; check its parent.") from error
    with lock:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InputError(
                f"{run} is being trained by another process: wait for it or choose another --out."
            ) from error
        for leftover in run.glob(".*.tmp"):  # of a kill while a file was written
            leftover.unlink()
        if overwrite:
            _empty(run)
        if not (run / CONFIG_FILE).is_file():
            atomic_file.write_text(run / CONFIG_FILE, json_codec.to_json(config))
        if not (run / ENVIRONMENT_FILE).is_file():
            text = json.dumps(provenance.environment() | environment, indent=2) + "\n"
            atomic_file.write_text(run / ENVIRONMENT_FILE, text)
        yield run
        if (run / CHECKPOINT_FILE).is_file():
            (run / _LOCK_FILE).unlink()


def _empty(run: Path) -> None:
    for path in run.iterdir():
        if path.name == _LOCK_FILE:
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def check_run(run: Path, config: TrainConfig, overwrite: bool) -> None:
    """Refuse a folder that this run cannot have; changes nothing.

    Raises:
        InputError: The folder is another's or finished.
    """
    if not run.exists():
        return
    if not run.is_dir():
        raise InputError(f"{run} exists already: it is a file, choose another --out.")
    is_run = (run / CONFIG_FILE).is_file()
    if not is_run and any(not path.name.startswith(".") for path in run.iterdir()):
        raise InputError(f"{run} exists already and is no run: choose another --out.")
    if overwrite or not is_run:
        return
    if (run / CHECKPOINT_FILE).is_file():
        raise InputError(
            f"{run} exists already and is a finished run: choose another --out or pass --overwrite."
        )
    check_same(run, config)


def check_same(run: Path, config: TrainConfig) -> None:
    """Refuse a run folder of another configuration; changes nothing.

    Raises:
        InputError: The configuration that lies there differs in more than `FREE_FIELDS`.
    """
    source = str(run / CONFIG_FILE)
    before = json.loads(json_codec.to_json(_stored_config(run, source)))
    now = json.loads(json_codec.to_json(config))
    for name, old, new in _differences(before, now, ""):
        if name not in FREE_FIELDS:
            raise InputError(
                f"{run} exists already with {name} = {json.dumps(old)} instead of "
                f"{json.dumps(new)}: choose another --out or pass --overwrite."
            )


def _stored_config(run: Path, source: str) -> TrainConfig:
    try:
        return json_codec.from_json(TrainConfig, (run / CONFIG_FILE).read_text(), source)
    except InputError as error:
        raise InputError(
            f"{run} is a run of another version ({str(error).rstrip('.')}): choose another --out "
            "or pass --overwrite."
        ) from error


def _differences(old: Any, new: Any, name: str) -> Iterator[tuple[str, Any, Any]]:
    """Name, old and new value of each field that differs, in the order of the fields."""
    if isinstance(old, dict) and isinstance(new, dict) and old.keys() == new.keys():
        for key in old:
            yield from _differences(old[key], new[key], f"{name}.{key}" if name else key)
    elif old != new:
        yield name, old, new


def run_environment(
    config: TrainConfig, tokens: tuple[str, ...], world_size: int, device: torch.device
) -> dict[str, object]:
    """What a run's environment notes beside commit, versions and hardware."""
    return {
        "seed": config.seed,
        "world_size": world_size,
        "device": str(device),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "keyframes": list(tokens),
    }
