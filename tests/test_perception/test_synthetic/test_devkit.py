"""The unmodified nuScenes devkit on a generated log."""

import json
import warnings

import numpy as np
import pytest
from nuscenes import NuScenes
from nuscenes.eval.common.config import config_factory
from nuscenes.eval.detection.evaluate import DetectionEval
from nuscenes.eval.detection.utils import category_to_detection_name
from nuscenes.map_expansion.map_api import NuScenesMap
from nuscenes.utils.data_classes import LidarPointCloud

from perception.data.nuscenes_log import NuScenesLog
from perception.taxonomy import CAMERAS, DETECTION_CLASSES
from training.splits import split_tokens

LAYERS = (
    "drivable_area",
    "ped_crossing",
    "walkway",
    "stop_line",
    "carpark_area",
    "road_divider",
    "lane_divider",
)


@pytest.fixture(scope="module")
def nusc(synthetic_log_root):
    return NuScenes("v1.0-mini", str(synthetic_log_root), verbose=False)


def oracle_box(nusc, annotation):
    name = category_to_detection_name(annotation["category_name"])
    attributes = [nusc.get("attribute", t)["name"] for t in annotation["attribute_tokens"]]
    return {
        "sample_token": annotation["sample_token"],
        "translation": annotation["translation"],
        "size": annotation["size"],
        "rotation": annotation["rotation"],
        "velocity": nusc.box_velocity(annotation["token"])[:2].tolist(),
        "detection_name": name,
        "detection_score": 1.0,
        "attribute_name": attributes[0] if attributes else "",
    }


def score(nusc, split, annotations, folder):
    samples = [
        sample["token"]
        for sample in nusc.sample
        if nusc.get("scene", sample["scene_token"])["name"] in split[1]
    ]
    results = {token: [] for token in samples}
    for annotation in annotations:
        if annotation["sample_token"] in results:
            results[annotation["sample_token"]].append(oracle_box(nusc, annotation))
    meta = dict.fromkeys(("use_camera", "use_lidar", "use_radar", "use_map", "use_external"), False)
    path = folder / "results.json"
    path.write_text(json.dumps({"meta": meta, "results": results}))
    config = config_factory("detection_cvpr_2019")
    evaluation = DetectionEval(nusc, config, str(path), split[0], str(folder), verbose=False)
    return evaluation.evaluate()[0]


def test_lists_and_links_work(nusc, capsys):
    nusc.list_scenes()
    nusc.list_categories()
    nusc.list_attributes()
    assert "scene-0061" in capsys.readouterr().out
    for record in nusc.sample_data:
        assert record["channel"] in (*CAMERAS, "LIDAR_TOP")
        assert (
            record["prev"] == ""
            or nusc.get("sample_data", record["prev"])["next"] == record["token"]
        )
        path = f"{nusc.dataroot}/{record['filename']}"
        assert open(path, "rb").read(1)


@pytest.mark.parametrize(
    "split", [("mini_val", ("scene-0103",)), ("synthetic_train", ("scene-0061",))]
)
def test_annotations_with_points_score_one_as_predictions(nusc, split, tmp_path):
    hit = [a for a in nusc.sample_annotation if a["num_lidar_pts"] > 0]
    metrics = score(nusc, split, hit, tmp_path)
    assert metrics.mean_ap == pytest.approx(1.0)
    assert metrics.nd_score == pytest.approx(1.0)
    for name in DETECTION_CLASSES:
        assert metrics.get_label_ap(name, 0.5) == pytest.approx(1.0), name
    # objects that nothing hit are no ground truth: predicting them costs precision
    assert score(nusc, split, nusc.sample_annotation, tmp_path).mean_ap < 0.999


def test_map_masks_of_every_keyframe(nusc, synthetic_log_root):
    maps = {}
    for sample in nusc.sample:
        scene = nusc.get("scene", sample["scene_token"])
        location = nusc.get("log", scene["log_token"])["location"]
        if location not in maps:
            maps[location] = NuScenesMap(str(synthetic_log_root), location)
        lidar = nusc.get("sample_data", sample["data"]["LIDAR_TOP"])
        pose = nusc.get("ego_pose", lidar["ego_pose_token"])
        x, y, _ = pose["translation"]
        w, _, _, z = pose["rotation"]
        heading_deg = np.rad2deg(2 * np.arctan2(z, w))
        masks = maps[location].get_map_mask((x, y, 100, 100), heading_deg, LAYERS, (200, 200))
        assert masks.shape == (7, 200, 200)
        # the car itself stands on the road
        assert masks[0, 98:102, 98:102].all()
        assert masks[0].mean() > 0.05


def test_ten_sweeps_come_together(nusc):
    last = nusc.get("scene", nusc.scene[0]["token"])["last_sample_token"]
    points, times = LidarPointCloud.from_file_multisweep(
        nusc, nusc.get("sample", last), "LIDAR_TOP", "LIDAR_TOP", nsweeps=4
    )
    # two sweeps per keyframe: a quarter of a second apart
    assert np.unique(times.round(3)).tolist() == [0.0, 0.25, 0.5, 0.75]
    assert points.nbr_points() > 40_000


def test_interpolated_boxes_follow_the_track(nusc):
    # a box asked for half-way between two keyframes is the mean of its neighbours
    sweep = next(d for d in nusc.sample_data if not d["is_key_frame"])
    boxes = {box.token: box for box in nusc.get_boxes(sweep["token"])}
    assert len(boxes) > 10


@pytest.mark.parametrize("channel", ["CAM_FRONT", "LIDAR_TOP"])
def test_rendering_works(nusc, channel, tmp_path):
    import matplotlib

    matplotlib.use("Agg")
    token = nusc.sample[0]["data"][channel]
    path = tmp_path / "picture.png"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nusc.render_sample_data(token, out_path=str(path), verbose=False)
    assert path.stat().st_size > 10_000


def test_the_projects_own_splits_agree_with_the_devkits(nusc, synthetic_log_root):
    from nuscenes.eval.common.loaders import get_samples_of_custom_split

    log = NuScenesLog(synthetic_log_root)
    assert sorted(split_tokens(log, "synthetic_val", "all")) == sorted(
        get_samples_of_custom_split("synthetic_val", nusc)
    )
