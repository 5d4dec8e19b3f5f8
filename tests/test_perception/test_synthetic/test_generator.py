import dataclasses
import json
import subprocess
import sys

import cv2
import numpy as np
import pytest
from synthetic_log import SMALLEST, digests

from perception.errors import InputError
from perception.synthetic import generator
from perception.synthetic.generator import MARKER_FILE, generate_log
from perception.synthetic.log_plan import plan_scenes
from perception.synthetic.log_tables import TABLE_NAMES
from perception.synthetic.scene_writer import plan_shots
from perception.taxonomy import CAMERAS, LIDAR


def table(root, name):
    return json.loads((root / "v1.0-mini" / f"{name}.json").read_text())


def test_one_process_writes_the_same_bytes_as_two(synthetic_log_root, tmp_path):
    one_process = generate_log(tmp_path / "log", SMALLEST, workers=1).root
    written = digests(synthetic_log_root)
    assert len(written) > 100
    assert digests(one_process) == written


def test_everything_that_a_nuscenes_log_has_is_there(synthetic_log_root):
    folders = {path.name for path in synthetic_log_root.iterdir()}
    assert folders == {"v1.0-mini", "maps", "samples", "sweeps", "pixel_labels", MARKER_FILE}
    for name in TABLE_NAMES:
        tokens = [record["token"] for record in table(synthetic_log_root, name)]
        assert tokens, name
        assert len(set(tokens)) == len(tokens), name
    marker = json.loads((synthetic_log_root / MARKER_FILE).read_text())
    assert marker["config"] == dataclasses.asdict(SMALLEST)
    for scene in table(synthetic_log_root, "scene"):
        assert scene["description"].startswith("Synthetic")
    listed = {record["filename"] for record in table(synthetic_log_root, "sample_data")}
    on_disk = {
        str(path.relative_to(synthetic_log_root))
        for folder in ("samples", "sweeps")
        for path in (synthetic_log_root / folder).rglob("*.*")
    }
    assert listed == on_disk


def test_sensors_fire_at_their_own_times_between_first_and_last_keyframe():
    config = dataclasses.replace(
        SMALLEST, num_keyframes=3, sweeps_per_keyframe=10, camera_sweeps=True
    )
    (plan,) = plan_scenes(1)
    shots = plan_shots(plan, config)
    of = {sensor: [shot for shot in shots if shot.sensor == sensor] for sensor in (*CAMERAS, LIDAR)}
    # two intervals of half a second: 20 Hz and 12 Hz, first and last included
    assert len(of[LIDAR]) == 21
    assert {len(of[camera]) for camera in CAMERAS} == {13}
    stamps = [shot.stamp_us - plan.start_us for shot in of[LIDAR]]
    assert stamps == [50_000 * k for k in range(21)]
    for camera in CAMERAS:
        keyframes = [shot for shot in of[camera] if shot.is_keyframe]
        assert [shot.keyframe for shot in keyframes] == [0, 1, 2]
        lead = plan.start_us - keyframes[0].stamp_us
        assert 0 <= lead <= 45_000
        assert all(0 <= shot.keyframe <= 2 for shot in of[camera])
    # a sweep belongs to the keyframe that follows
    assert [shot.keyframe for shot in of[LIDAR][:12]] == [0, *[1] * 10, 2]


def test_pixel_labels_lie_beside_each_keyframe_image(synthetic_log_root):
    images = sorted((synthetic_log_root / "samples").glob("CAM_*/*.jpg"))
    assert images
    for image in images[:6]:
        stem = synthetic_log_root / "pixel_labels" / image.relative_to(synthetic_log_root)
        semantic = cv2.imread(str(stem.with_suffix(".semantic.png")), cv2.IMREAD_UNCHANGED)
        assert semantic.shape == (SMALLEST.image_height_px, SMALLEST.image_width_px)
        depth = cv2.imread(str(stem.with_suffix(".depth.png")), cv2.IMREAD_UNCHANGED)
        assert depth.dtype == np.uint16


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("v1.0-trainval/scene.json", "holds a nuScenes log that was not made here"),
        ("notes.txt", "holds something that was not made here"),
    ],
)
def test_a_folder_with_anything_else_is_never_touched(content, message, tmp_path):
    file = tmp_path / "out" / content
    file.parent.mkdir(parents=True)
    file.write_text("precious")
    for overwrite in (False, True):
        with pytest.raises(InputError, match=message):
            generate_log(tmp_path / "out", SMALLEST, overwrite=overwrite)
    assert file.read_text() == "precious"


def test_a_synthetic_log_is_replaced_only_when_asked(tmp_path):
    (tmp_path / MARKER_FILE).write_text("{}")
    with pytest.raises(InputError, match="pass --overwrite"):
        generator.refuse_foreign_folder(tmp_path, overwrite=False)
    generator.refuse_foreign_folder(tmp_path, overwrite=True)


def test_a_failure_half_way_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(generator, "build_scene", fail)
    config = dataclasses.replace(SMALLEST, num_scenes=1)
    with pytest.raises(OSError, match="disk full"):
        generate_log(tmp_path / "log", config)
    assert list(tmp_path.iterdir()) == []


def run_command_line(*arguments):
    command = [sys.executable, "-m", "perception.synthetic", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--image-size", "704"], "The image size is '704', expected WIDTHxHEIGHT"),
        (["--scenes", "0"], "scenes is 0, expected 1 to 1000"),
        (["--workers", "0"], "number of workers is 0"),
    ],
)
def test_the_command_refuses_the_impossible_without_a_traceback(arguments, message, tmp_path):
    done = run_command_line(tmp_path / "log", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "log").exists()


def test_the_command_makes_a_log_and_says_so(tmp_path):
    size = ["--preset", "tiny", "--scenes", "1", "--keyframes", "2", "--image-size", "96x54"]
    done = run_command_line(tmp_path / "log", *size, "--workers", "1")
    assert done.returncode == 0, done.stderr
    assert "2 keyframes" in done.stdout
    assert (tmp_path / "log" / MARKER_FILE).is_file()
    record = next(
        r for r in table(tmp_path / "log", "sample_data") if r["filename"].endswith("jpg")
    )
    assert (record["width"], record["height"]) == (96, 54)
