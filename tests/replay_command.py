"""The replay command as a test runs it, and what it accepts as golden.

`python tests/replay_command.py` makes today's detections the accepted ones (`make replay-golden`).
"""

import contextlib
import io
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

from nuscenes_writer import write_small_log
from toy_bundle import write_toy_bundle

from perception.errors import run_command
from runtime import replay

GOLDEN = Path(__file__).parent / "test_replay" / "golden.json"
GOLDEN_RUN = (
    *("--speed", "0", "--period", "300", "--threads", "1", "--golden", str(GOLDEN)),
    *("--fault", "CAM_BACK:dead:0.5-0.9", "LIDAR_TOP:dead:0.8-9"),
)
"""Six frames: complete, without CAM_BACK, without LiDAR."""
ACCEPT_WITH = "make replay-golden"


def run_cli(*arguments: object) -> SimpleNamespace:
    """The command as its process runs it, without the seconds that a process takes to start."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            run_command(lambda: replay.main([str(argument) for argument in arguments]))
        except SystemExit as end:
            code = end.code
    return SimpleNamespace(returncode=code, stdout=out.getvalue(), stderr=err.getvalue())


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        bundle = write_toy_bundle(Path(name) / "toy")
        log = write_small_log(Path(name) / "log")
        done = run_cli(bundle, "--log", log, "--scene", "scene-0061", *GOLDEN_RUN, "--accept")
    sys.stdout.write(done.stdout)
    sys.stderr.write(done.stderr)
    sys.exit(done.returncode)
