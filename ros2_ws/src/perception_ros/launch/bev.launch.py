"""The perception node; with `log:=` also a player that feeds it a recorded scene.

    ros2 launch perception bev.launch.py bundle:=BUNDLE calibration:=rig.json
    ros2 launch perception bev.launch.py bundle:=BUNDLE log:=nuscenes scene:=scene-0103 rviz:=true

Both nodes talk on image{i}, camera_info{i}, pointcloud and odometry in `namespace`; a car's drivers
are remapped to these names. The launch ends when one of the nodes does.
"""

import os
import tempfile

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, SetEnvironmentVariable, Shutdown
from launch.conditions import IfCondition
from launch.substitutions import LaunchConfiguration, PythonExpression
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

SHARE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
NUM_CAMERAS = 6

HAS_LOG = ["'true' if '", LaunchConfiguration("log"), "' else 'false'"]
"""Python expression: a log is played."""

ARGUMENTS = {
    "bundle": ("", "Folder that export/to_onnx.py wrote."),
    "camera_bundle": ("", "Bundle for frames without LiDAR; empty: bundle, the LiDAR masked."),
    "lidar_bundle": ("", "Bundle for frames without a camera; empty: bundle, cameras masked."),
    "calibration": ("", "JSON file of the rig; with a log it may be left out."),
    "log": ("", "Folder of a nuScenes log to play; empty: a car's drivers give the data."),
    "version": ("", "Folder of the log's tables; empty: the only one."),
    "scene": ("", "Scene to play; empty: the first."),
    "rate": ("1.0", "Seconds of the log per second; other than 1 it needs use_sim_time."),
    "loop": ("false", "Play the scene again and again."),
    "compressed": ("false", "Images travel as JPEG, on image{i}/compressed."),
    "engine": ("onnx", "What runs the model: onnx or tensorrt."),
    "score_threshold": ("0.3", "Boxes below this score are left out, 0..1."),
    "autostart": ("true", "Configure and activate at start; false: a lifecycle manager does."),
    "use_sim_time": (
        [PythonExpression(HAS_LOG)],
        "Time is /clock; default: with a log, whose player sends it. false moves a log to now.",
    ),
    "namespace": ("", "Namespace of both nodes and of their topics."),
    "params": (os.path.join(SHARE, "config", "bev.param.yaml"), "Parameter file of both nodes."),
    "rviz": ("false", "Start RViz with rviz/bev.rviz."),
    "shared_memory": ("true", "Use config/fastdds.xml: sensors and node on one computer."),
}


def value(name, kind):
    """Value of an argument as a parameter; text stays text even where it looks like a number."""
    return ParameterValue(LaunchConfiguration(name), value_type=kind)


def expression(words, kind):
    return ParameterValue(PythonExpression(words), value_type=kind)


def bev_node(played_rig):
    inputs = [name + str(i) for i in range(NUM_CAMERAS) for name in ("image", "camera_info")]
    inputs += [f"image{i}/compressed" for i in range(NUM_CAMERAS)]
    inputs += ["pointcloud", "odometry"]
    texts = ("bundle", "camera_bundle", "lidar_bundle", "engine")
    log = LaunchConfiguration("log")
    rig = [
        "'",
        LaunchConfiguration("calibration"),
        "' or ('",
        played_rig,
        "' if '",
        log,
        "' else '')",
    ]
    return Node(
        package="perception",
        executable="bev_node",
        name="bev",
        namespace=LaunchConfiguration("namespace"),
        output="screen",
        parameters=[
            LaunchConfiguration("params"),
            {
                **{name: value(name, str) for name in texts},
                **{name: value(name, bool) for name in ("compressed", "autostart", "use_sim_time")},
                "score_threshold": value("score_threshold", float),
                "calibration": expression(rig, str),
                "calibration_timeout_s": expression(["300.0 if '", log, "' else 0.0"], float),
            },
        ],
        remappings=[(f"~/input/{name}", name) for name in inputs],
        on_exit=Shutdown(),
    )


def log_player(played_rig):
    return Node(
        package="perception",
        executable="log_player",
        name="log_player",
        namespace=LaunchConfiguration("namespace"),
        output="screen",
        parameters=[
            LaunchConfiguration("params"),
            {
                **{name: value(name, str) for name in ("log", "version", "scene")},
                **{name: value(name, bool) for name in ("loop", "compressed")},
                "rate": value("rate", float),
                "publish_clock": value("use_sim_time", bool),
                "shift_to_now": expression(
                    ["'", LaunchConfiguration("use_sim_time"), "'.lower() != 'true'"], bool
                ),
                "write_calibration": played_rig,
            },
        ],
        condition=IfCondition(PythonExpression(HAS_LOG)),
        on_exit=Shutdown(),
    )


def rviz():
    """The file's topics are those without a namespace: made relative, they follow it."""
    topics = ["bev/output/markers"]
    topics += [f"bev/output/map/{name}" for name in ("drivable_area", "ped_crossing")]
    return Node(
        package="rviz2",
        executable="rviz2",
        name="rviz",
        namespace=LaunchConfiguration("namespace"),
        arguments=["-d", os.path.join(SHARE, "rviz", "bev.rviz")],
        parameters=[{"use_sim_time": value("use_sim_time", bool)}],
        remappings=[(f"/{topic}", topic) for topic in topics],
        condition=IfCondition(LaunchConfiguration("rviz")),
    )


def generate_launch_description():
    # Without a file of its own the rig is the log's: the player writes it, the node waits for it.
    played_rig = os.path.join(tempfile.mkdtemp(prefix="perception-"), "calibration.json")
    fastdds = os.path.join(SHARE, "config", "fastdds.xml")
    # Kilted reads the first name, Jazzy and Humble only the second.
    environment = [
        SetEnvironmentVariable(
            name, fastdds, condition=IfCondition(LaunchConfiguration("shared_memory"))
        )
        for name in ("FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE")
    ]
    arguments = [
        DeclareLaunchArgument(name, default_value=default, description=description)
        for name, (default, description) in ARGUMENTS.items()
    ]
    nodes = [bev_node(played_rig), log_player(played_rig), rviz()]
    return LaunchDescription([*arguments, *environment, *nodes])
