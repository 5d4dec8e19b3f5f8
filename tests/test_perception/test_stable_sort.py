import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from perception.geometry.stable_sort import stable_argsort

# few values, so that keys repeat, and that they differ in their low or in their high 16 bits
wide_keys = st.builds(lambda high, low: high * 65_536 + low, st.integers(0, 2), st.integers(0, 3))


@given(st.lists(wide_keys, max_size=50), st.sampled_from([200_000, 65_536]))
def test_the_order_is_stable_for_narrow_and_wide_keys(keys: list[int], num_keys: int) -> None:
    array = np.array(keys, np.int32) % num_keys
    np.testing.assert_array_equal(stable_argsort(array, num_keys), np.argsort(array, kind="stable"))
