"""The CPU library under the address and undefined-behaviour sanitizers, without Python in between.

Built in `build/sanitizer`, where the next run finds it.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DRIVER = Path(__file__).with_name("sanitizer_driver.cpp")
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


def run(*command, **environment):
    return subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        env={**os.environ, "LD_PRELOAD": "", **environment},
        check=False,
    )


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None or shutil.which("cmake") is None:
        pytest.skip("no C++ compiler or no cmake")
    folder = tmp_path_factory.mktemp("sanitizer")
    empty = folder / "empty.cpp"
    empty.write_text("int main() {}\n")
    if run(compiler, *SANITIZE, empty, "-o", folder / "empty").returncode:
        pytest.skip("the compiler has no sanitizer libraries")
    build = ROOT / "build" / "sanitizer"
    configured = run("cmake", "-S", ROOT / "export/plugins", "-B", build, "-DBEV_SANITIZE=ON")
    assert configured.returncode == 0, configured.stderr
    built = run("cmake", "--build", build, "--target", "bev_plugins", "-j2")
    assert built.returncode == 0, built.stdout + built.stderr
    program = folder / "driver"
    linked = run(
        compiler, "-std=c++17", "-O1", *SANITIZE, "-I", ROOT / "export/plugins/kernels", DRIVER,
        "-L", build, "-lbev_plugins", f"-Wl,-rpath,{build}", "-o", program,
    )  # fmt: skip
    assert linked.returncode == 0, linked.stderr
    return program


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_no_call_steps_outside_its_arrays(driver, isa):
    result = run(driver, BEV_PLUGINS_ISA=isa)
    assert result.returncode == 0, result.stderr[-3000:]
    used, pools = result.stdout.split()
    if used != isa:
        pytest.skip(f"this processor has no {isa}")
    assert int(pools) == 74
