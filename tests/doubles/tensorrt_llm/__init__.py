"""A double of TensorRT-LLM 1.2.1: the part of its executor bindings that the engine uses.

Strict where the bindings are: an unknown keyword, a value of another type, a tensor of another
dtype or shape, a list of another length is an error, here at once. It generates with the torch
engine. Tests put the folder above this package on sys.path.
"""

from .bindings import executor

__version__ = "1.2.1"


def mpi_rank() -> int:
    return executor.mpi.rank
