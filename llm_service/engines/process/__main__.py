"""The process that a service starts for its own engine: `--fd NUMBER`, see the engine host."""

from __future__ import annotations

import sys

from protos.process.engine_host import main

if __name__ == "__main__":
    main([*sys.argv[1:], "llm_service.engines.process.host"])
