"""How facts are asked for and told: the choice of a wording, and the filling of templates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Final, Literal

from demo_training.lexicon import Language, Words
from demo_training.wordings import FRAME_SHARE, FRAMES, QUESTIONS, SENTENCE_FRAMES

Form = Literal["sentence", "word"]
WORD_SUFFIX: Final[dict[Language, str]] = {
    "en": "\nAnswer the question using a single word or phrase.",
    "zh": "\n请用一个词回答。",
}


@dataclass(frozen=True)
class Turn:
    """One question and its one right answer.

    Attributes:
        question: as the user writes it; the first of a dialogue holds the `<image>` places.
        answer: the whole answer.
        task: the kind of question, a row of the evaluation's table.
        language: of question and answer.
        form: whether the answer is a sentence or a word.
    """

    question: str
    answer: str
    task: str
    language: Language
    form: Form


@dataclass(frozen=True)
class Fact:
    """Something true that can be asked for.

    Attributes:
        task: see Turn.
        asked: key of wordings.QUESTIONS.
        sentence: the answer as a sentence.
        word: the answer as a word; None where no word says it all.
        slots: what fills the question's braces.
        topic: label of the thing that question or answer names, which "it" may stand for next.
    """

    task: str
    asked: str
    sentence: Words
    word: Words | None
    slots: Mapping[str, Words] = field(default_factory=dict)
    topic: str | None = None


def ask(rng: Random, fact: Fact, language: Language, form: Form, *, held_out: bool) -> Turn:
    """Asks for a fact in words of training, or in held-out ones where the question has some."""
    wordings = QUESTIONS[fact.asked][language]
    is_held_out = held_out and bool(wordings.held_out)
    template = rng.choice(wordings.held_out if is_held_out else wordings.known)
    index = 0 if language == "en" else 1
    question = _filled(template, {name: words[index] for name, words in fact.slots.items()})
    word = fact.word[index] if form == "word" and fact.word is not None else None
    if not held_out and rng.random() < FRAME_SHARE:
        frames = FRAMES[language] + (SENTENCE_FRAMES[language] if word is None else ())
        question = rng.choice(frames).format(question=question)
    if word is not None:
        return Turn(question + WORD_SUFFIX[language], word, fact.task, language, "word")
    return Turn(question, fact.sentence[index], fact.task, language, "sentence")


def _filled(template: str, slots: Mapping[str, str]) -> str:
    text = template.format_map(slots)
    return text[0].upper() + text[1:]


def sentence(en: str, zh: str, /, **slots: Words) -> Words:
    """Fills an answer's templates in both languages."""
    return Words(
        _filled(en, {name: words.en for name, words in slots.items()}),
        _filled(zh, {name: words.zh for name, words in slots.items()}),
    )


def joined(parts: Sequence[Words], en_last: str = " and ", zh_last: str = "，") -> Words:
    """Joins parts into a list: "a, b and c"; in Chinese with one separator throughout."""
    english = [part.en for part in parts]
    head = ", ".join(english[:-1])
    return Words(
        f"{head}{en_last}{english[-1]}" if head else english[-1],
        zh_last.join(part.zh for part in parts),
    )
