"""The gateway's options, and what importing it costs."""

from __future__ import annotations

import subprocess
import sys

import pytest
from pydantic import ValidationError

from gateway.settings import Settings


def test_environment_variables_are_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTERNVL_GATEWAY_ALLOWED_PRIVATE_HOSTS", '["10.0.0.0/8", "pictures"]')
    monkeypatch.setenv("INTERNVL_GATEWAY_MAX_IMAGE_COUNT", "3")
    settings = Settings()
    assert settings.allowed_private_hosts == ("10.0.0.0/8", "pictures")
    assert settings.max_image_count == 3


def test_a_malformed_network_is_refused_at_the_start() -> None:
    with pytest.raises(ValidationError, match="allowed_private_hosts"):
        Settings(allowed_private_hosts=("10.0.0.1/8",))


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
