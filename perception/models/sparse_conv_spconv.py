"""Accelerator of the sparse encoder on NVIDIA GPUs: spconv runs the same network with its weights.

Never on a CPU: spconv's CPU build has a data race and no backward pass (measured).
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from perception.errors import InputError
from perception.geometry.sparse_tables import ConvShape
from perception.ops.sparse_conv import VoxelLevel


def encode(
    encoder: Any, features: Float[Tensor, "v 5"], level: VoxelLevel, num_frames: int
) -> Float[Tensor, "b c y x"]:
    """Run a `SparseEncoder`'s convolutions through spconv.

    Args:
        encoder: The `SparseEncoder` whose weights are used.
        features: Voxel features in the order of the level's rows.
        level: The voxels.
        num_frames: Frames of the batch.

    Raises:
        InputError: spconv is not installed, or the tensors are not on an NVIDIA GPU.

    Note: agreement with the pairs form 1e-4 relative in fp32. In an fp16 autocast region spconv
        works in fp16; it has no bf16, so everywhere else it works in fp32.
    """
    if features.device.type != "cuda":
        raise InputError(
            f"point_encoder.accelerator is spconv and the tensors are on {features.device}, "
            "expected an NVIDIA GPU: set point_encoder.accelerator to none."
        )
    return run_spconv(encoder, features, level, num_frames)


def run_spconv(
    encoder: Any, features: Float[Tensor, "v 5"], level: VoxelLevel, num_frames: int
) -> Float[Tensor, "b c y x"]:
    """The same wherever the tensors are; `encode` has the arguments."""
    frame, place = level.frame_and_place()
    # spconv reads indices as if they were contiguous, whether they are or not
    indices = torch.cat([frame.unsqueeze(1), place], dim=1).int().contiguous()
    x = _spconv().SparseConvTensor(features.contiguous(), indices, list(level.size), num_frames)
    x = _relu(_convolve(encoder.stem, x, "stage0"))
    for i, stage in enumerate(encoder.stages):
        for block in stage.blocks:
            hidden = _relu(_convolve(block.first, x, f"stage{i}"))
            added = _convolve(block.second, hidden, f"stage{i}").features
            x = x.replace_feature(torch.relu(x.features + added))
        x = _relu(_convolve(stage.down, x, None))
    bev = x.dense()
    return bev.reshape(num_frames, -1, *bev.shape[-2:])


def spconv_weight(
    weight: Float[Tensor, "k c_in c_out"], shape: ConvShape
) -> Float[Tensor, "c_out kz ky kx c_in"]:
    """Our weight in spconv's layout. Source: spconv 2.3, conv.py: out, kernel, in."""
    return weight.unflatten(0, shape.kernel).permute(4, 0, 1, 2, 3).contiguous()


def our_weight(
    weight: Float[Tensor, "c_out kz ky kx c_in"],
) -> Float[Tensor, "k c_in c_out"]:
    """Bring spconv's weight into our layout, the inverse of `spconv_weight`."""
    return weight.permute(1, 2, 3, 4, 0).flatten(0, 2).contiguous()


def _convolve(conv: Any, x: Any, indice_key: str | None) -> Any:
    """One convolution with its norm; those with the same key share their pairs."""
    kind = x.features.device.type
    half = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.float16
    dtype = torch.float16 if half and x.features.shape[1] != 5 else torch.float32
    shape = conv.shape
    _, c_in, c_out = conv.weight.shape
    if indice_key is None:
        layer = _spconv().SparseConv3d(
            c_in, c_out, shape.kernel, shape.stride, shape.padding, bias=False
        )
    else:
        layer = _spconv().SubMConv3d(c_in, c_out, shape.kernel, bias=False, indice_key=indice_key)
    # the layer computes with our parameter, so that gradients arrive there
    del layer.weight
    layer.weight = spconv_weight(conv.weight.to(dtype), shape)
    layer.train(torch.is_grad_enabled())
    with torch.autocast(kind, enabled=False):
        out = layer(x.replace_feature(x.features.to(dtype)))
    return out.replace_feature(conv.normalise(out.features.float()))


def _relu(x: Any) -> Any:
    return x.replace_feature(torch.relu(x.features))


def _spconv() -> Any:
    try:
        import spconv.pytorch
    except ImportError as error:
        raise InputError(
            "point_encoder.accelerator is spconv, which is not installed: install the extra spconv "
            "or set point_encoder.accelerator to none."
        ) from error
    return spconv.pytorch
