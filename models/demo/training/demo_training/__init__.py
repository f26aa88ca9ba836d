"""Training of the demo model: pictures and questions from a seed, the network, its export."""
