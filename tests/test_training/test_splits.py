import pytest

from perception.data.nuscenes_log import NuScenesLog
from perception.errors import InputError
from training.splits import split_tokens


def write_splits(root, text):
    (root / "v1.0-mini" / "splits.json").write_text(text)
    return NuScenesLog(root)


def test_an_official_split_keeps_its_scenes_only(small_log_root):
    # the hand-made log has scene-0061 (mini_train) and scene-0103 (mini_val)
    log = NuScenesLog(small_log_root)
    assert split_tokens(log, "mini_val", "all") == log.keyframe_tokens("scene-0103")
    assert split_tokens(log, "all", "all") == log.keyframe_tokens()


def test_a_log_may_bring_its_own_splits(own_log_root):
    log = write_splits(own_log_root, '{"mine": ["scene-0061"], "none": ["scene-9999"]}')
    assert split_tokens(log, "mine", "all") == log.keyframe_tokens("scene-0061")
    with pytest.raises(InputError, match="no all keyframe in the split 'none'"):
        split_tokens(log, "none", "all")


def test_an_unknown_split_is_refused_with_the_known_ones(own_log_root):
    log = write_splits(own_log_root, '{"mine": ["scene-0061"]}')
    with pytest.raises(InputError, match=r"no split 'mini': take 'all' or one of .*mini_val.*mine"):
        split_tokens(log, "mini", "all")


@pytest.mark.parametrize("text", ["{", "[1]", '{"mine": 3}'])
def test_a_broken_table_of_splits_is_an_input_error(own_log_root, text):
    with pytest.raises(InputError, match=r"splits.json is no table of splits"):
        split_tokens(write_splits(own_log_root, text), "mine", "all")
