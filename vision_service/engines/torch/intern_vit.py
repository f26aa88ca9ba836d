"""InternViT with pixel shuffle and the mlp1 projector, as one module.

Both towers: 300M (LayerNorm, qkv bias) and 6B (RMSNorm, normalised q and k, no qkv bias).
Attributes are named so that the state dict has the original checkpoints' names.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from protos.checkpoint.tile import SHUFFLE_FACTOR
from vision_service.checkpoint import PixelShuffleVersion, VisionConfig

# [n, row, dy, column, dx, C] -> [n, row, column, dy, dx, C]; v1 has column, row.
SHUFFLE_ORDERS = {"v1": (0, 3, 1, 2, 4, 5), "v2": (0, 1, 3, 2, 4, 5)}


class VisionModel(nn.Module):
    """pixel_values [n, 3, S, S] -> embeddings [n, tokens_per_tile, output_size]."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self._ps_version = config.ps_version
        shuffled_size = config.hidden_size * SHUFFLE_FACTOR**2
        self.vision_model = InternViT(config)
        self.mlp1 = nn.Sequential(
            nn.LayerNorm(shuffled_size),
            nn.Linear(shuffled_size, config.output_size),
            nn.GELU(),
            nn.Linear(config.output_size, config.output_size),
        )

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Encodes normalised tiles."""
        return self.project(self.vision_model(pixel_values))

    def project(self, hidden: torch.Tensor) -> torch.Tensor:
        """[n, 1 + patches, C], of whole tiles or of any square -> [n, patches / 4, output_size]."""
        patches = hidden[:, 1:]  # without the class token
        embeddings: torch.Tensor = self.mlp1(pixel_shuffle(patches, self._ps_version))
        return embeddings


def pixel_shuffle(patches: torch.Tensor, version: PixelShuffleVersion = "v2") -> torch.Tensor:
    """Folds each 2x2 square of patches into one token: space to depth.

    Args:
        patches: [n, edge x edge, C], row by row.
        version: the order of the tokens: v2 is row by row, v1 column by column.

    Returns:
        [n, edge x edge / 4, 4 C]; the four vectors of a token stand in the order (0, 0), (0, 1),
        (1, 0), (1, 1) of (row, column).
    """
    count, patch_count, width = patches.shape
    edge = int(patch_count**0.5) // SHUFFLE_FACTOR
    squares = patches.view(count, edge, SHUFFLE_FACTOR, edge, SHUFFLE_FACTOR, width)
    return squares.permute(SHUFFLE_ORDERS[version]).reshape(count, edge * edge, -1)


def resized_positions(positions: torch.Tensor, edge: int) -> torch.Tensor:
    """Interpolates a position embedding to another number of patches, as the reference does.

    Args:
        positions: [1, 1 + n x n, C], the class token's first.
        edge: patches along the edge of a tile.

    Returns:
        [1, 1 + edge x edge, C]: bicubic, in float32; the class token's stays as it is.
    """
    class_token, patches = positions[:, :1], positions[:, 1:]
    stored_edge = int(patches.shape[1] ** 0.5)
    if edge == stored_edge:
        return positions
    # [1, C, n x n] -> [1, C, n, n]
    grid = patches.float().mT.reshape(1, -1, stored_edge, stored_edge)
    resized = F.interpolate(grid, size=(edge, edge), mode="bicubic", align_corners=False)
    return torch.cat([class_token, resized.flatten(2).mT.to(positions.dtype)], dim=1)


class InternViT(nn.Module):
    """pixel_values [n, 3, S, S] -> hidden states [n, 1 + patches, C], class token first.

    There is no norm after the last layer.
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.embeddings = Embeddings(config)
        self.encoder = Encoder(config)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Runs the tower up to the layer that the checkpoint selects."""
        hidden: torch.Tensor = self.encoder(self.embeddings(pixel_values))
        return hidden


class Embeddings(nn.Module):
    """Patches as vectors, the class token in front, positions added.

    The positions are made as they are stored; `fit_positions` fits them to the tiles.
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        width, patch_count = config.hidden_size, config.stored_patches_per_edge**2
        self._edge = config.patches_per_edge
        self.class_embedding = nn.Parameter(torch.empty(1, 1, width))
        self.position_embedding = nn.Parameter(torch.empty(1, 1 + patch_count, width))
        self.patch_embedding = nn.Conv2d(
            3, width, kernel_size=config.patch_size, stride=config.patch_size
        )

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Embeds tiles."""
        patches = self.patch_embedding(pixel_values).flatten(2).transpose(1, 2)  # [n, patches, C]
        class_token = self.class_embedding.expand(len(patches), -1, -1)
        return torch.cat([class_token, patches], dim=1) + self.position_embedding

    def fit_positions(self) -> None:
        """Interpolates the stored positions, once, where tiles have another size than those."""
        resized = resized_positions(self.position_embedding.detach(), self._edge)
        self.position_embedding = nn.Parameter(resized)


class Encoder(nn.Module):
    """The layers; those behind the selected one are loaded but do not run."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.used_layer_count = config.used_layer_count
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layer_count))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Runs the layers in turn."""
        for layer in self.layers[: self.used_layer_count]:
            hidden = layer(hidden)
        return hidden


class Layer(nn.Module):
    """Attention and MLP, each with a norm before it and a learned scale behind it."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.norm1 = _norm(config)
        self.attn = Attention(config)
        self.ls1 = nn.Parameter(torch.empty(config.hidden_size))
        self.norm2 = _norm(config)
        self.mlp = MLP(config)
        self.ls2 = nn.Parameter(torch.empty(config.hidden_size))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Adds both branches to the hidden states."""
        hidden = hidden + self.attn(self.norm1(hidden)) * self.ls1
        output: torch.Tensor = hidden + self.mlp(self.norm2(hidden)) * self.ls2
        return output


class Attention(nn.Module):
    """Full attention over all tokens of a tile."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.head_count = config.head_count
        self.qkv = nn.Linear(width, 3 * width, bias=config.qkv_bias)
        self.q_norm = _qk_norm(config)
        self.k_norm = _qk_norm(config)
        self.proj = nn.Linear(width, width)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Attends, between the two linear layers."""
        output: torch.Tensor = self.proj(self.attend(self.qkv(hidden)))
        return output

    def attend(self, joint: torch.Tensor) -> torch.Tensor:
        """[n, tokens, 3 C] -> [n, tokens, C]; the norms of q and k span all heads."""
        query, key, value = joint.chunk(3, dim=-1)  # each [n, tokens, C]
        attended = F.scaled_dot_product_attention(
            self._heads(self.q_norm(query)), self._heads(self.k_norm(key)), self._heads(value)
        )
        return attended.transpose(1, 2).flatten(2)

    def _heads(self, states: torch.Tensor) -> torch.Tensor:
        # [n, tokens, C] -> [n, heads, tokens, C / heads]
        return states.view(*states.shape[:2], self.head_count, -1).transpose(1, 2)


class MLP(nn.Module):
    """Two linear layers with the exact (erf) GELU between them."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Transforms each token by itself."""
        output: torch.Tensor = self.fc2(F.gelu(self.fc1(hidden)))
        return output


def _norm(config: VisionConfig) -> nn.Module:
    kind = nn.RMSNorm if config.norm_type == "rms_norm" else nn.LayerNorm
    return kind(config.hidden_size, eps=config.norm_eps)


def _qk_norm(config: VisionConfig) -> nn.Module:
    if not config.qk_normalization:
        return nn.Identity()
    return nn.RMSNorm(config.hidden_size, eps=config.norm_eps)
