"""What clients and operators keep secret is in no log, trace, metric, header or error.

Three real processes at debug level, asyncio's own debugging included, get requests of every kind
with a canary in each place that may hold a secret, and in each place of requests that fail.
"""

from __future__ import annotations

import base64
import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from gateway.local.processes import ServiceProcess
from gateway.local.stack import Stack
from models.demo import DEMO_CHECKPOINT
from tests.canaries import Canaries
from tests.e2e.test_scrapes import metrics_port
from tests.served_model import LOOPBACK_ALONE, SERVICE_ARGUMENTS
from tests.traces.receiver import Receiver, receiving

MODEL = "InternVL2_5"
DEBUG = ("--log-level", "debug", "--metrics-port", "0", "--log-lines-per-second", "1e6")
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
MESSAGES, RESPONSES = "/v1/messages", "/v1/responses"
PICTURES = Path(__file__).parents[1] / "data" / "pictures"
# Nobody listens there.
DEAD = "127.0.0.1:9"


@dataclass
class Served:
    """The processes, and what they were told to keep to themselves.

    Attributes:
        proxied: a gateway that fetches pictures through a proxy.
        usage: the usage log of both gateways.
        answers: what clients have read, heads included, by case.
    """

    stack: Stack
    proxied: ServiceProcess
    receiver: Receiver
    usage: Path
    canaries: Canaries
    answers: dict[str, bytes] = field(default_factory=dict)
    statuses: dict[str, int] = field(default_factory=dict)

    def send(self, case: str, path: str, body: Any, **headers: str) -> None:
        """Sends a request to a gateway, and keeps its answer."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        gateway = self.proxied if case.startswith("proxied") else self.stack.gateway
        request = Request(f"http://{gateway.address}{path}", data, self._headers() | headers)
        try:
            with urlopen(request, timeout=60) as response:
                self._keep(case, response)
        except HTTPError as error:
            self._keep(case, error)

    def _keep(self, case: str, response: Any) -> None:
        self.statuses[case] = response.status
        self.answers[case] = bytes(response.headers) + response.read()

    def _headers(self) -> dict[str, str]:
        canaries = self.canaries
        return {
            "Content-Type": "application/json",
            "Authorization": f"Bearer {canaries['key']}",
            "Cookie": f"session={canaries['cookie']}",
            "User-Agent": canaries["agent"],
            "Referer": f"http://a.test/?q={canaries['referer']}",
            "X-Forwarded-For": canaries["forwarded"],
            "X-Request-Id": f"not sane: {canaries['requestid']}",
            "traceparent": f"00-{'ab' * 16}-{'cd' * 8}-01",
            "tracestate": f"vendor={canaries['tracestate']}",
            "baggage": f"user={canaries['baggage']}",
        }

    @property
    def sinks(self) -> dict[str, bytes]:
        """All that anybody but the client may read."""
        processes = [*self.stack.services, self.proxied]
        logs = {f"{one.log} itself": one.log.read_bytes() for one in processes}
        pages = {f"{one.log} metrics": scraped(one) for one in processes if one.is_alive()}
        traces = {"traces": b"".join(self.receiver.raw)}
        return logs | pages | traces | {"usage log": self.usage.read_bytes()}


def scraped(service: ServiceProcess) -> bytes:
    with urlopen(f"http://127.0.0.1:{metrics_port(service)}/metrics", timeout=10) as response:
        return bytes(response.read())


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder, canaries = tmp_path_factory.mktemp("canaries"), Canaries()
    usage = folder / "usage"
    with pytest.MonkeyPatch.context() as patch, receiving() as receiver:
        patch.setenv("PYTHONASYNCIODEBUG", "1")
        patch.setenv("INTERNVL_GATEWAY_API_KEY", canaries["key"])
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        everywhere = (*DEBUG, "--otlp-endpoint", receiver.endpoint)
        of_gateways = (
            *everywhere,
            *("--usage-log", str(usage), "--file-root", str(PICTURES)),
            *("--allowed-private-hosts", LOOPBACK_ALONE),
        )
        stack = Stack(
            DEMO_CHECKPOINT,
            folder,
            gateway_arguments=of_gateways,
            service_arguments=(*SERVICE_ARGUMENTS, *everywhere, "--served-model-name", MODEL),
        )
        with stack:
            patch.setenv(
                "INTERNVL_GATEWAY_IMAGE_PROXY",
                f"http://{canaries['proxyuser']}:{canaries['proxypassword']}@{DEAD}",
            )
            addresses = ("--vision-address", stack.vision.address, "--llm-address")
            arguments = [*addresses, stack.llm.address, *of_gateways]
            (folder / "proxied").mkdir()
            proxied = ServiceProcess("gateway", arguments, folder / "proxied" / "gateway.log")
            proxied.start()
            try:
                proxied.wait_serving(60)
                yield Served(stack, proxied, receiver, usage, canaries)
            finally:
                proxied.kill()


def png(comment: str) -> bytes:
    """Returns a picture of one pixel with a comment in it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0))
    text = chunk(b"tEXt", b"Comment\0" + comment.encode())
    pixels = chunk(b"IDAT", zlib.compress(b"\0\1\2\3"))
    return b"\x89PNG\r\n\x1a\n" + head + text + pixels + chunk(b"IEND", b"")


def data_url(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


def about(url: str, text: str = "What is it?") -> list[Any]:
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": text}]
    return [{"role": "user", "content": parts}]


def chat(messages: list[Any] | str, **fields: Any) -> dict[str, Any]:
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    return {"model": MODEL, "max_tokens": 4, "messages": messages, **fields}


def tool(name: str, text: str) -> dict[str, Any]:
    parameters = {"type": "object", "properties": {name: {"type": "string", "const": text}}}
    function = {"name": name[:60], "description": text, "parameters": parameters}
    return {"type": "function", "function": function}


def answered_cases(word: Canaries) -> dict[str, tuple[str, Any]]:
    """Returns requests that are answered, with canaries in all that they hold."""
    system = {"role": "system", "content": word["system"]}
    picture = about(data_url(png(word["image"])), word["prompt"])
    call = {
        "id": word["callid"],
        "type": "function",
        "function": {"name": "look", "arguments": json.dumps({"at": word["argument"]})},
    }
    history = [
        {"role": "user", "content": word["turn"]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": word["callid"], "content": word["result"]},
        *picture,
    ]
    fields = {
        "stop": [word["stop"]],
        "user": word["user"],
        "metadata": {"about": word["metadata"]},
        "safety_identifier": word["identifier"],
        "prompt_cache_key": word["cachekey"],
        "logit_bias": {"5": 1},
    }
    pattern = f"({word['choice']}|{word['otherchoice']})"
    return {
        "chat": (CHAT, chat([system, *picture], **fields)),
        "stream": (CHAT, chat([system, *picture], stream=True, **fields)),
        "history": (CHAT, chat(history)),
        "tools": (CHAT, chat(word["toolprompt"], tools=[tool("look", word["description"])])),
        "regex": (CHAT, chat(word["regexprompt"], guided_regex=pattern, max_tokens=64)),
        "completions": (
            COMPLETIONS,
            {"model": MODEL, "prompt": [word["completion"]] * 2, "max_tokens": 4},
        ),
        "messages": (
            MESSAGES,
            {
                "model": MODEL,
                "max_tokens": 4,
                "system": word["anthropicsystem"],
                "messages": [{"role": "user", "content": word["anthropic"]}],
            },
        ),
        "responses": (
            RESPONSES,
            {
                "model": MODEL,
                "max_output_tokens": 16,
                "instructions": word["instructions"],
                "input": word["input"],
            },
        ),
        "tokenize": ("/tokenize", {"model": MODEL, "prompt": word["tokenized"]}),
        "file": (CHAT, chat(about((PICTURES / "shapes.png").as_uri(), word["fileprompt"]))),
    }


def refused_cases(word: Canaries) -> dict[str, tuple[str, Any]]:
    """Returns requests that are refused or fail, each in a place that has a canary."""
    secret = word["url"]
    dead = f"http://{word['urluser']}:{word['urlpassword']}@{DEAD}/{secret}?token={secret}"
    private = f"http://10.1.2.3/{secret}?token={secret}"
    grammar = f'start: "{word["grammar"]}'
    schema = {"type": "object", "properties": {word["property"]: {"type": word["type"]}}}
    body = json.dumps(chat(word["broken"])).encode()
    return {
        "malformed": (CHAT, body[:-1]),
        "not utf-8": (CHAT, body.replace(b"max_tokens", b"\xff")),
        "a string": (CHAT, json.dumps(word["string"]).encode()),
        "messages": (CHAT, chat("") | {"messages": word["messages"]}),
        "role": (CHAT, chat([{"role": word["role"], "content": "a"}])),
        "temperature": (CHAT, chat("a", temperature=word["temperature"])),
        "max_tokens": (CHAT, chat("a") | {"max_tokens": word["maxtokens"]}),
        "model": (CHAT, chat("a") | {"model": word["model"]}),
        "logit_bias": (CHAT, chat("a", logit_bias={word["bias"]: 1})),
        "dead host": (CHAT, chat(about(dead))),
        "private host": (CHAT, chat(about(private))),
        "proxied": (CHAT, chat(about(f"https://a.test/{secret}?token={secret}"))),
        "no scheme": (CHAT, chat(about(word["bare"]))),
        "other scheme": (CHAT, chat(about(f"ftp://a.test/{secret}"))),
        "missing file": (CHAT, chat(about((PICTURES / f"{word['file']}.png").as_uri()))),
        "outside file": (CHAT, chat(about(f"file:///etc/{word['outside']}"))),
        "not a picture": (CHAT, chat(about(data_url(word["text"].encode())))),
        "half a picture": (CHAT, chat(about(data_url(png(word["half"])[:-30])))),
        "not base64": (CHAT, chat(about(f"data:image/png;base64,@{word['nobase']}"))),
        "placeholders": (CHAT, chat(about(data_url(png("")), f"<image><image>{word['many']}"))),
        "too long": (CHAT, chat(word["long"] * 20_000)),
        "grammar": (CHAT, chat("a", guided_grammar=grammar)),
        "regex": (CHAT, chat("a", guided_regex=f"({word['regex']}")),
        "schema": (CHAT, chat("a", guided_json=schema)),
        "tool choice": (CHAT, chat("a", tool_choice=word["toolchoice"])),
        "template": (CHAT, chat("a", chat_template=word["template"])),
        "completion": (COMPLETIONS, {"model": MODEL, "prompt": {"a": word["noprompt"]}}),
        "anthropic": (MESSAGES, {"model": MODEL, "max_tokens": 1, "messages": word["turns"]}),
        "response": (RESPONSES, {"model": MODEL, "input": {"a": word["noinput"]}}),
        "unknown path": (f"/v1/x?key={word['query']}", {"a": word["elsewhere"]}),
        "wrong method": (f"/v1/models?key={word['query']}", {"a": word["elsewhere"]}),
    }


# The client's own short values that an error repeats to it, and to nobody else.
ECHOED = {
    "role": {"role"},
    "model": {"model"},
    "logit_bias": {"bias"},
    "schema": {"property", "type"},
    "tool choice": {"toolchoice"},
    "template": {"template"},
}


@pytest.mark.slow
def test_no_canary_is_told(served: Served) -> None:
    word = served.canaries
    answered, refused = answered_cases(word), refused_cases(word)
    for case, (path, body) in answered.items():
        served.send(f"answered {case}", path, body)
    for case, (path, body) in refused.items():
        served.send(case, path, body)
    wrong = {
        "bearer": {"Authorization": f"Bearer {word['wrongkey']}"},
        "basic": {"Authorization": f"Basic {word['basic']}"},
        "other": {"Authorization": "", "x-api-key": word["otherkey"]},
    }
    for case, headers in wrong.items():
        served.send(case, CHAT, chat(word["unasked"]), **headers)
    served.stack.llm.kill()
    served.send("no llm", CHAT, chat(about(data_url(png(word["late"])), word["latetext"])))
    statuses = served.statuses
    assert {case: statuses[f"answered {case}"] for case in answered} == dict.fromkeys(answered, 200)
    assert {case: statuses[case] for case in refused if statuses[case] < 400} == {}
    assert [statuses[case] for case in wrong] == [401] * 3
    assert statuses["no llm"] == 503
    served.stack.gateway.terminate()  # its last spans are sent
    served.stack.gateway.wait_ended()
    sinks = served.sinks
    assert all(sinks.values()), "nothing was written there"
    # W3C's tracestate is for those who trace, who handed it in.
    assert word.leaks(sinks) == {"traces": {"tracestate"}}
    echoed = word.leaks({case: served.answers[case] for case in (*refused, *wrong, "no llm")})
    assert echoed == ECHOED
    assert word.found_in(served.answers["answered regex"]) & {"choice", "otherchoice"}
