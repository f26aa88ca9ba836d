"""The decoder's operations on CUDA by Triton, which PyTorch brings there."""

from __future__ import annotations

import math

import torch
import triton
from torch.nn.functional import linear
from triton.tools.tensor_descriptor import TensorDescriptor

from llm_service.engines.torch.kernels import triton_programs
from llm_service.engines.torch.kernels.base import BatchLayout, HeadNorms, TileSet
from llm_service.engines.torch.kernels.overlap import can_overlap, launch_options
from llm_service.engines.torch.kernels.triton_fp8 import TritonFp8

# tl.dot's smallest operand; fewer rows and narrower heads are padded to it.
MIN_DOT_SIZE = 16
# Query heads of a tile's tokens together.
TILE_ROWS = 64
# Keys that a program takes at a time.
KEYS_PER_STEP = 64
# Programs that attention is split into at least, where the contexts are long enough.
LEAST_PROGRAM_COUNT = 512
MAX_SPLITS = 64
WARPS, STAGES = 4, 3
# Outputs that a program computes for one token, and weights that it takes of each at a time.
PROJECTION_ROWS, MAX_PROJECTION_STEP = 4, 2048


class TritonKernels:
    """Kernels by programs of our own, for batches in tiles; products of matrices are cuBLAS's.

    No program knows a length before it runs: cuDNN's attention, as fast where a length comes again,
    needs 34 to 62 ms for one that it has not seen.
    """

    # The vocabularies are odd numbers, or nearly: cuBLAS needs three times as long for those.
    row_multiple = 64

    def __init__(self, group_size: int) -> None:
        """Takes the number of query heads that share a key/value head."""
        self._padded_group = int(triton.next_power_of_2(group_size))
        self._can_overlap = can_overlap()
        self.fp8 = TritonFp8()

    @property
    def tile_size(self) -> int:
        return max(1, TILE_ROWS // self._padded_group)

    def takes_whole_tiles(self, block_size: int, head_dim: int) -> bool:
        """Whether descriptors can read a step of keys: it is in one block."""
        padded_dim = max(MIN_DOT_SIZE, triton.next_power_of_2(head_dim))
        return block_size % KEYS_PER_STEP == 0 and head_dim == padded_dim

    def project(
        self, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """For one token faster than cuBLAS, which is made for matrices."""
        if len(hidden) != 1:
            return linear(hidden, weight, bias)
        output = hidden.new_empty(1, len(weight))
        triton_programs.project_one[(triton.cdiv(len(weight), PROJECTION_ROWS),)](
            hidden,
            weight,
            bias,
            output,
            len(weight),
            width=hidden.shape[1],
            has_bias=bias is not None,
            rows=PROJECTION_ROWS,
            step=min(MAX_PROJECTION_STEP, triton.next_power_of_2(hidden.shape[1])),
            num_warps=8,
            **self._launch(1),
        )
        return output

    def add_rms_norm(
        self, hidden: torch.Tensor, update: torch.Tensor | None, weight: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        token_count, width = hidden.shape
        normed = torch.empty_like(hidden)
        total = hidden if update is None else torch.empty_like(hidden)
        triton_programs.add_rms_norm[(token_count,)](
            hidden,
            update,
            weight,
            normed,
            total,
            eps,
            width,
            has_update=update is not None,
            padded=triton.next_power_of_2(width),
            num_warps=8,
            **self._launch(token_count),
        )
        return normed, total

    def silu_multiply(self, gate_up: torch.Tensor) -> torch.Tensor:
        token_count, width = gate_up.shape[0], gate_up.shape[1] // 2
        product = gate_up.new_empty(token_count, width)
        block = 1024
        grid = (token_count, triton.cdiv(width, block))
        triton_programs.silu_multiply[grid](
            gate_up, product, width, block=block, **self._launch(token_count)
        )
        return product

    def rotate_and_store(
        self,
        qkv: torch.Tensor,
        cache: torch.Tensor,
        layout: BatchLayout,
        norms: HeadNorms | None = None,
    ) -> torch.Tensor:
        token_count, kv_heads, group_and_two, head_dim = qkv.shape
        group, half = group_and_two - 2, head_dim // 2
        query = qkv.new_empty(token_count, kv_heads * group, head_dim)
        triton_programs.rotate_and_store[(token_count, kv_heads)](
            qkv,
            query,
            cache[0],
            cache[1],
            layout.rotation,
            layout.slots,
            None if norms is None else norms.query,
            None if norms is None else norms.key,
            0.0 if norms is None else norms.eps,
            kv_heads,
            has_norms=norms is not None,
            group=group,
            half=half,
            padded_heads=triton.next_power_of_2(group + 1),
            padded_half=triton.next_power_of_2(half),
            num_warps=2,
            **self._launch(token_count),
        )
        return query

    def attend(self, query: torch.Tensor, cache: torch.Tensor, layout: BatchLayout) -> torch.Tensor:
        output = torch.empty_like(query)
        for tile_set in layout.tile_sets:
            attend = self._attend_whole_tiles if tile_set.is_whole else self._attend_split_tiles
            attend(tile_set, query, cache, layout, output)
        return output

    def _attend_whole_tiles(
        self,
        tile_set: TileSet,
        query: torch.Tensor,
        cache: torch.Tensor,
        layout: BatchLayout,
        output: torch.Tensor,
    ) -> None:
        """Fills the rows of the set's tokens, and no others."""
        _, _, block_size, kv_heads, head_dim = cache.shape
        key_rows, value_rows = (
            TensorDescriptor.from_tensor(
                part.view(-1, kv_heads * head_dim), [KEYS_PER_STEP, head_dim]
            )
            for part in cache
        )
        triton_programs.attend_whole_tile[(kv_heads, len(tile_set.tiles))](
            query,
            cache[0],
            cache[1],
            key_rows,
            value_rows,
            tile_set.tiles,
            layout.block_tables,
            layout.context_lengths,
            output,
            head_dim**-0.5 * math.log2(math.e),
            layout.block_tables.stride(0),
            kv_heads,
            group=query.shape[1] // kv_heads,
            padded_group=self._padded_group,
            padded_rows=max(MIN_DOT_SIZE, tile_set.size * self._padded_group),
            head_dim=head_dim,
            block_size=block_size,
            step=KEYS_PER_STEP,
            num_warps=WARPS,
            num_stages=STAGES if query.dtype.itemsize == 2 else 1,
            **self._launch(len(query)),
        )

    def _attend_split_tiles(
        self,
        tile_set: TileSet,
        query: torch.Tensor,
        cache: torch.Tensor,
        layout: BatchLayout,
        output: torch.Tensor,
    ) -> None:
        """Fills the rows of all tokens up to the set's last, unused tiles' by anything."""
        heads, head_dim = query.shape[1:]
        block_size, kv_heads = cache.shape[2:4]
        token_count = min(len(query), len(tile_set.tiles) * tile_set.size)
        program_count = triton.cdiv(token_count, tile_set.size) * kv_heads
        splits = max(tile_set.least_split_count, _split_count(program_count))
        outputs = query.new_empty(token_count * heads, splits, head_dim, dtype=torch.float32)
        masses = query.new_empty(token_count * heads, splits, dtype=torch.float32)
        padded_dim = max(MIN_DOT_SIZE, triton.next_power_of_2(head_dim))
        triton_programs.attend_tile[(len(tile_set.tiles), kv_heads, splits)](
            query,
            cache[0],
            cache[1],
            tile_set.tiles,
            layout.block_tables,
            layout.context_lengths,
            outputs,
            masses,
            head_dim**-0.5,
            layout.block_tables.stride(0),
            kv_heads,
            splits=splits,
            group=heads // kv_heads,
            padded_group=self._padded_group,
            padded_rows=max(MIN_DOT_SIZE, tile_set.size * self._padded_group),
            head_dim=head_dim,
            padded_dim=padded_dim,
            block_size=block_size,
            step=KEYS_PER_STEP,
            num_warps=WARPS,
            num_stages=STAGES,
            **self._launch(len(query)),
        )
        triton_programs.merge_splits[(token_count * heads,)](
            outputs,
            masses,
            output,
            head_dim=head_dim,
            padded_dim=padded_dim,
            splits=splits,
            num_warps=2,
            **self._launch(len(query)),
        )

    def _launch(self, token_count: int) -> dict[str, bool]:
        """Launches overlap for one token: cuBLAS's, among which others stand, take no part."""
        return launch_options(overlaps=self._can_overlap and token_count == 1)


def _split_count(program_count: int) -> int:
    """Returns a power of two; `program_count` is that without splits."""
    wanted = triton.cdiv(LEAST_PROGRAM_COUNT, program_count)
    return min(MAX_SPLITS, int(triton.next_power_of_2(wanted)))
