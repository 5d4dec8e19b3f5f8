import shutil
from pathlib import Path

import pytest
from nuscenes_writer import edit_table

from perception.data.nuscenes_log import NuScenesLog
from perception.errors import InputError


def test_wrong_paths(tmp_path: Path, small_log_root: Path) -> None:
    with pytest.raises(InputError, match="is no folder"):
        NuScenesLog(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"has no folder of tables 'v1\.0-\*'"):
        NuScenesLog(tmp_path)
    with pytest.raises(InputError, match=r"no folder 'v1\.0-trainval', it has \['v1\.0-mini'\]"):
        NuScenesLog(small_log_root, "v1.0-trainval")


def test_two_versions_need_a_choice(own_log_root: Path) -> None:
    shutil.copytree(own_log_root / "v1.0-mini", own_log_root / "v1.0-test")
    with pytest.raises(InputError, match=r"\['v1\.0-mini', 'v1\.0-test'\]: say which"):
        NuScenesLog(own_log_root)
    assert NuScenesLog(own_log_root, "v1.0-test").version == "v1.0-test"


def test_a_missing_table_is_found_at_once(own_log_root: Path) -> None:
    (own_log_root / "v1.0-mini" / "ego_pose.json").unlink()
    with pytest.raises(InputError, match=r"has no table ego_pose\.json"):
        NuScenesLog(own_log_root)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[{", "is no valid JSON"),
        ("\udcff", "is no valid JSON"),
        ('[{"token": "a"}]', "record 'a' without the key 'name'"),
        ('[{"token": "a", "name": 3, "log_token": "b"}]', "name = 3, expected"),
        ('{"token": "a", "name": "s", "log_token": "b"}', "is no list of records"),
        ("[1, 2]", "is no list of records"),
    ],
)
def test_broken_tables(own_log_root: Path, text: str, message: str) -> None:
    path = own_log_root / "v1.0-mini" / "scene.json"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(InputError, match=message):
        NuScenesLog(own_log_root).scenes  # noqa: B018  (reading is the test)


def test_a_dangling_token_and_a_wrong_pose(own_log_root: Path) -> None:
    edit_table(own_log_root, "ego_pose", lambda records: records[0].update(rotation=[0, 0, 0, 0]))
    edit_table(
        own_log_root, "sample_data", lambda records: records[1].update(ego_pose_token="gone")
    )
    log = NuScenesLog(own_log_root)
    with pytest.raises(InputError, match="wrong pose, quaternion"):
        log.keyframe(log.keyframe_tokens()[0])
    with pytest.raises(InputError, match="has no record 'gone'"):
        log.keyframe(log.keyframe_tokens()[1])


@pytest.mark.parametrize("rotation", [[1, 0, 0], [1, 0, 0, "0"], "1000", None])
def test_a_rotation_must_be_four_numbers(own_log_root: Path, rotation: object) -> None:
    edit_table(own_log_root, "ego_pose", lambda records: records[5].update(rotation=rotation))
    with pytest.raises(InputError, match=r"with rotation = .*, expected"):
        NuScenesLog(own_log_root).ego_poses("scene-0061")


def test_intrinsics_must_be_a_matrix(own_log_root: Path) -> None:
    edit_table(
        own_log_root, "calibrated_sensor", lambda rs: [r.update(camera_intrinsic=[]) for r in rs]
    )
    with pytest.raises(InputError, match="expected 3 x 3 numbers"):
        NuScenesLog(own_log_root).calibration("scene-0061")
