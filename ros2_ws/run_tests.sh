#!/usr/bin/env bash
# Run the ROS 2 tests in .venv-ros, which has no torch.
#
#   bash ros2_ws/run_tests.sh BUNDLE [tests/test_ros/FILE ...] [pytest arguments]
#
# BUNDLE is an exported bundle for the tests that start the node. Without cmake, make and g++ the
# message package cannot be built: then the tests are left out, and it is said so.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
[ $# -ge 1 ] || { echo "error: no bundle: run ros2_ws/run_tests.sh BUNDLE." >&2; exit 2; }
BEV_TEST_BUNDLE=$(realpath "$1")
export BEV_TEST_BUNDLE
if [ -d "$root/build/toy_bundle" ]; then export BEV_TOY_BUNDLE=$root/build/toy_bundle; fi
shift

. "$root/ros2_ws/enter.sh"
cd "$root"
case "$*" in *tests/*) tests=() ;; *) tests=(tests/test_ros) ;; esac
exec "$root/.venv-ros/bin/python" -m pytest -m "${MARKERS:-ros and not slow}" "${tests[@]}" "$@"
