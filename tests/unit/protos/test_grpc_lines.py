"""gRPC writes of each handshake that fails: strangers could fill a disk with it."""

from __future__ import annotations

import os
import subprocess
import sys

SCRIPT = """
import {first}
import grpc, socket, trustme
from concurrent.futures import ThreadPoolExecutor

certificate = trustme.CA().issue_cert("localhost")
chain = b"".join(pem.bytes() for pem in certificate.cert_chain_pems)
credentials = grpc.ssl_server_credentials([(certificate.private_key_pem.bytes(), chain)])
server = grpc.server(ThreadPoolExecutor(1))
port = server.add_secure_port("127.0.0.1:0", credentials)
server.start()
with socket.create_connection(("127.0.0.1", port)) as client:
    client.sendall(b"GET / HTTP/1.1\\r\\n\\r\\n" * 20)
    while client.recv(4096):
        pass
server.stop(None).wait()
"""


def test_processes_keep_such_lines_out_of_their_logs() -> None:
    assert _standard_error("gateway.__main__") == ""
    assert "Handshake failed" in _standard_error("grpc"), "this version writes none: nothing shown"


def _standard_error(first: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(first=first)],
        env={name: value for name, value in os.environ.items() if name != "GRPC_VERBOSITY"},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return done.stderr
