"""What the decoder's operations take and give, whoever computes them.

T is the number of tokens in a batch, of any number of sequences.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from llm_service.engines.torch.kernels.fp8 import Fp8Kernels


@dataclass(frozen=True)
class PrefillSpan:
    """Several consecutive tokens of one sequence.

    Attributes:
        query_length: its tokens in this batch, the last ones of its context.
        context_length: its tokens up to and including those.
        blocks: [block count] int64, the cache blocks that hold its context, in order.
    """

    query_length: int
    context_length: int
    blocks: torch.Tensor


@dataclass(frozen=True)
class TileSet:
    """Some tokens of a batch in tiles: consecutive tokens of one sequence each.

    Attributes:
        tiles: [N, 3] int32: a token, how many of its sequence's tokens from it on, the sequence's
            row of `block_tables`; with 0 tokens the tile is not used.
        size: most tokens of a tile. With 1, tile i is token i: a decode.
        is_whole: whether one program reads a tile's whole context, which `takes_whole_tiles` must
            allow; else contexts are split among programs.
        least_split_count: into how many parts at least.
    """

    tiles: torch.Tensor
    size: int
    is_whole: bool = False
    least_split_count: int = 1


@dataclass(frozen=True)
class BatchLayout:
    """Where the T tokens of a batch stand, in their sequences and in the cache.

    The first D tokens are in tiles, the rest belong to the spans. Kernels take one of both forms;
    those that take spans take decodes besides, one a sequence.

    Attributes:
        rotation: [T, 2, head_dim / 2] float32, cosine and sine of each token's angles.
        slots: [T] int64, each token's place in the cache: block x block size + offset.
        context_lengths: [D] int32, tokens of each token's sequence up to itself, and included.
        block_tables: [S, W] int32, the blocks of each tiled sequence's context, then any blocks.
        tile_sets: the tiles: one set, or decodes and then whole tiles.
        spans: the other sequences, in their order.
    """

    rotation: torch.Tensor
    slots: torch.Tensor
    context_lengths: torch.Tensor
    block_tables: torch.Tensor
    tile_sets: tuple[TileSet, ...] = ()
    spans: tuple[PrefillSpan, ...] = ()


@dataclass(frozen=True)
class HeadNorms:
    """RMS norms over each head, before it is rotated.

    Attributes:
        query: [head_dim], the weight for query heads.
        key: [head_dim], the weight for keys.
        eps: see Kernels.add_rms_norm.
    """

    query: torch.Tensor
    key: torch.Tensor
    eps: float


class Kernels(Protocol):
    """The operations; all tensors are on one device, activations in one dtype."""

    @property
    def tile_size(self) -> int | None:
        """Tokens of a tile; None for kernels that know decodes and spans alone, no CUDA graphs."""
        ...

    def takes_whole_tiles(self, block_size: int, head_dim: int) -> bool:
        """Whether tiles of a cache of such blocks and heads can be whole."""
        ...

    @property
    def row_multiple(self) -> int:
        """Rows of a large matrix that are computed fast are a multiple of this."""
        ...

    @property
    def fp8(self) -> Fp8Kernels:
        """The operations around matrices in float8."""
        ...

    def project(
        self, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """Returns hidden x weight^T + bias: [T, in] x [out, in] -> [T, out].

        Kernels of a CPU take a weight of any type whose numbers the type of `hidden` holds.
        """
        ...

    def add_rms_norm(
        self, hidden: torch.Tensor, update: torch.Tensor | None, weight: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the RMS norm of hidden + update, and hidden + update: both [T, hidden_size].

        x / sqrt(mean(x^2) + eps) in float32, rounded, then times weight, as the reference does it.
        """
        ...

    def silu_multiply(self, gate_up: torch.Tensor) -> torch.Tensor:
        """Returns silu(gate) x up, [T, width], of gate and up side by side, [T, 2 x width]."""
        ...

    def rotate_and_store(
        self,
        qkv: torch.Tensor,
        cache: torch.Tensor,
        layout: BatchLayout,
        norms: HeadNorms | None = None,
    ) -> torch.Tensor:
        """Norms and rotates queries and keys by their positions, and stores keys and values.

        Args:
            qkv: [T, kv_heads, group + 2, head_dim]: for each key/value head its `group` query
                heads, its key, its value.
            cache: [2, blocks, block_size, kv_heads, head_dim], one layer's keys and values.
            layout: the batch.
            norms: None in families that have none.

        Returns:
            [T, heads, head_dim], the rotated queries. The pairs of an angle are (i, i + d/2), the
            "half-rotation" or neox form; computed in float32.
        """
        ...

    def attend(self, query: torch.Tensor, cache: torch.Tensor, layout: BatchLayout) -> torch.Tensor:
        """Lets every token attend to its own past, which is stored already, itself included.

        Args:
            query: [T, heads, head_dim]; query head i reads key/value head i // group.
            cache: as above.
            layout: the batch.

        Returns:
            [T, heads, head_dim]
        """
        ...


def rotary_table(head_dim: int, theta: float, length: int, device: torch.device) -> torch.Tensor:
    """Returns [length, 2, head_dim / 2] float32: cosine and sine of position x theta^(-2i/d)."""
    exponents = torch.arange(0, head_dim, 2, device=device) / head_dim
    angles = torch.arange(length, device=device)[:, None].float() / theta**exponents
    return torch.stack([angles.cos(), angles.sin()], dim=1)
