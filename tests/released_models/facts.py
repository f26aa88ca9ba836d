"""The released InternVL checkpoints, as tests/data/models has them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, cast

Json = dict[str, Any]
Kind = Literal["original", "quantized", "converted", "routed"]
Proof = Literal["golden", "parts", "derived"]

DATA = Path(__file__).parents[1] / "data" / "models"
# What the two tiny checkpoints of the golden data have.
GOLDEN_DECODERS = ("Qwen2ForCausalLM", "InternLM2ForCausalLM")
GOLDEN_TOWER = "300M"
GOLDEN_TEMPLATE = "internvl2_5"


@dataclass(frozen=True)
class Refusal:
    """Why a kind of folder is not served.

    Attributes:
        why: the cause, for the table.
        sentence: a pattern that is found in the services' sentence.
        instead: what to take.
    """

    why: str
    sentence: str
    instead: str


@dataclass(frozen=True)
class Decoder:
    """What all language models of one class have.

    Attributes:
        name: the family's, for people.
        llm_config: keys of config.json that do not differ between sizes.
        class_defaults: keys that a short config.json leaves out where they have these values.
        tensors: by name without `language_model.` in front, the names of the dimensions.
        layer_tensors: likewise, without `language_model.model.layers.N.`.
    """

    name: str
    llm_config: Json
    class_defaults: Json
    tensors: dict[str, list[str]]
    layer_tensors: dict[str, list[str]]


@dataclass(frozen=True)
class Model:
    """One size of a series.

    Attributes:
        name: of the folder without a suffix.
        series: that it belongs to.
        has_short_config: whether config.json leaves out what has its class's default.
        language_model: that it was made from.
        decoder: in llm_config.architectures.
        tower: "300M" or "6B".
        template: of the chat.
        billion_parameters: published, or told by the size of the files; all digits are known.
        unseen: what its folder holds and no source showed.
        llm_config: its own keys.
    """

    name: str
    series: str
    has_short_config: bool
    language_model: str
    decoder: str
    tower: str
    template: str
    billion_parameters: float
    llm_config: Json
    unseen: tuple[str, ...] = ()

    @property
    def proof(self) -> Proof:
        """How well it is known that it is served right."""
        if self.unseen:
            return "derived"
        is_golden = self.decoder in GOLDEN_DECODERS and self.tower == GOLDEN_TOWER
        return "golden" if is_golden and self.template == GOLDEN_TEMPLATE else "parts"


@dataclass(frozen=True)
class Release:
    """The released folders of one model that are of one kind."""

    model: Model
    kind: Kind
    folders: tuple[str, ...]

    @property
    def refusal(self) -> Refusal | None:
        """Why they are not served; None if they are."""
        return refusals().get(self.model.decoder if self.kind == "original" else self.kind)


def releases() -> list[Release]:
    """Returns every released folder, from the oldest series to the newest."""
    found = []
    for file in sorted((DATA / "series").glob("*.json")):
        series = _read(file)
        for name, facts in series["models"].items():
            general = {"series": series["series"], "has_short_config": series["short_config"]}
            unseen = tuple(facts.pop("unseen", ()))
            model = Model(name=name, **general, **facts, unseen=unseen)
            for kind, folders in series["folders"][name].items():
                found.append(Release(model, cast(Kind, kind), tuple(folders)))
    return found


@cache
def served_models() -> dict[str, Model]:
    """Returns the models of which the original folder is served, by name."""
    served = (release.model for release in releases() if release.refusal is None)
    return {model.name: model for model in served}


@cache
def refusals() -> dict[str, Refusal]:
    """Returns why folders are refused, by their kind or their decoder's class."""
    return {name: Refusal(**facts) for name, facts in _read(DATA / "refusals.json").items()}


@cache
def decoders() -> dict[str, Decoder]:
    """Returns the decoders by their class's name."""
    return {name: Decoder(**facts) for name, facts in _read(DATA / "decoders.json").items()}


@cache
def towers() -> dict[str, Json]:
    """Returns the two vision towers: `billion_parameters`, and the `vision_config` of each."""
    return _read(DATA / "towers.json")


def _read(file: Path) -> Json:
    document: Json = json.loads(file.read_text(encoding="utf-8"))
    return document
