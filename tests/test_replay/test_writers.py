import base64
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from mcap.reader import make_reader

from perception.data.nuscenes_log import NuScenesLog
from perception.errors import InputError
from perception.taxonomy import CAMERAS
from runtime import replay
from runtime.api import Pipeline, load_bundle
from runtime.message_source import NuScenesSource
from runtime.replay_faults import FaultPlan, parse_fault
from runtime.writers import mcap_writer
from runtime.writers.mcap_writer import McapWriter
from runtime.writers.video_writer import VideoWriter

LAYOUT = Path(mcap_writer.__file__).with_name("foxglove_layout.json")


@pytest.fixture(scope="module")
def written(
    toy_bundle: Path, small_log_root: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder with drive.mcap, drive.mp4 and pictures of a scene without CAM_BACK at its end."""
    folder = tmp_path_factory.mktemp("written")
    sinks = [
        McapWriter(folder / "drive.mcap"),
        VideoWriter(folder / "drive.mp4", fps=10.0),
        VideoWriter(folder / "pictures", fps=10.0),
    ]
    plan = FaultPlan(script=(parse_fault("CAM_BACK:dead:1.0-9"),))
    run = replay.Replay(
        Pipeline(load_bundle(toy_bundle), num_threads=1),
        NuScenesSource(NuScenesLog(small_log_root)),
        ("scene-0061",),
        replay.ReplayConfig(speed=0.0, period_ms=200.0, faults=plan),
        sinks,
    )
    run.run()
    for sink in sinks:
        sink.close()
    return folder


@pytest.fixture(scope="module")
def messages(written: Path) -> dict[str, list[tuple[str, dict[str, Any], dict[str, Any]]]]:
    """Schema name, schema and content of each topic's messages."""
    topics: dict[str, list] = {}
    with (written / "drive.mcap").open("rb") as file:
        for schema, channel, message in make_reader(file).iter_messages():
            content = json.loads(message.data)
            topics.setdefault(channel.topic, []).append(
                (schema.name, json.loads(schema.data), content)
            )
    return topics


def fits(content: Any, schema: dict[str, Any]) -> bool:
    """Whether content has exactly a schema's fields, and their types."""
    kinds = {"string": str, "integer": int, "number": (int, float), "boolean": bool}
    if schema["type"] == "array":
        return all(fits(item, schema["items"]) for item in content)
    if schema["type"] == "object" and "properties" in schema:
        fields = schema["properties"]
        return content.keys() == fields.keys() and all(fits(content[n], fields[n]) for n in fields)
    if schema["type"] == "object":
        return all(fits(value, schema["additionalProperties"]) for value in content.values())
    return isinstance(content, kinds[schema["type"]])


def test_every_message_has_the_fields_of_its_schema(messages: dict) -> None:
    for topic, entries in messages.items():
        for name, schema, content in entries:
            assert fits(content, schema), (topic, name, content.keys())
    assert {name for entries in messages.values() for name, _, _ in entries} == {
        "foxglove.CompressedImage", "foxglove.CameraCalibration", "foxglove.PointCloud",
        "foxglove.SceneUpdate", "foxglove.Grid", "foxglove.FrameTransform", "foxglove.Log",
        "bev.Status",
    }  # fmt: skip


def test_the_layout_shows_only_topics_that_are_there(messages: dict) -> None:
    text = LAYOUT.read_text()
    layout = json.loads(text)
    panels = json.dumps(layout["layout"])
    assert all(panel in panels for panel in layout["configById"])
    for topic in messages:
        assert topic == "/tf" or topic in text, f"no panel shows {topic}"
    shown = {word.split(".")[0] for word in text.split('"') if word.startswith("/")}
    assert shown <= set(messages)


def test_the_drive_can_be_read_back(messages: dict) -> None:
    _, _, cloud = messages["/lidar"][0]
    points = np.frombuffer(base64.b64decode(cloud["data"]), "<f4").reshape(-1, 4)
    assert len(points) > 10
    assert np.isfinite(points).all()
    _, _, picture = messages["/CAM_FRONT/image"][0]
    jpeg = np.frombuffer(base64.b64decode(picture["data"]), np.uint8)
    _, _, camera = messages["/CAM_FRONT/calibration"][0]
    assert cv2.imdecode(jpeg, cv2.IMREAD_COLOR).shape == (camera["height"], camera["width"], 3)
    _, _, grid = messages["/map"][0]
    cells = np.frombuffer(base64.b64decode(grid["data"]), np.uint8).reshape(40, 40, 10)
    # toy bundle: 6 x 0.1 + 0.3 = 0.9 on all layers: 0.9 x 255 = 229.5, and every cell is painted
    assert set(np.unique(cells[..., 4:])) <= {229, 230}
    assert (cells[..., 3] == mcap_writer.MAP_ALPHA).all()
    _, _, scene = messages["/boxes"][0]
    assert len(scene["entities"]) == 7
    assert scene["entities"][0]["cubes"][0]["size"] == {"x": 1.0, "y": 1.0, "z": 1.0}
    # the first frame, and the one from which CAM_BACK is missing
    logs = [content["message"] for _, _, content in messages["/log"]]
    assert logs[0] == "mode fusion"
    assert "CAM_BACK" in logs[1]


def test_the_video_has_every_frame_and_the_pictures_show_them(
    written: Path, messages: dict
) -> None:
    num = len(messages["/status"])
    pictures = sorted((written / "pictures").iterdir())
    assert [path.name for path in pictures] == [f"{i:05d}.png" for i in range(num)]
    video = cv2.VideoCapture(str(written / "drive.mp4"))
    count = 0
    while video.read()[0]:
        count += 1
    assert count == num > 5
    first = cv2.imread(str(pictures[0]))
    # 30 px of bar above two rows of 360 px; its green ground is fusion's
    assert first.shape[0] > 30 + 720
    assert first[2, -2].tolist() == [60, 110, 40]
    assert len(CAMERAS) == 6


def test_nothing_is_left_and_a_wrong_place_is_one_sentence(written: Path, tmp_path: Path) -> None:
    assert not list(written.glob(".*"))
    with pytest.raises(InputError, match="Cannot write"):
        McapWriter(tmp_path / "nowhere" / "a.mcap")
    with pytest.raises(InputError, match=r"expected \.mp4"):
        VideoWriter(tmp_path / "a.avi", fps=10.0)
