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


def load() -> Any:
    path = PACKAGE / "launch" / "bev.launch.py"
    spec = importlib.util.spec_from_file_location("bev_launch", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    def forget() -> None:
        for name in [name for name in sys.modules if name.split(".")[0] in ROOTS]:
            del sys.modules[name]

    monkeypatch.setattr(sys, "meta_path", [StandInFinder(), *sys.meta_path])
    forget()
    yield load()
    forget()


def started(module: Any, **given: str) -> list[Any]:
    """What is started with these arguments and the defaults of all others."""
    *declared, opaque = module.generate_launch_description().args[0]
    assert type(opaque).__name__ == "OpaqueFunction"
    values = {entity.args[0]: entity.kwargs["default_value"] for entity in declared}
    assert set(given) <= set(values)
    context = types.SimpleNamespace(launch_configurations={**values, **given})
    return list(opaque.kwargs["function"](context))


def of_kind(entities: list[Any], kind: str) -> list[Any]:
    return [entity for entity in entities if type(entity).__name__ == kind]


def nodes(module: Any, **given: str) -> dict[str, dict[str, Any]]:
    return {
        node.kwargs["executable"]: node.kwargs for node in of_kind(started(module, **given), "Node")
    }


def parameters(node: dict[str, Any]) -> dict[str, Any]:
    """What goes before the parameter file, as values; a ParameterValue must name its type."""
    *_, chosen = node["parameters"]
    values = {}
    for name, value in chosen.items():
        if isinstance(value, Recorded):
            value = value.kwargs["value_type"](value.args[0])
        values[name] = value
    return values


def test_arguments_are_declared_and_described(module: Any) -> None:
    *declared, _ = module.generate_launch_description().args[0]
    defaults = {entity.args[0]: entity.kwargs["default_value"] for entity in declared}
    assert set(defaults) == {
        "bundle", "camera_bundle", "lidar_bundle", "calibration", "log", "version", "scene",
        "cameras", "rate", "loop", "compressed", "engine", "score_threshold", "autostart",
        "use_sim_time", "namespace", "params", "rviz", "shared_memory",
    }  # fmt: skip
    assert all(entity.kwargs["description"] for entity in declared)
    assert all(isinstance(default, str) for default in defaults.values())
    assert Path(defaults["params"]).is_file()


def test_nodes_are_the_installed_executables(module: Any) -> None:
    assert set(nodes(module, bundle="b")) == {"bev_node"}
    assert set(nodes(module, bundle="b", log="some/log")) == {"bev_node", "log_player"}
    all_three = nodes(module, bundle="b", log="some/log", rviz="true", namespace="car")
    assert all_three["rviz2"]["package"] == "rviz2"
    assert {node["namespace"] for node in all_three.values()} == {"car"}
    assert {all_three[name]["package"] for name in ("bev_node", "log_player")} == {"perception"}


def test_what_is_not_given_is_left_to_the_parameter_file(module: Any) -> None:
    """The user's file goes before the defaults: nothing but what was given is passed after it."""
    (bev,) = nodes(module, bundle="b", params="mine.yaml").values()
    assert bev["parameters"][0] == "mine.yaml"
    assert parameters(bev) == {"bundle": "b"}
    assert nodes(module, params="mine.yaml")["bev_node"]["parameters"] == ["mine.yaml"]


def test_what_is_given_goes_before_the_parameter_file_and_has_its_type(module: Any) -> None:
    given = {
        "camera_bundle": "c", "lidar_bundle": "l", "calibration": "0103", "engine": "tensorrt",
        "compressed": "True", "autostart": "false", "score_threshold": "1", "log": "some/log",
        "version": "v1.0-mini", "scene": "0103", "cameras": "CAM_BACK", "rate": "2", "loop": "1",
        "use_sim_time": "true",
    }  # fmt: skip
    both = nodes(module, bundle="b", **given)
    assert parameters(both["bev_node"]) == {
        "bundle": "b", "camera_bundle": "c", "lidar_bundle": "l", "calibration": "0103",
        "engine": "tensorrt", "compressed": True, "autostart": False, "score_threshold": 1.0,
        "use_sim_time": True,
    }  # fmt: skip
    assert parameters(both["log_player"]) == {
        "log": "some/log", "version": "v1.0-mini", "scene": "0103", "cameras": "CAM_BACK",
        "rate": 2.0, "loop": True, "compressed": True, "publish_clock": True,
        "shift_to_now": False,
    }  # fmt: skip


def test_what_the_launch_file_sets_are_parameters_of_the_nodes(module: Any) -> None:
    given = dict.fromkeys(("camera_bundle", "lidar_bundle", "engine", "version", "scene"), "x")
    given |= dict.fromkeys(("compressed", "autostart", "loop"), "true")
    given |= {"cameras": "x", "rate": "1", "score_threshold": "1", "bundle": "b", "log": "l"}
    both = nodes(module, **given)
    for executable, file in (("bev_node", "settings.py"), ("log_player", "log_player.py")):
        text = (PACKAGE / "perception_ros" / file).read_text()
        for name in set(parameters(both[executable])) - {"use_sim_time"}:
            assert re.search(rf"^    {name}: \w.* = parameter\(", text, re.MULTILINE), name


def test_quotes_in_paths_are_nothing_special(module: Any) -> None:
    odd = """/data/bob's "log"') or exit("""
    both = nodes(module, bundle="b", log=odd, calibration=odd)
    assert parameters(both["log_player"])["log"] == odd
    assert parameters(both["bev_node"])["calibration"] == odd


def test_the_launch_ends_with_either_node_but_not_with_rviz(module: Any) -> None:
    all_three = nodes(module, bundle="b", log="l", rviz="true")
    ends = {name for name, node in all_three.items() if "on_exit" in node}
    assert ends == {"bev_node", "log_player"}
    assert all(type(all_three[name]["on_exit"]).__name__ == "Shutdown" for name in ends)


@pytest.mark.parametrize("word", ["perhaps", "yes", "on"])
def test_a_word_that_is_neither_true_nor_false_is_refused(module: Any, word: str) -> None:
    with pytest.raises(RuntimeError, match=f"rviz is '{word}', expected true or false"):
        started(module, rviz=word)


def test_the_node_listens_to_what_the_player_publishes(module: Any) -> None:
    both = nodes(module, log="some/log")
    kinds = ("image{}", "image{}/compressed", "camera_info{}")
    sensors = [kind.format(i) for i in range(6) for kind in kinds]
    expected = {(f"~/input/{name}", name) for name in [*sensors, "pointcloud", "odometry"]}
    assert set(both["bev_node"]["remappings"]) == expected
    assert "remappings" not in both["log_player"]


def test_rviz_follows_the_namespace_and_the_clock(module: Any) -> None:
    rviz = nodes(module, rviz="true", log="some/log")["rviz2"]
    file = Path(rviz["arguments"][1])
    topics = re.findall(r"Value: (/bev/\S+)", file.read_text())
    assert {(topic, topic[1:]) for topic in topics} == set(rviz["remappings"])
    assert rviz["parameters"] == [{"use_sim_time": True}]


@pytest.mark.parametrize(
    ("given", "of_node", "of_player"),
    [
        # The clock is sent, or else the log is moved to system time.
        ("", True, (True, False)),
        ("true", True, (True, False)),
        ("False", False, (False, True)),
    ],
)
def test_a_log_brings_its_own_time(
    module: Any, given: str, of_node: bool, of_player: tuple[bool, bool]
) -> None:
    both = nodes(module, log="some/log", use_sim_time=given)
    assert parameters(both["bev_node"])["use_sim_time"] is of_node
    player = parameters(both["log_player"])
    assert (player["publish_clock"], player["shift_to_now"]) == of_player
    assert "use_sim_time" not in player


def test_both_names_of_the_profile_variable_are_set_to_the_file(module: Any) -> None:
    set_to = {e.args[0]: e.args[1] for e in of_kind(started(module), "SetEnvironmentVariable")}
    assert set(set_to) == {"FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE"}
    assert {Path(path) for path in set_to.values()} == {PACKAGE / "config" / "fastdds.xml"}
    assert of_kind(started(module, shared_memory="false"), "SetEnvironmentVariable") == []


def test_the_played_rig_reaches_the_node(module: Any) -> None:
    both = nodes(module, log="some/log")
    written = parameters(both["log_player"])["write_calibration"]
    assert Path(written).parent.is_dir()
    assert parameters(both["bev_node"])["calibration"] == written
    assert parameters(both["bev_node"])["calibration_timeout_s"] == 300.0
    Path(written).parent.rmdir()
    own = nodes(module, log="some/log", calibration="rig.json")
    assert "write_calibration" not in parameters(own["log_player"])
    assert "calibration_timeout_s" not in parameters(own["bev_node"])


def test_to_look_at_the_arguments_makes_no_folder(
    module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    monkeypatch.setattr(module.tempfile, "mkdtemp", lambda prefix: made.append(prefix) or "/x")
    module.generate_launch_description()
    started(module, bundle="b")
    assert made == []
    started(module, bundle="b", log="some/log")
    assert len(made) == 1


def test_the_real_launch_evaluates_the_file() -> None:
    """The same file where ROS 2's launch is installed: system packages, no wheel has it."""
    launch = pytest.importorskip("launch", reason="launch is not installed")
    pytest.importorskip("launch_ros", reason="launch_ros is not installed")
    context = launch.LaunchContext()
    context.launch_configurations.update({"bundle": "bob's bundle", "log": "some/log"})
    entities = load().generate_launch_description().entities
    (actions,) = [made for made in (entity.visit(context) for entity in entities) if made]
    packages = [action.node_package for action in actions if hasattr(action, "node_package")]
    assert packages == ["perception", "perception"]
