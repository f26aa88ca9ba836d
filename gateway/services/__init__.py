"""The two services as the gateway calls them; nothing of HTTP."""
