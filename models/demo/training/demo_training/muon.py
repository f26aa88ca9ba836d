"""Muon: for the matrices of hidden layers, steps of momentum made orthogonal.

Keller Jordan et al., 2024 (github.com/KellerJordan/Muon); the scale that makes its steps as large
as Adam's is from "Muon is Scalable for LLM Training" (Liu et al., 2025), section 2.2.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch

MOMENTUM = 0.95
# Root mean square of a step at learning rate 1; Adam's is 0.2 to 0.4.
STEP_SIZE = 0.4
# The quintic iteration's coefficients, chosen by its authors for a steep slope at 0.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATION_COUNT = 5


class Muon(torch.optim.Optimizer):
    """Steps all matrices of one shape together, as one batch of products."""

    def __init__(self, parameters: Sequence[torch.nn.Parameter], weight_decay: float) -> None:
        super().__init__(parameters, {"lr": torch.tensor(0.0), "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # returns no loss
        """Updates the parameters; all of them have gradients."""
        for group in self.param_groups:
            same_shape: dict[torch.Size, list[torch.Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                same_shape[parameter.shape].append(parameter)
            for shape, parameters in same_shape.items():
                steps = orthogonal(torch.stack([self._direction(part) for part in parameters]))
                size = STEP_SIZE * max(shape) ** 0.5 * group["lr"]
                torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_sub_(parameters, list(size * steps.to(torch.float32)))

    def _direction(self, parameter: torch.Tensor) -> torch.Tensor:
        """Returns Nesterov's look ahead: the gradient and the momentum that it has changed."""
        gradient = parameter.grad
        assert gradient is not None
        state: dict[str, torch.Tensor] = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        momentum = state["momentum"].lerp_(gradient, 1 - MOMENTUM)
        ahead: torch.Tensor = gradient.lerp(momentum, MOMENTUM)
        return ahead


def orthogonal(matrices: torch.Tensor) -> torch.Tensor:
    """Returns the nearest (semi-)orthogonal matrices, roughly: singular values of 0.7 to 1.2.

    Args:
        matrices: [n, rows, columns]; computed in bfloat16, which is enough.
    """
    wide = matrices if matrices.shape[1] <= matrices.shape[2] else matrices.mT
    wide = wide.to(torch.bfloat16)
    current: torch.Tensor = wide / (wide.norm(dim=(1, 2), keepdim=True) + 1e-7)
    first, second, third = COEFFICIENTS
    for _ in range(ITERATION_COUNT):
        square = current @ current.mT
        current = first * current + (second * square + third * square @ square) @ current
    return current if matrices.shape[1] <= matrices.shape[2] else current.mT
