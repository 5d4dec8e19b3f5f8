"""How the gradients of several tasks become one: FULLER's rule and those it is compared with.

A rule weights the losses (which the heads feel) before the backward pass, and the gradients where
the tasks meet (which only the shared part feels) after it. What it learns is a few numbers, named.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Literal

import numpy as np
from jaxtyping import Float64

from training.gradient_calibration import Gram, ImtlGConfig, imtl_g, require_positive

MIN_WEIGHT = 1e-4
"""No task is given up by GradNorm. Source: ours."""
MAX_LOG_STEP = 0.1
"""Of a log variance in one step: a loss of 1000 would throw it beyond its end. Source: ours."""
MAX_LOG_VARIANCE = 10.0
"""Of uncertainty weighting, to both sides. Source: ours."""

RuleState = Mapping[str, float]
"""What a rule has learned, by name; empty at first."""
TaskValues = Mapping[str, float]
"""A number per task."""


@dataclass(frozen=True, kw_only=True)
class FixedConfig:
    """Losses with fixed weights, added up: the plain sum unless said otherwise."""

    kind: Literal["fixed"] = "fixed"
    boxes: float = 1.0
    """Weight of the boxes' losses, on top of `optim.box_weight`."""
    map: float = 1.0
    """Weight of the map's losses, likewise."""

    def __post_init__(self) -> None:
        """Refuse impossible numbers."""
        if not (self.boxes > 0.0 and self.map > 0.0):
            raise ValueError(f"weights are {self.boxes} and {self.map}, expected more than 0")


@dataclass(frozen=True, kw_only=True)
class UncertaintyConfig:
    """Losses with learned variances: sum of exp(-s) L / 2 + s / 2. Source: Kendall et al. 2018."""

    kind: Literal["uncertainty"] = "uncertainty"
    lr: float = 0.025
    """Step of s per step of the optimiser, along its gradient. Source: ours."""

    def __post_init__(self) -> None:
        """Refuse impossible numbers."""
        require_positive(self.lr, "lr")


@dataclass(frozen=True, kw_only=True)
class GradNormConfig:
    """Learned weights that let all tasks learn at the same rate. Source: Chen et al. 2018."""

    kind: Literal["grad_norm"] = "grad_norm"
    lr: float = 0.025
    """Step of each weight's logarithm, against the sign of its gradient: norms that differ by a
    factor of 100 are level after 200 steps. Ours; the paper's rate is for weights and Adam."""
    asymmetry: float = 1.5
    """Power of a task's relative loss in the norm that it shall have. Source: the paper."""

    def __post_init__(self) -> None:
        """Refuse impossible numbers."""
        if not (self.lr > 0.0 and self.asymmetry >= 0.0):
            raise ValueError(
                f"lr is {self.lr} and asymmetry {self.asymmetry}, expected more than 0 and at "
                "least 0"
            )


@dataclass(frozen=True, kw_only=True)
class MgdaConfig:
    """The shortest gradient between those of the tasks (MGDA-UB). Source: Sener & Koltun 2018."""

    kind: Literal["mgda"] = "mgda"


@dataclass(frozen=True, kw_only=True)
class PcGradConfig:
    """Each gradient without what works against another, added up. Source: Yu et al. 2020."""

    kind: Literal["pc_grad"] = "pc_grad"


@dataclass(frozen=True, kw_only=True)
class EqualNormConfig:
    """Each gradient with the mean of all norms, added up."""

    kind: Literal["equal_norm"] = "equal_norm"


TaskRuleConfig = (
    ImtlGConfig
    | FixedConfig
    | UncertaintyConfig
    | GradNormConfig
    | MgdaConfig
    | PcGradConfig
    | EqualNormConfig
)


@dataclass(frozen=True, kw_only=True)
class InterConfig:
    """Calibration between the tasks."""

    rule: TaskRuleConfig = field(default_factory=ImtlGConfig)
    """How the gradients become one."""
    site: Literal["param", "feature"] = "param"
    """Where they are compared: at the weights of the last shared layer, or at the map it makes."""
    on_heads: bool = False
    """Let the heads feel the weights, too (ablation; takes a second backward pass of the heads)."""


def loss_weights(rule: TaskRuleConfig, state: RuleState, tasks: Sequence[str]) -> dict[str, float]:
    """What each task's loss is multiplied by before the backward pass."""
    if isinstance(rule, FixedConfig):
        return {task: getattr(rule, task, 1.0) for task in tasks}
    if isinstance(rule, UncertaintyConfig):
        return {task: 0.5 * float(np.exp(-state.get(f"s/{task}", 0.0))) for task in tasks}
    if isinstance(rule, GradNormConfig):
        return {task: state.get(f"weight/{task}", 1.0) for task in tasks}
    return dict.fromkeys(tasks, 1.0)


def shared_weights(
    rule: TaskRuleConfig, gram: Gram, rng: np.random.Generator
) -> Float64[np.ndarray, " t"]:
    """What each task's gradient is multiplied by where they meet.

    Args:
        rule: The rule.
        gram: Inner products of the gradients; none is 0 and all are finite.
        rng: For rules that are random.
    """
    if isinstance(rule, ImtlGConfig):
        return imtl_g(gram, rule.clip)
    if isinstance(rule, MgdaConfig):
        return shortest(gram)
    if isinstance(rule, PcGradConfig):
        return without_conflict(gram, rng)
    if isinstance(rule, EqualNormConfig):
        norms = np.sqrt(gram.diagonal())
        return norms.mean() / norms
    return np.ones(len(gram))


def learned(
    rule: TaskRuleConfig, state: RuleState, losses: TaskValues, norms: TaskValues
) -> dict[str, float]:
    """What a rule knows after a step.

    Args:
        rule: The rule.
        state: What it knew.
        losses: Of the tasks that were there, without the rule's weights.
        norms: Of their gradients, likewise.
    """
    if isinstance(rule, UncertaintyConfig):
        return dict(state) | _variances(rule, state, losses)
    if isinstance(rule, GradNormConfig) and losses:
        return dict(state) | _rate_weights(rule, state, losses, norms)
    return dict(state)


def shortest(gram: Gram) -> Float64[np.ndarray, " t"]:
    """Weights of at least 0, sum 1, whose sum of gradients is the shortest."""
    num = len(gram)
    best, length = np.full(num, 1.0 / num), math.inf
    # the shortest of each plane through some of them, as long as it lies between them
    for support in (s for k in range(num, 0, -1) for s in combinations(range(num), k)):
        system = np.ones((len(support) + 1, len(support) + 1))
        system[:-1, :-1] = gram[np.ix_(support, support)] / gram.max()
        system[-1, -1] = 0.0
        found = np.linalg.lstsq(system, np.eye(len(system))[-1], rcond=None)[0][:-1]
        weights = np.zeros(num)
        weights[list(support)] = found
        if found.min() >= 0.0 and weights @ gram @ weights < length:
            best, length = weights, weights @ gram @ weights
    return best


def without_conflict(gram: Gram, rng: np.random.Generator) -> Float64[np.ndarray, " t"]:
    """Weights of the sum of all gradients, each projected off those that it works against."""
    parts = np.eye(len(gram))
    for part in parts:
        own = int(np.argmax(part))
        for other in rng.permutation(len(gram)):
            product = part @ gram[:, other]
            if other != own and product < 0.0:
                part[other] -= product / gram[other, other]
    return parts.sum(axis=0)


def _variances(rule: UncertaintyConfig, state: RuleState, losses: TaskValues) -> dict[str, float]:
    new = {}
    for task, loss in losses.items():
        s = state.get(f"s/{task}", 0.0)
        step = rule.lr * 0.5 * (float(np.exp(-s)) * loss - 1.0)
        s += min(step, MAX_LOG_STEP)
        new[f"s/{task}"] = min(max(s, -MAX_LOG_VARIANCE), MAX_LOG_VARIANCE)
    return new


def _rate_weights(
    rule: GradNormConfig, state: RuleState, losses: TaskValues, norms: TaskValues
) -> dict[str, float]:
    tasks = list(losses)
    first = np.array([state.get(f"first/{task}", losses[task]) for task in tasks])
    weights = np.array([state.get(f"weight/{task}", 1.0) for task in tasks])
    ratio = np.array(list(losses.values())) / first
    weighted = weights * np.array([norms[task] for task in tasks])
    wanted = weighted.mean() * (ratio / ratio.mean()) ** rule.asymmetry
    new = (weights * np.exp(-rule.lr * np.sign(weighted - wanted))).clip(min=MIN_WEIGHT)
    # the sum stays what it was: the number of tasks
    new = new * weights.sum() / new.sum()
    named = {f"first/{task}": float(x) for task, x in zip(tasks, first, strict=True)}
    return named | {f"weight/{task}": float(x) for task, x in zip(tasks, new, strict=True)}
