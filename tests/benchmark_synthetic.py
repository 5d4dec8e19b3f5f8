"""Speed and memory of the synthetic log's generator: `make bench-synthetic`.

The floor that is wanted: 5 keyframes a second on two idle cores at 704x396 with 10 LiDAR sweeps per
keyframe, and no more than 1.5 GiB over all processes.
"""

import argparse
import dataclasses
import os
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

from perception import provenance
from perception.errors import run_command
from perception.synthetic.generator import generate_log
from perception.synthetic.log_plan import PRESETS

WANTED_KEYFRAMES_PER_SECOND = 5.0
WANTED_MEMORY_GIB = 1.5


class MemoryPeak(threading.Thread):
    """Watches this process and its children; pages that they share count once."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.bytes = 0
        self._stop_asked = threading.Event()

    def run(self) -> None:
        this = psutil.Process()
        while not self._stop_asked.wait(0.1):
            total = 0
            for process in (this, *this.children(recursive=True)):
                try:
                    total += process.memory_full_info().pss
                except psutil.Error:
                    continue  # it has just ended
            self.bytes = max(self.bytes, total)

    def stop(self) -> None:
        self._stop_asked.set()
        self.join()


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmark_synthetic.py", description=__doc__)
    parser.add_argument("--preset", choices=PRESETS, default="mini-like")
    parser.add_argument("--scenes", type=int, default=4)
    parser.add_argument("--keyframes", type=int, default=20)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--backend", choices=("numpy", "numba"), default="numpy")
    options = parser.parse_args()
    config = dataclasses.replace(
        PRESETS[options.preset],
        num_scenes=options.scenes,
        num_keyframes=options.keyframes,
        backend=options.backend,
    )
    marks: dict[str, float] = {}
    memory = MemoryPeak()
    memory.start()
    with tempfile.TemporaryDirectory() as folder:
        generated = generate_log(
            Path(folder) / "log",
            config,
            workers=options.workers,
            on_progress=lambda stage, done, total: marks.setdefault(
                f"{stage} {'end' if done == total else 'begin'}", time.perf_counter()
            ),
        )
        size_mb = sum(f.stat().st_size for f in Path(folder).rglob("*") if f.is_file()) / 1e6
    memory.stop()
    seconds = marks["keyframes end"] - marks["keyframes begin"]
    rate = generated.num_keyframes / seconds
    write = sys.stdout.write
    write(
        f"{options.scenes} scenes, {generated.num_keyframes} keyframes, "
        f"{config.image_width_px}x{config.image_height_px}, "
        f"{config.sweeps_per_keyframe} sweeps per keyframe, {options.workers} processes, "
        f"{options.backend}, {size_mb:.0f} MB\n"
        f"{provenance.environment()}\n\n"
        f"maps        {marks['maps end'] - marks['maps begin']:.1f} s\n"
        f"keyframes   {rate:.1f} per second (wanted: {WANTED_KEYFRAMES_PER_SECOND:.0f})\n"
        f"peak memory {memory.bytes / 2**30:.2f} GiB (wanted: at most {WANTED_MEMORY_GIB})\n\n"
        f"{'stage':<16}{'CPU ms per keyframe':>20}\n"
    )
    for stage, value in generated.stage_seconds.items():
        if stage != "maps":
            write(f"{stage:<16}{value * 1e3 / generated.num_keyframes:>20.1f}\n")


if __name__ == "__main__":
    run_command(main)
