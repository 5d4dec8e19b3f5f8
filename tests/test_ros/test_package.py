"""Names of the two things called `perception`, and files that need no ROS to be checked."""

import ast
import configparser
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
import yaml

WORKSPACE = Path(__file__).resolve().parents[2] / "ros2_ws"
PACKAGE = WORKSPACE / "src" / "perception_ros"
MODULE = PACKAGE / "perception_ros"
OPTIONAL = {"tf2_msgs", "vision_msgs"}
"""Used where they are installed; no registry of Python packages has them."""


def setup_arguments() -> dict[str, ast.expr]:
    tree = ast.parse((PACKAGE / "setup.py").read_text())
    (call,) = (
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "setup"
    )
    return {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg}


def package_xml(folder: str) -> ElementTree.Element:
    return ElementTree.parse(WORKSPACE / "src" / folder / "package.xml").getroot()


def test_the_ros_package_is_perception_and_its_python_module_is_not() -> None:
    arguments = setup_arguments()
    assert package_xml("perception_ros").findtext("name") == "perception"
    assert ast.literal_eval(arguments["name"]) == "perception-ros"
    assert ast.literal_eval(arguments["packages"]) == ["perception_ros"]
    assert (PACKAGE / "resource" / "perception").is_file()
    # A folder of that name would be found in place of the library.
    assert not [path for path in WORKSPACE.glob("src/**/perception") if path.is_dir()]


def test_the_index_marker_and_share_folder_carry_the_package_name() -> None:
    text = ast.unparse(setup_arguments()["data_files"])
    assert "('share/ament_index/resource_index/packages', ['resource/perception'])" in text
    folders = re.findall(r"'(share/[^']*)'", text)
    assert {"share/perception", "share/perception/launch", "share/perception/config"} <= set(
        folders
    )


def test_executables_go_where_ros_looks_for_them() -> None:
    config = configparser.ConfigParser()
    config.read(PACKAGE / "setup.cfg")
    assert config["develop"]["script_dir"] == "$base/lib/perception"
    assert config["install"]["install_scripts"] == "$base/lib/perception"
    assert config["build_scripts"]["executable"] == "/usr/bin/env python3"
    scripts = ast.literal_eval(setup_arguments()["entry_points"])["console_scripts"]
    assert scripts == [
        "bev_node = perception_ros.node:main",
        "log_player = perception_ros.log_player:main",
        "result_printer = perception_ros.result_printer:main",
    ]


def imported_modules(path: Path) -> set[str]:
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules.add(node.module or "")
    return modules


def test_the_ros_code_knows_the_library_through_one_door_only() -> None:
    modules = {name for path in MODULE.glob("*.py") for name in imported_modules(path)}
    ours = {"perception", "runtime", "training", "export", "torch"}
    assert {name for name in modules if name.split(".")[0] in ours} == {"runtime.api"}


def test_every_ros_module_that_is_imported_is_a_dependency() -> None:
    depends = {element.text for element in package_xml("perception_ros").findall("exec_depend")}
    names = {name.split(".")[0] for path in MODULE.glob("*.py") for name in imported_modules(path)}
    # The optional ones are imported in a `try`.
    ros = {n for n in names if n.endswith(("_msgs", "_interfaces")) or n == "rclpy"} - OPTIONAL
    assert len(ros) >= 9
    assert ros <= depends
    assert not depends & OPTIONAL
    depends_msgs = {element.text for element in package_xml("perception_msgs").findall("depend")}
    assert depends_msgs == {"geometry_msgs", "std_msgs"}


def declared_parameters(module: str) -> dict[str, tuple[Any, str]]:
    """Name -> default and meaning, read without importing what needs ROS."""
    return {
        node.target.id: (ast.literal_eval(node.value.args[0]), ast.literal_eval(node.value.args[1]))
        for node in ast.walk(ast.parse((MODULE / module).read_text()))
        if isinstance(node, ast.AnnAssign)
        and isinstance(node.target, ast.Name)
        and isinstance(node.value, ast.Call)
        and getattr(node.value.func, "id", "") == "parameter"
    }


def table_row(name: str, default: Any, meaning: str) -> str:
    if isinstance(default, tuple):
        default = list(default)
    shown = str(default).lower() if isinstance(default, bool) else str(default)
    return f"| `{name}` | {f'`{shown}`' if default != '' else ''} | {meaning} |"


@pytest.mark.parametrize(
    ("module", "key"), [("settings.py", "/**/bev"), ("log_player.py", "/**/log_player")]
)
def test_the_dataclass_is_the_schema_of_readme_and_parameter_file(module: str, key: str) -> None:
    declared = declared_parameters(module)
    assert len(declared) >= 15
    rows = [table_row(name, *entry) for name, entry in declared.items()]
    assert "\n".join(rows) in (PACKAGE / "README.md").read_text()
    file = yaml.safe_load((PACKAGE / "config" / "bev.param.yaml").read_text())
    for name, value in file[key]["ros__parameters"].items():
        default = declared[name][0]
        default = list(default) if isinstance(default, tuple) else default
        assert (value, type(value)) == (default, type(default))


def test_the_rviz_configuration_shows_topics_of_the_node() -> None:
    text = (PACKAGE / "rviz" / "bev.rviz").read_text()
    topics = set(re.findall(r"Value: /bev/output/(\S+)", text))
    assert topics == {"markers", "map/drivable_area", "map/ped_crossing"}
    published = (MODULE / "outputs.py").read_text()
    assert '"markers"' in published
    assert 'f"map/{name}"' in published
    # With a namespace the launch file makes the same topics relative to it.
    launch = (PACKAGE / "launch" / "bev.launch.py").read_text()
    assert all(topic.split("/")[-1] in launch for topic in topics)


def test_the_readme_has_the_fixed_headings() -> None:
    headings = re.findall(r"^## (.*)$", (PACKAGE / "README.md").read_text(), re.MULTILINE)
    assert headings == ["Purpose", "Inputs", "Outputs", "Parameters", "Assumptions", "Limits"]


def test_every_message_file_is_generated() -> None:
    folder = WORKSPACE / "src" / "perception_msgs"
    listed = set(re.findall(r'"(msg/\w+\.msg)"', (folder / "CMakeLists.txt").read_text()))
    assert listed == {f"msg/{path.name}" for path in (folder / "msg").iterdir()}


def test_the_fast_dds_profile_fits_six_camera_images() -> None:
    space = {"dds": "http://www.eprosima.com"}
    root = ElementTree.parse(PACKAGE / "config" / "fastdds.xml").getroot()
    (segment,) = root.findall(".//dds:segment_size", space)
    (largest,) = root.findall(".//dds:maxMessageSize", space)
    assert int(segment.text or 0) >= 6 * 1600 * 900 * 3
    assert int(largest.text or 0) >= 1600 * 900 * 3
