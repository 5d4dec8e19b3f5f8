import numpy as np
import pytest

from perception.data.map_layers import MapRaster
from perception.errors import InputError
from perception.geometry.grid import BevGrid
from perception.messages import MapMask
from perception.taxonomy import MAP_CLASSES
from training.distance_bands import DEFAULT_EDGES, DistanceBand, distance_bands
from training.map_metrics import THRESHOLDS, MapIou

GRID_2 = BevGrid(x_min=-1.0, x_max=1.0, y_min=-1.0, y_max=1.0, cell=1.0)
GRID_5 = BevGrid(x_min=-2.5, x_max=2.5, y_min=-2.5, y_max=2.5, cell=1.0)
GRID_ROW = BevGrid(x_min=0.0, x_max=40.0, y_min=7.0, y_max=17.0, cell=10.0)


def said(prob, classes=MAP_CLASSES, grid=GRID_2):
    return MapMask(prob=prob, classes=classes, grid=grid)


def known(mask):
    return MapRaster(mask=mask, labelled=np.ones(6, np.float32))


def random_frames(number):
    random = np.random.default_rng(0)
    mask = (random.random((number, 6, 5, 5)) > 0.5).astype(np.float32)
    return mask, random.random((number, 6, 5, 5)).astype(np.float32)


def test_map_iou_by_hand():
    # layer 0: 4 cells, 2 true; probability 0.6 on one true and one wrong cell, 0.36 on the other
    # true cell. Up to 0.35 three cells are said: IoU 2 / 3; from 0.40 two: IoU 1 / 3
    prob, mask = np.zeros((1, 2, 2), np.float32), np.zeros((6, 2, 2), np.float32)
    prob[0] = [[0.6, 0.36], [0.6, 0.0]]
    mask[0] = [[1, 1], [0, 0]]
    mask[2] = 1
    labelled = np.array([1, 0, 1, 0, 0, 0], np.float32)
    iou = MapIou()
    iou.add(said(prob, ("drivable_area",)), MapRaster(mask=mask, labelled=labelled))
    # the walkway is known and was not predicted at all
    assert iou.result() == {"drivable_area": pytest.approx(2 / 3), "walkway": 0.0}
    assert THRESHOLDS[0] == 0.35


def test_the_best_threshold_is_chosen_per_layer_over_the_whole_set():
    # first frame: one true cell at 0.42, one wrong at 0.37; second: one true at 0.62, one wrong at
    # 0.57. At 0.40: hits 2, wrong 1, missed 0: 2 / 3. At 0.60: 1, 0, 1: 1 / 2. Chosen per frame it
    # would be 1.
    iou = MapIou()
    for true, wrong in ((0.42, 0.37), (0.62, 0.57)):
        prob, mask = np.zeros((6, 2, 2), np.float32), np.zeros((6, 2, 2), np.float32)
        prob[:, 0, 0], prob[:, 0, 1], mask[:, 0, 0] = true, wrong, 1
        iou.add(said(prob), known(mask))
    assert iou.result() == dict.fromkeys(MAP_CLASSES, pytest.approx(2 / 3))


def test_map_iou_of_truth_is_one_and_halves_add_up():
    mask, prob = random_frames(4)
    perfect, whole, halves = MapIou(), MapIou(), MapIou()
    for i in range(4):
        perfect.add(said(mask[i], grid=GRID_5), known(mask[i]))
        whole.add(said(prob[i], grid=GRID_5), known(mask[i]))
    for half in ((2, 3), (0, 1)):
        for i in half:
            halves.add(said(prob[i], grid=GRID_5), known(mask[i]))
    assert min(perfect.result().values()) > 1 - 1e-6
    assert max(perfect.result().values()) < 1
    assert whole.result() == halves.result()


def test_the_counts_are_those_of_the_definition():
    mask, prob = random_frames(3)
    iou = MapIou()
    for i in range(3):
        iou.add(said(prob[i], grid=GRID_5), known(mask[i]))
    for layer, name in enumerate(MAP_CLASSES):
        true = mask[:, layer] > 0.5
        best = 0.0
        for threshold in THRESHOLDS:
            positive = prob[:, layer] >= np.float32(threshold)
            union = (positive & true).sum() + (positive & ~true).sum() + (~positive & true).sum()
            best = max(best, (positive & true).sum() / (union + 1e-7))
        assert iou.result()[name] == pytest.approx(best, abs=1e-12)


@pytest.mark.parametrize("constant", [0.5, THRESHOLDS[0]])
def test_a_constant_has_the_positive_rate_as_iou(constant):
    # up to the threshold of that height every cell is said: hits are the true cells, the union is
    # all cells
    mask, _ = random_frames(1)
    iou = MapIou()
    iou.add(said(np.full((6, 5, 5), constant, np.float32), grid=GRID_5), known(mask[0]))
    rate = mask[0].mean(axis=(1, 2))
    assert list(iou.result().values()) == pytest.approx(rate.tolist())


def test_not_a_number_says_nothing():
    iou = MapIou()
    iou.add(said(np.full((6, 2, 2), np.nan, np.float32)), known(np.ones((6, 2, 2), np.float32)))
    assert set(iou.result().values()) == {0.0}


def test_a_cell_counts_in_the_band_of_its_centre():
    # one row of cells at y = 12 m and x = 5, 15, 25, 35 m: 13, 19.2, 27.7 and 37 m away. Near band
    # (0-18 m): a true cell, found. Far band (18-28 m): a true and an empty cell, nothing said. The
    # last cell, outside both bands, is said and wrong.
    near, far = distance_bands((0.0, 18.0, 28.0))
    prob, mask = np.zeros((6, 1, 4), np.float32), np.zeros((6, 1, 4), np.float32)
    mask[:, 0, [0, 1]] = 1
    prob[:, 0, [0, 3]] = 1
    iou = MapIou((near, far))
    iou.add(said(prob, grid=GRID_ROW), known(mask))
    assert iou.result(near) == dict.fromkeys(MAP_CLASSES, pytest.approx(1.0))
    assert iou.result(far) == dict.fromkeys(MAP_CLASSES, 0.0)
    # the whole raster: one hit, one missed, one wrong
    assert iou.result() == dict.fromkeys(MAP_CLASSES, pytest.approx(1 / 3))


def test_a_band_outside_of_the_raster_knows_no_layer():
    band = DistanceBand(near=100.0, far=200.0)
    iou = MapIou((band,))
    iou.add(said(np.ones((6, 2, 2), np.float32)), known(np.ones((6, 2, 2), np.float32)))
    assert iou.result(band) == {}
    assert len(iou.result()) == 6


def test_bands_lie_between_growing_edges():
    assert [band.name for band in distance_bands(DEFAULT_EDGES)] == [
        "0-20 m",
        "20-30 m",
        "30-40 m",
        "40-50 m",
    ]
    assert distance_bands(()) == ()
    for wrong in ((0.0,), (0.0, 20.0, 20.0), (30.0, 10.0), (-1.0, 5.0)):
        with pytest.raises(InputError, match="growing distances in metres"):
            distance_bands(wrong)
