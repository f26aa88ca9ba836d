"""Certificates for tests, signed by authorities that are thrown away."""

from __future__ import annotations

import os
import socket
import ssl
from datetime import datetime, timedelta, timezone
from pathlib import Path

import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from protos.process.tls import TLSFiles

DAY = timedelta(days=1)


class Authority:
    """Signs certificates.

    Attributes:
        pem: its own certificate.
    """

    def __init__(self) -> None:
        self._ca = trustme.CA()
        self.pem = self._ca.cert_pem.bytes()

    def issue(self, *names: str, days: float = 90) -> tuple[bytes, bytes]:
        """Returns a certificate for DNS names or addresses, and its key, both in PEM form."""
        leaf = self._ca.issue_cert(
            *names,
            not_before=datetime.now(timezone.utc) - 1000 * DAY,
            not_after=datetime.now(timezone.utc) + days * DAY,
        )
        return leaf.cert_chain_pems[0].bytes(), leaf.private_key_pem.bytes()

    def issue_uri(self, uri: str) -> tuple[bytes, bytes]:
        """Returns a certificate for a URI alone, and its key; trustme makes none."""
        signer = serialization.load_pem_private_key(self._ca.private_key_pem.bytes(), None)
        assert isinstance(signer, ec.EllipticCurvePrivateKey)
        key = ec.generate_private_key(ec.SECP256R1())
        names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)])
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(x509.load_pem_x509_certificate(self.pem).subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(datetime.now(timezone.utc) - DAY)
            .not_valid_after(datetime.now(timezone.utc) + 90 * DAY)
            .add_extension(names, critical=True)
            .sign(signer, hashes.SHA256())
        )
        return certificate.public_bytes(serialization.Encoding.PEM), key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )


def write_files(
    folder: Path, pair: tuple[bytes, bytes] | None, authorities: bytes | None = None
) -> TLSFiles:
    """Writes a certificate and its key, and certificates of authorities, each file at once."""
    certificate, key = pair or (None, None)
    return TLSFiles(
        replace_file(folder / "certificate.pem", certificate),
        replace_file(folder / "key.pem", key),
        replace_file(folder / "authorities.pem", authorities),
    )


def replace_file(path: Path, content: bytes | None) -> Path | None:
    """Puts a file in the place of another, as who renews certificates does; None: puts none."""
    if content is None:
        return None
    path.parent.mkdir(exist_ok=True)
    (fresh := path.with_suffix(".new")).write_bytes(content)
    fresh.chmod(0o600)
    os.replace(fresh, path)
    return path


def serial_of(pem: bytes) -> int:
    """Returns a certificate's serial number."""
    return x509.load_pem_x509_certificate(pem).serial_number


def served_serial(port: int, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> int:
    """Returns the serial number of the certificate that a server on this machine shows.

    Raises:
        OSError: it does not take a connection of this version.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_ciphers("ALL:@SECLEVEL=0")  # or OpenSSL itself would refuse old versions
    context.minimum_version = context.maximum_version = version
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection(("127.0.0.1", port), timeout=5) as plain,
        context.wrap_socket(plain) as connection,
    ):
        certificate = connection.getpeercert(binary_form=True)
    assert certificate
    return x509.load_der_x509_certificate(certificate).serial_number
