"""`make demo`: starts the three services on the CPU, asks about real picture files, stops.

The six request forms, in English and in Chinese: a local picture, a picture behind http, a base64
picture, two pictures, a second turn, six frames of a video. Every answer is streamed through the
gateway with the openai client.
"""

from __future__ import annotations

import base64
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from openai import OpenAI
from rich import box
from rich.console import Console
from rich.table import Table

from gateway.local.stack import Stack
from models.demo import DEMO_CHECKPOINT

PICTURES = Path(__file__).parent / "pictures"
TOKENS_PER_TILE = 256
TWO_IMAGES = "Image-1: <image>\nImage-2: <image>\n"
SIX_FRAMES = "".join(f"Frame{number}: <image>\n" for number in range(1, 7))
console = Console(highlight=False)


@dataclass(frozen=True)
class Form:
    """One of the six request forms.

    Attributes:
        name: of the form.
        pictures: names of the files it shows.
        places: what stands before a question about several pictures.
        questions: in English and in Chinese; of a second turn, one after the other.
        follow_ups: the second turns' questions; empty where there is none.
    """

    name: str
    pictures: Sequence[str]
    questions: Sequence[str]
    places: str = ""
    follow_ups: Sequence[str] = ()


FORMS = (
    Form("local picture", ["scene"], ["What do you see in the picture?", "图中有哪些东西？"]),
    Form("http picture", ["sign"], ["What is written at the bottom?", "中间写了什么字？"]),
    Form("base64 picture", ["large"], ["Read the text in the top left.", "右下角有什么东西？"]),
    Form(
        "two pictures",
        ["pair-1", "pair-2"],
        ["What is the difference between Image-1 and Image-2?", "哪张图里有王冠？"],
        places=TWO_IMAGES,
        follow_ups=["What is on the right in Image-2?", "第二张图里有什么？"],
    ),
    Form(
        "six frames",
        [f"frame-{number}" for number in range(1, 7)],
        ["What happens in the video?", "视频里发生了什么？"],
        places=SIX_FRAMES,
    ),
)


@dataclass
class Answer:
    """What came back for one request: the text, the usage and when it came."""

    text: str = ""
    prompt_tokens: int = 0
    image_tokens: int = 0
    output_tokens: int = 0
    first_token_seconds: float = 0.0
    total_seconds: float = 0.0

    @property
    def tokens_per_second(self) -> float:
        """Output speed after the first token."""
        seconds = self.total_seconds - self.first_token_seconds
        return (self.output_tokens - 1) / seconds if seconds > 0 else 0.0


def first_message(form: Form, question: str, picture_server: str) -> dict[str, Any]:
    """Returns the user's first turn: the question, and each picture as the form sends it."""
    send = {"http picture": f"{picture_server}/{{}}.png".format, "base64 picture": data_url}
    url = send.get(form.name, file_url)
    images = [{"type": "image_url", "image_url": {"url": url(name)}} for name in form.pictures]
    return {"role": "user", "content": [{"type": "text", "text": form.places + question}, *images]}


def file_url(name: str) -> str:
    """Returns the file URL of a demo picture."""
    return (PICTURES / f"{name}.png").as_uri()


def data_url(name: str) -> str:
    """Returns a demo picture as a data URL."""
    data = base64.b64encode((PICTURES / f"{name}.png").read_bytes()).decode()
    return f"data:image/png;base64,{data}"


def ask(client: OpenAI, model: str, messages: list[Any]) -> Answer:
    """Streams one answer, echoing it as it comes."""
    answer, started = Answer(), time.monotonic()
    stream = client.chat.completions.create(
        model=model, messages=messages, stream=True, stream_options={"include_usage": True}
    )
    for chunk in stream:
        answer.total_seconds = time.monotonic() - started
        if chunk.usage is not None:
            answer.prompt_tokens = chunk.usage.prompt_tokens
            answer.output_tokens = chunk.usage.completion_tokens
            # Ours, beside OpenAI's fields.
            answer.image_tokens = getattr(chunk.usage.prompt_tokens_details, "image_tokens", 0)
        for choice in chunk.choices:
            answer.first_token_seconds = answer.first_token_seconds or answer.total_seconds
            answer.text += choice.delta.content or ""
            console.print(choice.delta.content or "", end="", markup=False)
    console.print()
    return answer


def run(stack: Stack, picture_server: str) -> Table:
    """Asks everything and returns the table of what it cost."""
    client = OpenAI(base_url=f"{stack.url}/v1", api_key="none")
    model = client.models.list().data[0].id
    table = Table(box=box.SIMPLE_HEAD, title=f"{model}, this machine's CPU, through HTTP")
    table.add_column("request", no_wrap=True)
    for name in ("pictures", "tiles", "prompt", "output", "TTFT ms", "tokens/s"):
        table.add_column(name, justify="right")

    def show(name: str, form: Form, question: str, messages: list[Any]) -> Answer:
        console.print(f"[bold]{name}[/bold] ({form.pictures[0]})  {question}")
        console.print("  -> ", end="")
        answer = ask(client, model, messages)
        counts = (len(form.pictures), answer.image_tokens // TOKENS_PER_TILE)
        numbers = (*counts, answer.prompt_tokens, answer.output_tokens)
        speeds = (answer.first_token_seconds * 1e3, answer.tokens_per_second)
        table.add_row(name, *map(str, numbers), *(f"{speed:.0f}" for speed in speeds))
        return answer

    for form in FORMS:
        for index, question in enumerate(form.questions):
            messages = [first_message(form, question, picture_server)]
            answer = show(form.name, form, question, messages)
            for follow_up in form.follow_ups[index : index + 1]:
                turn = {"role": "user", "content": follow_up}
                history = [*messages, {"role": "assistant", "content": answer.text}, turn]
                show("second turn", form, follow_up, history)
    return table


def main() -> None:
    """Runs the demo."""
    console.print(
        "The model is a toy: it sees emoji-like pictures, shapes and short text"
        " (models/demo/MODEL_CARD.md).\nStarting the vision service, the LLM service and the"
        " gateway ..."
    )
    gateway = ["--file-root", str(PICTURES), "--allowed-private-hosts", '["127.0.0.1"]']
    with (
        tempfile.TemporaryDirectory() as logs,
        picture_server(PICTURES) as address,
        Stack(
            DEMO_CHECKPOINT,
            Path(logs),
            gateway_arguments=gateway,
            service_arguments=["--served-model-name", "internvl-demo"],
        ) as stack,
    ):
        console.print(f"Up at {stack.url}. Asking about models/demo/{PICTURES.name}/ ...\n")
        console.print(run(stack, address))
    console.print(
        "Stopped. `make serve` keeps the services up: for your own client, and for the page at"
        " http://127.0.0.1:8000/."
    )


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


if __name__ == "__main__":
    main()
