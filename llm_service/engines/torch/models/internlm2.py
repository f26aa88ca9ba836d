"""InternLM2 (2B, 8B, 26B): no biases, and one tensor for query, key and value."""

from __future__ import annotations

from llm_service.engines.torch.models.decoder import Decoder, Destination, Layer, whole


class InternLM2(Decoder):
    """The decoder with InternLM2's tensor names."""

    qkv_bias = False
    embedding_name = "language_model.model.tok_embeddings.weight"
    head_name = "language_model.output.weight"

    @staticmethod
    def layer_destinations(layer: Layer) -> dict[str, Destination]:
        """See Decoder."""
        gate, up = layer.feed_forward.gate_up.weight.chunk(2)
        return {
            "attention_norm.weight": whole(layer.attention_norm.weight),
            # Its rows are ordered by key/value head, as those of our own parameter.
            "attention.wqkv.weight": whole(layer.attention.qkv.weight),
            "attention.wo.weight": whole(layer.attention.output.weight),
            "ffn_norm.weight": whole(layer.feed_forward_norm.weight),
            "feed_forward.w1.weight": whole(gate),
            "feed_forward.w3.weight": whole(up),
            "feed_forward.w2.weight": whole(layer.feed_forward.down.weight),
        }
