"""Products in float8: what is multiplied are 8-bit numbers and a scale for each row of both sides.

T is the number of tokens in a batch.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch

FP8 = torch.float8_e4m3fn
LARGEST_FP8 = torch.finfo(FP8).max
# Of a row of zeros, which stays one.
SMALLEST_SCALE = 1e-30


class QuantisedRows(NamedTuple):
    """Activations in float8; a row's number is value x scale.

    Attributes:
        values: [T, width] float8_e4m3fn.
        scales: [T, 1] float32.
        dtype: what they were, and their products will be.
    """

    values: torch.Tensor
    scales: torch.Tensor
    dtype: torch.dtype


class Fp8Kernels(Protocol):
    """The operations of a decoder whose matrices are in float8; the others are Kernels'."""

    def quantise(self, hidden: torch.Tensor) -> QuantisedRows:
        """Scales each row of [T, width] so that its largest number becomes float8's, and rounds.

        A row with a number that is not finite has products that are not either.
        """
        ...

    def add_rms_norm(
        self, hidden: torch.Tensor, update: torch.Tensor | None, weight: torch.Tensor, eps: float
    ) -> tuple[QuantisedRows, torch.Tensor]:
        """As Kernels.add_rms_norm, with the norm quantised."""
        ...

    def silu_multiply(self, gate_up: torch.Tensor) -> QuantisedRows:
        """As Kernels.silu_multiply, quantised."""
        ...

    def project(
        self,
        rows: QuantisedRows,
        weight: torch.Tensor,
        scale: torch.Tensor,
        bias: torch.Tensor | None,
    ) -> torch.Tensor:
        """Returns rows x (weight x scale)^T + bias, [T, out].

        Args:
            rows: of width `in`.
            weight: [out, in] float8_e4m3fn.
            scale: [out, 1] float32.
            bias: [out] or None.
        """
        ...


def quantised(rows: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns [N, width] in int8 or float8, and what to multiply each row with, [N, 1] float32.

    A row's largest number becomes the type's. One with a number that is not finite has such a
    scale.
    """
    exact = rows.float()
    is_integer = not dtype.is_floating_point
    largest = torch.iinfo(dtype).max if is_integer else torch.finfo(dtype).max
    scales = (exact.abs().amax(1, keepdim=True) / largest).clamp(min=SMALLEST_SCALE)
    exact = exact / scales
    return (exact.round_() if is_integer else exact).to(dtype), scales
