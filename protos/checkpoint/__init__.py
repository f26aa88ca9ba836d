"""A checkpoint folder as both services find and read it, without a tensor library."""
