"""langchain-openai by the standard tests of langchain-tests, tools included."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import httpx
import pytest
from langchain_core.language_models import BaseChatModel
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests

# It fills a free string with one phrase over and over, and the answer is cut.
WEAK_JSON = pytest.mark.xfail(reason="the toy model never ends a string of JSON")
WEAK_CALL = pytest.mark.xfail(reason="the toy model does not read what it is asked to call")
SCHEMAS = pytest.mark.parametrize("schema_type", ["pydantic", "typeddict", "json_schema"])
SCENE = Path(os.environ["INTERNVL_PICTURES"]) / "scene.png"


class Suite(ChatModelIntegrationTests):
    """The suite with all that is served; it has neither audio nor PDF."""

    url: str

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {
            "base_url": self.url,
            "api_key": "none",
            "model": os.environ["INTERNVL_MODEL"],
            "max_tokens": 100,
            "stream_usage": True,  # LangChain asks other servers than OpenAI's for no usage
        }

    @property
    def has_tool_calling(self) -> bool:
        return True

    @property
    def has_tool_choice(self) -> bool:
        return True

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
    def supports_image_tool_message(self) -> bool:
        return True

    @property
    def supports_anthropic_inputs(self) -> bool:
        return True

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


class TestPerfectModel(Suite):
    url = os.environ["INTERNVL_PERFECT_URL"]


class TestToyModel(Suite):
    url = os.environ["INTERNVL_URL"]

    @WEAK_JSON
    @SCHEMAS
    def test_structured_output(self, model: BaseChatModel, schema_type: Any) -> None:
        super().test_structured_output(model, schema_type)

    @WEAK_JSON
    @SCHEMAS
    async def test_structured_output_async(self, model: BaseChatModel, schema_type: Any) -> None:
        await super().test_structured_output_async(model, schema_type)

    @WEAK_JSON
    def test_structured_output_optional_param(self, model: BaseChatModel) -> None:
        super().test_structured_output_optional_param(model)

    @WEAK_JSON
    def test_structured_output_pydantic_2_v1(self, model: BaseChatModel) -> None:
        super().test_structured_output_pydantic_2_v1(model)

    @WEAK_JSON
    def test_json_mode(self, model: BaseChatModel) -> None:
        super().test_json_mode(model)
