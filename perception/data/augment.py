"""Training frames turned, scaled, mirrored and cut at random, with the matrices that were applied.

Images and the ego frame are changed independently. What was drawn travels as matrices, never as
"was flipped": geometry, boxes and map follow the same ones.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float, Float64, UInt8

from perception.geometry import boxes as box_geometry
from perception.geometry.image_crop import ImageCrop
from perception.input_spec import InputSpec


@dataclass(frozen=True, kw_only=True)
class ImageAugmentConfig:
    """How each camera's image is changed. Source: specs, base network section 8."""

    resize: tuple[float, float] = (0.79, 1.146)
    """Range of the size, as a factor of the recipe's own. Source: same, U(0.38, 0.55) at 0.48."""
    flip_probability: float = 0.5
    """How often an image is mirrored left to right."""
    rotation_deg: float = 5.4
    """Largest rotation about the middle of the network's image, either way."""

    def __post_init__(self) -> None:
        """Refuse ranges that are empty or negative."""
        _require_range("resize", self.resize)
        _require_probability("flip_probability", self.flip_probability)
        _require_not_negative("rotation_deg", self.rotation_deg)


@dataclass(frozen=True, kw_only=True)
class BevAugmentConfig:
    """How the ego frame is changed. Source: specs, base network section 8."""

    rotation_deg: float = 45.0
    """Largest rotation about z, either way."""
    scale: tuple[float, float] = (0.9, 1.1)
    """Range of the scale of all three axes."""
    translation_sigma: float = 0.5
    """Standard deviation of the shift along each axis [m]."""
    flip_x_probability: float = 0.5
    """How often x changes its sign."""
    flip_y_probability: float = 0.5
    """How often y changes its sign."""

    def __post_init__(self) -> None:
        """Refuse ranges that are empty or negative."""
        _require_range("scale", self.scale)
        _require_probability("flip_x_probability", self.flip_x_probability)
        _require_probability("flip_y_probability", self.flip_y_probability)
        _require_not_negative("rotation_deg", self.rotation_deg)
        _require_not_negative("translation_sigma", self.translation_sigma)


@dataclass(frozen=True, kw_only=True)
class ImageChange:
    """What was drawn for one image."""

    resize: float
    """Factor of the recipe's own size."""
    left: float
    """Where the crop begins: 0 at the left edge of the resized image, 1 so that it ends at the
    right edge. An image that is narrower than the crop is placed likewise, with black beside it."""
    flip: bool
    rotation: float
    """About the middle of the crop [rad], positive turns u towards v."""


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """One frame's change; a `perception.model_inputs.FrameAugmentation`."""

    image: ImageCrop
    """The recipe's own crop, which is used where a camera has no change."""
    changes: Mapping[str, ImageChange]
    """Per camera."""
    T_ego_aug_ego: Float64[np.ndarray, "4 4"]
    """Affine map of the ego frame: rotation, scale, mirror, translation."""

    def A_img_aug_img(
        self, camera: str, width_px: int, height_px: int
    ) -> Float64[np.ndarray, "3 3"]:
        """Homography from a camera's pixels to the network's: resize, crop, mirror, rotation.

        Raises:
            ValueError: The image is too flat for the network, see `ImageCrop.A_img_aug_img`.
        """
        A_crop = self.image.A_img_aug_img(width_px, height_px)
        if camera not in self.changes:
            return A_crop
        change = self.changes[camera]
        scale = A_crop[0, 0] * change.resize
        left = change.left * (round(width_px * scale) - self.image.width_px)
        top = round(height_px * scale) - self.image.height_px
        A = np.array([[scale, 0.0, -left], [0.0, scale, -float(top)], [0.0, 0.0, 1.0]])
        if change.flip:
            A = np.array([[-1.0, 0.0, self.image.width_px], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]) @ A
        cos, sin = np.cos(change.rotation), np.sin(change.rotation)
        u, v = self.image.width_px / 2, self.image.height_px / 2
        A_rotation = np.array(
            [[cos, -sin, u - cos * u + sin * v], [sin, cos, v - sin * u - cos * v], [0, 0, 1]]
        )
        return A_rotation @ A

    def cut(
        self,
        camera: str,
        rgb: UInt8[np.ndarray, "h w 3"],
        out: UInt8[np.ndarray, "h_aug w_aug 3"] | None = None,
    ) -> UInt8[np.ndarray, "h_aug w_aug 3"]:
        """Make the network's image by that homography, bilinear, black where there is no image."""
        if camera not in self.changes:
            return self.image.apply(rgb, out)
        height, width, _ = rgb.shape
        A = self.A_img_aug_img(camera, width, height)
        # OpenCV counts from the centre of the first pixel, our half integers from its corner
        A[:2, 2] += 0.5 * A[:2, :2].sum(axis=1) - 0.5
        size = (self.image.width_px, self.image.height_px)
        return np.asarray(cv2.warpAffine(rgb, A[:2], size, dst=out, flags=cv2.INTER_LINEAR))


def draw_augmentation(
    rng: np.random.Generator,
    image_config: ImageAugmentConfig | None,
    bev_config: BevAugmentConfig | None,
    spec: InputSpec,
) -> Augmentation:
    """Draw one frame's change.

    Args:
        rng: Where the numbers come from; how many are drawn does not depend on what they are.
        image_config: Ranges for the images; None leaves them as they are.
        bev_config: Ranges for the ego frame; None leaves it as it is.
        spec: Cameras and their crop.
    """
    changes = {}
    if image_config is not None:
        changes = {camera: _draw_image_change(rng, image_config) for camera in spec.cameras}
    T_ego_aug_ego = np.eye(4) if bev_config is None else _draw_bev_change(rng, bev_config)
    return Augmentation(image=spec.image, changes=changes, T_ego_aug_ego=T_ego_aug_ego)


def augment_boxes(
    T_ego_aug_ego: Float64[np.ndarray, "4 4"], boxes_ego: Float[np.ndarray, "k 9"]
) -> Float[np.ndarray, "k 9"]:
    """Boxes in the augmented frame: centre, size, heading and velocity follow the matrix.

    A mirror turns the heading like the box that it is: the front stays the front.
    """
    boxes_aug = box_geometry.transform(T_ego_aug_ego, boxes_ego)
    boxes_aug[:, box_geometry.SIZE] *= np.cbrt(abs(np.linalg.det(T_ego_aug_ego[:3, :3])))
    boxes_aug[:, box_geometry.YAW] = box_geometry.wrap_angle(boxes_aug[:, box_geometry.YAW])
    return boxes_aug


def _draw_image_change(rng: np.random.Generator, config: ImageAugmentConfig) -> ImageChange:
    rotation_deg = rng.uniform(-config.rotation_deg, config.rotation_deg)
    return ImageChange(
        resize=float(rng.uniform(*config.resize)),
        left=float(rng.uniform()),
        flip=bool(rng.uniform() < config.flip_probability),
        rotation=float(np.deg2rad(rotation_deg)),
    )


def _draw_bev_change(
    rng: np.random.Generator, config: BevAugmentConfig
) -> Float64[np.ndarray, "4 4"]:
    angle = np.deg2rad(rng.uniform(-config.rotation_deg, config.rotation_deg))
    scale = rng.uniform(*config.scale)
    cos, sin = scale * np.cos(angle), scale * np.sin(angle)
    sign_x = -1.0 if rng.uniform() < config.flip_x_probability else 1.0
    sign_y = -1.0 if rng.uniform() < config.flip_y_probability else 1.0
    T_ego_aug_ego = np.eye(4)
    T_ego_aug_ego[:3, :3] = [
        [sign_x * cos, -sign_x * sin, 0.0],
        [sign_y * sin, sign_y * cos, 0.0],
        [0.0, 0.0, scale],
    ]
    T_ego_aug_ego[:3, 3] = rng.normal(0.0, config.translation_sigma, 3)
    return T_ego_aug_ego


def _require_range(name: str, limits: tuple[float, float]) -> None:
    low, high = limits
    if not 0 < low <= high < np.inf:
        raise ValueError(f"{name} is {limits}, expected two positive numbers, the smaller first")


def _require_probability(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} is {value}, expected a probability, 0 to 1")


def _require_not_negative(name: str, value: float) -> None:
    if not 0 <= value < np.inf:
        raise ValueError(f"{name} is {value}, expected 0 or more")
