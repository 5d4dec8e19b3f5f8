"""A transformer decoder layer: queries look at each other, then at the scene.

Source: Vaswani et al. 2017, norms after each part; specs, base network section 7.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class QueryDecoderSize:
    """Numbers of a layer."""

    channels: int
    """Channels of queries and memory, a multiple of `num_heads`."""
    num_heads: int
    """Heads of each attention."""
    ffn_channels: int
    """Inner width of the feed-forward part."""
    dropout: float
    """Share of values dropped in training."""


class QueryDecoderLayer(nn.Module):
    """Self-attention, cross-attention, feed-forward; a skip and a norm after each."""

    def __init__(self, size: QueryDecoderSize):
        super().__init__()
        c = size.channels
        self.self_attention = Attention(size)
        self.cross_attention = Attention(size)
        self.ffn = nn.Sequential(
            nn.Linear(c, size.ffn_channels),
            nn.ReLU(),
            nn.Dropout(size.dropout),
            nn.Linear(size.ffn_channels, c),
        )
        self.norms = nn.ModuleList(nn.LayerNorm(c) for _ in range(3))
        self.dropout = nn.Dropout(size.dropout)
        for name, weight in self.named_parameters():
            if weight.ndim > 1 and "norms" not in name:
                nn.init.xavier_uniform_(weight)

    def forward(
        self,
        query: Float[Tensor, "b q c"],
        position: Float[Tensor, "b q c"] | None,
        memory: Float[Tensor, "b n c"],
    ) -> Float[Tensor, "b q c"]:
        """Update the queries.

        Args:
            query: What each query knows.
            position: Code of each query's place, added wherever queries ask or are asked.
            memory: The scene, its code of positions already added.
        """
        placed = _at(query, position)
        query = self.norms[0](query + self.dropout(self.self_attention(placed, placed, query)))
        found = self.cross_attention(_at(query, position), memory, memory)
        query = self.norms[1](query + self.dropout(found))
        return self.norms[2](query + self.dropout(self.ffn(query)))


class Attention(nn.Module):
    """Scaled dot-product attention with several heads."""

    def __init__(self, size: QueryDecoderSize):
        super().__init__()
        c = size.channels
        if c % size.num_heads:
            raise ValueError(f"channels is {c}, expected a multiple of {size.num_heads} heads")
        self.num_heads = size.num_heads
        self.dropout = size.dropout
        self.to_query, self.to_key, self.to_value = (nn.Linear(c, c) for _ in range(3))
        self.merge = nn.Linear(c, c)

    def forward(
        self,
        query: Float[Tensor, "b q c"],
        key: Float[Tensor, "b n c"],
        value: Float[Tensor, "b n c"],
    ) -> Float[Tensor, "b q c"]:
        """For each query the values of the keys that fit it."""
        q, k, v = (
            x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for x in (self.to_query(query), self.to_key(key), self.to_value(value))
        )
        dropout = self.dropout if self.training else 0.0
        found = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
        return self.merge(found.transpose(1, 2).flatten(2))


def _at(
    query: Float[Tensor, "b q c"], position: Float[Tensor, "b q c"] | None
) -> Float[Tensor, "b q c"]:
    return query if position is None else query + position
