import dataclasses
from typing import get_args

import pytest
from small_detector import small_config

from perception import json_codec
from perception.errors import InputError
from perception.models.detector import build_detector
from perception.taxonomy import CAMERAS
from training.config import TrainConfig
from training.gradient_calibration import EqualConfig, GateConfig, OgmConfig
from training.recipes import RECIPES, recipe_by_name
from training.task_rules import InterConfig, TaskRuleConfig

MODALITIES = {"fusion": (CAMERAS, True), "camera": (CAMERAS, False), "lidar": ((), True)}


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_a_recipe_survives_its_json(name):
    config = recipe_by_name(name)
    assert config.recipe == name
    assert json_codec.from_json(TrainConfig, json_codec.to_json(config), "config.json") == config


@pytest.mark.parametrize("preset", ["tiny", "p075", "p100"])
def test_the_modalities_of_a_preset_share_everything_else(preset):
    fusion = recipe_by_name(f"{preset}_fusion").detector
    for modality, sensors in MODALITIES.items():
        detector = recipe_by_name(f"{preset}_{modality}").detector
        assert (detector.inputs.cameras, detector.inputs.use_lidar) == sensors
        assert detector.inputs.depth_image == (modality == "fusion")
        same = dataclasses.replace(
            detector,
            inputs=fusion.inputs,
            image_encoder=fusion.image_encoder,
            view_transform=fusion.view_transform,
            point_encoder=fusion.point_encoder,
        )
        assert same == fusion


@pytest.mark.parametrize(
    ("preset", "voxel_cells", "camera_cells", "bev_cells"),
    [("p075", 1440, 360, 180), ("p100", 1024, 256, 128)],
)
def test_the_full_presets_have_the_grids_of_the_specification(
    preset, voxel_cells, camera_cells, bev_cells
):
    # section 3: 108 m / 0.075 m = 1440, / 0.6 m = 180; 102.4 m / 0.1 m = 1024, / 0.8 m = 128
    inputs = recipe_by_name(f"{preset}_fusion").detector.inputs
    assert (inputs.pillars.grid.nx, inputs.pillars.num_slices) == (voxel_cells, 40)
    assert (inputs.camera_grid.nx, inputs.bev.nx) == (camera_cells, bev_cells)
    assert (inputs.feature_height, inputs.feature_width, inputs.frustum.num_depths) == (32, 88, 118)


def test_the_full_network_has_the_channels_of_the_specification():
    detector = build_detector(recipe_by_name("p075_fusion").detector)
    assert detector.image_encoder.out_channels == 256
    assert detector.view_transform.out_channels == 80
    assert detector.point_encoder.out_channels == 256
    assert detector.fusion.mix[0].in_channels == 336
    assert detector.bev_encoder.out_channels == 512
    assert detector.map_bev_encoder is None


def test_the_small_network_of_the_tests_is_the_tiny_one_with_other_numbers():
    tiny, small = recipe_by_name("tiny_fusion").detector, small_config()
    kinds = [[type(getattr(c, f.name)) for f in dataclasses.fields(c)] for c in (tiny, small)]
    assert kinds[0] == kinds[1]


@pytest.mark.parametrize("rule", get_args(TaskRuleConfig))
def test_every_rule_and_balance_survives_its_json(rule):
    for intra in (EqualConfig(), GateConfig(), OgmConfig()):
        config = dataclasses.replace(
            recipe_by_name("tiny_fusion"), inter=InterConfig(rule=rule()), intra=intra
        )
        read = json_codec.from_json(TrainConfig, json_codec.to_json(config), "config.json")
        assert read == config


def test_a_network_with_one_sensor_has_none_to_balance():
    with pytest.raises(ValueError, match="expected a network with cameras and LiDAR"):
        dataclasses.replace(recipe_by_name("tiny_lidar"), intra=EqualConfig())


def test_a_misspelt_recipe_gets_a_hint():
    with pytest.raises(InputError, match="no recipe 'tiny_fussion': did you mean 'tiny_fusion'"):
        recipe_by_name("tiny_fussion")
    with pytest.raises(InputError, match="known are tiny"):
        recipe_by_name("xyz")
