import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perception.geometry.image_crop import ImageCrop


def crop_in_float(crop: ImageCrop, rgb: np.ndarray) -> np.ndarray:
    """Bilinear sampling between pixel centres, pixel by pixel, as the homography says."""
    height, width, _ = rgb.shape
    A_img_img_aug = np.linalg.inv(crop.A_img_aug_img(width, height))
    result = np.empty((crop.height_px, crop.width_px, 3))
    for row in range(crop.height_px):
        for column in range(crop.width_px):
            u, v, _ = A_img_img_aug @ [column + 0.5, row + 0.5, 1]
            u, v = np.clip(u - 0.5, 0, width - 1), np.clip(v - 0.5, 0, height - 1)
            left, top = int(u), int(v)
            right, bottom = min(left + 1, width - 1), min(top + 1, height - 1)
            a, b = u - left, v - top
            result[row, column] = (
                (1 - b) * ((1 - a) * rgb[top, left] + a * rgb[top, right].astype(float))
                + b * ((1 - a) * rgb[bottom, left] + a * rgb[bottom, right].astype(float))
            )  # fmt: skip
    return result


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 30), st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_crops_agree_with_plain_float_sampling(width, height, width_aug, seed) -> None:
    rows = round(height * width_aug / width)
    if rows < 1 or rows > 60:
        return
    rgb = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    before = rgb.copy()
    crop = ImageCrop(height_px=max(1, rows - 2), width_px=width_aug)
    # weights of 1/256 and one truncation per axis: below 2 of 255
    assert np.abs(crop.apply(rgb) - crop_in_float(crop, rgb)).max() < 2
    np.testing.assert_array_equal(rgb, before)


def test_extreme_values_do_not_wrap_round() -> None:
    crop = ImageCrop(height_px=33, width_px=77)
    for value in (0, 255):
        rgb = np.full((90, 160, 3), value, np.uint8)
        assert np.abs(crop.apply(rgb).astype(int) - value).max() <= 1


@pytest.mark.parametrize(("u", "v"), [(5, 8), (12, 14), (0, 15)])
def test_a_bright_pixel_lands_where_the_homography_says(u: int, v: int) -> None:
    """Twice as large, the upper 12 of 32 rows cut: pixel centre (5.5, 8.5) goes to (11, 5)."""
    rgb = np.zeros((16, 20, 3), np.uint8)
    rgb[v, u] = 240
    crop = ImageCrop(height_px=20, width_px=40)
    A = crop.A_img_aug_img(20, 16)
    np.testing.assert_allclose(A, [[2, 0, 0], [0, 2, -12], [0, 0, 1]])
    light = crop.apply(rgb)[..., 0].astype(float)
    rows, columns = np.mgrid[:20, :40] + 0.5
    center = np.array([(columns * light).sum(), (rows * light).sum()]) / light.sum()
    expected = (A @ [u + 0.5, v + 0.5, 1])[:2]
    inside = 0 < u < 19 and 0 < v < 15  # at the border the outermost pixel is repeated outwards
    np.testing.assert_allclose(center, expected, atol=0.05 if inside else 0.6)


def test_a_real_camera_is_halved_and_its_sky_cut() -> None:
    # 1600 x 900 to 704 wide is 396 rows; the upper 140 go
    A = ImageCrop(height_px=256, width_px=704).A_img_aug_img(1600, 900)
    np.testing.assert_allclose(A, [[0.44, 0, 0], [0, 0.44, -140], [0, 0, 1]])


def test_each_color_stays_in_its_channel() -> None:
    rgb = np.zeros((20, 30, 3), np.uint8)
    rgb[:] = (10, 100, 200)
    cut = ImageCrop(height_px=7, width_px=13).apply(rgb)
    assert cut.shape == (7, 13, 3)
    assert cut.dtype == np.uint8
    assert np.abs(cut.astype(int) - (10, 100, 200)).max() <= 1


def test_slices_of_larger_images_are_read_rightly() -> None:
    large = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    view = large[10:30, 5:45, ::-1]
    crop = ImageCrop(height_px=8, width_px=20)
    np.testing.assert_array_equal(crop.apply(view), crop.apply(view.copy()))


def test_images_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="has 396 rows, expected 400 or more"):
        ImageCrop(height_px=400, width_px=704).A_img_aug_img(1600, 900)
    with pytest.raises(ValueError, match="image is 0 x 3 px"):
        ImageCrop(height_px=3, width_px=0)


def in_bgr(rgb: np.ndarray) -> np.ndarray:
    return rgb[..., ::-1].copy()[..., ::-1]


def in_padded_bgra(rgb: np.ndarray) -> np.ndarray:
    height, width, _ = rgb.shape
    memory = np.full((height, width + 5, 4), 77, np.uint8)
    memory[:, :width, 2::-1] = rgb
    return memory[:, :width, 2::-1]


def in_padded_rows(rgb: np.ndarray) -> np.ndarray:
    height, width, _ = rgb.shape
    memory = np.full((height, 3 * width + 7), 77, np.uint8)
    memory[:, : 3 * width] = rgb.reshape(height, -1)
    return memory[:, : 3 * width].reshape(height, width, 3)


LAYOUTS = {
    "bgr": in_bgr,
    "bgra with padded rows": in_padded_bgra,
    "padded rows": in_padded_rows,
    "upside down": lambda rgb: rgb[::-1].copy()[::-1],
    "mirrored": lambda rgb: rgb[:, ::-1].copy()[:, ::-1],
}


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_an_image_of_another_layout_gives_the_same_bytes(layout: str) -> None:
    random = np.random.default_rng(1)
    crop = ImageCrop(height_px=32, width_px=88)
    rgb = random.integers(0, 256, (90, 160, 3), dtype=np.uint8)
    view = LAYOUTS[layout](rgb)
    assert not (view.flags.c_contiguous and view.base is None)
    np.testing.assert_array_equal(crop.apply(view), crop.apply(rgb))


def test_a_grey_image_is_broadcast_without_a_copy() -> None:
    grey = np.random.default_rng(2).integers(0, 256, (90, 160), dtype=np.uint8)
    view = np.broadcast_to(grey[..., None], (90, 160, 3))
    crop = ImageCrop(height_px=32, width_px=88)
    np.testing.assert_array_equal(crop.apply(view), crop.apply(np.ascontiguousarray(view)))


def test_the_result_is_written_where_it_is_wanted() -> None:
    rgb = np.random.default_rng(3).integers(0, 256, (90, 160, 3), dtype=np.uint8)
    crop = ImageCrop(height_px=32, width_px=88)
    memory = np.full((3, 32, 88, 3), 77, np.uint8)
    assert crop.apply(rgb, memory[1]).base is memory
    np.testing.assert_array_equal(memory[1], crop.apply(rgb))
    assert (memory[[0, 2]] == 77).all()
