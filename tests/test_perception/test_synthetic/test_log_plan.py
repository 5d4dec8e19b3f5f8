import dataclasses
import itertools

import pytest

from perception.errors import InputError
from perception.synthetic.log_plan import PRESETS, plan_scenes, plan_splits


def test_ten_scenes_are_those_of_the_official_mini_splits():
    from nuscenes.utils.splits import create_splits_scenes

    splits = create_splits_scenes()
    own = plan_splits(plan_scenes(10))
    assert sorted(own["synthetic_train"]) == sorted(splits["mini_train"])
    assert sorted(own["synthetic_val"]) == sorted(splits["mini_val"])


def test_further_scenes_have_names_of_their_own_and_one_in_five_is_for_validation():
    from nuscenes.utils.splits import create_splits_scenes

    scenes = plan_scenes(30)
    further = [scene.name for scene in scenes[10:]]
    official = {name for names in create_splits_scenes().values() for name in names}
    assert not official & set(further)
    assert len(set(further)) == 20
    # every fifth from the 15th: indices 14, 19, 24, 29
    assert [s.name for s in scenes[10:] if s.is_validation] == [
        "scene-2005",
        "scene-2010",
        "scene-2015",
        "scene-2020",
    ]
    starts = [scene.start_us for scene in scenes]
    assert all(b - a > 60_000_000 for a, b in itertools.pairwise(starts))


def test_two_scenes_are_one_of_each_official_split():
    assert plan_splits(plan_scenes(2)) == {
        "synthetic_train": ["scene-0061"],
        "synthetic_val": ["scene-0103"],
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_scenes": 0}, "scenes is 0, expected 1 to 1000"),
        ({"num_keyframes": 1}, "keyframes per scene is 1, expected 2 to 200"),
        ({"sweeps_per_keyframe": 11}, "LiDAR sweeps per keyframe is 11, expected 1 to 10"),
        ({"image_width_px": 4000}, "image width is 4000"),
        ({"image_height_px": 8}, "image height is 8"),
        ({"backend": "cuda"}, "no ray caster 'cuda'"),
    ],
)
def test_impossible_sizes_are_refused_in_one_sentence(changes, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(PRESETS["tiny"], **changes)
