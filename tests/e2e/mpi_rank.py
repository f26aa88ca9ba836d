"""One rank of the LLM service under mpirun, over TensorRT-LLM's double: FIFO, then its options.

The double knows nothing of MPI. Here mpirun's variables tell it the rank, and a FIFO joins the
ranks: rank 0 holds its end for as long as it lives.
"""

from __future__ import annotations

import importlib
import os
import sys
import threading
from pathlib import Path
from typing import Any

from llm_service.__main__ import main


def follow(fifo: Path, world: Any) -> None:
    """Waits for rank 0, and until it has gone."""
    fifo.read_text()
    world.leader_is_gone.set()


def run() -> None:
    """Serves as rank 0, or works for it."""
    fifo = Path(sys.argv.pop(1))
    world = importlib.import_module("tensorrt_llm.bindings.executor").mpi
    world.rank = int(os.environ["OMPI_COMM_WORLD_RANK"])
    world.size = int(os.environ["OMPI_COMM_WORLD_SIZE"])
    if world.rank == 0:
        with fifo.open("w"):
            main()
    else:
        threading.Thread(target=follow, args=(fifo, world), daemon=True).start()
        main()


if __name__ == "__main__":
    run()
