"""The model in training: InternVL2.5's parts under the tensor names of the original checkpoints.

The ViT and mlp1 are the vision service's own modules. The decoder is Qwen2 without the biases of
q, k and v: an export writes them as zeros, so the same weights fit InternLM2's layout too.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from llm_service.checkpoint import LLMConfig
from vision_service.checkpoint import VisionConfig
from vision_service.engines.torch.intern_vit import VisionModel, pixel_shuffle

INITIAL_STD = 0.02
# Released towers start at 1.0; a smaller one makes the first steps of a deep tower tamer.
INITIAL_LAYER_SCALE = 0.3

Mask = torch.Tensor | BlockMask


class Rows(NamedTuple):
    """Packed token rows: units beside each other, each a picture prefix and its dialogues.

    A token sees the tokens of its unit that stand before it and belong to the prefix or to its own
    dialogue, so that each dialogue reads as if it stood alone behind the prefix.

    Attributes:
        token_ids: [rows, length] int64; where a picture's row goes, any id.
        positions: [rows, length] int64, the place in prefix + own dialogue.
        units: [rows, length] int64, the unit that a token belongs to.
        dialogues: [rows, length] int64, the dialogue within the unit; 0 for the prefix.
        sources: [slots] int64, rows of the flattened picture embeddings ...
        places: [slots] int64, ... and where they go in the flattened token rows; rows x length for
            an unused slot.
    """

    token_ids: torch.Tensor
    positions: torch.Tensor
    units: torch.Tensor
    dialogues: torch.Tensor
    sources: torch.Tensor
    places: torch.Tensor


class DemoModel(VisionModel):
    """Tiles and packed rows to logits; the state dict has the original checkpoint's names.

    Attributes:
        mean, std: [3, 1, 1], of the colour channels, for values from 0 to 1.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, vision: VisionConfig, llm: LLMConfig) -> None:
        super().__init__(vision)
        # Buffers, because a constant made on the way would not survive in a CUDA graph.
        for name, values in (("mean", vision.mean), ("std", vision.std)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)
        self.language_model = CausalLM(llm)
        self._initialise()

    def encode(self, tiles: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Encodes tiles, [n, 3, tile_size, tile_size] uint8 RGB.

        Returns:
            The ViT's patches [n, P x P, C] (P = tile_size / patch_size) and the embeddings
            [n, P x P / 4, hidden].
        """
        pixel_values = tiles.to(torch.float32).div_(255).sub_(self.mean).div_(self.std)
        patches = self.vision_model(pixel_values)[:, 1:]
        return patches, self.mlp1(pixel_shuffle(patches))

    def decode(self, embeddings: torch.Tensor, rows: Rows) -> torch.Tensor:
        """Returns the final hidden states [rows, length, hidden]; `head` makes them logits.

        Args:
            embeddings: [n, tokens per tile, hidden], what `encode` returns.
            rows: the packed tokens.
        """
        decoder = self.language_model.model
        text = decoder.embed_tokens(rows.token_ids).flatten(0, 1)
        # One row more, where the unused slots go.
        room = F.pad(text, (0, 0, 0, 1))
        pictures = embeddings.flatten(0, 1).index_select(0, rows.sources).to(room.dtype)
        hidden = room.index_copy(0, rows.places, pictures)[:-1]
        output: torch.Tensor = decoder(hidden.view(*rows.token_ids.shape, -1), rows)
        return output

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """[..., hidden] -> logits [..., vocabulary]"""
        logits: torch.Tensor = self.language_model.lm_head(hidden)
        return logits

    @torch.no_grad()
    def _initialise(self) -> None:
        for name, parameter in self.named_parameters():
            if name.endswith(("ls1", "ls2")):
                parameter.fill_(INITIAL_LAYER_SCALE)
            elif name.endswith("bias"):
                parameter.zero_()
            elif parameter.ndim == 1:
                parameter.fill_(1.0)
            else:
                parameter.normal_(std=INITIAL_STD)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight, the division in float32 as the service does it."""

    def __init__(self, config: LLMConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.hidden_size))
        self._eps = config.rms_norm_eps

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[..., hidden] -> the same shape, in the same dtype."""
        exact = hidden.float()
        exact = exact * torch.rsqrt(exact.square().mean(-1, keepdim=True) + self._eps)
        return self.weight * exact.to(hidden.dtype)


class Rotation:
    """The rotary embedding of all positions: angle of pair i = position x theta^(-2i/d).

    The pairs are (i, i + d/2), the "half-rotation" or neox form; computed in float32.
    """

    def __init__(self, positions: torch.Tensor, head_dim: int, theta: float) -> None:
        exponents = torch.arange(0, head_dim, 2, device=positions.device) / head_dim
        angles = positions[:, None].float() / theta**exponents  # [T, head_dim / 2]
        self._cos = angles.cos()[:, None]  # [T, 1, head_dim / 2]
        self._sin = angles.sin()[:, None]

    def apply(self, heads: torch.Tensor) -> torch.Tensor:
        """[T, heads, head_dim] -> the same shape, in the same dtype."""
        first, second = heads.float().chunk(2, dim=-1)
        rotated = (
            first * self._cos - second * self._sin,
            second * self._cos + first * self._sin,
        )
        return torch.cat(rotated, dim=-1).to(heads.dtype)


class CausalLM(nn.Module):
    """The decoder and its untied output head."""

    def __init__(self, config: LLMConfig) -> None:
        super().__init__()
        self.model = Decoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocabulary_size, bias=False)


class Decoder(nn.Module):
    """Qwen2's layers over packed rows."""

    def __init__(self, config: LLMConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocabulary_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layer_count))
        self.norm = RMSNorm(config)

    def forward(self, hidden: torch.Tensor, rows: Rows) -> torch.Tensor:
        """[rows, length, hidden] -> the same shape, normalised."""
        rotation = Rotation(rows.positions.flatten(), self.config.head_dim, self.config.rope_theta)
        mask = attention_mask(rows)
        for layer in self.layers:
            hidden = layer(hidden, rotation, mask)
        output: torch.Tensor = self.norm(hidden)
        return output


class Layer(nn.Module):
    """Attention and feed-forward, each on the normalised input and added to it."""

    def __init__(self, config: LLMConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config)
        self.mlp = FeedForward(config)

    def forward(self, hidden: torch.Tensor, rotation: Rotation, mask: Mask) -> torch.Tensor:
        """[rows, length, hidden] -> the same shape."""
        hidden = hidden + self.self_attn(self.input_layernorm(hidden), rotation, mask)
        output: torch.Tensor = hidden + self.mlp(self.post_attention_layernorm(hidden))
        return output


class Attention(nn.Module):
    """Grouped-query attention within the mask, without biases."""

    def __init__(self, config: LLMConfig) -> None:
        super().__init__()
        width, key_width = config.hidden_size, config.kv_head_count * config.head_dim
        self.head_dim = config.head_dim
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, key_width, bias=False)
        self.v_proj = nn.Linear(width, key_width, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)

    def forward(self, hidden: torch.Tensor, rotation: Rotation, mask: Mask) -> torch.Tensor:
        """[rows, length, hidden] -> the same shape."""
        query = self._heads(self.q_proj(hidden), rotation)
        key = self._heads(self.k_proj(hidden), rotation)
        value = self._heads(self.v_proj(hidden), None)
        attended = _attend(query, key, value, mask)
        output: torch.Tensor = self.o_proj(attended.transpose(1, 2).flatten(2))
        return output

    def _heads(self, states: torch.Tensor, rotation: Rotation | None) -> torch.Tensor:
        # [rows, length, width] -> [rows, heads, length, head_dim]
        heads = states.view(*states.shape[:2], -1, self.head_dim)
        if rotation is not None:
            heads = rotation.apply(heads.flatten(0, 1)).view(heads.shape)
        return heads.transpose(1, 2)


class FeedForward(nn.Module):
    """down(silu(gate(x)) * up(x))"""

    def __init__(self, config: LLMConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[rows, length, hidden] -> the same shape."""
        output: torch.Tensor = self.down_proj(F.silu(self.gate_proj(hidden)) * self.up_proj(hidden))
        return output


def attention_mask(rows: Rows) -> Mask:
    """Returns who sees whom: a block mask on CUDA, elsewhere [rows, 1, length, length] bool.

    FlexAttention has no backward pass on the CPU; both forms come from one rule.
    """
    units, dialogues = rows.units, rows.dialogues
    row_count, length = units.shape

    def visible(
        row: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor
    ) -> torch.Tensor:
        same_unit = units[row, query] == units[row, key]
        spoken = dialogues[row, key]
        in_reach = (spoken == 0) | (spoken == dialogues[row, query])
        return (query >= key) & same_unit & in_reach

    if units.is_cuda:
        return create_block_mask(visible, row_count, None, length, length, device="cuda")
    row = torch.arange(row_count)[:, None, None]
    place = torch.arange(length)
    return visible(row, torch.zeros(1), place[:, None], place)[:, None]


def _attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Mask
) -> torch.Tensor:
    if isinstance(mask, BlockMask):
        attended = flex_attention(query, key, value, block_mask=mask, enable_gqa=True)
        assert isinstance(attended, torch.Tensor)  # no log-sum-exp was asked for
        return attended
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True)
