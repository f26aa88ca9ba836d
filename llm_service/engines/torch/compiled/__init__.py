"""Decode steps on a CPU, compiled by numba on the machine that they run on; no compiler needed."""
