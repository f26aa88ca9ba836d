"""The specification written down plainly: tiles crop by crop, the tower head by head."""

from __future__ import annotations

import math
from typing import Any

import torch
from PIL import Image

from vision_service.tiling import RELEASED_POLICY, TilePolicy

Tensors = dict[str, torch.Tensor]


def reference_tiles(
    image: Image.Image, cap: int, size: int, policy: TilePolicy = RELEASED_POLICY
) -> list[Image.Image]:
    """The reference's dynamic_preprocess, written as it is there: crop by crop.

    Without dynamic_image_size its data set takes the image as it is, and its transform resizes it.
    """
    if not policy.is_dynamic:
        return [image.resize((size, size), Image.Resampling.BICUBIC)]
    least = policy.min_tile_count
    pairs = (
        (i, j) for n in range(least, cap + 1) for i in range(1, n + 1) for j in range(1, n + 1)
    )
    ratios = sorted(
        set(ratio for ratio in pairs if least <= ratio[0] * ratio[1] <= cap),  # noqa: C401 - as there
        key=lambda ratio: ratio[0] * ratio[1],
    )
    best, best_difference = (1, 1), float("inf")
    for ratio in ratios:
        difference = abs(image.width / image.height - ratio[0] / ratio[1])
        if difference < best_difference:
            best, best_difference = ratio, difference
        elif difference == best_difference and (
            image.width * image.height > 0.5 * size * size * ratio[0] * ratio[1]
        ):
            best = ratio
    resized = image.resize((size * best[0], size * best[1]))
    boxes = [
        (x * size, y * size, (x + 1) * size, (y + 1) * size)
        for y in range(best[1])
        for x in range(best[0])
    ]
    tiles = [resized.crop(box) for box in boxes]
    if policy.has_thumbnail and len(tiles) != 1:
        tiles.append(image.resize((size, size)))
    return tiles


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
    patch, edge = tower["patch_size"], tile.shape[-1] // tower["patch_size"]
    kernel = w["vision_model.embeddings.patch_embedding.weight"].flatten(1)
    patches = [
        kernel @ tile[:, y * patch : (y + 1) * patch, x * patch : (x + 1) * patch].flatten()
        for y in range(edge)
        for x in range(edge)
    ]
    patch_rows = torch.stack(patches) + w["vision_model.embeddings.patch_embedding.bias"]
    hidden = torch.cat([w["vision_model.embeddings.class_embedding"][0], patch_rows])
    hidden = hidden + plain_positions(w["vision_model.embeddings.position_embedding"][0], edge)
    for index in range(layer_count):
        p = f"vision_model.encoder.layers.{index}."
        normed = plain_norm(hidden, w, f"{p}norm1", tower["norm_type"])
        hidden = hidden + plain_attention(normed, w, f"{p}attn.", tower) * w[f"{p}ls1"]
        normed = plain_norm(hidden, w, f"{p}norm2", tower["norm_type"])
        inner = plain_gelu(normed @ w[f"{p}mlp.fc1.weight"].T + w[f"{p}mlp.fc1.bias"])
        hidden = hidden + (inner @ w[f"{p}mlp.fc2.weight"].T + w[f"{p}mlp.fc2.bias"]) * w[f"{p}ls2"]
    return plain_projection(plain_shuffle(hidden[1:], config["ps_version"]), w)


def plain_positions(positions: torch.Tensor, edge: int) -> torch.Tensor:
    """Cubic convolution with a = -0.75 along rows and along columns; the first position stays."""
    stored_edge = int((len(positions) - 1) ** 0.5)
    grid = positions[1:].view(stored_edge, stored_edge, -1)
    shares = cubic_shares(stored_edge, edge).to(positions.dtype)
    resized = torch.einsum("yi,xj,ijc->yxc", shares, shares, grid)
    return torch.cat([positions[:1], resized.flatten(0, 1)])


def cubic_shares(count: int, new_count: int) -> torch.Tensor:
    """Returns [new_count, count]: how much of each point a new one is; centres are aligned."""
    shares = torch.zeros(new_count, count, dtype=torch.float64)
    for new in range(new_count):
        place = (new + 0.5) * count / new_count - 0.5
        for point in range(math.floor(place) - 1, math.floor(place) + 3):
            shares[new, min(max(point, 0), count - 1)] += cubic_weight(abs(place - point))
    return shares


def cubic_weight(x: float, a: float = -0.75) -> float:
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a


def plain_shuffle(patches: torch.Tensor, version: str) -> torch.Tensor:
    edge = int(len(patches) ** 0.5)
    places = [(y, x) for y in range(0, edge, 2) for x in range(0, edge, 2)]
    if version == "v1":  # column by column
        places.sort(key=lambda place: (place[1], place[0]))
    tokens = [
        torch.cat([patches[(y + dy) * edge + x + dx] for dy in (0, 1) for dx in (0, 1)])
        for y, x in places
    ]
    return torch.stack(tokens)


def plain_projection(rows: torch.Tensor, w: Tensors) -> torch.Tensor:
    width = rows.shape[-1]
    normed = torch.nn.functional.layer_norm(
        rows, (width,), w["mlp1.0.weight"], w["mlp1.0.bias"], eps=1e-5
    )
    inner = plain_gelu(normed @ w["mlp1.1.weight"].T + w["mlp1.1.bias"])
    return inner @ w["mlp1.3.weight"].T + w["mlp1.3.bias"]
