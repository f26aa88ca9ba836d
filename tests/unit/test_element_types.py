"""The element types that `auto` stands for: both services choose alike."""

from __future__ import annotations

import pytest
import torch

from llm_service.engines.torch import launch
from llm_service.settings import TorchOptions as LLMOptions
from protos.process import precision
from protos.process.precision import Product
from vision_service.engines.torch import engine as vision_engine
from vision_service.settings import TorchOptions as VisionOptions

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("faster", ["float32", "bfloat16"])
def test_both_services_choose_the_same_by_the_same_figures(
    monkeypatch: pytest.MonkeyPatch, faster: str
) -> None:
    """Both time real products of their own type and shape; the figures are made up."""
    seconds = {torch.float32: 0.002, torch.bfloat16: 0.001 if faster == "bfloat16" else 0.004}

    def figure(product: Product, clock: object) -> float:
        result = product()
        assert isinstance(result, torch.Tensor)
        assert result.shape == (384, precision.WIDTH)
        return seconds[result.dtype]

    monkeypatch.setattr(precision, "_seconds", figure)
    chosen = {
        launch._dtype(LLMOptions(thread_count=3), CPU),
        vision_engine._dtype(VisionOptions(thread_count=3), CPU),
    }
    assert chosen == {getattr(torch, faster)}


@pytest.mark.parametrize(
    ("dtype", "device", "chosen"),
    [
        ("auto", CUDA, torch.bfloat16),
        ("float32", CPU, torch.float32),
        ("bfloat16", CPU, torch.bfloat16),
        ("float16", CUDA, torch.float16),
    ],
)
def test_a_gpu_and_a_named_type_are_not_measured(
    monkeypatch: pytest.MonkeyPatch, dtype: str, device: torch.device, chosen: torch.dtype
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("measured")

    for module in (launch, vision_engine):
        monkeypatch.setattr(module, "faster_type", refuse)
    options = {"dtype": dtype}
    assert launch._dtype(LLMOptions.model_validate(options), device) == chosen
    assert vision_engine._dtype(VisionOptions.model_validate(options), device) == chosen
