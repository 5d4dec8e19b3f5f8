"""Everything that fixes the network's inputs: what training and car must agree on."""

from dataclasses import dataclass

from perception.geometry import pillars
from perception.geometry.frustum import Frustum
from perception.geometry.grid import BevGrid
from perception.geometry.image_crop import ImageCrop
from perception.taxonomy import LIDAR


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """Everything that fixes the network's inputs. Travels in the model card."""

    cameras: tuple[str, ...]
    """Cameras in the order of the tensors; none for a network of the LiDAR alone."""
    image: ImageCrop
    """How an image is cut."""
    frustum: Frustum
    """How image features are spread in space."""
    bev: BevGrid
    """The network's BEV grid."""
    camera_grid: BevGrid
    """The grid that image features are pooled on: the BEV grid, or one of half its cell."""
    pillars: pillars.PillarConfig
    """How points are sorted."""
    depth_image: bool = False
    """Whether the network takes the LiDAR's depths in each camera's picture."""
    use_lidar: bool = True
    """False for a network of the cameras alone."""
    max_sensor_age: float = 0.1
    """A sensor whose newest data is further from the frame's stamp than this [s], before or after,
    is masked. nuScenes' cameras are up to 0.043 s early (measured on real logs)."""

    def __post_init__(self) -> None:
        """Refuse parts that do not fit together."""
        if not self.cameras and not self.use_lidar:
            raise ValueError(
                "a network without cameras and without LiDAR sees nothing: use one of them"
            )
        if self.depth_image and not (self.cameras and self.use_lidar):
            raise ValueError("a depth image needs cameras and LiDAR: set depth_image to False")
        if len(set(self.cameras)) != len(self.cameras):
            raise ValueError(f"cameras are {self.cameras}, expected each name once")
        for size, name in ((self.image.height_px, "height"), (self.image.width_px, "width")):
            if size % self.frustum.stride:
                raise ValueError(
                    f"image {name} is {size} px, expected a multiple of {self.frustum.stride}"
                )

    @property
    def sensors(self) -> tuple[str, ...]:
        """Sensors that the network looks at."""
        return (*self.cameras, LIDAR) if self.use_lidar else self.cameras

    @property
    def feature_height(self) -> int:
        """Rows of the image feature map."""
        return self.image.height_px // self.frustum.stride

    @property
    def feature_width(self) -> int:
        """Columns of the image feature map."""
        return self.image.width_px // self.frustum.stride
