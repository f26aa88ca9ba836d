"""A decoder family: how its checkpoints name and order the tensors that all decoders have.

The decoder itself is the same for all: RMS norms, rotary embedding, grouped-query attention, a
gated SiLU feed-forward. A family is data; nothing here or in the families touches a tensor.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Part = Literal["query", "key", "value"]
Head = tuple[Part, int]

# All tensors of the language model begin with it; other tensors belong to the vision tower.
ROOT = "language_model."
# Options of llm_config that would change the mathematics, and the one value that is served.
COMMON_OPTIONS: Mapping[str, Any] = {"bias": False, "hidden_act": "silu"}
# What the classes of all families have for a key that llm_config does not have.
COMMON_DEFAULTS: Mapping[str, Any] = {"rope_theta": 10_000.0, "rms_norm_eps": 1e-6}


@dataclass(frozen=True)
class HeadOrder:
    """In what order the rows of a tensor hold the heads.

    Attributes:
        parts: what it holds, in order.
        by_group: whether it goes group by group, a group being a key/value head with the query
            heads that share it; else all heads of a part stand together.
    """

    parts: tuple[Part, ...]
    by_group: bool = False

    def heads(self, head_count: int, kv_head_count: int) -> list[Head]:
        """Returns the heads in the order of the rows; each has head_dim of them."""
        group_count = kv_head_count if self.by_group else 1
        share = {
            "query": head_count // group_count,
            "key": kv_head_count // group_count,
            "value": kv_head_count // group_count,
        }
        return [
            (part, index)
            for group in range(group_count)
            for part in self.parts
            for index in range(group * share[part], (group + 1) * share[part])
        ]


# The order of InternLM2's wqkv, and of the fused projection of our torch engine.
GROUPED = HeadOrder(("query", "key", "value"), by_group=True)


def head_rows(heads: Iterable[Head], order: list[Head], head_dim: int) -> list[range]:
    """Returns the rows of these heads in a tensor of that order, neighbours joined to one range."""
    place_of = {head: place for place, head in enumerate(order)}
    rows: list[range] = []
    for head in heads:
        first = place_of[head] * head_dim
        if rows and rows[-1].stop == first:
            first = rows.pop().start
        rows.append(range(first, (place_of[head] + 1) * head_dim))
    return rows


@dataclass(frozen=True)
class DecoderFamily:
    """What the checkpoints of one family call the decoder's tensors, and how they order them.

    Names are without `language_model.` in front and `.weight` behind; those of a layer's tensors
    are also without `{layers}.N.` in front.

    Attributes:
        architecture: the family's name in llm_config.architectures.
        options: of llm_config, each with the one value that is served.
        defaults: what the family's config class has for an absent key of llm_config. An option that
            is not here defaults to the value that is served; a size that is not here is missed.
        embedding: [vocabulary, hidden].
        layers: what the layers' names begin with.
        norm: [hidden], after the last layer.
        head: [vocabulary, hidden].
        attention_norm: [hidden], before attention.
        qkv: the projections to query, key and value heads, [heads x head_dim, hidden], and the
            order of their rows; together they hold each part once.
        has_qkv_bias: whether each of them has a `.bias`, [heads x head_dim].
        head_norms: the RMS norms, [head_dim], over each query head and each key head before they
            are rotated; empty, or one of both.
        attention_output: [hidden, heads x head_dim].
        feed_forward_norm: [hidden], before the feed-forward.
        gate: [intermediate, hidden], the branch with the SiLU.
        up: [intermediate, hidden], the linear branch.
        down: [hidden, intermediate].
        tensorrt_llm: what the config.json of a TensorRT-LLM checkpoint has for this family alone:
            its `architecture`, and options of that.
    """

    architecture: str
    options: Mapping[str, Any]
    defaults: Mapping[str, Any]
    embedding: str
    layers: str
    norm: str
    head: str
    attention_norm: str
    qkv: Mapping[str, HeadOrder]
    has_qkv_bias: bool
    head_norms: Mapping[Part, str]
    attention_output: str
    feed_forward_norm: str
    gate: str
    up: str
    down: str
    tensorrt_llm: Mapping[str, Any]
