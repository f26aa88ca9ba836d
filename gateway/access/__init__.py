"""Who calls the gateway, and how much of it each caller may use."""
