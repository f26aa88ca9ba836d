"""langchain-openai by the standard tests of langchain-tests, without tools."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import httpx
import pytest
from langchain_core.language_models import BaseChatModel
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests

SCENE = Path(os.environ["INTERNVL_PICTURES"]) / "scene.png"


class TestInternVL(ChatModelIntegrationTests):
    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {
            "base_url": os.environ["INTERNVL_URL"],
            "api_key": "none",
            "model": os.environ["INTERNVL_MODEL"],
            "stream_usage": True,  # LangChain asks other servers than OpenAI's for no usage
        }

    @property
    def has_tool_calling(self) -> bool:
        return False

    @property
    def has_tool_choice(self) -> bool:
        return False

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def supports_image_inputs(self) -> bool:
        return True

    @property
    def supports_image_urls(self) -> bool:
        return False  # its picture is on the internet

    @property
    def supports_model_override(self) -> bool:
        return True

    @property
    def model_override_value(self) -> str:
        return os.environ["INTERNVL_ALIAS"]

    @pytest.fixture(autouse=True)
    def _picture_of_the_demo(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Stands in for the suite's own picture, which lies on the internet."""
        answer = httpx.Response(200, content=SCENE.read_bytes())
        monkeypatch.setattr(httpx, "get", lambda *_, **__: answer)
