"""The engines: token ids and a prompt table in, a stream of token ids out; a package each."""
