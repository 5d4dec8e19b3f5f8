"""The tables of messages lie beside the tests that read them."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
