"""The launch file, evaluated with stand-ins that record how they were called: needs no ROS."""

import importlib.machinery
import importlib.util
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "ros2_ws" / "src" / "perception_ros"
ROOTS = ("launch", "launch_ros")


class Recorded:
    """A call of something from launch: its arguments."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.args, self.kwargs = args, kwargs


class StandIn(types.ModuleType):
    """A module in which every capitalised name is a class that records its calls."""

    __path__: list[str] = []  # noqa: RUF012 - marks a package

    def __getattr__(self, name: str) -> type[Recorded]:
        if not name[0].isupper():
            raise AttributeError(name)
        setattr(self, name, type(name, (Recorded,), {}))
        return getattr(self, name)


class StandInFinder:
    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name.split(".")[0] in ROOTS:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)  # type: ignore
        return None

    def create_module(self, spec: Any) -> types.ModuleType:
        return StandIn(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        """Nothing to run."""


@pytest.fixture
def entities(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    def forget() -> None:
        for name in [name for name in sys.modules if name.split(".")[0] in ROOTS]:
            del sys.modules[name]

    monkeypatch.setattr(sys, "meta_path", [StandInFinder(), *sys.meta_path])
    forget()
    path = PACKAGE / "launch" / "bev.launch.py"
    spec = importlib.util.spec_from_file_location("bev_launch", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module.generate_launch_description().args[0]
    forget()


def of_kind(entities: list[Any], kind: str) -> list[Any]:
    return [entity for entity in entities if type(entity).__name__ == kind]


def configurations(value: Any) -> set[str]:
    """Names of the arguments that a recorded value is made from."""
    if isinstance(value, Recorded):
        if type(value).__name__ == "LaunchConfiguration":
            return {value.args[0]}
        value = [*value.args, *value.kwargs.values()]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return set().union(*(configurations(item) for item in value)) if value else set()
    return set()


def launched(entities: list[Any]) -> dict[str, dict[str, Any]]:
    return {node.kwargs["executable"]: node.kwargs for node in of_kind(entities, "Node")}


def evaluate(expression: Any, **values: str) -> Any:
    """What launch would make of a PythonExpression."""
    words = [w if isinstance(w, str) else values[w.args[0]] for w in expression.args[0]]
    return eval("".join(words))


def test_arguments_are_declared_described_and_all_used(entities: list[Any]) -> None:
    declared = {entity.args[0]: entity for entity in of_kind(entities, "DeclareLaunchArgument")}
    assert set(declared) == {
        "bundle", "camera_bundle", "lidar_bundle", "calibration", "log", "version", "scene", "rate",
        "loop", "compressed", "engine", "score_threshold", "autostart", "use_sim_time", "namespace",
        "params", "rviz", "shared_memory",
    }  # fmt: skip
    assert all(entity.kwargs["description"] for entity in declared.values())
    used = configurations([e for e in entities if type(e).__name__ != "DeclareLaunchArgument"])
    assert used == set(declared)
    assert Path(declared["params"].kwargs["default_value"]).is_file()
    assert declared["autostart"].kwargs["default_value"] == "true"


def test_nodes_are_the_installed_executables(entities: list[Any]) -> None:
    nodes = launched(entities)
    assert set(nodes) == {"bev_node", "log_player", "rviz2"}
    assert nodes.pop("rviz2")["package"] == "rviz2"
    assert {node["package"] for node in nodes.values()} == {"perception"}
    assert configurations(nodes["log_player"]["condition"]) == {"log"}
    assert "condition" not in nodes["bev_node"]


def test_what_the_launch_file_sets_are_parameters_of_the_nodes(entities: list[Any]) -> None:
    module = PACKAGE / "perception_ros"
    for executable, file in (("bev_node", "settings.py"), ("log_player", "log_player.py")):
        text = (module / file).read_text()
        for name in set(launched(entities)[executable]["parameters"][1]) - {"use_sim_time"}:
            assert re.search(rf"^    {name}: \w.* = parameter\(", text, re.MULTILINE), name


def test_the_node_listens_to_what_the_player_publishes(entities: list[Any]) -> None:
    nodes = launched(entities)
    kinds = ("image{}", "image{}/compressed", "camera_info{}")
    sensors = [kind.format(i) for i in range(6) for kind in kinds]
    expected = {(f"~/input/{name}", name) for name in [*sensors, "pointcloud", "odometry"]}
    assert set(nodes["bev_node"]["remappings"]) == expected
    assert "remappings" not in nodes["log_player"]
    for node in nodes.values():
        assert configurations(node["namespace"]) == {"namespace"}


def test_rviz_follows_the_namespace(entities: list[Any]) -> None:
    rviz = launched(entities)["rviz2"]
    file = Path(rviz["arguments"][1])
    topics = re.findall(r"Value: (/bev/\S+)", file.read_text())
    assert {(topic, topic[1:]) for topic in topics} == set(rviz["remappings"])
    assert configurations(rviz["condition"]) == {"rviz"}


def test_a_log_brings_its_own_time(entities: list[Any]) -> None:
    arguments = {e.args[0]: e.kwargs for e in of_kind(entities, "DeclareLaunchArgument")}
    ((expression,),) = [arguments["use_sim_time"]["default_value"]]
    assert (evaluate(expression, log="some/log"), evaluate(expression, log="")) == ("true", "false")
    nodes = launched(entities)
    player = nodes["log_player"]["parameters"][1]
    # The clock is sent, or else the log is moved to system time.
    assert configurations(player["publish_clock"]) == {"use_sim_time"}
    (shift,) = player["shift_to_now"].args
    assert (evaluate(shift, use_sim_time="true"), evaluate(shift, use_sim_time="False")) == (
        False, True,
    )  # fmt: skip
    assert configurations(nodes["bev_node"]["parameters"][1]["use_sim_time"]) == {"use_sim_time"}
    assert "use_sim_time" not in player


def test_both_names_of_the_profile_variable_are_set_to_the_file(entities: list[Any]) -> None:
    set_to = {e.args[0]: e.args[1] for e in of_kind(entities, "SetEnvironmentVariable")}
    assert set(set_to) == {"FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE"}
    assert {Path(path) for path in set_to.values()} == {PACKAGE / "config" / "fastdds.xml"}


def test_the_played_rig_reaches_the_node(entities: list[Any]) -> None:
    nodes = launched(entities)
    written = nodes["log_player"]["parameters"][1]["write_calibration"]
    parameters = nodes["bev_node"]["parameters"][1]
    (rig,) = parameters["calibration"].args
    (timeout,) = parameters["calibration_timeout_s"].args
    for calibration, log, path, timeout_s in (
        ("", "some/log", written, 300.0),
        ("", "", "", 0.0),
        ("rig.json", "some/log", "rig.json", 300.0),
    ):
        assert evaluate(rig, calibration=calibration, log=log) == path
        assert evaluate(timeout, log=log) == timeout_s
