from pathlib import Path

import pytest
from toy_bundle import write_toy_bundle


@pytest.fixture(scope="session")
def toy_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose answer shows what went in: copy it before you damage it."""
    return write_toy_bundle(tmp_path_factory.mktemp("toy") / "bundle")
