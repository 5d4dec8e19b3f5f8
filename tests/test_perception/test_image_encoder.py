import functools
import logging
import socket
import warnings
from pathlib import Path

import huggingface_hub
import numpy as np
import onnxruntime
import pytest
import torch
import transformers

from perception import json_codec
from perception.errors import InputError
from perception.models.image_backbone import (
    ImageBackbone,
    ResNetBackboneConfig,
    SwinBackboneConfig,
    load_backbone,
    resnet18,
    resnet50,
    swin_tiny,
)
from perception.models.image_encoder import ImageEncoder, ImageEncoderConfig, load_pretrained

RESNET = ResNetBackboneConfig(
    stem_channels=8, stage_channels=(8, 16, 16, 24), stage_depths=(1, 2, 1, 1), block="basic"
)
BOTTLENECK = ResNetBackboneConfig(
    stem_channels=8, stage_channels=(16, 24, 32, 40), stage_depths=(1, 1, 1, 1), block="bottleneck"
)
SWIN = SwinBackboneConfig(
    embed_channels=8, stage_depths=(1, 1, 2, 1), num_heads=(1, 2, 2, 4), window=2, drop_path=0.5
)
BACKBONES = {"resnet": RESNET, "bottleneck": BOTTLENECK, "swin": SWIN}
each_backbone = pytest.mark.parametrize("config", BACKBONES.values(), ids=BACKBONES)


def encoder(config) -> ImageEncoder:
    torch.manual_seed(0)
    return ImageEncoder(ImageEncoderConfig(backbone=config, channels=12))


def pictures(b: int, cam: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (b, cam, height, width, 3), dtype=torch.uint8, generator=generator)


@each_backbone
@pytest.mark.parametrize("size", [(64, 96), (72, 88), (40, 104)])
def test_maps_are_the_size_over_the_stride_rounded_up(config, size):
    maps = ImageBackbone(config)(torch.rand(1, 3, *size))
    expected = [
        (1, c, -(-size[0] // s), -(-size[1] // s))
        for c, s in zip(config.stage_channels[1:], (8, 16, 32), strict=True)
    ]
    assert [tuple(x.shape) for x in maps] == expected


@pytest.mark.parametrize("window", [2, 7])
def test_swin_at_full_image_size(window):
    # 256 x 704: neither 64 x 176 nor its halves are whole numbers of windows of 7
    config = SwinBackboneConfig(
        embed_channels=4,
        stage_depths=(2, 1, 1, 1),
        num_heads=(1, 1, 1, 1),
        window=window,
        drop_path=0.0,
    )
    maps = ImageBackbone(config)(torch.rand(1, 3, 256, 704))
    assert [tuple(x.shape[1:]) for x in maps] == [(8, 32, 88), (16, 16, 44), (32, 8, 22)]


@each_backbone
@pytest.mark.parametrize("size", [(32, 96), (40, 104)])
def test_encoder_gives_stride_eight_and_every_weight_learns(config, size):
    image_encoder = encoder(config)
    features = image_encoder(pictures(2, 3, *size), torch.ones(2, 3))
    assert features.shape == (2, 3, image_encoder.out_channels, size[0] // 8, size[1] // 8)
    features.square().mean().backward()
    without = [name for name, p in image_encoder.named_parameters() if p.grad is None]
    assert without == []  # DDP would wait for them


@pytest.mark.parametrize(
    ("recipe", "channels", "num_weights"),
    [
        # torchvision's published counts less the classifier: 11,689,512 - 513,000
        (resnet18, (128, 256, 512), 11_176_512),
        (resnet50, (512, 1024, 2048), 25_557_032 - 2_049_000),
        # less classifier (769,000) and last norm (2 * 768), with a norm per map (2 * 1344)
        (swin_tiny, (192, 384, 768), 28_288_354 - 769_000 - 1536 + 2688),
    ],
)
def test_the_known_backbones_are_the_known_ones(recipe, channels, num_weights):
    with torch.device("meta"):
        backbone = ImageBackbone(recipe())
    assert backbone.channels == channels
    assert sum(p.numel() for p in backbone.parameters()) == num_weights


@each_backbone
def test_configurations_travel_as_json(config):
    written = ImageEncoderConfig(backbone=config, channels=12, weights="folder")
    text = json_codec.to_json(written)
    assert json_codec.from_json(ImageEncoderConfig, text, "test") == written


@each_backbone
def test_a_masked_picture_has_no_influence(config):
    image_encoder = encoder(config).eval()
    mask = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    images, other = pictures(2, 2, 32, 64), pictures(2, 2, 32, 64)
    other[0, 1] = pictures(1, 1, 32, 64, seed=1)[0, 0]
    with torch.no_grad():
        a = image_encoder(images, mask)
        assert torch.equal(a, image_encoder(other, mask))
        assert not torch.equal(a, image_encoder(other, torch.ones(2, 2)))


def test_features_move_with_the_picture():
    # a picture 32 px further to the right gives the same features 4 cells further to the right:
    # the neck puts its coarse maps where they belong, also at a size that is no multiple of 32
    image_encoder = encoder(RESNET).eval()
    picture = torch.zeros(1, 2, 104, 808, 3, dtype=torch.uint8)
    picture[0, 0, 40:56, 384:400] = 255
    picture[0, 1, 40:56, 416:432] = 255
    with torch.no_grad():
        left, right = image_encoder(picture, torch.ones(1, 2))[0]
    inner = slice(34, 64)
    torch.testing.assert_close(left[..., inner], right[..., 38:68], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(left[..., inner], right[..., inner], atol=1e-3)


def test_drop_path_follows_torch_s_random_numbers_and_ends_with_training():
    backbone = ImageBackbone(SWIN)
    image = torch.rand(4, 3, 32, 64)

    def last_map(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return backbone(image)[-1]

    assert torch.equal(last_map(1), last_map(1))
    assert not torch.equal(last_map(1), last_map(2))
    backbone.eval()
    assert torch.equal(last_map(1), last_map(2))


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args, **kwargs):
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def save_swin(folder: Path) -> transformers.PreTrainedModel:
    config = transformers.SwinConfig(
        embed_dim=8, depths=[1, 1, 2, 1], num_heads=[1, 2, 2, 4], window_size=2
    )
    model = transformers.SwinForImageClassification(config).eval()
    model.save_pretrained(folder)
    return model


def save_resnet(folder: Path, depths=(1, 2, 1, 1), hidden=(8, 16, 16, 24)):
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=list(hidden), depths=list(depths), layer_type="basic"
    )
    model = transformers.ResNetForImageClassification(config).eval()
    for module in model.modules():  # statistics that differ from those of a new one
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
    model.save_pretrained(folder)
    return model


@pytest.mark.usefixtures("offline")
def test_a_resnet_s_weights_arrive(tmp_path, caplog):
    torch.manual_seed(1)
    model = save_resnet(tmp_path)
    image_encoder = encoder(RESNET).eval()
    with caplog.at_level(logging.INFO):
        loaded = load_pretrained(image_encoder, str(tmp_path))
    image = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        expected = model(image, output_hidden_states=True).hidden_states[2:]
        for x, y in zip(image_encoder.backbone(image), expected, strict=True):
            torch.testing.assert_close(x, y)
    assert loaded.num_used == len(image_encoder.backbone.state_dict())
    assert set(loaded.left_in_file) == {"classifier.1.weight", "classifier.1.bias"}
    assert loaded.left_as_built == ()
    assert f"{loaded.num_used} tensors" in caplog.text


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("whole_folder", [True, False])
def test_a_swin_s_weights_arrive(tmp_path, whole_folder):
    torch.manual_seed(1)
    model = save_swin(tmp_path)
    backbone = encoder(SWIN).backbone.eval()
    source = tmp_path if whole_folder else tmp_path / "model.safetensors"
    loaded = load_backbone(backbone, str(source))
    image = torch.rand(1, 3, 96, 128)
    with torch.no_grad():
        # the classifier's last norm and the backbone's are both as new: the same function
        expected = model.swin(image).last_hidden_state
        got = backbone(image)[-1].flatten(2).transpose(1, 2)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    assert loaded.num_used == len(backbone.state_dict()) - 6
    assert {name.split(".")[0] for name in loaded.left_as_built} == {"hidden_states_norms"}
    assert set(loaded.left_in_file) == {"classifier.weight", "classifier.bias"}


@pytest.mark.usefixtures("offline")
def test_a_model_of_the_hub_s_cache_is_found_by_name(tmp_path, monkeypatch):
    model = tmp_path / "models--some--resnet"
    save_resnet(model / "snapshots" / "abc")
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("abc")
    cached = functools.partial(huggingface_hub.try_to_load_from_cache, cache_dir=tmp_path)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", cached)
    loaded = load_backbone(encoder(RESNET).backbone, "some/resnet")
    assert loaded.path == model / "snapshots" / "abc" / "model.safetensors"


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("source", ["some/model-that-nobody-has", "/no/such/folder", "", "a b"])
def test_weights_that_are_not_here_are_an_error_that_says_how_to_get_them(source):
    with pytest.raises(InputError, match="huggingface-cli download"):
        load_backbone(encoder(RESNET).backbone, source)


def test_weights_of_another_width_are_named(tmp_path):
    save_resnet(tmp_path, hidden=(8, 16, 16, 32))
    backbone = encoder(RESNET).backbone
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    with pytest.raises(
        InputError,
        match=r"encoder.stages.3.layers.0.layer.0.convolution.weight has shape \(32, 16, 3, 3\), "
        r"expected \(24, 16, 3, 3\)",
    ):
        load_backbone(backbone, str(tmp_path))
    for name, tensor in backbone.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_weights_of_a_shallower_network_are_refused(tmp_path):
    save_resnet(tmp_path, depths=(1, 1, 1, 1))
    with pytest.raises(InputError, match=r"lacks encoder.stages.1.layers.1"):
        load_backbone(encoder(RESNET).backbone, str(tmp_path))


def test_weights_of_another_family_are_refused(tmp_path):
    save_swin(tmp_path)
    with pytest.raises(InputError, match="it lacks"):
        load_backbone(encoder(RESNET).backbone, str(tmp_path))


def test_a_pickle_is_never_opened(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    for source in (tmp_path, tmp_path / "pytorch_model.bin"):
        with pytest.raises(InputError, match="pickle"):
            load_backbone(encoder(RESNET).backbone, str(source))


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(InputError, match=r"model.safetensors is no safetensors file"):
        load_backbone(encoder(RESNET).backbone, str(tmp_path))


def test_swin_exports_to_onnx():
    image_encoder = encoder(SWIN).eval()
    inputs = pictures(1, 2, 40, 72), torch.tensor([[1.0, 0.0]])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns of its own deprecations
        program = torch.onnx.export(
            image_encoder, inputs, dynamo=True, optimize=False, verbose=False
        )
    session = onnxruntime.InferenceSession(
        program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    names = [value.name for value in session.get_inputs()]
    (got,) = session.run(None, {n: x.numpy() for n, x in zip(names, inputs, strict=True)})
    with torch.no_grad():
        np.testing.assert_allclose(got, image_encoder(*inputs).numpy(), atol=1e-4, rtol=1e-4)
