# Source me (bash) with the repository in $root: build the ROS 2 workspace and enter it. Where a tool that the message package is
# compiled with is missing, say so and end the caller with 0.
for tool in cmake make g++; do
  command -v "$tool" > /dev/null || {
    echo "ROS part SKIPPED: $tool was not found, so the message package cannot be built."
    exit 0
  }
done
bash "$root/ros2_ws/make_environment.sh"
set +u
. "$root/ros2_ws/install/setup.bash"
set -u
