"""The decoder's operations: what they are, and who computes them."""
