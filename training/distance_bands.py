"""Distance bands: figures of an evaluation by how far from the car a thing is."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from perception.errors import InputError

DEFAULT_EDGES = (0.0, 20.0, 30.0, 40.0, 50.0)
"""Borders of the bands [m]: 30, 40 and 50 m are the official ranges of the classes. Source: specs,
base network section 11.1; 20 m is ours."""


@dataclass(frozen=True, kw_only=True)
class DistanceBand:
    """A ring round the ego origin, in the ground plane."""

    near: float
    """Inner radius [m], included."""
    far: float
    """Outer radius [m], excluded."""

    @property
    def name(self) -> str:
        """Such as "20-30 m"."""
        return f"{self.near:g}-{self.far:g} m"


def distance_bands(edges: Sequence[float]) -> tuple[DistanceBand, ...]:
    """Bands between consecutive edges [m]; no edge gives no band.

    Raises:
        InputError: The edges do not grow, or there is just one.
    """
    growing = all(near < far for near, far in itertools.pairwise(edges))
    if len(edges) == 1 or not growing or min(edges, default=0.0) < 0.0:
        raise InputError(
            f"The edges of the distance bands are {list(edges)}, expected two or more growing "
            "distances in metres: pass --bands 0 20 30 40 50."
        )
    return tuple(
        DistanceBand(near=float(near), far=float(far)) for near, far in itertools.pairwise(edges)
    )
