"""OpenAI HTTP in front of the vision service and the LLM service; no model, no tensor library.

A request comes in by `handlers`, inside `middlewares`. `openai.requests` reads its body, `chat`
leads it through both services: `images` fetches its pictures, `fields` turns its options into the
contract's, `services` makes the calls. The `events` that come back become JSON in `openai.answers`;
an error goes the same way back and is written by `openai.errors`.
"""
