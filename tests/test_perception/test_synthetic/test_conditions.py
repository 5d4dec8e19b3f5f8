from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perception.errors import InputError
from perception.synthetic.conditions import PRESETS, conditions_by_name, draw_conditions


@given(st.sampled_from(PRESETS), st.integers(0, 2**32 - 1))
@settings(max_examples=100, deadline=None)
def test_presets_are_valid_for_any_draw(name, seed):
    drawn = conditions_by_name(name, np.random.default_rng(seed))
    assert drawn.name == name
    assert 0 < drawn.sun_elevation < np.pi / 2
    assert drawn.skylight > 0
    assert drawn.visibility > 0
    assert drawn.noise > 0
    assert min(drawn.sunlight, drawn.headlights, drawn.cloudiness, drawn.wetness) >= 0
    assert max(drawn.cloudiness, drawn.wetness) <= 1
    assert all(0 <= value <= 255 for value in (*drawn.sky_top_rgb, *drawn.sky_horizon_rgb))
    assert 0 <= drawn.lidar_dropout + 100 * drawn.lidar_dropout_per_meter < 1
    assert 0 <= drawn.lidar_clutter < 0.05
    assert np.linalg.norm(drawn.sun_direction) == pytest.approx(1)


def test_presets_differ_where_they_should():
    day, _, night, rain = (conditions_by_name(p, np.random.default_rng(0)) for p in PRESETS)
    assert night.headlights > 0 == day.headlights
    assert night.skylight < day.skylight / 2
    assert rain.wetness > 0 == day.wetness
    assert rain.lidar_dropout > day.lidar_dropout
    assert rain.lidar_clutter > 0 == day.lidar_clutter
    assert night.sunlight == rain.sunlight == 0


def test_draws_follow_the_shares_and_repeat():
    drawn = [draw_conditions(np.random.default_rng(seed)) for seed in range(400)]
    assert {c.name for c in drawn} == set(PRESETS)
    # 60 % of 400 are 240, standard deviation 10.
    assert 200 <= sum(c.name == "day" for c in drawn) <= 280
    days = [c.sunlight > 0 for c in drawn if c.name == "day"]
    assert 0.5 < np.mean(days) < 0.8
    again = draw_conditions(np.random.default_rng(3))
    assert all(getattr(again, f.name) == getattr(drawn[3], f.name) for f in fields(again))


def test_unknown_name():
    with pytest.raises(InputError, match="'fog', expected one of day, dusk, night, rain"):
        conditions_by_name("fog", np.random.default_rng(0))
