"""A small reader of TensorRT-LLM checkpoints that computes as their GPUs would, share by share.

Written from the description of the format (names, shapes, what is split how), not from the
converter: the tests compare two accounts of the same thing.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch.nn.functional import silu

Tensors = dict[str, torch.Tensor]
Document = dict[str, Any]


def expected_shapes(document: Document, stage: int) -> dict[str, tuple[int, ...]]:
    """Returns what the format has in the file of a rank of this stage."""
    mapping = document["mapping"]
    tp, pp = mapping["tp_size"], mapping["pp_size"]
    hidden, ffn = document["hidden_size"], document["intermediate_size"] // tp
    heads, kv_heads = document["num_attention_heads"], document["num_key_value_heads"]
    head_dim = document["head_size"]
    qkv = (heads + 2 * max(kv_heads, tp)) * head_dim // tp
    shapes: dict[str, tuple[int, ...]] = {}
    if stage == 0:
        shapes["transformer.vocab_embedding.weight"] = (document["vocab_size"], hidden)
    if stage == pp - 1:
        padded = document["vocab_size"] + -document["vocab_size"] % tp
        shapes |= {"transformer.ln_f.weight": (hidden,), "lm_head.weight": (padded // tp, hidden)}
    for index in range(document["num_hidden_layers"] // pp):
        layer = f"transformer.layers.{index}."
        shapes |= {
            f"{layer}input_layernorm.weight": (hidden,),
            f"{layer}post_layernorm.weight": (hidden,),
            f"{layer}attention.qkv.weight": (qkv, hidden),
            f"{layer}attention.dense.weight": (hidden, heads * head_dim // tp),
            f"{layer}mlp.fc.weight": (ffn, hidden),
            f"{layer}mlp.gate.weight": (ffn, hidden),
            f"{layer}mlp.proj.weight": (hidden, ffn),
        }
        if document["attn_bias"]:
            shapes[f"{layer}attention.qkv.bias"] = (qkv,)
        if document.get("qk_layernorm", False):
            shapes[f"{layer}attention.q_layernorm.weight"] = (head_dim,)
            shapes[f"{layer}attention.k_layernorm.weight"] = (head_dim,)
    return shapes


class SplitModel:
    """A checkpoint's ranks, in float32."""

    def __init__(self, folder: Path) -> None:
        """Reads config.json and every rank, whose tensors must be those of the format."""
        self.document: Document = json.loads((folder / "config.json").read_text())
        mapping = self.document["mapping"]
        self._tp, self._pp = mapping["tp_size"], mapping["pp_size"]
        assert mapping["world_size"] == self._tp * self._pp
        ranks = [folder / f"rank{index}.safetensors" for index in range(self._tp * self._pp)]
        assert set(folder.iterdir()) == {*ranks, folder / "config.json"}
        self._stages = [
            [self._read(ranks[stage * self._tp + share], stage) for share in range(self._tp)]
            for stage in range(self._pp)
        ]

    def _read(self, file: Path, stage: int) -> Tensors:
        tensors = load_file(file)
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        assert shapes == expected_shapes(self.document, stage)
        assert {str(tensor.dtype) for tensor in tensors.values()} == {
            f"torch.{self.document['dtype']}"
        }
        return {name: tensor.float() for name, tensor in tensors.items()}

    def logits(self, token_ids: list[int], table: torch.Tensor) -> torch.Tensor:
        """Returns the logits [vocabulary] after all tokens; ids above it are rows of the table."""
        embedding = self._stages[0][0]["transformer.vocab_embedding.weight"]
        states = torch.cat([embedding, table])[token_ids]
        for shares in self._stages:
            for index in range(self.document["num_hidden_layers"] // self._pp):
                layer = f"transformer.layers.{index}."
                normed = self._norm(states, shares[0][f"{layer}input_layernorm.weight"])
                # The sums over the shares are what the GPUs' all-reduce does.
                states = states + sum(self._attention(normed, s, layer) for s in shares)
                normed = self._norm(states, shares[0][f"{layer}post_layernorm.weight"])
                states = states + sum(self._mlp(normed, s, layer) for s in shares)
        last = self._norm(states[-1], self._stages[-1][0]["transformer.ln_f.weight"])
        logits = torch.cat([share["lm_head.weight"] @ last for share in self._stages[-1]])
        assert not logits[self.document["vocab_size"] :].any(), "the padding is not zero"
        return logits[: self.document["vocab_size"]]

    def _norm(self, states: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        variance = states.pow(2).mean(-1, keepdim=True)
        return states * torch.rsqrt(variance + self.document["norm_epsilon"]) * weight

    def _mlp(self, states: torch.Tensor, share: Tensors, layer: str) -> torch.Tensor:
        """The `fc` branch is the one with the SiLU; `gate` is linear."""
        activated = silu(states @ share[f"{layer}mlp.fc.weight"].T)
        joined = activated * (states @ share[f"{layer}mlp.gate.weight"].T)
        return joined @ share[f"{layer}mlp.proj.weight"].T

    def _attention(self, states: torch.Tensor, share: Tensors, layer: str) -> torch.Tensor:
        qkv = states @ share[f"{layer}attention.qkv.weight"].T
        if self.document["attn_bias"]:
            qkv = qkv + share[f"{layer}attention.qkv.bias"]
        heads = self.document["num_attention_heads"] // self._tp
        kv_heads = max(1, self.document["num_key_value_heads"] // self._tp)
        # [tokens, heads of all three, head_dim] -> [heads, tokens, head_dim]
        parts = qkv.view(len(states), heads + 2 * kv_heads, -1).transpose(0, 1)
        query, key = parts[:heads], parts[heads:-kv_heads]
        if self.document.get("qk_layernorm", False):
            query = self._norm(query, share[f"{layer}attention.q_layernorm.weight"])
            key = self._norm(key, share[f"{layer}attention.k_layernorm.weight"])
        query, key = self._rotated(query), self._rotated(key)
        value = parts[-kv_heads:].repeat_interleave(heads // kv_heads, 0)
        key = key.repeat_interleave(heads // kv_heads, 0)
        scores = query @ key.transpose(1, 2) / query.shape[-1] ** 0.5
        future = torch.ones(len(states), len(states), dtype=torch.bool).triu(1)
        seen = scores.masked_fill(future, float("-inf")).softmax(-1)
        mixed: torch.Tensor = (seen @ value).transpose(0, 1).reshape(len(states), -1)
        return mixed @ share[f"{layer}attention.dense.weight"].T

    def _rotated(self, heads: torch.Tensor) -> torch.Tensor:
        """Turns the two halves of each head, as in GPT-NeoX. heads: [heads, tokens, head_dim]."""
        half = heads.shape[-1] // 2
        wavelengths = self.document["rotary_base"] ** (torch.arange(half) / half)
        angles = torch.arange(heads.shape[1])[:, None] / wavelengths
        first, second = heads[..., :half], heads[..., half:]
        cos, sin = angles.cos(), angles.sin()
        return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)
