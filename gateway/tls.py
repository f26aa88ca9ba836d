"""TLS of a client's connection, between the socket's transport and HTTP.

asyncio's own keeps 256 KiB for each connection, and does not tell how many bytes a client has still
to take. Here too all of TLS is done by OpenSSL; this only carries bytes to and fro.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager, closing, suppress
from functools import partial
from typing import Any, cast

import structlog

from gateway.listening import RareEvent
from gateway.pools import Pool
from protos.process.reload import on_reload
from protos.process.tls import TLSFileError, TLSFiles
from protos.process.watched_files import watching

logger = structlog.get_logger()

# A record holds at most this.
RECORD_BYTE_COUNT = 16 * 1024
# What goes through OpenSSL at a time: each connection keeps the room for as much, both ways.
PIECE_BYTE_COUNT = 64 * 1024
# What TLS itself may have to say to a client that takes nothing; to new keys it is 30 bytes each.
MAX_UNHEARD_BYTE_COUNT = 16 * 1024
# How OpenSSL calls first bytes that are not TLS at all.
NOT_TLS = frozenset({"HTTP_REQUEST", "WRONG_VERSION_NUMBER"})
PLAIN_TEXT = b"this port speaks TLS: ask for https://\n"
PLAIN_ANSWER = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\n"
    b"Content-Length: %d\r\nConnection: close\r\n\r\n%s" % (len(PLAIN_TEXT), PLAIN_TEXT)
)


class Certificates:
    """What HTTP's clients are shown, and asked for, as the files have it now."""

    def __init__(self, files: TLSFiles, pool: Pool) -> None:
        """Reads nothing yet; `pool` is where it will."""
        self._files = files
        self._context: ssl.SSLContext  # for connections that begin
        self._failures = RareEvent("tls_handshake_failed")
        self._pool = pool

    async def read(self) -> None:
        """Reads the files for the first time.

        Raises:
            TLSFileError: one cannot be used.
        """
        self._context = await self._pool.run(make_context, self._files)

    def reread(self) -> None:
        """Reads the files anew, in a thread; what cannot be used leaves what was there before."""
        self._rereading = asyncio.create_task(self._pool.run(self._reread))

    def _reread(self) -> None:
        try:
            self._context = make_context(self._files)
        except TLSFileError as error:
            logger.error("certificate_kept", error=str(error))
        else:
            logger.info("certificate_renewed", path=str(self._files.certificate))

    def connect(self, serve: Callable[[], asyncio.Protocol]) -> TLSTransport:
        """Returns the protocol of a new connection; `serve` returns that of what is served."""
        return TLSTransport(self._context, serve(), self._failures)


def make_context(files: TLSFiles) -> ssl.SSLContext:
    """Returns how TLS is spoken with clients, by what the files hold now.

    Raises:
        TLSFileError: one cannot be used.
    """
    assert files.certificate
    files.read()
    try:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=files.authorities)
        context.load_cert_chain(files.certificate, files.key)
    except OSError as error:  # since they were checked they have been changed
        raise TLSFileError(f"{' and '.join(map(str, files.paths))} are being written") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    if files.authorities:
        context.verify_mode = ssl.CERT_REQUIRED
    return context


@asynccontextmanager
async def encrypting(
    files: TLSFiles | None, serve: Callable[[], asyncio.Protocol]
) -> AsyncIterator[Callable[[], asyncio.Protocol]]:
    """Yields what makes connections: `serve` itself, or over TLS by files that may change.

    Raises:
        TLSFileError: a file cannot be used.
    """
    if files is None:
        yield serve
        return
    with closing(Pool("certificates", 1)) as pool, ExitStack() as exits:
        certificates = Certificates(files, pool)
        exits.enter_context(on_reload(certificates.reread))
        async with watching(files.paths, certificates.reread):
            await certificates.read()
            yield partial(certificates.connect, serve)


class TLSTransport(asyncio.Transport, asyncio.Protocol):
    """The transport of an HTTP connection, and the protocol of the socket's own transport.

    The HTTP connection is made before the handshake. So a handshake that does not end takes a place
    among the connections, and goes as one without a request.
    """

    def __init__(
        self, context: ssl.SSLContext, protocol: asyncio.Protocol, failures: RareEvent
    ) -> None:
        """Takes what is served over TLS, and whom to tell of handshakes that fail."""
        super().__init__()
        self._context = context
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._protocol = protocol
        self._failures = failures
        self._is_agreed = False
        self._unheard_byte_count = 0
        self._wire: asyncio.Transport

    # What the socket's transport calls:

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Lets HTTP begin to wait for a request."""
        self._wire = cast(asyncio.Transport, transport)
        self._protocol.connection_made(self)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._protocol.connection_lost(cast(Exception | None, exc))

    def pause_writing(self) -> None:
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        self._protocol.resume_writing()

    def data_received(self, data: bytes) -> None:
        """Goes on with the handshake, or hands on what the bytes mean."""
        rest = memoryview(data)
        while rest and not self._wire.is_closing():
            self._take(rest[:PIECE_BYTE_COUNT])
            rest = rest[PIECE_BYTE_COUNT:]

    def _take(self, data: memoryview) -> None:
        self._incoming.write(data)
        try:
            self._agree()
            received, is_end = self._decrypted()
        except ssl.SSLWantReadError:
            self._reply()
        except ssl.SSLError as error:
            self._fail(error)
        else:
            self._reply()
            if received:
                self._protocol.data_received(received)
            if is_end:
                self.close()

    def _agree(self) -> None:
        if not self._is_agreed:
            self._tls.do_handshake()
            self._is_agreed = True

    def _decrypted(self) -> tuple[bytes, bool]:
        """Returns what has come in whole records, and whether the client has said its last."""
        records = []
        try:
            while record := self._tls.read(RECORD_BYTE_COUNT):
                records.append(record)
        except ssl.SSLWantReadError:
            return b"".join(records), False
        return b"".join(records), True

    def _reply(self) -> None:
        """Sends what TLS itself answers; ends a client that asks on and on, and takes nothing."""
        if self._wire.get_write_buffer_size():
            self._unheard_byte_count += self._outgoing.pending
        else:
            self._unheard_byte_count = 0
        if self._unheard_byte_count > MAX_UNHEARD_BYTE_COUNT:
            self._wire.abort()
        else:
            self._send()

    def _fail(self, error: ssl.SSLError) -> None:
        if not self._is_agreed:
            self._failures.note(reason=error.reason)
        if error.reason in NOT_TLS:
            self._wire.write(PLAIN_ANSWER)
        else:
            self._send()  # tells the client why
        self._wire.close()

    def _send(self) -> None:
        if self._outgoing.pending:
            self._wire.write(self._outgoing.read())

    # What HTTP calls:

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Sends bytes, as soon as the client takes them."""
        if self._wire.is_closing():
            return
        rest = memoryview(data).cast("B")
        while rest:
            rest = rest[self._tls.write(rest[:PIECE_BYTE_COUNT]) :]
            self._send()

    def can_write_eof(self) -> bool:
        """Says whether the client can be told of the end while it still sends."""
        return self._wire.can_write_eof()

    def write_eof(self) -> None:
        """Tells the client that nothing more comes."""
        if not self._wire.is_closing():
            self._say_goodbye()
            self._wire.write_eof()

    def close(self) -> None:
        """Ends the connection when all is sent, without waiting for the client's goodbye."""
        if not self._wire.is_closing():
            self._say_goodbye()
            self._wire.close()

    def _say_goodbye(self) -> None:
        with suppress(ssl.SSLError):  # it waits for the client's, or nothing was agreed on
            self._tls.unwrap()
        self._send()

    def abort(self) -> None:
        self._wire.abort()

    def is_closing(self) -> bool:
        return self._wire.is_closing()

    def pause_reading(self) -> None:
        self._wire.pause_reading()

    def resume_reading(self) -> None:
        self._wire.resume_reading()

    def is_reading(self) -> bool:
        return self._wire.is_reading()

    def get_write_buffer_size(self) -> int:
        """Returns how many bytes the client has still to take, encrypted."""
        return self._wire.get_write_buffer_size()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Returns what asyncio's transports tell; "sslcontext" is by what HTTP knows its scheme."""
        own = {"sslcontext": self._context, "ssl_object": self._tls}
        return own[name] if name in own else self._wire.get_extra_info(name, default)
