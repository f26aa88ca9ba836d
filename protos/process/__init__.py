"""What runs alike in all three processes: options, logs, server, doctor."""
