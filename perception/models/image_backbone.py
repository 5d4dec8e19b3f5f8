"""Image backbones of `transformers` behind one adapter, and where their first weights come from."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import huggingface_hub
import safetensors.torch
import transformers
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import ResNetBackbone, ResNetConfig, SwinBackbone, SwinConfig

from perception.errors import InputError

WEIGHTS_FILE = "model.safetensors"
OUT_STAGES = ["stage2", "stage3", "stage4"]
"""Stages whose maps leave the backbone; strides 8, 16, 32."""


@dataclass(frozen=True, kw_only=True)
class ResNetBackboneConfig:
    """A residual network. Source: He et al. 2016, table 1."""

    kind: Literal["resnet"] = "resnet"
    stem_channels: int
    """Channels after the stem (stride 4)."""
    stage_channels: tuple[int, int, int, int]
    """Channels of the four stages, strides 4, 8, 16, 32."""
    stage_depths: tuple[int, int, int, int]
    """Residual blocks per stage."""
    block: Literal["basic", "bottleneck"]
    """Two 3x3 convolutions, or 1x1, 3x3, 1x1 with a quarter of the channels inside."""


@dataclass(frozen=True, kw_only=True)
class SwinBackboneConfig:
    """A transformer with shifted windows. Source: Liu et al. 2021, section 3.3."""

    kind: Literal["swin"] = "swin"
    embed_channels: int
    """Channels of the first stage, doubled by each of the next."""
    stage_depths: tuple[int, int, int, int]
    """Blocks per stage."""
    num_heads: tuple[int, int, int, int]
    """Attention heads per stage."""
    window: int
    """Edge of a window [cells of the stage's map]."""
    drop_path: float
    """Probability that the last block is skipped for an image in training; grows from 0 linearly
    over the blocks. Drawn from torch's own random numbers."""

    @property
    def stage_channels(self) -> tuple[int, int, int, int]:
        """Channels of the four stages, strides 4, 8, 16, 32."""
        c = self.embed_channels
        return (c, 2 * c, 4 * c, 8 * c)


ImageBackboneConfig = ResNetBackboneConfig | SwinBackboneConfig


def resnet18() -> ResNetBackboneConfig:
    """ResNet-18. Source: He et al. 2016, table 1."""
    return ResNetBackboneConfig(
        stem_channels=64,
        stage_channels=(64, 128, 256, 512),
        stage_depths=(2, 2, 2, 2),
        block="basic",
    )


def resnet50() -> ResNetBackboneConfig:
    """ResNet-50. Source: He et al. 2016, table 1."""
    return ResNetBackboneConfig(
        stem_channels=64,
        stage_channels=(256, 512, 1024, 2048),
        stage_depths=(3, 4, 6, 3),
        block="bottleneck",
    )


def swin_tiny() -> SwinBackboneConfig:
    """Swin-T. Source: specs, base network section 4."""
    return SwinBackboneConfig(
        embed_channels=96,
        stage_depths=(2, 2, 6, 2),
        num_heads=(3, 6, 12, 24),
        window=7,
        drop_path=0.2,
    )


class ImageBackbone(nn.Module):
    """Normalised images to maps at strides 8, 16 and 32; odd sizes are padded at the end."""

    def __init__(self, config: ImageBackboneConfig):
        super().__init__()
        self.channels = config.stage_channels[1:]
        self.net: ResNetBackbone | SwinBackbone
        if isinstance(config, ResNetBackboneConfig):
            self.net = ResNetBackbone(_resnet_config(config))
        else:
            self.net = SwinBackbone(_swin_config(config))
            # a last norm that no map passes: its weights would never get a gradient
            getattr(self.net, "swin", self.net).layernorm = nn.Identity()

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> tuple[Float[Tensor, "n _c _h _w"], ...]:
        """Maps of ceil(size / stride) at strides 8, 16, 32."""
        return self.net(images).feature_maps


def _resnet_config(config: ResNetBackboneConfig) -> ResNetConfig:
    return ResNetConfig(
        embedding_size=config.stem_channels,
        hidden_sizes=list(config.stage_channels),
        depths=list(config.stage_depths),
        layer_type=config.block,
        out_features=OUT_STAGES,  # type: ignore[call-arg]
    )


def _swin_config(config: SwinBackboneConfig) -> SwinConfig:
    return SwinConfig(
        embed_dim=config.embed_channels,
        depths=list(config.stage_depths),
        num_heads=list(config.num_heads),
        window_size=config.window,
        drop_path_rate=config.drop_path,
        out_features=OUT_STAGES,  # type: ignore[call-arg]
        # the fused one does not export to ONNX, and has no fast kernel for biased windows of 49
        attn_implementation="eager",
    )


@dataclass(frozen=True, kw_only=True)
class LoadedWeights:
    """What a backbone took from a file."""

    path: Path
    num_used: int
    """Tensors of the backbone that came from the file."""
    left_in_file: tuple[str, ...]
    """Tensors that the backbone has no place for, such as a classifier."""
    left_as_built: tuple[str, ...]
    """Tensors of the backbone that no classifier's file has: the norms before the neck."""


def load_backbone(backbone: ImageBackbone, source: str) -> LoadedWeights:
    """Fill a backbone with weights that lie on this machine; nothing is ever downloaded.

    Args:
        backbone: Changed in place.
        source: A folder or a `.safetensors` file in Hugging Face's format, or the name of a model
            in the hub's cache, such as `microsoft/swin-tiny-patch4-window7-224`.

    Raises:
        InputError: There are none, they are a pickle, damaged, or of another network.
    """
    path = _weights_file(source)
    try:
        weights = safetensors.torch.load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is no safetensors file ({error}): fetch it again.") from error
    net_class: Any = type(backbone.net)
    with _quiet_transformers():
        # this way the names that older versions gave the same tensors are understood
        loaded, info = net_class.from_pretrained(
            None,
            config=backbone.net.config,
            state_dict=weights,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # so that they are named here, below
        )
    for name, got, expected in sorted(info["mismatched_keys"]):
        raise InputError(
            f"{path} is of another network: {name} has shape {tuple(got)}, expected "
            f"{tuple(expected)}, so give the weights of the configured backbone."
        )
    missing = sorted(info["missing_keys"])
    for name in missing:
        if not name.startswith("hidden_states_norms"):
            raise InputError(
                f"{path} is of another network: it lacks {name}, so give the weights of the "
                "configured backbone."
            )
    names = backbone.net.state_dict()
    backbone.net.load_state_dict({k: v for k, v in loaded.state_dict().items() if k in names})
    return LoadedWeights(
        path=path,
        num_used=len(names) - len(missing),
        left_in_file=tuple(sorted(info["unexpected_keys"])),
        left_as_built=tuple(missing),
    )


def _weights_file(source: str) -> Path:
    """The safetensors file that `source` means."""
    path = Path(source)
    file = path / WEIGHTS_FILE if path.is_dir() else path
    if file.suffix in (".bin", ".pt", ".pth") or (
        path.is_dir() and not file.is_file() and (path / "pytorch_model.bin").is_file()
    ):
        raise InputError(
            f"{source} holds its weights as a pickle, which can run code when it is read: give "
            f"{WEIGHTS_FILE} of the same model."
        )
    if file.is_file():
        return file
    try:
        cached = huggingface_hub.try_to_load_from_cache(source, WEIGHTS_FILE)
    except huggingface_hub.errors.HFValidationError:  # a path, no model's name
        cached = None
    if isinstance(cached, str):
        return Path(cached)
    raise InputError(
        f"There are no weights {source!r}, neither a folder or file nor in the hub's cache: on a "
        f"machine with network run `huggingface-cli download MODEL {WEIGHTS_FILE} config.json "
        "--local-dir FOLDER` and give the folder."
    )


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Without its bar and its table of names: what was loaded is returned, not printed."""
    log = transformers.utils.logging
    verbosity, had_bar = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(verbosity)
        if had_bar:
            log.enable_progress_bar()
