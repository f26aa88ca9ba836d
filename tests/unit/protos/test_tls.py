"""The files of TLS, and what is said of those that will not do."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from structlog.testing import capture_logs

from protos.process.settings import GrpcSettings, read_settings
from protos.process.tls import TLSFileError, TLSFiles
from tests.certificates import Authority, write_files

AUTHORITY = Authority()


class Settings(GrpcSettings):
    """A service without an engine."""


@pytest.fixture
def files(tmp_path: Path) -> TLSFiles:
    return write_files(tmp_path, AUTHORITY.issue("a.internal"), AUTHORITY.pem)


def with_passphrase(key: bytes) -> bytes:
    return serialization.load_pem_private_key(key, None).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    )


def test_what_is_read_is_what_the_files_hold(files: TLSFiles) -> None:
    with capture_logs() as logs:
        contents = files.read()
    held = tuple(path.read_bytes() for path in files.paths)
    assert (contents.certificate, contents.key, contents.authorities) == held
    assert not logs


def test_a_client_may_have_authorities_alone(files: TLSFiles) -> None:
    contents = TLSFiles(None, None, files.authorities).read()
    assert (contents.certificate, contents.key, contents.authorities) == (None, None, AUTHORITY.pem)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("certificate", None, "{certificate} cannot be read: No such file or directory"),
        ("certificate", b"nonsense", "{certificate} holds no certificates in PEM form"),
        ("certificate", "ü".encode(), "{certificate} holds no certificates in PEM form"),
        (
            "certificate",
            AUTHORITY.issue("a.internal")[0],
            "the key {key} does not fit the certificate {certificate}",
        ),
        ("key", b"", "{key} holds no private key in PEM form"),
        (
            "key",
            with_passphrase(AUTHORITY.issue("a.internal")[1]),
            "the key {key} has a passphrase, and nobody is there to type it",
        ),
        (
            "key",
            AUTHORITY.issue("b")[1],
            "the key {key} does not fit the certificate {certificate}",
        ),
        ("authorities", AUTHORITY.pem[:99], "{authorities} holds no certificates in PEM form"),
    ],
    ids=[
        "missing",
        "nonsense",
        "no ASCII",
        "certificate of another key",
        "empty",
        "passphrase",
        "key of another certificate",
        "half an authority",
    ],
)
def test_a_file_that_cannot_be_used_is_named(
    files: TLSFiles, name: str, content: bytes | None, sentence: str
) -> None:
    path: Path = getattr(files, name)
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    with pytest.raises(TLSFileError) as raised:
        files.read()
    assert str(raised.value) == sentence.format(**vars(files))


def test_a_file_that_changes_while_it_is_read_is_not_taken(
    files: TLSFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = iter([((1, 1, 1),), ((2, 1, 1),)])
    monkeypatch.setattr("protos.process.tls.state_of", lambda paths: next(states))
    with pytest.raises(TLSFileError, match="are being written"):
        files.read()


def test_an_expired_certificate_is_an_error_and_a_near_end_a_warning(tmp_path: Path) -> None:
    expired = write_files(tmp_path / "expired", AUTHORITY.issue("a", days=-2))
    with pytest.raises(TLSFileError, match="expired 2.0 days ago"):
        expired.check()
    for days, is_warned in ((13.0, True), (15.0, False)):
        with capture_logs() as logs:
            write_files(tmp_path, AUTHORITY.issue("a", days=days)).read()
        assert [log["days_left"] for log in logs] == [days] * is_warned


def test_a_key_that_all_users_can_read_is_warned_of(files: TLSFiles) -> None:
    assert files.key
    files.key.chmod(0o644)
    with capture_logs() as logs:
        files.read()
    assert [(log["event"], log["path"]) for log in logs] == [("tls_key_exposed", str(files.key))]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["certificate"], "--tls-certificate-file, --tls-key-file: they go together"),
        (["key"], "--tls-certificate-file, --tls-key-file: they go together"),
        (["client-ca", "names"], "--tls-client-ca-file: it needs --tls-certificate-file"),
        (
            ["certificate", "key", "client-ca"],
            "--tls-client-ca-file, --tls-client-names: they go together",
        ),
        (
            ["certificate", "key", "names"],
            "--tls-client-ca-file, --tls-client-names: they go together",
        ),
        (["certificate", "other key"], "--tls-certificate-file, --tls-key-file: the key"),
    ],
)
def test_options_that_need_each_other_say_so(
    files: TLSFiles,
    options: list[str],
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = write_files(files.paths[0].parent / "other", AUTHORITY.issue("a.internal"))
    arguments = {
        "certificate": ["--tls-certificate-file", str(files.certificate)],
        "key": ["--tls-key-file", str(files.key)],
        "client-ca": ["--tls-client-ca-file", str(files.authorities)],
        "other key": ["--tls-key-file", str(other.key)],
        "names": ["--tls-client-names", "gateway.internal"],
    }
    monkeypatch.setattr("sys.argv", ["service", *sum((arguments[one] for one in options), [])])
    with pytest.raises(SystemExit):
        read_settings(Settings)
    (line,) = capsys.readouterr().err.splitlines()
    assert sentence in line


def test_names_of_clients_are_taken_one_by_one_or_as_a_list(
    files: TLSFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("CERTIFICATE", "KEY", "CLIENT_CA")
    given = {f"TLS_{name}_FILE": path for name, path in zip(names, files.paths, strict=True)}
    for name, path in given.items():
        monkeypatch.setenv(name, str(path))
    for arguments in (
        ["--tls-client-names", "a", "--tls-client-names", "spiffe://b/c"],
        ["--tls-client-names", '["a", "spiffe://b/c"]'],
    ):
        monkeypatch.setattr("sys.argv", ["service", *arguments])
        settings = read_settings(Settings)
        assert settings.client_names == frozenset({"a", "spiffe://b/c"})
        assert settings.tls == files
