"""`internvl-serve`: vision service, LLM service and gateway as processes of this machine."""
