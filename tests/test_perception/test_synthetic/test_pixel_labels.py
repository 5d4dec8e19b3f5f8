from dataclasses import replace

import cv2
import numpy as np
import pytest
from picture_scene import boxes, flat_ground, looking_along_x, nothing

from perception.errors import InputError
from perception.synthetic.casts import GROUND, NOTHING, CameraCast
from perception.synthetic.ground import MAP_LAYERS
from perception.synthetic.pixel_labels import (
    PixelLabels,
    decode_depth,
    decode_ids,
    encode_labels,
    label_pixels,
)
from perception.synthetic.primitives import SEMANTIC_CLASSES
from perception.synthetic.ray_caster import cast_camera

SKY, ROAD, TERRAIN, CAR, POLE = (
    SEMANTIC_CLASSES.index(name) for name in ("sky", "road", "terrain", "car", "pole")
)


def hand_made() -> tuple[CameraCast, object]:
    """Row 0: sky, two pixels of object 1 (rows 0 and 1 of the table), clutter. Row 1: object 1 and
    ground."""
    primitives = boxes(*[((60.0, 50.0, 1.0), (1.0, 1.0, 1.0))] * 3)
    primitives = replace(
        primitives,
        object_index=np.array([1, 1, -1], np.int32),
        semantic=np.array([CAR, CAR, POLE], np.uint8),
    )
    cast = CameraCast(
        depth=np.array([[np.inf, 9.876, 9.5, 20.0], [8.0, 12.0, 12.0, 700.0]], np.float32),
        primitive=np.array([[NOTHING, 0, 1, 2], [1, GROUND, GROUND, GROUND]], np.int32),
        visible_px=np.array([0, 3]),
        unoccluded_px=np.array([5, 4]),
    )
    return cast, primitives


def labels_of(cast, primitives) -> PixelLabels:
    return label_pixels(cast, primitives, flat_ground(), looking_along_x(4, 2))


def test_labels_of_a_cast_by_hand():
    labels = labels_of(*hand_made())
    assert labels.instance.tolist() == [[0, 2, 2, 0], [2, 0, 0, 0]]
    # Row 1 looks down: centre (u, 1.5) with 4 px focal length meets the ground 12 m ahead.
    assert labels.semantic.tolist() == [[SKY, CAR, CAR, POLE], [CAR, ROAD, ROAD, ROAD]]
    assert labels.drivable_mask.tolist() == [[False] * 4, [False, True, True, True]]
    assert labels.box_objects.tolist() == [1]
    # Pixels (1, 0), (2, 0), (0, 1): columns 0 .. 2, rows 0 .. 1, the far ends not included.
    assert labels.boxes_px.tolist() == [[0, 0, 3, 2]]
    assert labels.occluded_share.tolist() == [0.25]


def test_ground_has_the_class_of_its_surface():
    view = looking_along_x()
    cast = cast_camera(nothing(), view, 0)
    ground = flat_ground()
    labels = label_pixels(cast, nothing(), ground, view)
    assert (labels.semantic[:100] == SKY).all()
    # Grass begins 10 m to the left: at d = 20 m, v = 130, u = 200 - 400 * 10 / 20 = 0; at 40 m,
    # v = 115, centre 115.5, d = 38.7 m: u = 200 - 400 * 10 / 38.7 = 96.7.
    assert labels.semantic[115, 95:98].tolist() == [TERRAIN, TERRAIN, ROAD]
    assert labels.drivable_mask[115, 95:98].tolist() == [False, False, True]
    # Paint is road, and beyond the map (50 m, v = 112) lies grass.
    assert (labels.semantic[150:160, 250] == ROAD).all()
    assert (labels.semantic[100:111] == TERRAIN).all()
    assert not labels.drivable_mask[100:111].any()
    assert len(labels.box_objects) == 0
    assert labels.boxes_px.shape == (0, 4)
    park = np.full_like(ground.layers, 1 << MAP_LAYERS.index("carpark_area"))
    parked = label_pixels(cast, nothing(), replace(ground, layers=park), view)
    assert parked.drivable_mask[150:].all()


def test_a_hidden_object_has_its_share():
    view = looking_along_x()
    near, far = ((60.0, 50.0, 1.0), (2.0, 2.0, 2.0)), ((70.0, 52.2, 1.0), (2.0, 2.0, 2.0))
    behind = ((80.0, 50.0, 0.5), (1.0, 1.0, 1.0))
    scene = boxes(near, far, behind)
    labels = label_pixels(cast_camera(scene, view, 3), scene, flat_ground(), view)
    # The last one is hidden altogether.
    assert labels.box_objects.tolist() == [0, 1]
    # Front 9 m ahead: u = 200 +- 44.4, v = 100 - 22.2 .. 100 + 66.7, by pixels' centres.
    assert labels.boxes_px[0].tolist() == [156, 78, 244, 167]
    assert labels.occluded_share[0] == 0
    # Front 19 m ahead: u = 200 - 400 * 3.2 / 19 = 132.6 .. 174.7, and its right side up to
    # 200 - 400 * 1.2 / 21 = 177.1; v = 89.5 .. 131.6. From u = 155.6 on it is hidden: 21.5 of 44.5.
    assert labels.boxes_px[1].tolist() == [133, 89, 156, 132]
    assert abs(labels.occluded_share[1] - 21.5 / 44.5) < 0.02


def test_storage_keeps_everything():
    labels = labels_of(*hand_made())
    stored = encode_labels(labels)
    assert set(stored) == {"depth.png", "instance.png", "semantic.png", "drivable.png"}
    np.testing.assert_array_equal(decode_ids(stored["instance.png"]), labels.instance)
    np.testing.assert_array_equal(decode_ids(stored["semantic.png"]), labels.semantic)
    np.testing.assert_array_equal(decode_ids(stored["drivable.png"]) == 255, labels.drivable_mask)
    depth = decode_depth(stored["depth.png"])
    # 9.876 m is 988 steps of 1 cm; 700 m is beyond 655.35 m.
    expected = [[np.inf, 9.88, 9.5, 20.0], [8.0, 12.0, 12.0, np.inf]]
    np.testing.assert_allclose(depth, np.array(expected, np.float32), atol=1e-5)


def test_many_objects_keep_their_ids():
    cast, primitives = hand_made()
    primitives = replace(primitives, object_index=np.array([999, 60_000, -1], np.int32))
    cast = replace(cast, visible_px=np.ones(60_001, int), unoccluded_px=np.ones(60_001, int))
    stored = encode_labels(labels_of(cast, primitives))
    assert decode_ids(stored["instance.png"])[0].tolist() == [0, 1000, 60_001, 0]


def test_too_many_objects():
    cast, primitives = hand_made()
    many = np.ones(70_000, int)
    with pytest.raises(ValueError, match="70000 objects, at most 65535"):
        labels_of(replace(cast, visible_px=many, unoccluded_px=many), primitives)


@pytest.mark.parametrize(
    "content", [b"", b"no image", cv2.imencode(".png", np.zeros((2, 2, 3), np.uint8))[1].tobytes()]
)
def test_what_is_no_stored_label(content):
    with pytest.raises(InputError, match=r"A stored label is .* expected a PNG of one channel"):
        decode_ids(content)
