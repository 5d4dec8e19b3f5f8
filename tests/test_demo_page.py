import json

import pytest

from demo_page import page
from perception.errors import InputError

REPORTS = {
    "run/environment.json": {
        "commit": "abc",
        "date_utc": "2026-01-01",
        "cpu_count": 2,
        "processor": "Z80",
        "keyframes": ["a", "b"],
    },
    "run/evaluation/evaluation.json": {
        "detection": {"mean_ap": 0.25, "nds": 0.3, "ap": {"car": 0.25}},
        "map_iou": {"divider": 0.125},
        "map_mean_iou": 0.125,
        "num_keyframes": 40,
        "split": "mini_val",
    },
    "bundle/parity.json": {
        "rows": [
            {"output": "scores", "max_error": 1e-6, "bound": 1e-4},
            {"output": "map_prob", "max_error": 5e-5, "bound": 1e-4},
        ],
        "num_frames": 8,
        "num_boxes": 12,
        "num_matched": 12,
        "num_ties": 0,
    },
    "replay/replay.json": {
        "latency": {"engine": {"p50_ms": 100.0, "p95_ms": 120.0, "max_ms": 130.0}},
        "frames_out": 31,
        "frames_dropped": {"overtaken": 2},
        "latency_meaning": "stamp to result",
        "engine": "ONNX Runtime",
    },
}
ROS_LINES = """\
100  1 car  from CAM_1 CAM_2 CAM_3 CAM_4 CAM_5 CAM_6 LIDAR_TOP
100  drivable area 12 m2
200  no boxes  from LIDAR_TOP  without CAM_1: no data; CAM_2: no data
[INFO] from nobody
"""


@pytest.fixture
def demo_folder(tmp_path):
    for name, report in REPORTS.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(json.dumps(report))
    (tmp_path / "ros2.txt").write_text(ROS_LINES)
    (tmp_path / "run" / "evaluation" / "keyframe_000.png").touch()
    return tmp_path


def test_the_page_names_every_figure(demo_folder):
    text = page(demo_folder)
    assert "mAP 0.250, NDS 0.300" in text
    assert "mIoU 0.125" in text
    assert "12 of 12 boxes" in text
    assert "worst output: map_prob, off by 5e-05" in text
    assert "engine" in text
    assert "2 results published, 1 of them from 6 cameras + LiDAR" in text
    assert "keyframe_000.png" in text


def test_a_missing_or_strange_report_is_an_input_error(demo_folder):
    (demo_folder / "bundle" / "parity.json").write_text("{}")
    with pytest.raises(InputError, match="lacks 'rows'"):
        page(demo_folder)
    (demo_folder / "bundle" / "parity.json").unlink()
    with pytest.raises(InputError, match=r"Cannot read .*parity.json: .*run make demo"):
        page(demo_folder)
