"""The clients: what each one is, its pinned packages, and the program that drives it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

PROGRAMS = Path(__file__).parent / "programs"
PYTEST = ("pytest==9.2.0", "pytest-asyncio==1.5.0")


@dataclass(frozen=True)
class Client:
    """Somebody's client of OpenAI's or Anthropic's API.

    Attributes:
        name: names it, and the folder of its environment.
        program: what drives it, a file of PROGRAMS.
        packages: of PyPI, or of npm where the program is JavaScript; the first is the client.
        is_opt_in: whether it runs only when it is named, for its size.
    """

    name: str
    program: str
    packages: tuple[str, ...]
    is_opt_in: bool = False

    @property
    def version(self) -> str:
        """The client's version."""
        return self.packages[0].rpartition("@" if self.is_node else "==")[2]

    @property
    def is_node(self) -> bool:
        """Whether it runs in Node.js, not in Python."""
        return self.program.endswith(".mjs")


CLIENTS = (
    Client("openai-python", "openai_python.py", ("openai==3.57.0",)),
    Client("openai-node", "openai_node.test.mjs", ("openai@6.49.0", "zod@4.6.7")),
    Client("anthropic-python", "anthropic_python.py", ("anthropic==2.14.0",)),
    Client("anthropic-node", "anthropic_node.test.mjs", ("@anthropic-ai/sdk@1.14.0", "zod@4.6.7")),
    Client(
        "ai-sdk",
        "ai_sdk.test.mjs",
        (
            "ai@7.0.173",
            "@ai-sdk/openai@4.0.118",
            "@ai-sdk/openai-compatible@3.0.92",
            "@ai-sdk/anthropic@4.0.105",
            "zod@4.6.7",
        ),
    ),
    Client(
        "langchain", "langchain_suite.py", ("langchain-openai==1.7.4", "langchain-tests==1.1.9")
    ),
    Client("openai-agents", "openai_agents.py", ("openai-agents==0.24.0",)),
    Client("smolagents", "smolagents_agents.py", ("smolagents[openai]==1.26.0",)),
    Client(
        "autogen",
        "autogen_agent.py",
        ("autogen-agentchat==0.7.5", "autogen-ext[openai]==0.7.5"),
    ),
    Client("pydantic-ai", "pydantic_ai_agent.py", ("pydantic-ai-slim[openai]==2.68.0",)),
    Client("haystack", "haystack_generator.py", ("haystack-ai==3.4.1",)),
    Client("litellm", "litellm_sdk.py", ("litellm==1.110.2",)),
    Client("llama-index", "llama_index_chat.py", ("llama-index-llms-openai-like==0.8.1",)),
    Client("instructor", "instructor_forms.py", ("instructor==1.17.0",)),
    Client("guidellm", "guidellm_benchmark.py", ("guidellm==0.8.1",)),
    Client("aiperf", "aiperf_benchmark.py", ("aiperf==0.13.0",)),
    Client("lm-eval", "lm_eval_tasks.py", ("lm-eval[api]==0.4.13", "transformers==5.24.0")),
    Client("lmms-eval", "lmms_eval_task.py", ("lmms-eval==0.7.3", "filelock==3.32.7")),
    Client(
        "open-webui",
        "open_webui_page.py",
        ("open-webui==0.12.4", "playwright==1.65.2"),
        is_opt_in=True,
    ),
)
