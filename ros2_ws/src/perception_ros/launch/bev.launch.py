"""The perception node; with `log:=` also a player that feeds it a recorded scene.

    ros2 launch perception bev.launch.py bundle:=BUNDLE calibration:=rig.json
    ros2 launch perception bev.launch.py bundle:=BUNDLE log:=nuscenes scene:=scene-0103

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

ARGUMENTS = {
    "bundle": ("", "Folder that export/to_onnx.py wrote."),
    "calibration": ("", "JSON file of the rig; with a log it may be left out."),
    "log": ("", "Folder of a nuScenes log to play; empty: a car's drivers give the data."),
    "version": ("", "Folder of the log's tables; empty: the only one."),
    "scene": ("", "Scene to play; empty: the first."),
    "rate": ("1.0", "Seconds of the log per second."),
    "loop": ("false", "Play the scene again and again."),
    "score_threshold": ("0.3", "Boxes below this score are left out, 0..1."),
    "namespace": ("", "Namespace of both nodes and of their topics."),
    "params": (os.path.join(SHARE, "config", "bev.param.yaml"), "Parameter file of both nodes."),
    "shared_memory": ("true", "Use config/fastdds.xml: sensors and node on one computer."),
}


def text(name):
    """Value of an argument that stays text even where it looks like a number."""
    return ParameterValue(LaunchConfiguration(name), value_type=str)


def number(name):
    return ParameterValue(LaunchConfiguration(name), value_type=float)


def generate_launch_description():
    # Without a file of its own the rig is the log's: the player writes it, the node waits for it.
    played_rig = os.path.join(tempfile.mkdtemp(prefix="perception-"), "calibration.json")
    has_log = PythonExpression(["'", LaunchConfiguration("log"), "' != ''"])
    rig = PythonExpression([
        "'", LaunchConfiguration("calibration"), "' or ('", played_rig, "' if '",
        LaunchConfiguration("log"), "' else '')",
    ])  # fmt: skip
    inputs = [name + str(i) for i in range(NUM_CAMERAS) for name in ("image", "camera_info")]
    inputs += ["pointcloud", "odometry"]
    fastdds = os.path.join(SHARE, "config", "fastdds.xml")

    node = Node(
        package="perception",
        executable="bev_node",
        name="bev",
        namespace=LaunchConfiguration("namespace"),
        output="screen",
        parameters=[
            LaunchConfiguration("params"),
            {
                "bundle": text("bundle"),
                "calibration": ParameterValue(rig, value_type=str),
                "calibration_timeout_s": ParameterValue(
                    PythonExpression(["300.0 if ", has_log, " else 0.0"]), value_type=float
                ),
                "score_threshold": number("score_threshold"),
                "stamp_rate": number("rate"),
            },
        ],
        remappings=[(f"~/input/{name}", name) for name in inputs],
        on_exit=Shutdown(),
    )
    player = Node(
        package="perception",
        executable="log_player",
        name="log_player",
        namespace=LaunchConfiguration("namespace"),
        output="screen",
        parameters=[
            LaunchConfiguration("params"),
            {
                "log": text("log"),
                "version": text("version"),
                "scene": text("scene"),
                "rate": number("rate"),
                "loop": ParameterValue(LaunchConfiguration("loop"), value_type=bool),
                "write_calibration": played_rig,
            },
        ],
        condition=IfCondition(has_log),
        on_exit=Shutdown(),
    )
    # Kilted reads the first name, Jazzy only the second.
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
    return LaunchDescription([*arguments, *environment, node, player])
