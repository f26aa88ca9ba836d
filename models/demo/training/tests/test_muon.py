"""Muon's steps are orthogonal, of one size, and go downhill."""

from __future__ import annotations

import pytest
import torch

from demo_training.muon import STEP_SIZE, Muon, orthogonal


@pytest.mark.parametrize("shape", [(2, 24, 64), (2, 64, 24), (1, 32, 32)])
def test_singular_values_become_about_one(shape: tuple[int, int, int]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonal(matrices).float())
    # The iteration overshoots on purpose; only values near 0 stay below (a square matrix has one).
    assert values.max() < 1.3
    assert values[:, :-1].min() > 0.3


def test_orthogonal_keeps_the_directions() -> None:
    generator = torch.Generator().manual_seed(0)
    left, _, right = torch.linalg.svd(torch.randn(3, 16, 16, generator=generator))
    matrices = left * torch.linspace(1, 2, 16) @ right
    values = left.mT @ orthogonal(matrices).float() @ right.mT
    diagonal = values.diagonal(dim1=1, dim2=2)
    assert diagonal.min() > 0.6
    assert diagonal.max() < 1.3
    assert (values - diagonal.diag_embed()).abs().max() < 0.1


def test_a_step_has_the_size_that_the_learning_rate_asks_for() -> None:
    parameter = torch.nn.Parameter(torch.zeros(48, 96))
    optimiser = Muon([parameter], weight_decay=0.0)
    optimiser.param_groups[0]["lr"] = torch.tensor(0.01)
    parameter.grad = torch.randn(48, 96, generator=torch.Generator().manual_seed(0))
    optimiser.step()
    root_mean_square = parameter.square().mean().sqrt().item()
    assert root_mean_square == pytest.approx(0.01 * STEP_SIZE, rel=0.2)
    assert (parameter * parameter.grad).sum() < 0


def test_matrices_of_several_shapes_reach_their_targets() -> None:
    generator = torch.Generator().manual_seed(0)
    targets = [torch.randn(size, generator=generator) for size in ((8, 16), (8, 16), (16, 8))]
    parameters = [torch.nn.Parameter(torch.zeros_like(target)) for target in targets]
    optimiser = Muon(parameters, weight_decay=0.0)
    for step in range(200):
        optimiser.param_groups[0]["lr"] = torch.tensor(0.05 * (1 - step / 200))
        for parameter, target in zip(parameters, targets, strict=True):
            parameter.grad = parameter.detach() - target
        optimiser.step()
    for parameter, target in zip(parameters, targets, strict=True):
        torch.testing.assert_close(parameter.detach(), target, rtol=0, atol=0.1)
