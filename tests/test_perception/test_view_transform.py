import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from perception.geometry.frustum import Frustum
from perception.geometry.grid import BevGrid
from perception.geometry.image_crop import ImageCrop
from perception.geometry.pillars import PillarConfig
from perception.geometry.pool_table import pool_table
from perception.input_spec import InputSpec
from perception.models.view_transform import DepthPrior, ViewTransform, ViewTransformConfig
from perception.taxonomy import CAMERAS

SQUARE = {"x_min": -51.2, "x_max": 51.2, "y_min": -51.2, "y_max": 51.2}
GRID = BevGrid(**SQUARE, cell=3.2)
YAWS = dict(zip(CAMERAS, np.deg2rad([0, -55, 55, 180, 110, -110]), strict=True))


def input_spec(**changes) -> InputSpec:
    """Images of 32 x 96, depth bins of 4 m, cells of 3.2 m."""
    spec = InputSpec(
        cameras=CAMERAS,
        image=ImageCrop(height_px=32, width_px=96),
        frustum=Frustum(
            stride=8, depth_min=1.0, depth_max=61.0, depth_step=4.0, z_min=-10.0, z_max=10.0
        ),
        bev=GRID,
        camera_grid=GRID,
        pillars=PillarConfig(
            grid=GRID, z_min=-5.0, z_max=3.0, max_points=5, max_pillars=100, num_sweeps=1
        ),
    )
    return dataclasses.replace(spec, **changes)


def camera_pose(yaw: float) -> np.ndarray:
    """`T_ego_cam` of a camera 1.5 m high and 1 m ahead that looks along a heading."""
    cos, sin = np.cos(yaw), np.sin(yaw)
    T_ego_cam = np.eye(4)
    T_ego_cam[:3, :3] = [[sin, 0, cos], [-cos, 0, sin], [0, -1, 0]]
    T_ego_cam[:3, 3] = [1.0, 0.0, 1.5]
    return T_ego_cam


def random_inputs(spec: InputSpec, c_in: int, b: int = 2, seed: int = 0) -> dict[str, torch.Tensor]:
    """Features of noise, a sparse depth image and lists of the rig of `YAWS`, for `b` frames."""
    generator = torch.Generator().manual_seed(seed)
    cam, height, width = len(spec.cameras), spec.image.height_px, spec.image.width_px
    K = np.array([[width / 2, 0, width / 2], [0, width / 2, height / 2], [0, 0, 1.0]])
    table = pool_table(
        spec.frustum,
        spec.camera_grid,
        spec.feature_height,
        spec.feature_width,
        [K] * cam,
        [camera_pose(YAWS[name]) for name in spec.cameras],
    )
    num_depth = cam * spec.frustum.num_depths * spec.feature_height * spec.feature_width
    num_feat = cam * spec.feature_height * spec.feature_width
    of_frame = np.array([num_depth, num_feat, 0], np.int32)
    depth_img = 60 * torch.rand(b, cam, height, width, generator=generator)
    depth_img *= torch.rand(depth_img.shape, generator=generator) < 0.1
    frames = range(b)
    return {
        "feat_img": torch.randn(
            b, cam, c_in, spec.feature_height, spec.feature_width, generator=generator
        ),
        "depth_img": depth_img if spec.depth_image else torch.zeros(b, cam, 0, 0),
        "camera_mask": torch.ones(b, cam),
        "lidar_mask": torch.ones(b, 1),
        "pool_runs": torch.cat([torch.from_numpy(table.runs + i * of_frame) for i in frames]),
        "cell_start": torch.cat(
            [torch.zeros(1, dtype=torch.int32)]
            + [torch.from_numpy(table.cell_start[1:]) + i * len(table.runs) for i in frames]
        ),
    }


def random_augmentation(random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """An image homography and an affine map of the ego frame, as wild as in training."""
    angle, zoom = np.deg2rad(random.uniform(-5.4, 5.4)), random.uniform(0.38, 0.55)
    A = np.array(
        [
            [zoom * np.cos(angle), -zoom * np.sin(angle), random.uniform(-40, 10)],
            [zoom * np.sin(angle), zoom * np.cos(angle), random.uniform(-20, 20)],
            [0, 0, 1],
        ]
    )
    if random.random() < 0.5:
        A = np.array([[-1, 0, 96.0], [0, 1, 0], [0, 0, 1]]) @ A
    yaw, scale = random.uniform(-np.pi / 4, np.pi / 4), random.uniform(0.9, 1.1)
    T = np.eye(4)
    T[:2, :2] = [[np.cos(yaw), -np.sin(yaw)], [np.sin(yaw), np.cos(yaw)]]
    T[:3, :3] = scale * T[:3, :3] @ np.diag([*random.choice([-1, 1], 2), 1])
    T[:3, 3] = random.normal(scale=0.5, size=3)
    return A, T


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000))
def test_a_point_on_a_pixel_s_ray_is_lifted_into_its_cell(seed):
    # per camera: a pixel of the feature map and a depth bin; the 3D point is found from the ray in
    # the camera's own picture and moved as the augmentation says
    random = np.random.default_rng(seed)
    spec = input_spec()
    K = np.array([[120.0, 0, 100], [0, 120, 45], [0, 0, 1]])
    A, T_ego_aug_ego = random_augmentation(random)
    T_ego_cam = [T_ego_aug_ego @ camera_pose(YAWS[name]) for name in CAMERAS]
    table = pool_table(spec.frustum, GRID, 4, 12, [A @ K] * 6, T_ego_cam)
    num_depths = spec.frustum.num_depths

    view = ViewTransform(ViewTransformConfig(channels=6, hidden_channels=8), num_depths + 6, spec)
    view.smooth = nn.Identity()
    lift = view.depth_and_context[0]
    nn.init.zeros_(lift.bias)
    with torch.no_grad():  # features go through as they are: depth scores, then context
        lift.weight.copy_(torch.eye(num_depths + 6)[:, :, None, None])

    feat_img = torch.zeros(1, 6, num_depths + 6, 4, 12)
    expected = torch.zeros(6, GRID.ny, GRID.nx)  # channel c is camera c's
    for cam in range(6):
        row, column, d = random.integers(4), random.integers(12), random.integers(num_depths)
        feat_img[0, cam, d, row, column] = 200.0  # softmax: 1 at d
        feat_img[0, cam, num_depths + cam, row, column] = 1.0
        depth = 1.0 + (d + 0.5) * 4.0
        pixel = np.linalg.inv(A) @ [(column + 0.5) * 8, (row + 0.5) * 8, 1]
        point_cam = np.append(depth * (np.linalg.inv(K) @ pixel), 1)
        x, y, z, _ = T_ego_cam[cam] @ point_cam
        if abs(x) < 51.2 and abs(y) < 51.2 and abs(z) < 10:
            expected[cam, int(np.floor((y + 51.2) / 3.2)), int(np.floor((x + 51.2) / 3.2))] = 1
    with torch.no_grad():
        output = view(
            feat_img,
            torch.zeros(1, 6, 0, 0),
            torch.ones(1, 6),
            torch.ones(1, 1),
            *(torch.from_numpy(getattr(table, name)) for name in table.__dataclass_fields__),
        )
    torch.testing.assert_close(output.bev[0], expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("depth_image", [False, True])
@pytest.mark.parametrize("half", [False, True])
def test_shapes(depth_image, half):
    camera_grid = dataclasses.replace(GRID, cell=1.6) if half else GRID
    spec = input_spec(depth_image=depth_image, camera_grid=camera_grid)
    view = ViewTransform(ViewTransformConfig(channels=5, hidden_channels=7), 16, spec)
    assert view.out_channels == 5
    output = view(**random_inputs(spec, 16))
    assert output.bev.shape == (2, 5, 32, 32)
    assert output.depth_logits.shape == (2, 6, 15, 4, 12)
    (output.bev.square().mean() + output.depth_logits.square().mean()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in view.parameters())


@pytest.mark.parametrize("depth_image", [False, True])
def test_shapes_of_full_size(depth_image):
    # 0.3 m cells pooled, 0.6 m cells out; 59 / 0.5 = 118 depth bins at 256 / 8 x 704 / 8
    square = {"x_min": -54.0, "x_max": 54.0, "y_min": -54.0, "y_max": 54.0}
    spec = input_spec(
        cameras=("CAM_FRONT",),
        image=ImageCrop(height_px=256, width_px=704),
        frustum=Frustum(
            stride=8, depth_min=1.0, depth_max=60.0, depth_step=0.5, z_min=-10.0, z_max=10.0
        ),
        bev=BevGrid(**square, cell=0.6),
        camera_grid=BevGrid(**square, cell=0.3),
        depth_image=depth_image,
    )
    view = ViewTransform(ViewTransformConfig(channels=3, hidden_channels=4), 4, spec).eval()
    with torch.no_grad():
        output = view(**random_inputs(spec, 4, b=1))
    assert output.bev.shape == (1, 3, 180, 180)
    assert output.depth_logits.shape == (1, 1, 118, 32, 88)


@pytest.mark.parametrize(
    "changes",
    [
        {"cell": 0.8},
        {"cell": 6.4},
        {"cell": 1.6, "x_min": -48.0, "x_max": 54.4},
        {"y_min": -48.0, "y_max": 54.4},
    ],
)
def test_a_camera_grid_that_does_not_fit_is_refused(changes):
    spec = input_spec(camera_grid=dataclasses.replace(GRID, **changes))
    with pytest.raises(ValueError, match="expected the same range and 1 or 2 cells"):
        ViewTransform(ViewTransformConfig(channels=5, hidden_channels=7), 16, spec)


@torch.no_grad()
def run(view: ViewTransform, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    output = view(**inputs)
    return output.bev


def deep_view() -> tuple[ViewTransform, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    spec = input_spec(depth_image=True)
    view = ViewTransform(ViewTransformConfig(channels=5, hidden_channels=7), 16, spec)
    view(**random_inputs(spec, 16))  # batch norms have seen something
    return view.eval(), random_inputs(spec, 16, seed=1)


@pytest.mark.parametrize("garbage", [17.0, float("nan"), float("inf")])
def test_a_masked_lidar_s_depth_image_has_no_influence(garbage):
    view, inputs = deep_view()
    masked = inputs | {"lidar_mask": torch.tensor([[1.0], [0.0]])}
    changed = inputs["depth_img"].clone()
    changed[1] = garbage
    a, b = run(view, masked), run(view, masked | {"depth_img": changed})
    assert torch.equal(a, b)
    assert torch.equal(a[0], run(view, inputs)[0])
    assert not torch.equal(a[1], run(view, inputs)[1])


@pytest.mark.parametrize("garbage", [17.0, float("nan")])
def test_a_masked_camera_has_no_influence(garbage):
    view, inputs = deep_view()
    mask = torch.ones(2, 6)
    mask[0, 2] = 0
    masked = inputs | {"camera_mask": mask}
    depth_img, feat_img = inputs["depth_img"].clone(), inputs["feat_img"].clone()
    depth_img[0, 2], feat_img[0, 2] = garbage, 3.0
    a = run(view, masked)
    assert torch.equal(a, run(view, masked | {"depth_img": depth_img, "feat_img": feat_img}))
    assert not torch.equal(a[0], run(view, inputs)[0])
    assert torch.equal(a[1], run(view, inputs)[1])


def test_inputs_stay_as_they_were():
    view, inputs = deep_view()
    inputs["lidar_mask"][1] = 0
    before = {name: tensor.clone() for name, tensor in inputs.items()}
    run(view, inputs)
    for name, tensor in inputs.items():
        assert torch.equal(tensor, before[name]), name


def test_softmax_and_pooling_are_in_full_precision_under_autocast():
    view, inputs = deep_view()
    view.smooth = nn.Identity()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        output = view(**inputs)
    assert output.bev.dtype == output.depth_logits.dtype == torch.float32
    # context is rounded to bfloat16 by its convolution, the sum over points is not:
    # numbers of 8 bits would all survive another rounding
    assert not torch.equal(output.bev, output.bev.bfloat16().float())


def test_the_prior_raises_the_bin_of_the_nearest_point_of_each_patch():
    # bins of 1 m from 1 to 5 m; 4 x 6 pixels are 2 x 3 patches of 2 x 2
    frustum = Frustum(stride=2, depth_min=1.0, depth_max=5.0, depth_step=1.0, z_min=-5.0, z_max=5.0)
    depth_img = torch.zeros(1, 4, 6)
    depth_img[0, 0, 0], depth_img[0, 1, 1] = 3.5, 2.0  # the nearest is 2.0: bin 1, edge included
    depth_img[0, 3, 2] = 4.9  # bin 3
    depth_img[0, 2, 5] = 5.0  # beyond the last bin
    depth_img[0, 0, 4] = 0.5  # before the first
    prior = DepthPrior(frustum)
    scores = prior(depth_img)
    assert scores.shape == (1, 4, 2, 3)
    expected = torch.zeros(4, 2, 3)
    expected[1, 0, 0] = expected[3, 1, 1] = 6.0
    assert torch.equal(scores[0], expected)
    # 59 bins: e^6 / (e^6 + 58) = 403.4 / 461.4
    assert torch.softmax(torch.tensor([6.0] + [0.0] * 58), 0)[0] == pytest.approx(0.874, abs=1e-3)
    scores.sum().backward()
    assert prior.score.grad == 2
