import pytest

from perception.synthetic.scene_records import visibility_token


@pytest.mark.parametrize(
    ("visible", "unoccluded", "token"),
    [
        (0, 0, "1"),  # no camera looks there
        (39, 100, "1"),
        (40, 100, "2"),  # nuScenes: 40 to 60 %
        (60, 100, "3"),
        (79, 100, "3"),
        (80, 100, "4"),
        (100, 100, "4"),
    ],
)
def test_visibility_levels(visible, unoccluded, token):
    assert visibility_token(visible, unoccluded) == token
