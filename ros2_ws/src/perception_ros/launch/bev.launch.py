"""The perception node; with `log:=` also a player that feeds it a recorded scene.

    ros2 launch perception bev.launch.py bundle:=BUNDLE calibration:=rig.json
    ros2 launch perception bev.launch.py bundle:=BUNDLE log:=nuscenes scene:=scene-0103 rviz:=true

Both nodes talk on image{i}, camera_info{i}, pointcloud and odometry in `namespace`; a car's drivers
are remapped to these names. The launch ends when one of the nodes does.

An argument that is given goes before the parameter file, the file before a node's own default: what
is empty here is not passed on.
"""

import os
import tempfile

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction, SetEnvironmentVariable, Shutdown
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

SHARE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
NUM_CAMERAS = 6

CALIBRATION_TIMEOUT_S = 300.0
"""How long the node waits for the rig that the player writes [s]. Source: ours; large tables take
minutes to read."""

ARGUMENTS = {
    "bundle": ("", "Folder that export/to_onnx.py wrote."),
    "camera_bundle": ("", "Bundle for frames without LiDAR; empty: bundle, the LiDAR masked."),
    "lidar_bundle": ("", "Bundle for frames without a camera; empty: bundle, cameras masked."),
    "calibration": ("", "JSON file of the rig; with a log it may be left out: the log's is used."),
    "log": ("", "Folder of a nuScenes log to play; empty: a car's drivers give the data."),
    "version": ("", "Folder of the log's tables; empty: the only one."),
    "scene": ("", "Scene to play; empty: the first."),
    "cameras": ("", "Cameras to play as image0, image1, ...; empty: nuScenes' six."),
    "rate": ("", "Seconds of the log per second; other than 1 it needs use_sim_time."),
    "loop": ("", "true: play the scene again and again."),
    "compressed": ("", "true: images travel as JPEG, on image{i}/compressed."),
    "engine": ("", "What runs the model: onnx or tensorrt; empty: onnx."),
    "score_threshold": ("", "Boxes below this score are left out, 0..1; empty: 0.3."),
    "autostart": ("", "Configure and activate at start; false: a lifecycle manager does."),
    "use_sim_time": (
        "",
        "Time is /clock; empty: with a log, whose player sends it. false moves a log to now.",
    ),
    "namespace": ("", "Namespace of both nodes and of their topics."),
    "params": (os.path.join(SHARE, "config", "bev.param.yaml"), "Parameter file of both nodes."),
    "rviz": ("false", "Start RViz with rviz/bev.rviz."),
    "shared_memory": ("true", "Use config/fastdds.xml: sensors and node on one computer."),
}

TEXTS_OF_NODE = ("bundle", "camera_bundle", "lidar_bundle", "engine", "calibration")
TEXTS_OF_PLAYER = ("log", "version", "scene", "cameras")


def is_true(given, name):
    """An argument as yes or no; empty is no."""
    word = given[name].strip().lower()
    if word not in ("true", "1", "false", "0", ""):
        raise RuntimeError(f"Argument {name} is {given[name]!r}, expected true or false.")
    return word in ("true", "1")


def parameters(given, texts=(), switches=(), numbers=()):
    """The arguments that are set, as parameters; text stays text where it looks like a number."""
    chosen = {name: ParameterValue(given[name], value_type=str) for name in texts if given[name]}
    chosen |= {name: is_true(given, name) for name in switches if given[name]}
    return chosen | {
        name: ParameterValue(given[name], value_type=float) for name in numbers if given[name]
    }


def bev_node(given, played_rig):
    inputs = [name + str(i) for i in range(NUM_CAMERAS) for name in ("image", "camera_info")]
    inputs += [f"image{i}/compressed" for i in range(NUM_CAMERAS)]
    inputs += ["pointcloud", "odometry"]
    chosen = parameters(
        given, TEXTS_OF_NODE, ("compressed", "autostart", "use_sim_time"), ("score_threshold",)
    )
    if played_rig:
        chosen["calibration"] = ParameterValue(played_rig, value_type=str)
        chosen["calibration_timeout_s"] = CALIBRATION_TIMEOUT_S
    return Node(
        package="perception",
        executable="bev_node",
        name="bev",
        namespace=given["namespace"],
        output="screen",
        parameters=[entry for entry in (given["params"], chosen) if entry],
        remappings=[(f"~/input/{name}", name) for name in inputs],
        on_exit=Shutdown(),
    )


def log_player(given, played_rig):
    sim_time = is_true(given, "use_sim_time")
    chosen = parameters(given, TEXTS_OF_PLAYER, ("loop", "compressed"), ("rate",))
    chosen |= {"publish_clock": sim_time, "shift_to_now": not sim_time}
    if played_rig:
        chosen["write_calibration"] = ParameterValue(played_rig, value_type=str)
    return Node(
        package="perception",
        executable="log_player",
        name="log_player",
        namespace=given["namespace"],
        output="screen",
        parameters=[entry for entry in (given["params"], chosen) if entry],
        on_exit=Shutdown(),
    )


def rviz(given):
    """The file's topics are those without a namespace: made relative, they follow it."""
    topics = ["bev/output/markers"]
    topics += [f"bev/output/map/{name}" for name in ("drivable_area", "ped_crossing")]
    return Node(
        package="rviz2",
        executable="rviz2",
        name="rviz",
        namespace=given["namespace"],
        arguments=["-d", os.path.join(SHARE, "rviz", "bev.rviz")],
        parameters=[{"use_sim_time": is_true(given, "use_sim_time")}],
        remappings=[(f"/{topic}", topic) for topic in topics],
    )


def setup(context):
    """What is started; runs once, with the arguments' values."""
    given = {name: context.launch_configurations[name] for name in ARGUMENTS}
    if given["log"] and not given["use_sim_time"]:
        given["use_sim_time"] = "true"
    actions = []
    if is_true(given, "shared_memory"):
        # Kilted reads the first name, Jazzy and Humble only the second.
        actions += [
            SetEnvironmentVariable(name, os.path.join(SHARE, "config", "fastdds.xml"))
            for name in ("FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE")
        ]
    played_rig = ""
    if given["log"] and not given["calibration"]:
        # The rig is the log's: the player writes it, the node waits for it.
        played_rig = os.path.join(tempfile.mkdtemp(prefix="perception-"), "calibration.json")
    actions.append(bev_node(given, played_rig))
    if given["log"]:
        actions.append(log_player(given, played_rig))
    if is_true(given, "rviz"):
        actions.append(rviz(given))
    return actions


def generate_launch_description():
    arguments = [
        DeclareLaunchArgument(name, default_value=default, description=description)
        for name, (default, description) in ARGUMENTS.items()
    ]
    return LaunchDescription([*arguments, OpaqueFunction(function=setup)])
