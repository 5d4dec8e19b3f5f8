"""Fixtures that every test may use, and an honest count of what was skipped."""

import os
import shutil
import sys
from collections import Counter
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from nuscenes_writer import write_small_log  # found through the line above

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def real_log_root() -> Path:
    """Real nuScenes samples; tests that ask for it carry the marker `nuscenes`."""
    default = REPOSITORY.parent / "shared" / "data" / "nuscenes_real"
    root = Path(os.environ.get("BEV_REAL_LOG", default))
    if not root.is_dir():
        pytest.skip("no real nuScenes log: set BEV_REAL_LOG to its folder")
    return root


@pytest.fixture(scope="session")
def small_log_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hand-made nuScenes log, shared by all tests: nobody may change it."""
    return write_small_log(tmp_path_factory.mktemp("log") / "nuscenes")


@pytest.fixture(scope="session")
def synthetic_log_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two generated scenes, one of mini_train and one of mini_val: nobody may change them."""
    from synthetic_log import SMALLEST

    from perception.synthetic.generator import generate_log

    root = tmp_path_factory.mktemp("synthetic") / "log"
    return generate_log(root, SMALLEST, workers=2).root


@pytest.fixture
def own_log_root(small_log_root: Path, tmp_path: Path) -> Path:
    """A copy of the small log that a test may damage."""
    return Path(shutil.copytree(small_log_root, tmp_path / "nuscenes"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print how many tests were skipped, by reason."""
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = Counter(
        report.longrepr[2].removeprefix("Skipped: ")
        if isinstance(report.longrepr, tuple)
        else str(report.longrepr)
        for report in skipped
    )
    if reasons:
        terminalreporter.section(f"{len(skipped)} skipped", sep="-")
    for reason, number in reasons.most_common():
        terminalreporter.line(f"{number:5d}  {reason}")
