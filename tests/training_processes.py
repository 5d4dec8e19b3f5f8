"""Small trainings in processes of their own: some train together, some are killed."""

import contextlib
import json
import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from small_detector import small_config

from perception import atomic_file
from training import train
from training.config import DataConfig, OptimConfig, TrainConfig
from training.train import Options, run_training

# forked from a process that has done nothing but the imports: a fork of this one, whose threads
# have computed, hangs now and then
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["training.train", "jaxtyping", "pytest"])


def training_config(log_root: Path, *, num_workers: int = 0, **optim: object) -> TrainConfig:
    """The small detector on the hand-made log of eight keyframes."""
    settings = {"steps": 12, "batch_size": 2, "lr": 1e-3, "checkpoint_every": 3, "ema_decay": 0.9}
    return TrainConfig(
        recipe="small",
        detector=small_config(),
        data=DataConfig(log=str(log_root), split="all", frames="all", num_workers=num_workers),
        optim=OptimConfig(**(settings | optim)),
    )


def curve(run: Path) -> list[dict]:
    """Lines of metrics.jsonl without what a repetition would not give again."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "timing"} for line in lines]


def start(target: Callable[..., None], *arguments: object) -> multiprocessing.Process:
    """Start a process that computes with one thread."""
    process = CONTEXT.Process(target=_alone, args=(target, arguments))
    process.start()
    return process


def train_and_die(config: TrainConfig, run: Path, deadly_file: str = "") -> None:
    """Train; the process kills itself in the middle of a file, "FOLDER/NAME"."""
    if deadly_file:
        _die_while_writing(*deadly_file.split("/"))
    train.write_report = lambda run: None  # takes longer than this training
    run_training(config, Options(out=str(run), tensorboard=False))


def run_ranks(world_size: int, target: Callable[..., None], *arguments: object) -> None:
    """Run a function in processes that can meet as `torchrun`'s do, and wait for all."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        start(_as_rank, rank, world_size, port, target, arguments) for rank in range(world_size)
    ]
    for process in processes:
        process.join(120)
    for process in processes:
        process.kill()
    codes = [process.exitcode for process in processes]
    if codes != [0] * world_size:
        raise RuntimeError(f"the processes ended with {codes}")


def _alone(target: Callable[..., None], arguments: tuple) -> None:
    torch.set_num_threads(1)
    # data workers as the command starts them; those of a fork server outlive a killed training
    multiprocessing.set_start_method("fork", force=True)
    with contextlib.redirect_stdout(sys.stderr):
        target(*arguments)


def _as_rank(
    rank: int, world_size: int, port: int, target: Callable[..., None], arguments: tuple
) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    target(*arguments)


def _die_while_writing(folder: str, name: str) -> None:
    write_bytes = atomic_file.write_bytes

    def write(path: Path, content: bytes) -> None:
        if path.name == name and folder in path.parent.name:
            half = path.with_name(f".{path.name}.{os.getpid()}.tmp")
            half.write_bytes(content[: len(content) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        write_bytes(path, content)

    atomic_file.write_bytes = write
