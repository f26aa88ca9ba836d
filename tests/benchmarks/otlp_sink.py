"""`python -m tests.benchmarks.otlp_sink`: a collector that drops what it is sent.

It writes its port to standard output, and ends when its standard input does.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc


class _Drop(grpc.GenericRpcHandler):
    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """Answers any call by an empty message."""
        return grpc.unary_unary_rpc_method_handler(lambda request, context: b"")


@contextmanager
def running_sink() -> Iterator[str]:
    """Runs one as a process, and yields its endpoint."""
    command = [sys.executable, "-m", "tests.benchmarks.otlp_sink"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin
        assert process.stdout
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
        process.stdin.close()


def main() -> None:
    """Serves until standard input ends."""
    server = grpc.server(ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers((_Drop(),))
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    server.start()
    sys.stdin.read()
    server.stop(None).wait()


if __name__ == "__main__":
    main()
