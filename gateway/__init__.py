"""OpenAI HTTP in front of the vision service and the LLM service; no model, no tensor library."""
