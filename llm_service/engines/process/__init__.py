"""An LLM engine in another process: what the service asks, what the host answers, and both ends."""
