"""A bundle: the folder that goes into the car. Model, card, and a digest of each file."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from perception import atomic_file, json_codec
from perception.errors import InputError
from perception.model_card import ModelCard

MODEL_FILE = "model.onnx"
CARD_FILE = "model_card.json"
MANIFEST_FILE = "manifest.json"
GOLDEN_FILE = "golden.npz"
"""One input and its expected output: what `runtime/self_test.py` runs."""


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A bundle whose files were found whole."""

    path: Path
    card: ModelCard
    digest: str
    """sha256 of the manifest: names the bundle in logs and results."""
    files: tuple[str, ...]
    """What the manifest lists; whatever else lies in the folder is none of the bundle's."""

    @property
    def model_path(self) -> Path:
        """The ONNX file."""
        return self.path / MODEL_FILE


def write_manifest(folder: Path) -> None:
    """List every file of `folder` with size and sha256."""
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        for path in sorted(folder.iterdir())
        if path.name != MANIFEST_FILE
    }
    atomic_file.write_text(folder / MANIFEST_FILE, json.dumps({"files": files}, indent=2) + "\n")


def load_bundle(path: Path) -> Bundle:
    """Open a bundle and check every file against the manifest.

    Raises:
        InputError: The folder is no bundle, a file is missing, or one was changed.
    """
    manifest_path = path / MANIFEST_FILE
    if not manifest_path.is_file():
        raise InputError(
            f"{path} is no bundle (it has no {MANIFEST_FILE}): make one with "
            "'python export/to_onnx.py RUN --out BUNDLE'."
        )
    try:
        files = json.loads(manifest_path.read_text())["files"]
        expected = {name: entry["sha256"] for name, entry in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{manifest_path} cannot be read: export the bundle again.") from error
    for name in (MODEL_FILE, CARD_FILE):
        if name not in expected:
            raise InputError(f"{manifest_path} does not list {name}: export the bundle again.")
    for name, sha256 in expected.items():
        file = path / name
        if Path(name).name != name or not file.is_file():
            raise InputError(f"{file} is listed in the manifest but missing: export again.")
        got = _sha256(file)
        if got != sha256:
            raise InputError(
                f"{file} has sha256 {got[:12]}..., the manifest says {str(sha256)[:12]}...: the "
                "file was changed or damaged, export the bundle again."
            )
    card = json_codec.from_json(ModelCard, (path / CARD_FILE).read_text(), str(path / CARD_FILE))
    return Bundle(path=path, card=card, digest=_sha256(manifest_path), files=tuple(expected))


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
