"""Products in float8 on CUDA: cuBLAS's, and Triton programs around them."""

from __future__ import annotations

from typing import Any

import torch
import triton

from llm_service.engines.torch.kernels import fp8_programs
from llm_service.engines.torch.kernels.fp8 import FP8, QuantisedRows
from llm_service.engines.torch.kernels.overlap import can_overlap, launch_options

# Numbers of a row that one warp quantises.
NUMBERS_PER_WARP = 512
MAX_WARPS = 16
# Up to so many tokens products are bound by reading the weight; of more they are cuBLAS's.
MOST_FEW_TOKENS = 64
LEAST_TOKENS = 16
# Of a weight, what a program takes at a time: 64 rows are what Hopper's units multiply.
ROWS, STEPS = (64, 32, 16), (256, 128)
# Fewer programs than a GPU has multiprocessors leave some idle: then two share the rows.
LEAST_PROGRAM_COUNT = 132
WARPS, STAGES = 4, 4
LINES_AHEAD = 4


class TritonFp8:
    """Fp8Kernels by programs of our own; large products of matrices are cuBLAS's."""

    def __init__(self) -> None:
        self._launch = launch_options(overlaps=can_overlap())
        self._counters: torch.Tensor | None = None

    def quantise(self, hidden: torch.Tensor) -> QuantisedRows:
        count, width = hidden.shape
        rows = _empty_rows(hidden, width)
        fp8_programs.quantise[(count,)](
            hidden, rows.values, rows.scales, width, **_form(width), **self._launch
        )
        return rows

    def add_rms_norm(
        self, hidden: torch.Tensor, update: torch.Tensor | None, weight: torch.Tensor, eps: float
    ) -> tuple[QuantisedRows, torch.Tensor]:
        count, width = hidden.shape
        rows = _empty_rows(hidden, width)
        total = hidden if update is None else torch.empty_like(hidden)
        fp8_programs.add_rms_norm[(count,)](
            hidden,
            update,
            weight,
            rows.values,
            rows.scales,
            total,
            eps,
            width,
            has_update=update is not None,
            **_form(width),
            **self._launch,
        )
        return rows, total

    def silu_multiply(self, gate_up: torch.Tensor) -> QuantisedRows:
        width = gate_up.shape[1] // 2
        rows = _empty_rows(gate_up, width)
        fp8_programs.silu_multiply[(len(gate_up),)](
            gate_up, rows.values, rows.scales, width, **_form(width), **self._launch
        )
        return rows

    def project(
        self,
        rows: QuantisedRows,
        weight: torch.Tensor,
        scale: torch.Tensor,
        bias: torch.Tensor | None,
    ) -> torch.Tensor:
        """For a few tokens twice as fast as cuBLAS, whose scales a row are made for many."""
        if len(rows.values) <= MOST_FEW_TOKENS:
            return self._project_few(rows, weight, scale, bias)
        return torch._scaled_mm(
            rows.values,
            weight.T,
            scale_a=rows.scales,
            scale_b=scale.T,
            bias=bias,
            out_dtype=rows.dtype,
            use_fast_accum=True,
        )

    def _project_few(
        self,
        rows: QuantisedRows,
        weight: torch.Tensor,
        scale: torch.Tensor,
        bias: torch.Tensor | None,
    ) -> torch.Tensor:
        token_count, (row_count, width) = len(rows.values), weight.shape
        output = torch.empty(token_count, row_count, dtype=rows.dtype, device=weight.device)
        row_step = next(step for step in ROWS if row_count % step == 0)
        program_count = row_count // row_step
        is_halved = program_count < LEAST_PROGRAM_COUNT
        parts = 1 + is_halved
        step = next((step for step in STEPS if width % (parts * step) == 0), STEPS[-1])
        fp8_programs.project_few[(program_count, parts)](
            rows.values,
            rows.scales,
            weight,
            scale,
            bias,
            output,
            rows.scales.new_empty(2, token_count, row_count) if is_halved else None,
            self._arrivals(weight.device) if is_halved else None,
            token_count,
            row_count,
            width,
            has_bias=bias is not None,
            tokens=max(LEAST_TOKENS, int(triton.next_power_of_2(token_count))),
            rows=row_step,
            step=step,
            is_even=width % (parts * step) == 0,
            is_halved=is_halved,
            ahead=LINES_AHEAD,
            num_warps=WARPS,
            num_stages=STAGES,
            **self._launch,
        )
        return output

    def _arrivals(self, device: torch.device) -> torch.Tensor:
        """Returns the programs' counters, which each launch leaves as zeros."""
        if self._counters is None:
            self._counters = torch.zeros(LEAST_PROGRAM_COUNT, dtype=torch.int32, device=device)
        return self._counters


def _empty_rows(hidden: torch.Tensor, width: int) -> QuantisedRows:
    count, device = len(hidden), hidden.device
    return QuantisedRows(
        values=torch.empty(count, width, dtype=FP8, device=device),
        scales=torch.empty(count, 1, dtype=torch.float32, device=device),
        dtype=hidden.dtype,
    )


def _form(width: int) -> dict[str, Any]:
    """Returns how a program of a whole row is compiled."""
    padded = int(triton.next_power_of_2(width))
    return {"padded": padded, "num_warps": min(MAX_WARPS, max(1, padded // NUMBERS_PER_WARP))}
