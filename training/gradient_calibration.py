"""Gradients of several tasks, and of two sensors, brought to the same level: FULLER's mathematics.

Everything here is a function of a few inner products and norms; `training.two_phase` measures them
in a step and applies the result.

Source: Huang et al. 2023 (FULLER); Liu et al. 2021 (IMTL-G); specs, FULLER sections 2 and 3.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float64

RIDGE = 1e-6
"""Added to the matrix of cosines where it is singular. Source: specs, FULLER section 2.4."""
MIN_SHARE = 1e-6
"""Of the sum of their sizes: weights that sum to less cannot be made to sum to 1. Ours."""

Gram = Float64[np.ndarray, "t t"]
"""Inner products of the tasks' gradients; none is 0 and all are finite."""


@dataclass(frozen=True, kw_only=True)
class ImtlGConfig:
    """Every task's gradient is met to the same length by what the shared part is taught."""

    kind: Literal["imtl_g"] = "imtl_g"
    clip: bool = False
    """Replace negative weights, which only three and more tasks can have, by 0."""


@dataclass(frozen=True, kw_only=True)
class EqualConfig:
    """Both sensors' gradients get the same norm."""

    kind: Literal["equal"] = "equal"
    target: Literal["mean", "geo", "min", "max"] = "mean"
    """Norm that both get, of the two that they have: arithmetic or geometric mean, less, more."""
    limit: float = 10.0
    """Largest factor, and one over the least: a sensor without a signal stays quiet."""
    norm: Literal["l2", "rms"] = "l2"
    """Length of the gradient, or its size per channel and cell."""

    def __post_init__(self) -> None:
        """Refuse impossible numbers."""
        if not self.limit >= 1.0:
            raise ValueError(f"limit is {self.limit}, expected at least 1")


@dataclass(frozen=True, kw_only=True)
class GateConfig:
    """The sensor with the larger gradient is held back, the other one left alone."""

    kind: Literal["gate"] = "gate"
    slope: float = 0.3
    """How fast it is held back as it leads. Source: specs, FULLER section 3.2."""
    norm: Literal["l2", "rms"] = "l2"
    """Length of the gradient, or its size per channel and cell."""

    def __post_init__(self) -> None:
        """Refuse impossible numbers."""
        require_positive(self.slope, "slope")


@dataclass(frozen=True, kw_only=True)
class OgmConfig:
    """As OGM-GE's coefficient: jumps where the sensors are level. Source: Peng et al. 2022."""

    kind: Literal["ogm"] = "ogm"
    slope: float = 0.3
    """How fast the larger one is held back."""
    norm: Literal["l2", "rms"] = "l2"
    """Length of the gradient, or its size per channel and cell."""

    def __post_init__(self) -> None:
        """Refuse impossible numbers."""
        require_positive(self.slope, "slope")


IntraConfig = EqualConfig | GateConfig | OgmConfig


def imtl_g(gram: Gram, clip: bool = False) -> Float64[np.ndarray, " t"]:
    """Weights of the tasks' gradients, sum 1: their sum has the same projection on each of them.

    Args:
        gram: Inner products of the gradients.
        clip: Replace negative weights by 0.
    """
    if len(gram) > 2:
        weights = equal_projections(gram)
        if clip:
            weights = weights.clip(min=0.0)
            weights = weights / weights.sum()
        return weights
    # of two tasks the angle does not matter
    norms = np.sqrt(gram.diagonal())
    return norms[::-1] / norms.sum() if len(norms) == 2 else np.ones(len(norms))


def equal_projections(gram: Gram) -> Float64[np.ndarray, " t"]:
    """`imtl_g` for any number of tasks.

    With u_i the directions, n_i the norms and C the cosines, the projections of sum a_i g_i are
    C (a n): they are equal where a n solves C b = 1, up to a factor. Weights may be negative, even
    their sum before it is made 1: then the method as it is published goes uphill.
    """
    norms = np.sqrt(gram.diagonal())
    cosines = gram / np.outer(norms, norms)
    lowest = np.linalg.eigvalsh(cosines)[0]
    if lowest < RIDGE:
        cosines = cosines + (RIDGE - min(lowest, 0.0)) * np.eye(len(norms))
    weights = np.linalg.solve(cosines, np.ones(len(norms))) / norms
    if abs(weights.sum()) < MIN_SHARE * np.abs(weights).sum():
        weights = 1.0 / norms
    return weights / weights.sum()


def modality_factors(camera: float, lidar: float, config: IntraConfig) -> tuple[float, float]:
    """What the gradients of the two sensors are multiplied by.

    Args:
        camera: Norm of the camera's gradient.
        lidar: Norm of the LiDAR's.
        config: How they are brought together.

    Returns:
        Factors of camera and LiDAR; 1 and 1 where a norm is 0 or not finite.
    """
    if not has_direction(camera) or not has_direction(lidar):
        return 1.0, 1.0
    if isinstance(config, EqualConfig):
        target = _target(camera, lidar, config)
        low, high = 1.0 / config.limit, config.limit
        return min(max(target / camera, low), high), min(max(target / lidar, low), high)
    factor = _gate if isinstance(config, GateConfig) else _ogm
    return factor(camera / lidar, config.slope), factor(lidar / camera, config.slope)


def has_direction(norm: float) -> bool:
    """Whether a gradient of this norm says anything."""
    return math.isfinite(norm) and norm > 0.0


def _target(camera: float, lidar: float, config: EqualConfig) -> float:
    if config.target == "mean":
        return (camera + lidar) / 2
    if config.target == "geo":
        return math.sqrt(camera) * math.sqrt(lidar)
    return min(camera, lidar) if config.target == "min" else max(camera, lidar)


def _gate(lead: float, slope: float) -> float:
    # not below 1 / lead: the larger one shall not become the smaller one
    return max(1.0 - math.tanh(slope * (lead - 1.0)), 1.0 / lead) if lead > 1.0 else 1.0


def _ogm(lead: float, slope: float) -> float:
    return 1.0 - math.tanh(slope * lead) if lead > 1.0 else 1.0


def require_positive(value: float, name: str) -> None:
    """Refuse a setting that is not above 0, NaN included."""
    if not value > 0.0:
        raise ValueError(f"{name} is {value}, expected more than 0")
