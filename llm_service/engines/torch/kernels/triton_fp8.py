"""Products in float8 on CUDA: cuBLAS's, and Triton programs around them."""

from __future__ import annotations

import torch
import triton

from llm_service.engines.torch.kernels import fp8_programs
from llm_service.engines.torch.kernels.fp8 import FP8, QuantisedRows

# Numbers of a row that one warp quantises.
NUMBERS_PER_WARP = 512
MAX_WARPS = 16
PROJECTION_STEP = 4096
PROJECTION_WARPS = 4


class TritonFp8:
    """Fp8Kernels by programs of our own; products of matrices are cuBLAS's."""

    def quantise(self, hidden: torch.Tensor) -> QuantisedRows:
        rows = _empty_rows(hidden, hidden.shape[1])
        fp8_programs.quantise[(len(hidden),)](
            hidden, rows.values, rows.scales, hidden.shape[1], **_form(hidden.shape[1])
        )
        return rows

    def add_rms_norm(
        self, hidden: torch.Tensor, update: torch.Tensor | None, weight: torch.Tensor, eps: float
    ) -> tuple[QuantisedRows, torch.Tensor]:
        width = hidden.shape[1]
        rows = _empty_rows(hidden, width)
        total = hidden if update is None else torch.empty_like(hidden)
        fp8_programs.add_rms_norm[(len(hidden),)](
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
        )
        return rows, total

    def silu_multiply(self, gate_up: torch.Tensor) -> QuantisedRows:
        width = gate_up.shape[1] // 2
        rows = _empty_rows(gate_up, width)
        fp8_programs.silu_multiply[(len(gate_up),)](
            gate_up, rows.values, rows.scales, width, **_form(width)
        )
        return rows

    def project(
        self,
        rows: QuantisedRows,
        weight: torch.Tensor,
        scale: torch.Tensor,
        bias: torch.Tensor | None,
    ) -> torch.Tensor:
        """For one token faster than cuBLAS, which is made for matrices."""
        if len(rows.values) == 1:
            return self._project_one(rows, weight, scale, bias)
        return torch._scaled_mm(
            rows.values,
            weight.T,
            scale_a=rows.scales,
            scale_b=scale.T,
            bias=bias,
            out_dtype=rows.dtype,
            use_fast_accum=True,
        )

    def _project_one(
        self,
        rows: QuantisedRows,
        weight: torch.Tensor,
        scale: torch.Tensor,
        bias: torch.Tensor | None,
    ) -> torch.Tensor:
        row_count, width = weight.shape
        output = torch.empty(1, row_count, dtype=rows.dtype, device=weight.device)
        fp8_programs.project_one[(row_count,)](
            rows.values,
            rows.scales,
            weight,
            scale,
            bias,
            output,
            row_count,
            width,
            has_bias=bias is not None,
            rows=1,
            step=min(PROJECTION_STEP, triton.next_power_of_2(width)),
            num_warps=PROJECTION_WARPS,
        )
        return output


def _empty_rows(hidden: torch.Tensor, width: int) -> QuantisedRows:
    count, device = len(hidden), hidden.device
    return QuantisedRows(
        values=torch.empty(count, width, dtype=FP8, device=device),
        scales=torch.empty(count, 1, dtype=torch.float32, device=device),
        dtype=hidden.dtype,
    )


def _form(width: int) -> dict[str, int]:
    """Returns how a program of a whole row is compiled."""
    padded = int(triton.next_power_of_2(width))
    return {"padded": padded, "num_warps": min(MAX_WARPS, max(1, padded // NUMBERS_PER_WARP))}
