"""What the car must not load, seen from a fresh interpreter; sizes and habits, seen in the code."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGES = ("perception", "training", "export", "runtime")
NOT_IN_THE_CAR = (
    "torch",
    "transformers",
    "onnx",
    "cv2",
    "nuscenes",
    "rclpy",
    "training",
    "export",
    "perception.models",
    "perception.ops",
    "perception.checkpoint",
)
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60

SOURCES = sorted(path for package in PACKAGES for path in (REPOSITORY / package).rglob("*.py"))


def modules_after(statement: str, cwd: Path = REPOSITORY) -> set[str]:
    code = f"{statement}; import json, sys; sys.stdout.write(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, check=True
    )
    return set(json.loads(done.stdout))


@pytest.fixture(scope="module")
def car_modules() -> set[str]:
    return modules_after("import runtime.api, runtime.replay")


@pytest.mark.parametrize("name", NOT_IN_THE_CAR)
def test_the_car_does_not_load(name: str, car_modules: set[str]) -> None:
    assert "runtime.replay" in car_modules
    assert name not in car_modules


def test_onnxruntime_is_loaded_with_the_first_engine_only(car_modules: set[str]) -> None:
    assert not {name for name in car_modules if name.split(".")[0] == "onnxruntime"}


@pytest.mark.parametrize("package", PACKAGES)
def test_package_is_the_repositorys_wherever_it_is_imported_from(
    package: str, tmp_path: Path
) -> None:
    code = f"import sys, {package}; sys.stdout.write({package}.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert Path(done.stdout).resolve() == REPOSITORY / package / "__init__.py"


def label(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


def test_there_are_sources_to_look_at() -> None:
    assert len(SOURCES) > 30


@pytest.mark.parametrize("path", SOURCES, ids=label)
def test_no_file_shadows_the_standard_library(path: Path) -> None:
    # `python runtime/replay.py` puts runtime/ first on the path: a queue.py there would be taken.
    assert path.stem not in sys.stdlib_module_names
    assert path.parent.name not in sys.stdlib_module_names


@pytest.mark.parametrize("path", SOURCES, ids=label)
def test_files_and_functions_are_short(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= MAX_FILE_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            assert lines <= MAX_FUNCTION_LINES, f"{node.name} has {lines} lines"


@pytest.mark.parametrize(
    "path", [path for path in SOURCES if path.name == "__init__.py"], ids=label
)
def test_init_is_empty(path: Path) -> None:
    assert path.read_text() == ""


def test_every_package_folder_has_an_init() -> None:
    folders = {path.parent for path in SOURCES}
    assert not [label(folder) for folder in folders if not (folder / "__init__.py").is_file()]


def code_that_runs_pickles(tree: ast.AST) -> list[str]:
    """Imports and calls by which a file could run code that somebody put into a data file."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "joblib.load"):
            names = [ast.unparse(node.func)]
        elif isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            names = [] if ast.unparse(node.value) == "False" else ["allow_pickle"]
        else:
            continue
        unsafe = ("pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "joblib")
        found += [
            n for n in names if n.split(".")[0] in unsafe or n in ("torch.load", "allow_pickle")
        ]
    return found


@pytest.mark.parametrize("path", SOURCES, ids=label)
def test_no_file_runs_code_from_data(path: Path) -> None:
    assert code_that_runs_pickles(ast.parse(path.read_text())) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "torch.load(path)",
        "np.load(path, allow_pickle=True)",
        "import joblib.numpy_pickle",
    ],
)
def test_the_check_above_can_fail(source: str) -> None:
    assert code_that_runs_pickles(ast.parse(source))
