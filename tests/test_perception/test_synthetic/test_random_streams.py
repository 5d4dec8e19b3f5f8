from perception.synthetic.random_streams import stream


def test_equal_purposes_give_equal_numbers_and_others_do_not():
    first = stream(3, "scene", "CAM_FRONT", 7).random(4)
    assert (stream(3, "scene", "CAM_FRONT", 7).random(4) == first).all()
    for other in ((4, "scene", "CAM_FRONT", 7), (3, "scene", "CAM_FRONT", 8), (3, "scene", "CAM")):
        assert (stream(*other).random(4) != first).any()


def test_the_parts_of_a_purpose_do_not_run_into_each_other():
    assert stream(0, "a", "bc").random() != stream(0, "ab", "c").random()
    assert stream(1, 2, "x").random() != stream(12, "x").random()
