import json
from pathlib import Path

import pytest
from toy_bundle import toy_card, write_toy_bundle

from perception.bundle import load_bundle, write_manifest
from perception.errors import InputError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_toy_bundle(tmp_path / "bundle")


def test_a_whole_bundle_is_opened(folder: Path) -> None:
    bundle = load_bundle(folder)
    assert bundle.card == toy_card()
    assert bundle.model_path == folder / "model.onnx"
    assert load_bundle(folder).digest == bundle.digest
    (folder / "note.txt").write_text("a further file")
    write_manifest(folder)
    assert load_bundle(folder).digest != bundle.digest


@pytest.mark.parametrize("name", ["model.onnx", "model_card.json"])
def test_a_changed_or_missing_file_is_named(folder: Path, name: str) -> None:
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[:-1])
    with pytest.raises(InputError, match=f"{name} has sha256 .* was changed or damaged"):
        load_bundle(folder)
    (folder / name).unlink()
    with pytest.raises(InputError, match=f"{name} is listed in the manifest but missing"):
        load_bundle(folder)
    write_manifest(folder)
    with pytest.raises(InputError, match=f"does not list {name}"):
        load_bundle(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"files": []}', '{"files": {"a": 1}}'])
def test_a_broken_manifest_is_named(folder: Path, text: str) -> None:
    (folder / "manifest.json").write_text(text)
    with pytest.raises(InputError, match=r"manifest\.json"):
        load_bundle(folder)


def test_a_folder_that_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is no bundle \(it has no manifest\.json\)"):
        load_bundle(tmp_path)


def test_a_manifest_cannot_point_outside(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["../secret"] = {"sha256": "0"}
    (folder.parent / "secret").write_text("")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="secret is listed in the manifest but missing"):
        load_bundle(folder)
