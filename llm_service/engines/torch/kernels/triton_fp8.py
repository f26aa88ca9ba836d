"""Products in float8 on CUDA: cuBLAS's, and Triton programs around them."""

from __future__ import annotations

from typing import Any

import torch
import triton

from llm_service.engines.torch.kernels import fp8_programs
from llm_service.engines.torch.kernels.fp8 import FP8, QuantisedRows

# Numbers of a row that one warp quantises.
NUMBERS_PER_WARP = 512
MAX_WARPS = 16
# From more tokens on products are bound by arithmetic, and cuBLAS's.
MOST_FEW_TOKENS = 64
LEAST_TOKENS = 16
ROWS = (64, 32)
LEAST_PROGRAM_COUNT = 120
PROJECTION_STEP = 128
WARPS, STAGES = 4, 4
STEPS_AHEAD = 4
# The first GPUs on which a launch can start while the one before still runs.
OVERLAP_CAPABILITY = (9, 0)


class TritonFp8:
    """Fp8Kernels by programs of our own; large products of matrices are cuBLAS's."""

    def __init__(self) -> None:
        is_cuda = torch.cuda.is_available()
        overlaps = is_cuda and torch.cuda.get_device_capability() >= OVERLAP_CAPABILITY
        self._launch = {"overlaps": overlaps} | ({"launch_pdl": True} if overlaps else {})

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
        row_step = _row_step(row_count)
        fp8_programs.project_few[(row_count // row_step,)](
            rows.values,
            rows.scales,
            weight,
            scale,
            bias,
            output,
            token_count,
            row_count,
            width,
            has_bias=bias is not None,
            tokens=max(LEAST_TOKENS, int(triton.next_power_of_2(token_count))),
            rows=row_step,
            step=PROJECTION_STEP,
            is_even=width % PROJECTION_STEP == 0,
            ahead=STEPS_AHEAD,
            num_warps=WARPS,
            num_stages=STAGES,
            **self._launch,
        )
        return output


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


def _row_step(row_count: int) -> int:
    """Returns how many rows a program takes: a divisor, and not so many that the GPU has idle."""
    for rows in ROWS:
        if row_count % rows == 0 and row_count // rows >= LEAST_PROGRAM_COUNT:
            return rows
    return 16
