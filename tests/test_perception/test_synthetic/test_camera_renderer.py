from dataclasses import replace

import numpy as np
import pytest
from picture_scene import boxes, flat_ground, looking_along_x, nothing, plain_day

from perception.synthetic.camera_renderer import render_image
from perception.synthetic.conditions import PRESETS, conditions_by_name
from perception.synthetic.ground_view import build_ground_view
from perception.synthetic.primitives import Pattern, Primitives
from perception.synthetic.random_streams import stream
from perception.synthetic.ray_caster import cast_camera

T_GLOBAL_EGO = np.array([[1, 0, 0, 48.3], [0, 1, 0, 50], [0, 0, 1, 0], [0, 0, 0, 1.0]])
AWAY = (0.0, 100.0), (2.0, 2.0)


@pytest.fixture(scope="module")
def ground_view():
    return build_ground_view(flat_ground())


def render(ground_view, primitives, conditions, view=None, seed=0, T_global_ego=None):
    view = view or looking_along_x()
    cast = cast_camera(primitives, view, len(primitives))
    rng = stream(seed, "picture")
    return render_image(cast, primitives, ground_view, view, conditions, rng, T_global_ego)


def brightness(image, v, u):
    return float(image[v - 1 : v + 2, u - 1 : u + 2].mean())


def test_paint_is_where_it_should_be(ground_view):
    image = render(ground_view, nothing(), plain_day())
    # The bar is 10 .. 12 m ahead: v = 100 + 600 / 10 = 160 and 100 + 600 / 12 = 150.
    column = image[:, 250].mean(axis=1)
    assert column[151:159].min() > 2 * column[161:199].max()
    assert column[151:159].min() > 2 * column[145:149].max()
    # The line is 0.5 .. 0.7 m to the left; in row 180, centre 180.5, d = 600 / 80.5 = 7.453 m:
    # u = 200 - 400 * 0.7 / 7.453 = 162.4 and 200 - 400 * 0.5 / 7.453 = 173.2.
    row = image[180].mean(axis=1)
    middle = (row[168] + row[120]) / 2
    is_white = np.flatnonzero(row > middle)
    assert abs(is_white[0] - 162.4) < 1.5
    assert abs(is_white[-1] + 1 - 173.2) < 1.5


def test_sky_is_above_the_horizon_and_ground_below(ground_view):
    image = render(ground_view, nothing(), plain_day()).astype(int)
    assert (image[:98, :, 2] > image[:98, :, 0] - 30).all()
    assert image[:98].mean() > image[175:].mean() + 40
    # Beyond the map's edge, 50 m ahead (v = 112), lies grass up to the horizon.
    assert (image[102:110, :, 1] > image[102:110, :, 2] + 10).all()


def test_a_face_that_looks_at_the_sun_is_brighter(ground_view):
    box = boxes(((60.0, 50.0, 1.0), (2.0, 2.0, 2.0)))
    day = plain_day(sunlight=1.0, sun_elevation=0.5)
    front_lit = render(ground_view, box, replace(day, sun_azimuth=np.pi))
    back_lit = render(ground_view, box, replace(day, sun_azimuth=0.0))
    # The front face is 9 m ahead; its middle, 1 m high, is at v = 100 + 400 * 0.5 / 9 = 122.
    assert brightness(front_lit, 122, 200) > 1.3 * brightness(back_lit, 122, 200)


def test_shadow_lies_away_from_the_sun(ground_view):
    # Sun at the left, 45 degrees high: the box, 2 m high, reaches y = 49 and its shadow 47. At
    # x = 59, 9 m ahead, y = 48 is at u = 200 + 400 * 2 / 9 = 289, v = 100 + 600 / 9 = 167.
    box = boxes(((59.0, 50.0, 1.0), (1.6, 2.0, 2.0)))
    day = plain_day(sunlight=1.0, sun_azimuth=np.pi / 2, sun_elevation=np.pi / 4)
    image = render(ground_view, box, day)
    in_shadow, sunlit = brightness(image, 167, 289), brightness(image, 167, 400 - 289)
    assert in_shadow < 0.75 * sunlit
    # Past its tip at y = 47, u = 333, there is light again.
    assert brightness(image, 167, 345) > 0.95 * sunlit
    overcast = render(ground_view, box, plain_day())
    assert brightness(overcast, 167, 289) > 0.95 * brightness(overcast, 167, 111)


def test_a_car_in_the_shade_of_a_wall_gets_no_sun(ground_view):
    car = boxes(((59.0, 50.0, 0.8), (4.0, 2.0, 1.6)))
    wall = boxes(((59.0, 54.0, 5.0), (20.0, 1.0, 10.0)))
    wall = replace(wall, object_index=np.array([-1], np.int32))
    day = plain_day(sunlight=1.0, sun_azimuth=np.pi / 2, sun_elevation=np.pi / 4)
    # Its roof, 1.6 m high, is above the camera: look from further up, at v = 100 + 400 * 1.4 / 9.
    view = looking_along_x()
    view.T_global_cam[2, 3] = 3.0
    alone = render(ground_view, car, day, view)
    shaded = render(ground_view, Primitives.concatenate([car, wall]), day, view)
    assert brightness(shaded, 162, 200) < 0.8 * brightness(alone, 162, 200)


def test_ground_is_darker_below_a_car(ground_view):
    car = boxes(((59.0, 50.0, 0.9), (4.0, 2.0, 1.0)))
    image = render(ground_view, car, plain_day())
    # Underside 0.4 m high and 7 m ahead: below v = 100 + 400 * 1.1 / 7 = 163 the ground is seen,
    # below the car from 7 m, v = 186, on.
    assert brightness(image, 180, 200) < 0.8 * brightness(image, 180, 330)


def test_lamps_shine_by_night(ground_view):
    night = conditions_by_name("night", np.random.default_rng(1))
    spot = ((60.0, 47.0, 1.5), (0.6, 0.6, 0.6))
    # 9.7 m ahead, 3 m to the right: u = 200 + 400 * 3 / 9.7 = 324, v = 100.
    dark = render(ground_view, boxes(spot), night)
    shining = render(ground_view, boxes(spot, glow=1.0), night)
    assert brightness(shining, 100, 324) > 4 * brightness(dark, 100, 324)
    # The halo reaches beyond the outline, which ends at u = 337.
    assert brightness(shining, 100, 341) > brightness(dark, 100, 341) + 10


def test_headlights_light_the_road_ahead(ground_view):
    night = conditions_by_name("night", np.random.default_rng(1))
    off = render(ground_view, nothing(), night)
    on = render(ground_view, nothing(), night, T_global_ego=T_GLOBAL_EGO)
    # 8 m ahead of the camera: v = 175.
    assert brightness(on, 175, 200) > 1.5 * brightness(off, 175, 200)
    turned = T_GLOBAL_EGO @ np.diag([-1.0, -1.0, 1.0, 1.0])
    behind = render(ground_view, nothing(), night, T_global_ego=turned)
    assert brightness(behind, 175, 200) < 1.1 * brightness(off, 175, 200)


def test_noise_is_as_set(ground_view):
    # Same seed, so same exposure: the difference is the noise, rounded twice (0.41 in total).
    calm = render(ground_view, nothing(), plain_day()).astype(float)
    noisy = render(ground_view, nothing(), plain_day(noise=6.0)).astype(float)
    difference = (noisy - calm)[110:]
    assert difference.std() == pytest.approx(6.0, rel=0.05)
    assert abs(difference.mean()) < 0.2


def test_haze_takes_the_contrast_of_what_is_far(ground_view):
    # Two black boxes as large as seen from the camera, 10 m and 40 m ahead.
    near, far = ((61.0, 52.0, 1.5), (2.0, 2.0, 1.0)), ((91.0, 42.0, 1.5), (2.0, 8.0, 4.0))
    image = render(ground_view, boxes(near, far, rgb=(0, 0, 0)), plain_day(visibility=60.0))
    # exp(-10/60) = 0.85 and exp(-40/60) = 0.51: haze is 0.15 and 0.49 of the horizon's colour.
    assert brightness(image, 100, 280) > 2.5 * brightness(image, 100, 120)


def test_wet_ground_mirrors_the_sky(ground_view):
    rain = plain_day(sky_top_rgb=(255, 0, 0), sky_horizon_rgb=(255, 0, 0), cloudiness=0.0)
    dry = render(ground_view, nothing(), rain).astype(int)
    wet = render(ground_view, nothing(), replace(rain, wetness=0.8)).astype(int)
    redness = [int((i[120:140, :, 0] - i[120:140, :, 1]).mean()) for i in (dry, wet)]
    assert redness[1] > redness[0] + 15


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("size", [(1600, 900), (352, 198), (97, 55), (1, 1)])
def test_any_size_and_condition_and_twice_the_same(ground_view, name, size):
    view = looking_along_x(*size)
    scene = boxes(((60.0, 50.0, 1.0), (2.0, 2.0, 2.0)), ((51.0, 49.0, 0.5), (4.0, 1.0, 1.0)))
    scene = replace(
        scene,
        pattern=np.array([Pattern.WINDOWS, Pattern.MOTTLED], np.uint8),
        object_index=np.array([-1, 0], np.int32),
    )
    conditions = conditions_by_name(name, np.random.default_rng(2))
    first, second, other = (
        render(ground_view, scene, conditions, view, seed, T_GLOBAL_EGO) for seed in (0, 0, 1)
    )
    assert first.shape == (size[1], size[0], 3)
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(first, second)
    if size != (1, 1):
        assert (first != other).any()


@pytest.mark.parametrize("name", PRESETS)
def test_views_of_sky_only_of_ground_only_and_from_within_a_box(ground_view, name):
    conditions = conditions_by_name(name, np.random.default_rng(2))
    view = looking_along_x(97, 55)
    up, down = view.T_global_cam.copy(), view.T_global_cam.copy()
    # Optical axis up with the image's upper edge back, and down with it ahead.
    up[:3, :3] = np.array([[0.0, 1, 0], [-1, 0, 0], [0, 0, 1]])
    down[:3, :3] = np.array([[0.0, -1, 0], [-1, 0, 0], [0, 0, -1]])
    within = boxes(((50.0, 50.0, 1.5), (1.0, 1.0, 1.0)))
    for T_global_cam in (up, down, view.T_global_cam):
        for primitives in (nothing(), within):
            image = render(
                ground_view, primitives, conditions, replace(view, T_global_cam=T_global_cam)
            )
            assert image.shape == (55, 97, 3)


def test_inputs_are_left_alone(ground_view):
    scene = boxes(((60.0, 50.0, 1.0), (2.0, 2.0, 2.0)))
    view = looking_along_x()
    cast = cast_camera(scene, view, 1)
    before = cast.depth.copy(), cast.primitive.copy(), ground_view.levels[0].copy()
    render_image(cast, scene, ground_view, view, plain_day(), stream(0))
    for old, new in zip(before, (cast.depth, cast.primitive, ground_view.levels[0]), strict=True):
        np.testing.assert_array_equal(old, new)
