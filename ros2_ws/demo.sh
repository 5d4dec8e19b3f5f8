#!/usr/bin/env bash
# Play one scene of a log through the node `bev` and print what it publishes.
#
#   bash ros2_ws/demo.sh BUNDLE LOG [SCENE]
#
# Three processes over loopback, as a launch file would start them; where ROS 2's command line is
# installed, `ros2 launch perception bev.launch.py` does the same.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
[ $# -ge 2 ] || { echo "error: usage: ros2_ws/demo.sh BUNDLE LOG [SCENE]" >&2; exit 2; }
bundle=$(realpath "$1") log=$(realpath "$2") scene=${3:-}

. "$root/ros2_ws/enter.sh"

work=$(mktemp -d)
programs=$root/ros2_ws/install/perception/lib/perception
export ROS_AUTOMATIC_DISCOVERY_RANGE=LOCALHOST ROS_DOMAIN_ID=${ROS_DOMAIN_ID:-42}
export FASTDDS_DEFAULT_PROFILES_FILE=$root/ros2_ws/src/perception_ros/config/fastdds.xml
remaps=()
for i in 0 1 2 3 4 5; do
  remaps+=(-r "~/input/image$i:=/image$i" -r "~/input/camera_info$i:=/camera_info$i")
done
remaps+=(-r "~/input/pointcloud:=/pointcloud" -r "~/input/odometry:=/odometry")

"$programs/result_printer" &
printer=$!
"$programs/bev_node" --ros-args -p "bundle:='$bundle'" -p "calibration:='$work/rig.json'" \
  -p calibration_timeout_s:=60 -p use_sim_time:=true "${remaps[@]}" &
node=$!
stop() {
  kill -TERM "$node" "$printer" 2> /dev/null || true
  wait "$node" "$printer" 2> /dev/null || true
  rm -rf "$work"
}
trap stop EXIT
"$programs/log_player" --ros-args -p "log:='$log'" -p "scene:='$scene'" \
  -p "write_calibration:='$work/rig.json'"
