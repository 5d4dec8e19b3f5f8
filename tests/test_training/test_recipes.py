import pytest

from perception import json_codec
from perception.errors import InputError
from training.config import TrainConfig
from training.recipes import RECIPES, recipe_by_name


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_a_recipe_survives_its_json(name):
    config = recipe_by_name(name)
    assert config.recipe == name
    assert json_codec.from_json(TrainConfig, json_codec.to_json(config), "config.json") == config


def test_a_misspelt_recipe_gets_a_hint():
    with pytest.raises(InputError, match="no recipe 'tinny': did you mean 'tiny'"):
        recipe_by_name("tinny")
    with pytest.raises(InputError, match="known are tiny"):
        recipe_by_name("xyz")
