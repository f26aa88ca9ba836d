"""TLS over a wire that a test plays: clients that Python's own ssl module cannot be."""

from __future__ import annotations

import _ssl
import asyncio
import ctypes
import socket
from pathlib import Path
from threading import Thread
from typing import Any, cast

import pytest
import trustme

from gateway.listening import RareEvent
from gateway.tls import MAX_UNHEARD_BYTE_COUNT, TLSTransport, make_context
from protos.process.tls import TLSFileError, TLSFiles
from tests.https import issue

REQUESTED = 1  # of the other end, too, new keys are asked for
UPDATE_COUNT = 4 * MAX_UNHEARD_BYTE_COUNT // 22  # an answer has at least so many bytes


class JammedWire:
    """Hands on what is written until it is jammed; then keeps it, as for who reads no more."""

    def __init__(self, connection: socket.socket) -> None:
        self.is_jammed = False
        self.is_ended = False
        self.unsent_byte_count = 0
        self.most_unsent_byte_count = 0
        self._connection = connection

    def write(self, data: bytes) -> None:
        if self.is_jammed:
            self.unsent_byte_count += len(data)
            self.most_unsent_byte_count = max(self.most_unsent_byte_count, self.unsent_byte_count)
        else:
            self._connection.sendall(data)

    def get_write_buffer_size(self) -> int:
        return self.unsent_byte_count

    def is_closing(self) -> bool:
        return self.is_ended

    def abort(self) -> None:
        self.is_ended = True


class Jamming(asyncio.Protocol):
    """Jams the wire with the first bytes, which come after the handshake."""

    def __init__(self, wire: JammedWire) -> None:
        self._wire = wire

    def data_received(self, data: bytes) -> None:
        assert data == b"begin"
        self._wire.is_jammed = True


def ask_for_keys(connection: socket.socket, openssl: Any) -> None:
    """Makes a connection, and asks for new keys again and again; it takes none of the answers."""
    openssl.SSL_set_fd(tls := _new(openssl), connection.fileno())
    assert openssl.SSL_connect(tls) == 1
    assert openssl.SSL_write(tls, b"begin", 5) == 5
    for _ in range(UPDATE_COUNT):
        openssl.SSL_key_update(tls, REQUESTED)
        if openssl.SSL_do_handshake(tls) != 1:
            return


def _new(openssl: Any) -> ctypes.c_void_p:
    for name in ("TLS_client_method", "SSL_CTX_new", "SSL_new"):
        getattr(openssl, name).restype = ctypes.c_void_p
    context = ctypes.c_void_p(openssl.SSL_CTX_new(ctypes.c_void_p(openssl.TLS_client_method())))
    return ctypes.c_void_p(openssl.SSL_new(context))


def test_who_makes_tls_talk_and_does_not_listen_is_cut_off(tmp_path: Path) -> None:
    openssl = ctypes.CDLL(_ssl.__file__)
    if not hasattr(openssl, "SSL_key_update"):
        pytest.skip("Python's ssl module does not lend its OpenSSL")
    files = issue(trustme.CA(), tmp_path / "server", "localhost")
    context = make_context(TLSFiles(files.certificate, files.key))
    ours, theirs = socket.socketpair()
    wire = JammedWire(ours)
    transport = TLSTransport(context, Jamming(wire), RareEvent("tls_handshake_failed"))
    transport.connection_made(cast(asyncio.Transport, wire))
    client = Thread(target=ask_for_keys, args=(theirs, openssl))
    with ours, theirs:
        ours.settimeout(30)
        client.start()
        while not wire.is_ended:
            transport.data_received(ours.recv(4096))
        ours.shutdown(socket.SHUT_RDWR)
        client.join()
    assert 0 < wire.most_unsent_byte_count < 2 * MAX_UNHEARD_BYTE_COUNT


@pytest.mark.parametrize("name", ["certificate", "key", "authorities"])
def test_a_file_that_changes_while_it_is_read_is_a_fault_of_files(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = issue(trustme.CA(), tmp_path / "server", "localhost")
    path: Path = getattr(files, name)
    monkeypatch.setattr(TLSFiles, "read", lambda _: path.write_text("half of it"))
    with pytest.raises(TLSFileError, match="being written"):
        make_context(TLSFiles(*files))
