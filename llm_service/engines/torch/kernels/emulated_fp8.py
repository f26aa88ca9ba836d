"""Products in float8 on any device, in float32's arithmetic."""

from __future__ import annotations

import torch

from llm_service.engines.torch.kernels.base import Kernels
from llm_service.engines.torch.kernels.fp8 import FP8, QuantisedRows, quantised


class EmulatedFp8:
    """Fp8Kernels by other kernels, which take float8 weights beside float32 activations.

    Products of two float8 numbers are exact in float32. A GPU's matrix units do not keep all bits
    of their sums.
    """

    def __init__(self, kernels: Kernels) -> None:
        self._kernels = kernels

    def quantise(self, hidden: torch.Tensor) -> QuantisedRows:
        return QuantisedRows(*quantised(hidden, FP8), hidden.dtype)

    def add_rms_norm(
        self, hidden: torch.Tensor, update: torch.Tensor | None, weight: torch.Tensor, eps: float
    ) -> tuple[QuantisedRows, torch.Tensor]:
        normed, total = self._kernels.add_rms_norm(hidden, update, weight, eps)
        return self.quantise(normed), total

    def silu_multiply(self, gate_up: torch.Tensor) -> QuantisedRows:
        return self.quantise(self._kernels.silu_multiply(gate_up))

    def project(
        self,
        rows: QuantisedRows,
        weight: torch.Tensor,
        scale: torch.Tensor,
        bias: torch.Tensor | None,
    ) -> torch.Tensor:
        product = self._kernels.project(rows.values.float(), weight, None)
        product *= rows.scales * scale.T
        return (product if bias is None else product + bias).to(rows.dtype)
