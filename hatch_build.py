"""Build hook: compiles `export/plugins` into the wheel, or goes on without where no compiler is."""

import shutil
import subprocess
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

LIBRARY = "libbev_plugins.so"
PLACE = f"perception/{LIBRARY}"


class NativeLibraryHook(BuildHookInterface):
    """Adds the native library to a wheel, also to that of an editable install.

    Without a C++ compiler the wheel is pure Python. A source that does not compile is an error.
    """

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile before the wheel is put together."""
        if self.target_name != "wheel":
            return
        self._folder = tempfile.mkdtemp()
        source = Path(self.root) / "export" / "plugins"
        configure = ["cmake", "-G", "Ninja", "-S", source, "-B", self._folder]
        done = subprocess.run(configure, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            self.app.display_warning(f"no native library, kernels in Python:\n{done.stderr}")
            return
        build = ["cmake", "--build", self._folder, "--target", "bev_plugins"]
        done = subprocess.run(build, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"export/plugins does not compile:\n{done.stdout}{done.stderr}")
        kind = "force_include_editable" if version == "editable" else "force_include"
        build_data[kind][str(Path(self._folder) / LIBRARY)] = PLACE
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["tag"] = f"py3-none-{platform}"
        build_data["pure_python"] = False

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Clear away what was built."""
        shutil.rmtree(self._folder, ignore_errors=True)
