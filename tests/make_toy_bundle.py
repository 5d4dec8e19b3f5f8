"""Writes the toy bundle for tests whose environment has no onnx: `make_toy_bundle.py OUT`.

Its engine takes less than a millisecond, so what the tests measure is everything else.
"""

import shutil
import sys
from pathlib import Path

from toy_bundle import write_toy_bundle

if __name__ == "__main__":
    out = Path(sys.argv[1])
    shutil.rmtree(out, ignore_errors=True)
    write_toy_bundle(out)
