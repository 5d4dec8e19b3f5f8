"""Writes the toy bundles for tests whose environment has no onnx: `make_toy_bundle.py OUT`.

OUT takes all sensors, OUT_camera the cameras, OUT_lidar the LiDAR. Their engine takes less than a
millisecond, so what the tests measure is everything else.
"""

import shutil
import sys
from pathlib import Path

from toy_bundle import toy_card, write_toy_bundle

if __name__ == "__main__":
    out = Path(sys.argv[1])
    for folder, card in (
        (out, toy_card()),
        (out.with_name(f"{out.name}_camera"), toy_card("camera", use_lidar=False)),
        (out.with_name(f"{out.name}_lidar"), toy_card("lidar", cameras=())),
    ):
        shutil.rmtree(folder, ignore_errors=True)
        write_toy_bundle(folder, card)
