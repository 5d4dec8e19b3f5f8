"""Collects how long things took and says so in percentiles."""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class LatencySummary:
    """Distribution of one stage's times [ms]."""

    count: int
    mean_ms: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float


class LatencyRecorder:
    """Times per stage, in the order in which the stages were first seen."""

    def __init__(self, max_samples: int = 100_000) -> None:
        """Start empty.

        Args:
            max_samples: Samples kept per stage; older ones fall out, so that memory is bounded.
        """
        self._max_samples = max_samples
        self._samples: dict[str, deque[float]] = {}

    def add(self, stage: str, time_ms: float) -> None:
        """Take one time [ms]."""
        self._samples.setdefault(stage, deque(maxlen=self._max_samples)).append(time_ms)

    def add_all(self, stage_ms: Mapping[str, float]) -> None:
        """Take one time per stage [ms]."""
        for stage, time_ms in stage_ms.items():
            self.add(stage, time_ms)

    @property
    def samples(self) -> dict[str, list[float]]:
        """Times per stage [ms]."""
        return {stage: list(samples) for stage, samples in self._samples.items()}

    def summaries(self) -> dict[str, LatencySummary]:
        """Distribution per stage. Percentiles are times that occurred, never means of two."""
        return {stage: _summary(np.array(samples)) for stage, samples in self._samples.items()}

    def table(self) -> str:
        """Plain text, one line per stage."""
        lines = [f"{'stage [ms]':<24}{'n':>7}{'mean':>9}{'p50':>9}{'p95':>9}{'p99':>9}{'max':>9}"]
        lines += [
            f"{stage:<24}{s.count:>7}{s.mean_ms:>9.2f}{s.p50_ms:>9.2f}{s.p95_ms:>9.2f}"
            f"{s.p99_ms:>9.2f}{s.max_ms:>9.2f}"
            for stage, s in self.summaries().items()
        ]
        return "\n".join(lines) + "\n"


def _summary(samples: np.ndarray) -> LatencySummary:
    p50, p95, p99 = np.percentile(samples, (50, 95, 99), method="inverted_cdf")
    return LatencySummary(
        count=len(samples),
        mean_ms=float(samples.mean()),
        p50_ms=float(p50),
        p95_ms=float(p95),
        p99_ms=float(p99),
        max_ms=float(samples.max()),
    )
