"""Tools that the assistant may call: their formats in conversations and answers."""
