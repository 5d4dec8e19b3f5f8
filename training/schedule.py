"""The learning rate as a function of the step: nothing to save, nothing to resume."""

import math

from training.config import OptimConfig

COSINE_WARMUP_STEPS = 500
COSINE_WARMUP_START = 1 / 3
COSINE_MIN_SHARE = 1e-3
"""Source: specs, base network section 9 (fusion detector)."""


def learning_rate(step: int, optim: OptimConfig) -> float:
    """Learning rate of a step; steps count from 0."""
    if optim.schedule == "cosine":
        return optim.lr * cosine(step, optim.steps)
    return optim.lr * one_cycle(step, optim.steps, optim.warmup_share)


def one_cycle(step: int, num_steps: int, warmup_share: float = 0.2) -> float:
    """Share of the peak learning rate: up in a line, down in a cosine.

    Source: Smith & Topin 2018, as the reference releases use it; the straight rise is ours.
    """
    num_warmup = max(1, round(num_steps * warmup_share))
    if step < num_warmup:
        return (step + 1) / num_warmup
    return 0.5 * (1 + math.cos(math.pi * (step - num_warmup) / max(1, num_steps - num_warmup)))


def cosine(step: int, num_steps: int) -> float:
    """Share of the peak learning rate: a cosine over all steps, under a warm-up at their start.

    A run too short for the whole warm-up takes a fifth of its steps for it (ours).
    """
    num_warmup = min(COSINE_WARMUP_STEPS, num_steps // 5)
    share = 0.5 * (1 + math.cos(math.pi * step / num_steps))
    share = COSINE_MIN_SHARE + (1 - COSINE_MIN_SHARE) * share
    if step < num_warmup:
        share *= COSINE_WARMUP_START + (1 - COSINE_WARMUP_START) * step / num_warmup
    return share
