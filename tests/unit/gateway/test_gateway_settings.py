"""The gateway's options, and what importing it costs."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from gateway.access.new_keys import entry_of, new_key
from gateway.local import settings as local
from gateway.settings import OUTER_LIMITS, Settings
from protos.process.settings import MIB, read_settings


def test_environment_variables_are_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTERNVL_GATEWAY_ALLOWED_PRIVATE_HOSTS", '["10.0.0.0/8", "pictures"]')
    monkeypatch.setenv("INTERNVL_GATEWAY_MAX_IMAGE_COUNT", "3")
    settings = Settings()
    assert settings.allowed_private_hosts == ("10.0.0.0/8", "pictures")
    assert settings.max_image_count == 3


def test_a_request_may_wait_for_as_long_as_it_may_last() -> None:
    assert Settings().max_queue_seconds == Settings().request_seconds
    assert Settings(request_seconds=20).max_queue_seconds == 20
    assert Settings(request_seconds=20, max_queue_seconds=0).max_queue_seconds == 0
    with pytest.raises(ValidationError, match="max_queue_seconds"):
        Settings(max_queue_seconds=-1)


@pytest.mark.parametrize(("name", "outer"), OUTER_LIMITS)
def test_a_limit_that_is_never_reached_is_refused(name: str, outer: str) -> None:
    first = getattr(Settings(), outer)
    assert getattr(Settings.model_validate({name: first}), name) == first
    with pytest.raises(ValidationError, match=f"{name}, {outer}: .* never reached"):
        Settings.model_validate({name: first + 1})
    assert getattr(Settings.model_validate({outer: 1}), outer) == 1  # all others are defaults


def test_a_malformed_network_is_refused_at_the_start() -> None:
    with pytest.raises(ValidationError, match="allowed_private_hosts"):
        Settings(allowed_private_hosts=("10.0.0.1/8",))


def test_what_is_no_origin_is_refused_at_the_start() -> None:
    with pytest.raises(ValidationError, match="allowed_origins"):
        Settings(allowed_origins=("chat.example.com",))


def test_a_root_that_is_no_folder_is_refused_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for root in (tmp_path / "nowhere", tmp_path / "file"):
        with pytest.raises(ValidationError, match=f"{root} is not a folder"):
            Settings(file_root=(tmp_path, root))
    assert Settings(file_root=(tmp_path,)).file_root == (tmp_path,)


def test_roots_come_as_a_path_a_list_or_several_flags(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (one := tmp_path / "one").mkdir()
    (two := tmp_path / "two, with a comma").mkdir()
    both = json.dumps([str(one), str(two)])
    monkeypatch.setenv("INTERNVL_GATEWAY_FILE_ROOT", str(one))
    assert Settings().file_root == (one,)
    monkeypatch.setenv("INTERNVL_GATEWAY_FILE_ROOT", both)
    assert Settings().file_root == (one, two)
    flags = ["--file-root", str(one), "--file-root", str(tmp_path)]
    assert Settings(_cli_parse_args=flags).file_root == (one, tmp_path)
    assert Settings(_cli_parse_args=["--file-root", both]).file_root == (one, two)
    (file := tmp_path / "options.toml").write_text(f"[gateway]\nfile_root = {both}\n")
    monkeypatch.delenv("INTERNVL_GATEWAY_FILE_ROOT")
    monkeypatch.setattr("sys.argv", ["internvl-gateway", "--config", str(file)])
    assert read_settings(Settings).file_root == (one, two)


def test_an_empty_root_does_not_open_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INTERNVL_GATEWAY_FILE_ROOT", "")
    assert Settings().file_root == ()
    monkeypatch.setenv("INTERNVL_SERVE_FILE_ROOT", "")
    assert local.Settings(checkpoint=tmp_path).file_root == ()
    for roots in ("docs,", '["docs", ""]'):
        monkeypatch.setenv("INTERNVL_GATEWAY_FILE_ROOT", roots)
        with pytest.raises(ValidationError, match="the name of a folder is empty"):
            Settings()


@pytest.mark.parametrize(
    "proxy",
    [
        "proxy.example:8080",
        "https://proxy.example",
        "socks5://secret:word@proxy.example",
        "http://",
        "http://secret:word@proxy.example:port",
        "http://secret:word@proxy.example/path",
    ],
)
def test_a_proxy_of_another_form_is_refused_and_not_shown(
    proxy: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("INTERNVL_GATEWAY_IMAGE_PROXY", proxy)
    monkeypatch.setattr(sys, "argv", ["internvl-gateway"])
    with pytest.raises(SystemExit):
        read_settings(Settings)
    told = capsys.readouterr().err
    assert "a proxy must have the form http://[USER:PASSWORD@]HOST:PORT" in told
    assert "word" not in told


def test_a_proxys_password_is_not_shown() -> None:
    settings = Settings(image_proxy=SecretStr("http://user:word@proxy.example:3128"))
    assert "word" not in repr(settings)
    proxy = settings.download_options.proxy
    assert proxy is not None
    assert str(proxy) == "http://user:word@proxy.example:3128"


@pytest.mark.parametrize("name", ["", " ", "a\r\nX: y", "caf\u00e9", "a "])
def test_a_user_agent_that_is_no_header_is_refused(name: str) -> None:
    with pytest.raises(ValidationError, match="image_user_agent"):
        Settings(image_user_agent=name)


def test_connections_leave_room_for_other_files(monkeypatch: pytest.MonkeyPatch) -> None:
    def limit_of(count: int) -> None:
        monkeypatch.setattr(resource, "getrlimit", lambda _: (count, count))

    limit_of(1024)
    assert Settings().max_connection_count == 1024 - 256 - 32
    with pytest.raises(ValidationError, match="737 connections; .* has room for 736"):
        Settings(max_connection_count=737)
    limit_of(100)
    assert Settings().max_connection_count == 4
    limit_of(resource.RLIM_INFINITY)
    assert Settings().max_connection_count == 4096


@pytest.mark.parametrize("name", ["vision_address", "llm_address"])
def test_an_empty_address_is_refused_at_the_start(name: str) -> None:
    with pytest.raises(ValidationError, match=name):
        Settings.model_validate({name: ""})


def test_help_explains_every_option() -> None:
    command = [sys.executable, "-m", "gateway", "--help"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for name, field in Settings.model_fields.items():
        assert f"--{name.replace('_', '-')}" in text
        assert field.description, name


def test_the_gateway_needs_no_tensor_library() -> None:
    heavy = {"torch", "numpy", "PIL", "transformers", "tokenizers", "safetensors"}
    code = f"import sys, gateway.app; print(sorted({heavy!r} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_largest_image_fits_into_what_carries_it() -> None:
    """A body that holds it as base64."""
    image_byte_count = Settings().max_image_byte_count
    assert 4 * -(-image_byte_count // 3) + MIB < Settings().max_body_byte_count


@pytest.mark.parametrize(
    "key",
    [
        "",
        "SECRET-SECRET",
        "SECRET SECRET SECRET",
        "SECRET" * 100,
        "S\u00c9CRET-SECRET-SECRET",
        "SECRET" * 3 + "\n",
    ],
)
def test_an_api_key_that_can_be_guessed_or_not_be_sent_is_refused(
    key: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("INTERNVL_GATEWAY_API_KEY", key)
    monkeypatch.setattr(sys, "argv", ["internvl-gateway"])
    with pytest.raises(SystemExit):
        read_settings(Settings)
    told = capsys.readouterr().err
    assert told.startswith("INTERNVL_GATEWAY_API_KEY: a key has 16 to 512 characters")
    assert "SECRET" not in told


def test_an_api_key_is_shown_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTERNVL_GATEWAY_API_KEY", "SECRET" * 3)
    settings = Settings()
    assert settings.key_source is not None
    assert "SECRET" not in f"{settings!r} {settings.key_source!r} {settings.model_dump_json()}"


def test_no_keys_are_asked_for_without_an_option() -> None:
    assert Settings().key_source is None


def test_a_file_without_keys_shuts_everybody_out(tmp_path: Path) -> None:
    (path := tmp_path / "keys.yaml").write_text("keys: []")
    source = Settings(api_keys_file=path).key_source
    assert source is not None
    assert list(source.read()) == []


@pytest.mark.parametrize("name", ["alice", "default"])
def test_the_api_key_is_none_of_the_files(tmp_path: Path, name: str) -> None:
    (path := tmp_path / "keys.yaml").touch()
    key = SecretStr(new_key())
    same = key.get_secret_value() if name == "alice" else new_key()
    path.write_text("keys:\n" + entry_of(name, same))
    with pytest.raises(ValidationError, match=f"{path}: {name} is that of --api-key, too"):
        Settings(api_keys_file=path, api_key=key)


def test_a_file_of_keys_with_faults_is_told_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (path := tmp_path / "keys.yaml").write_text("keys:\n- name: a\n- sha256: x\n")
    for file, sentences in (
        (
            path,
            f"{path}:2: keys[0].sha256: this field is missing\n"
            f"{path}:3: keys[1].name: this field is missing\n"
            f"{path}:3: keys[1].sha256[0]: a key's sha256 has 64 hexadecimal digits\n",
        ),
        (tmp_path / "nowhere", f"there is no file {tmp_path / 'nowhere'}\n"),
    ):
        monkeypatch.setattr(sys, "argv", ["internvl-gateway", "--api-keys-file", str(file)])
        with pytest.raises(SystemExit) as ended:
            read_settings(Settings)
        assert ended.value.code == 2
        assert capsys.readouterr().err == f"--api-keys-file: {sentences}"
