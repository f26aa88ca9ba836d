"""The LLM engine in plain PyTorch: paged KV cache, continuous batching, chunked prefill."""
