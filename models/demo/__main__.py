"""`make demo`: starts the three services on the CPU, asks about real picture files, stops.

The six request forms: a local picture, a picture behind http, a base64 picture, two pictures, a
second turn, six frames of a video. Every answer is streamed through the gateway with the openai
client.
"""

from __future__ import annotations

import base64
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from openai import OpenAI
from rich import box
from rich.console import Console
from rich.table import Table

from models.demo.random_checkpoint import write_random_checkpoint
from models.demo.stack import Stack

PICTURES = Path(__file__).parent / "pictures"
MAX_TOKENS = 24
console = Console(highlight=False)


@dataclass
class Answer:
    """What came back for one request: the text, the usage and when it came."""

    text: str = ""
    prompt_tokens: int = 0
    output_tokens: int = 0
    first_token_seconds: float = 0.0
    total_seconds: float = 0.0

    @property
    def tokens_per_second(self) -> float:
        """Output speed after the first token."""
        seconds = self.total_seconds - self.first_token_seconds
        return (self.output_tokens - 1) / seconds if seconds > 0 else 0.0


@dataclass
class Conversation:
    """One of the six forms: its name, the pictures it shows and its messages."""

    form: str
    question: str
    urls: list[str]
    messages: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        images = [{"type": "image_url", "image_url": {"url": url}} for url in self.urls]
        content = [{"type": "text", "text": self.question}, *images]
        self.messages.append({"role": "user", "content": content})


def conversations(picture_server: str) -> Iterator[Conversation]:
    """Yields the single-turn forms; the second turn follows one of them."""
    house = (PICTURES / "house.jpg").read_bytes()
    yield Conversation("local picture", "What is in this picture?", [_file("house.jpg")])
    yield Conversation("http picture", "What is in this picture?", [f"{picture_server}/boat.jpg"])
    data = f"data:image/jpeg;base64,{base64.b64encode(house).decode()}"
    yield Conversation("base64 picture", "简述一下这张图片的内容。", [data])
    two = "Image-1: <image>\nImage-2: <image>\n描述一下两张图片的不同。"
    yield Conversation("two pictures", two, [_file("house.jpg"), _file("boat.jpg")])
    frames = [_file(f"frame{number}.jpg") for number in range(1, 7)]
    lines = "".join(f"Frame{number}: <image>\n" for number in range(1, 7))
    yield Conversation("six frames", f"{lines}What moves in this video?", frames)


def ask(client: OpenAI, model: str, messages: list[Any]) -> Answer:
    """Streams one answer, echoing it as it comes."""
    answer, started = Answer(), time.monotonic()
    stream = client.chat.completions.create(
        model=model,
        messages=messages,
        max_tokens=MAX_TOKENS,
        stream=True,
        stream_options={"include_usage": True},
    )
    for chunk in stream:
        answer.total_seconds = time.monotonic() - started
        if chunk.usage is not None:
            answer.prompt_tokens = chunk.usage.prompt_tokens
            answer.output_tokens = chunk.usage.completion_tokens
        for choice in chunk.choices:
            answer.first_token_seconds = answer.first_token_seconds or answer.total_seconds
            answer.text += choice.delta.content or ""
            console.print(_printable(choice.delta.content or ""), end="", markup=False)
    console.print()
    return answer


def run(stack: Stack, picture_server: str) -> Table:
    """Asks everything and returns the table of what came back."""
    client = OpenAI(base_url=f"{stack.url}/v1", api_key="none")
    model = client.models.list().data[0].id
    table = Table(box=box.SIMPLE_HEAD, title=f"{model}, this machine's CPU, through HTTP")
    table.add_column("request", no_wrap=True)
    for name in ("images", "prompt tokens", "output tokens", "TTFT ms", "tokens/s"):
        table.add_column(name, justify="right")

    def show(form: str, image_count: int, messages: list[Any]) -> Answer:
        console.print(f"[bold]{form}[/bold]: ", end="")
        answer = ask(client, model, messages)
        numbers = (image_count, answer.prompt_tokens, answer.output_tokens)
        speeds = (answer.first_token_seconds * 1e3, answer.tokens_per_second)
        table.add_row(form, *map(str, numbers), *(f"{speed:.0f}" for speed in speeds))
        return answer

    for conversation in conversations(picture_server):
        answer = show(conversation.form, len(conversation.urls), conversation.messages)
        if conversation.form == "two pictures":
            follow_up = {"role": "user", "content": "描述一下图片-2中的环境。"}
            history = [*conversation.messages, {"role": "assistant", "content": answer.text}]
            show("second turn", len(conversation.urls), [*history, follow_up])
    return table


def main() -> None:
    """Runs the demo."""
    with tempfile.TemporaryDirectory() as temporary:
        checkpoint = Path(temporary) / "random-internvl"
        write_random_checkpoint(checkpoint)
        console.print(
            "The checkpoint is tiny and [bold]random[/bold]: the whole path is real, its words"
            " mean nothing.\nStarting the vision service, the LLM service and the gateway ..."
        )
        gateway = ["--file-root", str(PICTURES), "--allowed-private-hosts", '["127.0.0.1"]']
        with (
            picture_server(PICTURES) as address,
            Stack(checkpoint, Path(temporary), gateway_arguments=gateway) as stack,
        ):
            console.print(f"Up at {stack.url}. Asking about {PICTURES.name}/ ...\n")
            console.print(run(stack, address))
    console.print("Stopped. `make serve` keeps the services up for your own client.")


@contextmanager
def picture_server(folder: Path) -> Iterator[str]:
    """Serves a folder over HTTP on the loopback address; yields its URL."""
    handler: Callable[..., SimpleHTTPRequestHandler] = partial(_QuietHandler, directory=str(folder))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        pass


def _file(name: str) -> str:
    return (PICTURES / name).as_uri()


def _printable(text: str) -> str:
    """A random model writes control characters; a terminal must not obey them."""
    return "".join(character if character.isprintable() else "·" for character in text)


if __name__ == "__main__":
    main()
