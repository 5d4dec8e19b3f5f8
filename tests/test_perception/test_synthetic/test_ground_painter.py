import cv2
import numpy as np
import pytest
from shapely.geometry import Polygon

from perception.synthetic import ground_painter
from perception.synthetic.ground import MAP_LAYERS, Ground, Surface
from perception.synthetic.street_map import (
    CarPark,
    Crossing,
    Divider,
    Lane,
    ParkingSpot,
    RoadSegment,
    StopLine,
    StreetMap,
)


def rectangle(x: float, y: float, width: float, height: float) -> Polygon:
    return Polygon([(x, y), (x + width, y), (x + width, y + height), (x, y + height)])


def lane(x: float) -> Lane:
    """Northwards from y = 2 m to y = 30 m, 3 m wide."""
    y = np.arange(2.0, 31.0, 2.0)
    left, middle, right = (
        np.stack([np.full_like(y, x + dx), y], axis=-1) for dx in (-1.5, 0.0, 1.5)
    )
    return Lane(
        centerline=middle,
        left_edge=left,
        right_edge=right,
        successors=(),
        is_connector=False,
        turn="straight",
        road_segment=0,
    )


@pytest.fixture(scope="module")
def street_map() -> StreetMap:
    """A street northwards, x = 10..16 m, y = 2..38 m; a walkway west of it, a car park east."""
    return StreetMap(
        location="boston-seaport",
        size=40.0,
        drives_on_left=False,
        road_segments=(RoadSegment(polygon=rectangle(10, 2, 6, 36), is_intersection=False),),
        lanes=(lane(14.5),),
        crossings=(
            Crossing(
                polygon=rectangle(10, 32, 6, 4),
                path=np.array([[9.0, 34.0], [17.0, 34.0]]),
                road_segment=0,
            ),
        ),
        stop_lines=(StopLine(polygon=rectangle(13, 27, 3, 3), lanes=(0,), crossing=0),),
        walkways=(rectangle(7, 2, 3, 36),),
        car_parks=(CarPark(polygon=rectangle(16, 10, 8, 12), yaw=0.0, road_segment=0),),
        road_dividers=(
            Divider(line=np.array([[13.0, 2.0], [13.0, 30.0]]), road_segment=0, is_dashed=False),
        ),
        lane_dividers=(),
        parking_spots=(
            ParkingSpot(x=21.0, y=15.0, yaw=0.0, length=5.0, width=2.4, in_car_park=True),
        ),
        walking_paths=(),
        building_lots=(),
        planting_lines=(),
    )


@pytest.fixture(scope="module")
def ground(street_map) -> Ground:
    return ground_painter.paint_ground(street_map, 1)


def surface(ground: Ground, x: float, y: float) -> Surface:
    return Surface(int(ground.surface_at(np.array([x]), np.array([y]))[0]))


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        (3.0, 20.0, Surface.GRASS),
        (8.0, 20.0, Surface.PAVEMENT),
        (9.9, 20.0, Surface.KERB),
        (11.5, 20.0, Surface.ASPHALT),
        (13.0, 10.0, Surface.YELLOW_PAINT),
        (18.0, 20.0, Surface.CONCRETE),
        (21.0, 16.25, Surface.WHITE_PAINT),  # the bay's side: 15 + 1.2 + 0.05
        (23.5, 15.0, Surface.WHITE_PAINT),  # the bay's closed end
        (18.5, 15.0, Surface.CONCRETE),  # and its open one
        (14.5, 29.75, Surface.WHITE_PAINT),  # the stop line: the last 0.5 m of the lane
        (14.2, 28.5, Surface.ASPHALT),  # the stop area in front of it is not painted
        (11.5, 34.0, Surface.WHITE_PAINT),  # stripes begin every 1 m at 9.25: 11.25 .. 11.75
        (12.0, 34.0, Surface.ASPHALT),
    ],
)
def test_surfaces_of_a_hand_made_street(ground, x, y, expected):
    assert surface(ground, x, y) == expected


@pytest.mark.parametrize(
    ("layer", "area"),
    [
        ("drivable_area", 6 * 36 + 8 * 12),
        ("ped_crossing", 6 * 4),
        ("walkway", 3 * 36),
        ("stop_line", 3 * 3),
        ("carpark_area", 8 * 12),
        ("road_divider", 28 * 0.4),
        ("lane_divider", 0),
    ],
)
def test_layers_cover_the_areas(ground, layer, area):
    bits = (ground.layers >> MAP_LAYERS.index(layer)) & 1
    # A raster of 0.1 m may be one cell larger at each edge: below 8 %, but for the thin line.
    assert bits.sum() * ground.cell**2 == pytest.approx(
        area, rel=0.3 if "divider" in layer else 0.08
    )


def test_the_map_picture_has_north_on_top(ground):
    picture = cv2.imdecode(
        np.frombuffer(ground_painter.drivable_png(ground), np.uint8), cv2.IMREAD_UNCHANGED
    )
    assert picture.shape == (400, 400)
    assert set(np.unique(picture)) == {0, 255}
    # The car park is at x = 16..24 m, y = 10..22 m: rows 400 - 220 .. 400 - 100 from the top.
    assert picture[400 - 160, 200] == 255
    assert picture[400 - 240, 200] == 0
    assert picture[160, 200] == 0


def test_the_base_map_is_the_same_picture_in_colour(ground):
    picture = cv2.imdecode(
        np.frombuffer(ground_painter.basemap_png(ground), np.uint8), cv2.IMREAD_COLOR
    )
    concrete_bgr = picture[400 - 200, 180]
    assert concrete_bgr[0] > concrete_bgr[2]  # bluish
    np.testing.assert_array_equal(picture[400 - 110, 180], concrete_bgr)
    assert (picture[400 - 90, 180] != concrete_bgr).any()


def test_colours_tell_surfaces_apart(ground):
    mean = {
        kind: ground.texture_rgb[ground.surface == kind].mean(axis=0)
        for kind in (Surface.GRASS, Surface.ASPHALT, Surface.PAVEMENT, Surface.CONCRETE)
    }
    assert mean[Surface.GRASS][1] > mean[Surface.GRASS][0]
    assert mean[Surface.CONCRETE][2] > mean[Surface.CONCRETE][0]
    assert mean[Surface.PAVEMENT][0] > mean[Surface.PAVEMENT][2] + 20
    assert mean[Surface.ASPHALT].mean() < mean[Surface.CONCRETE].mean() - 30
    asphalt = ground.texture_rgb[ground.surface == Surface.ASPHALT]
    assert asphalt.std(axis=0).min() > 3.0  # not flat


def test_the_same_seed_paints_the_same_and_another_seed_another(street_map, ground):
    again = ground_painter.paint_ground(street_map, 1)
    other = ground_painter.paint_ground(street_map, 2)
    np.testing.assert_array_equal(again.texture_rgb, ground.texture_rgb)
    np.testing.assert_array_equal(again.surface, ground.surface)
    assert (other.texture_rgb != ground.texture_rgb).mean() > 0.3
