"""Both ends of HTTPS in tests: a server's files, and what its clients trust."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any, NamedTuple

import trustme


class CertificateFiles(NamedTuple):
    """A certificate, its key, and the certificate of the authority that has signed it."""

    certificate: Path
    key: Path
    authorities: Path


def issue(authority: trustme.CA, folder: Path, *names: str) -> CertificateFiles:
    """Writes a new certificate for names, its key and its authority's certificate to a folder."""
    folder.mkdir(exist_ok=True)
    certificate, key, authorities = (folder / name for name in ("tls.crt", "tls.key", "ca.crt"))
    leaf = authority.issue_cert(*names)
    certificate.write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
    leaf.private_key_pem.write_to_path(str(key))
    key.chmod(0o600)
    authority.cert_pem.write_to_path(str(authorities))
    return CertificateFiles(certificate, key, authorities)


def https_options(files: CertificateFiles, *, is_mutual: bool = False) -> dict[str, Any]:
    """Returns the options of a server with these files; mutual: its clients need certificates."""
    options = {"tls_certificate_file": files.certificate, "tls_key_file": files.key}
    return {**options, "tls_client_ca_file": files.authorities} if is_mutual else options


def client_context(certificate: Path, own: CertificateFiles | None = None) -> ssl.SSLContext:
    """Returns what trusts a server of this very certificate, and shows its own if it has one."""
    context = ssl.create_default_context(cafile=certificate)
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    if own:
        context.load_cert_chain(own.certificate, own.key)
    return context
