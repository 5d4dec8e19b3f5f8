import pytest

from perception.geometry.frustum import Frustum

FRUSTUM = Frustum(stride=8, depth_min=1.0, depth_max=13.0, depth_step=3.0, z_min=-1.0, z_max=3.0)


@pytest.mark.parametrize(
    "change", [{"depth_min": 0.0}, {"depth_max": 1.0}, {"depth_max": 12.0}, {"depth_step": -3.0}]
)
def test_impossible_depths_are_refused(change: dict) -> None:
    values = vars(FRUSTUM) | change
    with pytest.raises(ValueError, match="expected a whole number in front of the camera"):
        Frustum(**values)
