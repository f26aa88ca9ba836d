"""Anthropic's Messages: requests, answers and errors, and nothing of gRPC."""
