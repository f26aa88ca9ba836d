"""The decoder's operations on CUDA by Triton, which PyTorch brings there."""

from __future__ import annotations

import torch
import triton
from torch.nn.functional import linear

from llm_service.engines.torch.kernels import triton_programs
from llm_service.engines.torch.kernels.base import BatchLayout, HeadNorms
from llm_service.engines.torch.kernels.spans import attend_causally, split_spans

# tl.dot's smallest operand; fewer rows and narrower heads are padded to it.
MIN_DOT_SIZE = 16
# PyTorch's flash attention itself takes heads of whole multiples alone.
FLASH_HEAD_MULTIPLE = 8
# Query heads of a tile's tokens together.
TILE_ROWS = 64
# Keys that a program takes at a time.
KEYS_PER_STEP = 64
# Programs that attention is split into at least, where the contexts are long enough.
LEAST_PROGRAM_COUNT = 512
MAX_SPLITS = 64
WARPS, STAGES = 4, 3
MAX_PROJECTION_STEP = 2048


class TritonKernels:
    """Kernels that read decodes and tiles by programs of our own, spans by PyTorch's attention."""

    # The vocabularies are odd numbers, or nearly: cuBLAS needs three times as long for those.
    row_multiple = 64

    def __init__(self, group_size: int) -> None:
        """Takes the number of query heads that share a key/value head."""
        self._padded_group = int(triton.next_power_of_2(group_size))

    @property
    def tile_size(self) -> int:
        return max(1, TILE_ROWS // self._padded_group)

    def project(
        self, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """For one token faster than cuBLAS, which is made for matrices."""
        if len(hidden) != 1:
            return linear(hidden, weight, bias)
        output = hidden.new_empty(1, len(weight))
        triton_programs.project_one[(len(weight),)](
            hidden,
            weight,
            bias,
            output,
            hidden.shape[1],
            has_bias=bias is not None,
            step=min(MAX_PROJECTION_STEP, triton.next_power_of_2(hidden.shape[1])),
            num_warps=4,
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
        )
        return normed, total

    def silu_multiply(self, gate_up: torch.Tensor) -> torch.Tensor:
        token_count, width = gate_up.shape[0], gate_up.shape[1] // 2
        product = gate_up.new_empty(token_count, width)
        block = 1024
        grid = (token_count, triton.cdiv(width, block))
        triton_programs.silu_multiply[grid](gate_up, product, width, block=block)
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
        )
        return query

    def attend(self, query: torch.Tensor, cache: torch.Tensor, layout: BatchLayout) -> torch.Tensor:
        tiled_count = len(layout.context_lengths)
        outputs = []
        if tiled_count:
            outputs.append(self._attend_tiles(query[:tiled_count], cache, layout))
        for part in split_spans(query[tiled_count:], cache, layout.spans):
            outputs.append(_attend_span(*part)[0].transpose(0, 1))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _attend_tiles(
        self, query: torch.Tensor, cache: torch.Tensor, layout: BatchLayout
    ) -> torch.Tensor:
        token_count, heads, head_dim = query.shape
        block_size, kv_heads = cache.shape[2:4]
        splits = _split_count(triton.cdiv(token_count, layout.tile_size) * kv_heads)
        outputs = query.new_empty(token_count * heads, splits, head_dim, dtype=torch.float32)
        masses = query.new_empty(token_count * heads, splits, dtype=torch.float32)
        padded_dim = max(MIN_DOT_SIZE, triton.next_power_of_2(head_dim))
        triton_programs.attend_tile[(len(layout.tiles), kv_heads, splits)](
            query,
            cache[0],
            cache[1],
            layout.tiles,
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
            padded_rows=max(MIN_DOT_SIZE, layout.tile_size * self._padded_group),
            head_dim=head_dim,
            padded_dim=padded_dim,
            block_size=block_size,
            step=KEYS_PER_STEP,
            num_warps=WARPS,
            num_stages=STAGES,
        )
        merged = torch.empty_like(query)
        triton_programs.merge_splits[(token_count * heads,)](
            outputs,
            masses,
            merged,
            head_dim=head_dim,
            padded_dim=padded_dim,
            splits=splits,
            num_warps=2,
        )
        return merged


def _attend_span(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    takes_flash = query.dtype != torch.float32 and query.shape[-1] % FLASH_HEAD_MULTIPLE == 0
    if query.shape[2] == keys.shape[2] or not takes_flash:
        return attend_causally(query, keys, values)
    # PyTorch's flash attention aligns a causal mask at the lower right, which its public function
    # gives no way to ask for but a mask that is built in memory.
    flash = torch.ops.aten._scaled_dot_product_flash_attention
    output: torch.Tensor = flash(query, keys, values, 0.0, True)[0]
    return output


def _split_count(program_count: int) -> int:
    """Returns a power of two; `program_count` is that without splits."""
    wanted = triton.cdiv(LEAST_PROGRAM_COUNT, program_count)
    return min(MAX_SPLITS, int(triton.next_power_of_2(wanted)))
