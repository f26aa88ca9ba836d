"""InternViT against a plain implementation of the specification: 6B style, 300M style, layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.unit.vision_service.checkpoints import (
    SMALL_6B,
    changed,
    random_tensors,
    write_checkpoint,
)
from vision_service.checkpoint import VisionConfig
from vision_service.engines.torch.engine import load_model
from vision_service.engines.torch.intern_vit import pixel_shuffle

Tensors = dict[str, torch.Tensor]
SMALL_300M = changed(
    SMALL_6B,
    vision_config={"norm_type": "layer_norm", "qkv_bias": True, "qk_normalization": False},
)


def plain_norm(x: torch.Tensor, w: Tensors, name: str, kind: str) -> torch.Tensor:
    if kind == "rms_norm":
        return x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * w[f"{name}.weight"]
    centred = x - x.mean(-1, keepdim=True)
    scale = (centred.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()
    return centred / scale * w[f"{name}.weight"] + w[f"{name}.bias"]


def plain_gelu(x: torch.Tensor) -> torch.Tensor:
    return x * 0.5 * (1 + torch.erf(x / 2**0.5))


def plain_attention(x: torch.Tensor, w: Tensors, prefix: str, tower: Any) -> torch.Tensor:
    """One token list [tokens, C]; heads in a loop, softmax written out."""
    width, head_count = tower["hidden_size"], tower["num_attention_heads"]
    joint = x @ w[f"{prefix}qkv.weight"].T
    if tower["qkv_bias"]:
        joint = joint + w[f"{prefix}qkv.bias"]
    q, k, v = joint[:, :width], joint[:, width : 2 * width], joint[:, 2 * width :]
    if tower["qk_normalization"]:
        q = plain_norm(q, w, f"{prefix}q_norm", "rms_norm")
        k = plain_norm(k, w, f"{prefix}k_norm", "rms_norm")
    heads, size = [], width // head_count
    for head in range(head_count):
        part = slice(head * size, (head + 1) * size)
        scores = q[:, part] @ k[:, part].T / size**0.5
        heads.append(torch.softmax(scores, dim=-1) @ v[:, part])
    return torch.cat(heads, dim=-1) @ w[f"{prefix}proj.weight"].T + w[f"{prefix}proj.bias"]


def plain_embeddings(tile: torch.Tensor, w: Tensors, config: Any, layer_count: int) -> torch.Tensor:
    """One tile [3, S, S] -> [tokens_per_tile, output size], in the tensors' dtype."""
    tower = config["vision_config"]
    patch, edge = tower["patch_size"], tower["image_size"] // tower["patch_size"]
    kernel = w["vision_model.embeddings.patch_embedding.weight"].flatten(1)
    patches = [
        kernel @ tile[:, y * patch : (y + 1) * patch, x * patch : (x + 1) * patch].flatten()
        for y in range(edge)
        for x in range(edge)
    ]
    patch_rows = torch.stack(patches) + w["vision_model.embeddings.patch_embedding.bias"]
    hidden = torch.cat([w["vision_model.embeddings.class_embedding"][0], patch_rows])
    hidden = hidden + w["vision_model.embeddings.position_embedding"][0]
    for index in range(layer_count):
        p = f"vision_model.encoder.layers.{index}."
        normed = plain_norm(hidden, w, f"{p}norm1", tower["norm_type"])
        hidden = hidden + plain_attention(normed, w, f"{p}attn.", tower) * w[f"{p}ls1"]
        normed = plain_norm(hidden, w, f"{p}norm2", tower["norm_type"])
        inner = plain_gelu(normed @ w[f"{p}mlp.fc1.weight"].T + w[f"{p}mlp.fc1.bias"])
        hidden = hidden + (inner @ w[f"{p}mlp.fc2.weight"].T + w[f"{p}mlp.fc2.bias"]) * w[f"{p}ls2"]
    return plain_projection(hidden[1:], edge, w)


def plain_projection(patches: torch.Tensor, edge: int, w: Tensors) -> torch.Tensor:
    tokens = [
        torch.cat([patches[(y + dy) * edge + x + dx] for dy in (0, 1) for dx in (0, 1)])
        for y in range(0, edge, 2)
        for x in range(0, edge, 2)
    ]
    rows = torch.stack(tokens)
    width = rows.shape[-1]
    normed = torch.nn.functional.layer_norm(
        rows, (width,), w["mlp1.0.weight"], w["mlp1.0.bias"], eps=1e-5
    )
    inner = plain_gelu(normed @ w["mlp1.1.weight"].T + w["mlp1.1.bias"])
    return inner @ w["mlp1.3.weight"].T + w["mlp1.3.bias"]


@pytest.mark.parametrize(
    ("config", "layer_count"),
    [
        pytest.param(SMALL_6B, 2, id="6B"),
        pytest.param(SMALL_300M, 2, id="300M"),
        pytest.param(changed(SMALL_6B, select_layer=-2), 1, id="last layer but one"),
        pytest.param(changed(SMALL_6B, select_layer=1), 1, id="layer 1"),
    ],
)
def test_embeddings_equal_the_plain_implementation(
    tmp_path: Path, config: Any, layer_count: int
) -> None:
    folder = write_checkpoint(tmp_path, config)
    model, _ = load_model(
        folder, VisionConfig.from_checkpoint(folder), torch.device("cpu"), torch.float64
    )
    weights = {name: tensor.double() for name, tensor in random_tensors(config).items()}
    tiles = torch.randn(3, 3, 28, 28, dtype=torch.float64, generator=torch.Generator())
    with torch.inference_mode():
        found = model(tiles)
    expected = [plain_embeddings(tile, weights, config, layer_count) for tile in tiles]
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-9, atol=1e-9)


def test_pixel_shuffle_folds_squares_row_by_row() -> None:
    patches = torch.arange(16).view(1, 16, 1)  # a 4 x 4 grid of its own positions
    expected = [[[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]]
    assert pixel_shuffle(patches).tolist() == expected
