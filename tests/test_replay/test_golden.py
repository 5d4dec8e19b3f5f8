import copy
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from perception.errors import InputError
from perception.geometry.grid import BevGrid
from perception.messages import Detections, MapMask, PerceptionResult
from runtime import golden

CLASSES = ["car", "truck"]


def detections() -> dict:
    """Two frames of two boxes; the score threshold is 0.1."""
    frame = {
        "scene": "scene-0061",
        "stamp_ns": 100,
        "T_global_ego": None,
        "mode": "fusion",
        "calibration_epoch": 0,
        "sensors_used": ["CAM_FRONT", "LIDAR_TOP"],
        "sensors_missing": {"CAM_BACK": "no data yet"},
        "boxes_ego": [[10, 2, 1, 4, 2, 1.5, 3.14, 5, 0], [20, 0, 1, 8, 2.5, 3, 0, 0, 0]],
        "scores": [0.9, 0.105],
        "labels": [0, 1],
        "map_area_m2": [1600.0],
    }
    return {
        "format_version": golden.FORMAT_VERSION,
        "bundle_sha256": "a",
        "score_threshold": 0.1,
        "classes": CLASSES,
        "box_columns": [],
        "map_classes": ["drivable_area"],
        "frames": [frame, {**copy.deepcopy(frame), "stamp_ns": 200}],
    }


def compared(tmp_path: Path, change: Callable[[dict], object]) -> golden.Comparison:
    """What differs after a change of the first frame."""
    accepted, got = tmp_path / "golden.json", detections()
    golden.accept(accepted, json.dumps(detections()))
    change(got["frames"][0])
    return golden.compare(golden.read(accepted), json.dumps(got))


def test_what_rounding_can_change_is_accepted(tmp_path: Path) -> None:
    def change(frame: dict) -> None:
        # 3 cm to the side, turned over pi: 3.14 to -3.14 is 0.0032 rad; scores by 0.005; the weak
        # box is gone, its score is within 0.01 of the threshold; boxes in another order.
        frame["boxes_ego"] = [[10, 2.03, 1, 4, 2, 1.5, -3.14, 5.05, 0]]
        frame["scores"], frame["labels"] = [0.895], [0]
        frame["map_area_m2"] = [1610.0]  # 1 % are 16
        frame["sensors_missing"] = {"CAM_BACK": "another reason"}

    done = compared(tmp_path, change)
    assert done.differences == ()
    assert (done.num_frames, done.num_boxes, done.num_near_threshold) == (2, 3, 1)
    assert "equal" in done.text()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: f.update(stamp_ns=101), "100: the frame is missing"),
        (lambda f: f.update(stamp_ns=101), "101: the frame is new"),
        (lambda f: f.update(mode="camera"), "mode is camera, accepted fusion"),
        (lambda f: f.update(calibration_epoch=1), "calibration_epoch is 1"),
        (lambda f: f["sensors_used"].pop(), "sensors_used"),
        (lambda f: f["sensors_missing"].clear(), "missing are []"),
        (lambda f: f["boxes_ego"][0].__setitem__(0, 10.06), "car at (10.00, 2.00) m"),
        (lambda f: f["boxes_ego"][0].__setitem__(3, 4.06), "size of car"),
        (lambda f: f["boxes_ego"][0].__setitem__(6, 3.11), "turned by -0.030 rad"),
        (lambda f: f["boxes_ego"][0].__setitem__(7, 5.2), "velocity of car"),
        (lambda f: f["scores"].__setitem__(0, 0.88), "score of car"),
        (lambda f: f["labels"].__setitem__(0, 1), "is new"),
        (lambda f: f.update(map_area_m2=[1700.0]), "drivable_area covers 1700.0 m2"),
        (lambda f: f.update(map_area_m2=[0.0]), "drivable_area covers 0.0 m2, accepted 1600.0"),
        (lambda f: f["boxes_ego"][0].__setitem__(2, 1.06), "car at (10.00, 2.00) m"),
        (lambda f: f["boxes_ego"][0].__setitem__(8, -0.2), "velocity of car"),
        (lambda f: [f[k].pop(0) for k in ("boxes_ego", "scores", "labels")], "0.90 is missing"),
        (lambda f: [f[k].append(f[k][0]) for k in ("boxes_ego", "scores", "labels")], "is new"),
    ],
)
def test_everything_else_is_a_difference(
    tmp_path: Path, change: Callable[[dict], object], words: str
) -> None:
    done = compared(tmp_path, change)
    assert any(words in difference for difference in done.differences), done.text()


@pytest.mark.parametrize("name", ["classes", "box_columns", "map_classes", "score_threshold"])
def test_detections_of_another_vocabulary_are_a_difference(tmp_path: Path, name: str) -> None:
    path, got = tmp_path / "golden.json", detections()
    golden.accept(path, json.dumps(detections()))
    got[name] = 0.2 if name == "score_threshold" else [*got[name], "another"]
    (difference,) = golden.compare(golden.read(path), json.dumps(got)).differences
    assert difference.startswith(f"{name} is ")


def test_a_record_has_the_area_that_each_layer_covers() -> None:
    grid = BevGrid(x_min=0.0, x_max=1.5, y_min=0.0, y_max=1.0, cell=0.5)
    prob = np.zeros((2, 2, 3), np.float32)
    prob[0, 0, :] = 0.6
    result = PerceptionResult(
        stamp_ns=5, T_global_ego=None, sensors_used=("CAM_FRONT",), stage_ms={},
        sensors_missing={"LIDAR_TOP": "dead"}, calibration_epoch=3,
        detections=Detections(
            boxes_ego=np.arange(9, dtype=np.float32)[None], scores=np.array([0.5], np.float32),
            labels=np.array([1]), classes=("car", "truck"),
        ),
        map_mask=MapMask(prob=prob, classes=("a", "b"), grid=grid),
    )  # fmt: skip
    assert golden.frame_record("scene", result) == {
        "scene": "scene", "stamp_ns": 5, "T_global_ego": None, "mode": "camera",
        "calibration_epoch": 3, "sensors_used": ["CAM_FRONT"],
        "sensors_missing": {"LIDAR_TOP": "dead"}, "boxes_ego": [[*map(float, range(9))]],
        "scores": [0.5], "labels": [1],
        "map_area_m2": [0.75, 0.0],  # three cells of a quarter of a square metre
    }  # fmt: skip


def test_nothing_to_compare_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "golden.json"
    with pytest.raises(InputError, match="--accept"):
        golden.compare(golden.read(path), json.dumps(detections()))
    empty = {**detections(), "frames": []}
    with pytest.raises(InputError, match="without a box"):
        golden.accept(path, json.dumps(empty))
    path.write_text(json.dumps({"format_version": 1}))
    with pytest.raises(InputError, match="format 1"):
        golden.compare(golden.read(path), json.dumps(detections()))


def test_other_classes_are_differences_and_no_crash(tmp_path: Path) -> None:
    path, got = tmp_path / "golden.json", detections()
    golden.accept(path, json.dumps(got))
    got["classes"] = [*CLASSES, "bus"]
    got["frames"][0]["labels"][0] = 2
    differences = golden.compare(golden.read(path), json.dumps(got)).differences
    assert any("car at (10.00, 2.00) m" in difference for difference in differences)
    assert any("bus at (10.00, 2.00) m" in difference for difference in differences)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda d: [d.pop(name) for name in list(d) if name != "format_version"], "lacks the key"),
        (lambda d: d.update(frames=[5]), "expected dict"),
        (lambda d: d["frames"][0].pop("mode"), "lacks the key 'mode'"),
        (lambda d: d["frames"][0].update(labels=[0, 2]), "do not belong together"),
        (lambda d: d["frames"][0]["scores"].pop(), "do not belong together"),
        (lambda d: d["frames"][0]["boxes_ego"][0].pop(), "do not belong together"),
        (lambda d: d["frames"][0].update(map_area_m2=[]), "do not belong together"),
    ],
)
def test_a_damaged_file_is_one_sentence(
    tmp_path: Path, damage: Callable[[dict], object], words: str
) -> None:
    path, content = tmp_path / "golden.json", detections()
    damage(content)
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=words) as raised:
        golden.read(path)
    assert "--accept" in str(raised.value)
