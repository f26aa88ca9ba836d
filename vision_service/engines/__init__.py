"""The engines: uint8 tiles in, image embeddings out; a package each, complete."""
