"""Runs jobs in this process or in several, and hears from them while they work."""

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from queue import Empty
from typing import Any, TypeVar

import cv2

from perception.errors import InputError

Tick = Callable[[], None]
"""A job calls it when another piece of its work is done."""
Result = TypeVar("Result")
ONE_THREAD = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
"""Each process is one thread: more of them would only wait for each other."""


class JobPool:
    """A context: `with JobPool(workers) as pool: results = pool.run(jobs, on_tick)`.

    Args:
        workers: Processes; 1 means this one.
    """

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._executor: ProcessPoolExecutor | None = None
        self._outer_environment = {name: os.environ.get(name) for name in ONE_THREAD}

    def __enter__(self) -> "JobPool":
        if self._workers > 1:
            # spawn, not fork: the parent has threads (progress bar), and Windows has no other
            context = multiprocessing.get_context("spawn")
            self._ticks = context.Queue()
            os.environ.update(ONE_THREAD)
            self._executor = ProcessPoolExecutor(
                self._workers,
                mp_context=context,
                initializer=_start_worker,
                initargs=(self._ticks,),
            )
        return self

    def __exit__(self, *_: object) -> None:
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)
            for name, value in self._outer_environment.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value

    def run(self, jobs: Sequence[Callable[[Tick], Result]], on_tick: Tick) -> list[Result]:
        """Results in the order of the jobs.

        Args:
            jobs: Functions of a module, or `functools.partial` of such.
            on_tick: Called in this process for each call of a job's `Tick`.

        Raises:
            InputError: A process was killed.
        """
        if self._executor is None:
            return [job(on_tick) for job in jobs]
        futures = [self._executor.submit(_run_job, job) for job in jobs]
        heard = 0
        try:
            while not all(future.done() for future in futures):
                heard += self._hear(on_tick)
                failed = [f for f in futures if f.done() and f.exception() is not None]
                if failed:
                    failed[0].result()
            done = [future.result() for future in futures]
            # a process sends its ticks in a thread of its own: the last may come after its result
            while heard < sum(num_ticks for _, num_ticks in done):
                heard += self._hear(on_tick)
            return [result for result, _ in done]
        except BrokenProcessPool as error:
            raise InputError(
                "A worker process was killed, probably for want of memory: "
                "pass a smaller number of workers."
            ) from error

    def _hear(self, on_tick: Tick) -> int:
        """Hand on what has come, after a short wait for the first; gives how many they were."""
        heard = 0
        try:
            self._ticks.get(timeout=0.1)
            while True:
                heard += 1
                on_tick()
                self._ticks.get_nowait()
        except Empty:
            return heard


_worker_ticks: Any = None
"""Set once when a worker process starts: a queue cannot travel with a job."""


def _start_worker(ticks: Any) -> None:
    global _worker_ticks
    _worker_ticks = ticks
    cv2.setNumThreads(1)


def _run_job(job: Callable[[Tick], Result]) -> tuple[Result, int]:
    """A job's result and its number of ticks."""
    num_ticks = 0

    def tick() -> None:
        nonlocal num_ticks
        num_ticks += 1
        _worker_ticks.put(None)

    return job(tick), num_ticks
