"""How facts are asked for and told: templates in both languages, and the filling of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Final, Literal

from models.demo.train.lexicon import Language, Words

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
        asked: key of QUESTIONS.
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
    known, kept = phrasings(fact.asked, language)
    template = rng.choice(kept if held_out and kept else known)
    index = 0 if language == "en" else 1
    question = _filled(template, {name: words[index] for name, words in fact.slots.items()})
    if form == "word" and fact.word is not None:
        suffix = WORD_SUFFIX[language]
        return Turn(question + suffix, fact.word[index], fact.task, language, "word")
    return Turn(question, fact.sentence[index], fact.task, language, "sentence")


def phrasings(asked: str, language: Language) -> tuple[Sequence[str], Sequence[str]]:
    """Returns the templates of a question for training, and those held out.

    The last of five or more is held out: about one in ten of all.
    """
    templates = QUESTIONS[asked][language]
    return (templates[:-1], templates[-1:]) if len(templates) >= 5 else (templates, ())


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


# Slots. {picture}: "the picture" / "图片", "Image-2" / "第二张图". {scope}: nothing, or where to
# look: " in the picture" / "图片里".
QUESTIONS: Final[dict[str, dict[Language, tuple[str, ...]]]] = {
    "describe": {
        "en": (
            "What is in {picture}?",
            "Describe {picture}.",
            "What can you see in {picture}?",
            "What does {picture} show?",
            "Please describe {picture} in one sentence.",
        ),
        "zh": (
            "{picture}里有什么？",
            "描述{picture}。",
            "{picture}中有哪些东西？",
            "你在{picture}里看到了什么？",
            "请用一句话描述{picture}。",
        ),
    },
    "at": {
        "en": (
            "What is {place}{scope}?",
            "What do you see {place}{scope}?",
            "Which thing is {place}{scope}?",
            "Tell me what is {place}{scope}.",
            "What can be found {place}{scope}?",
        ),
        "zh": (
            "{scope}{place}有什么？",
            "{scope}{place}是什么？",
            "请说出{scope}{place}的东西。",
            "{scope}{place}有什么东西？",
            "{scope}{place}能看到什么？",
        ),
    },
    "at_and": {
        "en": ("And {place}?", "What about {place}?"),
        "zh": ("{place}呢？", "那{place}呢？"),
    },
    "where": {
        "en": (
            "Where is the {noun}{scope}?",
            "In which part of {picture} is the {noun}?",
            "Tell me where the {noun} is{scope}.",
            "What is the position of the {noun}{scope}?",
            "Where can you see the {noun}{scope}?",
        ),
        "zh": (
            "{scope}{noun}在哪里？",
            "{noun}在{picture}的什么位置？",
            "请告诉我{scope}{noun}在哪里。",
            "{scope}{noun}的位置是哪里？",
            "你在{picture}的哪里看到{noun}？",
        ),
    },
    "where_it": {
        "en": ("Where is it?", "And where is it?", "Where is it in {picture}?"),
        "zh": ("它在哪里？", "它在什么位置？", "它在{picture}的哪里？"),
    },
    "where_and": {
        "en": ("And the {noun}?", "What about the {noun}?"),
        "zh": ("{noun}呢？", "那{noun}呢？"),
    },
    "count_all": {
        "en": (
            "How many things are there{scope}?",
            "How many things can you see{scope}?",
            "Count the things{scope}.",
            "What is the number of things{scope}?",
            "How many things does {picture} show?",
        ),
        "zh": (
            "{scope}有几个东西？",
            "{scope}一共有多少个东西？",
            "数一数{scope}有几个东西。",
            "{scope}东西的数量是多少？",
            "{picture}里能看到几个东西？",
        ),
    },
    "count": {
        "en": (
            "How many {nouns} are there{scope}?",
            "How many {nouns} can you see{scope}?",
            "Count the {nouns}{scope}.",
            "What is the number of {nouns}{scope}?",
            "How many {nouns} does {picture} show?",
        ),
        "zh": (
            "{scope}有几{measure}{noun}？",
            "{scope}一共有多少{measure}{noun}？",
            "数一数{scope}有几{measure}{noun}。",
            "{scope}{noun}的数量是多少？",
            "{picture}里能看到几{measure}{noun}？",
        ),
    },
    "count_and": {
        "en": ("And how many {nouns}?", "What about {nouns}?"),
        "zh": ("{noun}有几{measure}？", "那{noun}有几{measure}？"),
    },
    "count_total": {
        "en": ("How many things are there in total?", "And how many things in all?"),
        "zh": ("总共有几个东西？", "一共有几个东西？"),
    },
    "exists": {
        "en": (
            "Is there {one}{scope}?",
            "Does {picture} show {one}?",
            "Can you see {one}{scope}?",
            "Is {one} in {picture}?",
            "Does {picture} have {one}?",
        ),
        "zh": (
            "{scope}有{noun}吗？",
            "{scope}有没有{noun}？",
            "你在{picture}里看到{noun}了吗？",
            "{picture}里是不是有{noun}？",
            "能在{picture}里找到{noun}吗？",
        ),
    },
    "colour": {
        "en": (
            "What color is the {noun}{scope}?",
            "What is the color of the {noun}{scope}?",
            "Which color does the {noun} have{scope}?",
            "Tell me the color of the {noun}{scope}.",
            "What color does the {noun} have{scope}?",
        ),
        "zh": (
            "{scope}{noun}是什么颜色？",
            "{scope}{noun}的颜色是什么？",
            "{noun}在{picture}里是什么颜色？",
            "请说出{scope}{noun}的颜色。",
            "{scope}{noun}是哪种颜色？",
        ),
    },
    "colour_it": {
        "en": ("What color is it?", "And what color is it?", "What is its color?"),
        "zh": ("它是什么颜色？", "它的颜色是什么？"),
    },
    "shape": {
        "en": (
            "What shape is {colour}{scope}?",
            "Which shape is {colour}{scope}?",
            "What is the shape of the {colour} thing{scope}?",
            "Name the {colour} shape{scope}.",
        ),
        "zh": (
            "{scope}{colour}的是什么形状？",
            "{scope}{colour}的东西是什么形状？",
            "{scope}哪个形状是{colour}的？",
            "请说出{scope}{colour}东西的形状。",
        ),
    },
    "size": {
        "en": (
            "Which is {adjective}{scope}, the {noun} or the {other}?",
            "Which one is {adjective}{scope}: the {noun} or the {other}?",
            "What is {adjective}{scope}, the {noun} or the {other}?",
        ),
        "zh": (
            "{scope}{noun}和{other}哪个{adjective}？",
            "{scope}哪个{adjective}，{noun}还是{other}？",
            "比一比{scope}{noun}和{other}，哪个{adjective}？",
        ),
    },
    "relation": {
        "en": (
            "Is the {noun} {side} the {other}{scope}?",
            "Can you see the {noun} {side} the {other}{scope}?",
            "Is it true that the {noun} is {side} the {other}{scope}?",
        ),
        "zh": (
            "{scope}{noun}在{other}的{side}吗？",
            "{scope}{noun}是不是在{other}的{side}？",
            "{noun}在{picture}里是在{other}的{side}吗？",
        ),
    },
    "beside": {
        "en": (
            "What is {side} the {other}{scope}?",
            "Which thing is {side} the {other}{scope}?",
            "What do you see {side} the {other}{scope}?",
            "Tell me what is {side} the {other}{scope}.",
            "What can be found {side} the {other}{scope}?",
        ),
        "zh": (
            "{scope}{other}的{side}是什么？",
            "{scope}{other}的{side}有什么？",
            "请说出{scope}{other}{side}的东西。",
            "{picture}里什么东西在{other}的{side}？",
            "{scope}{other}的{side}能看到什么？",
        ),
    },
    "category": {
        "en": (
            "Is the {noun}{scope} an animal, food, a vehicle, a plant or an object?",
            "What kind of thing is the {noun}{scope}?",
            "To which category does the {noun}{scope} belong?",
        ),
        "zh": (
            "{scope}{noun}是动物、食物、交通工具、植物还是物品？",
            "{scope}{noun}是哪一类东西？",
            "{scope}{noun}属于什么类别？",
        ),
    },
    "category_at": {
        "en": (
            "Is the thing {place}{scope} an animal, food, a vehicle, a plant or an object?",
            "What kind of thing is {place}{scope}?",
            "To which category does the thing {place}{scope} belong?",
        ),
        "zh": (
            "{scope}{place}的东西是动物、食物、交通工具、植物还是物品？",
            "{scope}{place}是哪一类东西？",
            "{scope}{place}的东西属于什么类别？",
        ),
    },
    "category_it": {
        "en": (
            "What kind of thing is it?",
            "Is it an animal, food, a vehicle, a plant or an object?",
        ),
        "zh": ("它是哪一类东西？", "它是动物、食物、交通工具、植物还是物品？"),
    },
    "read": {
        "en": (
            "What does the text say{scope}?",
            "Read the text in {picture}.",
            "What is written{scope}?",
            "What text does {picture} show?",
            "Please read the text in {picture}.",
        ),
        "zh": (
            "{picture}里写着什么？",
            "读出{picture}里的文字。",
            "{picture}里的文字是什么？",
            "{scope}写了什么字？",
            "请读一下{picture}里的文字。",
        ),
    },
    "read_at": {
        "en": (
            "What does the text {place} say{scope}?",
            "Read the text {place}{scope}.",
            "What is written {place}{scope}?",
            "What text is {place}{scope}?",
            "Please read the text {place}{scope}.",
        ),
        "zh": (
            "{scope}{place}写着什么？",
            "读出{scope}{place}的文字。",
            "{scope}{place}的文字是什么？",
            "{scope}{place}写了什么字？",
            "请读一下{scope}{place}的文字。",
        ),
    },
    "number": {
        "en": (
            "What number is shown{scope}?",
            "Which number can you see{scope}?",
            "Read the number in {picture}.",
            "What is the number in {picture}?",
        ),
        "zh": (
            "{scope}的数字是多少？",
            "{picture}里的数字是多少？",
            "读出{picture}里的数字。",
            "你在{picture}里看到什么数字？",
        ),
    },
    "difference": {
        "en": (
            "What is different between the two images?",
            "What changed from Image-1 to Image-2?",
            "What is the difference between Image-1 and Image-2?",
            "Compare the two images. What is different?",
            "Find the difference between the two images.",
        ),
        "zh": (
            "两张图有什么不同？",
            "从第一张图到第二张图有什么变化？",
            "第一张图和第二张图的区别是什么？",
            "比较两张图，有什么不同？",
            "请找出两张图的不同。",
        ),
    },
    "which": {
        "en": (
            "Which image has {one}?",
            "In which image is there {one}?",
            "Which image shows {one}?",
            "In which image can you see {one}?",
            "Find the image with {one}.",
        ),
        "zh": (
            "哪张图里有{noun}？",
            "{noun}在哪张图里？",
            "哪一张图有{noun}？",
            "你在哪张图里看到{noun}？",
            "请找出有{noun}的图。",
        ),
    },
    "same": {
        "en": (
            "Are the two images the same?",
            "Do both images show the same?",
            "Is Image-2 the same as Image-1?",
        ),
        "zh": ("两张图一样吗？", "第二张图和第一张图一样吗？", "这两张图是不是一样？"),
    },
    "image_and": {
        "en": ("And {picture}?", "What about {picture}?"),
        "zh": ("{picture}呢？", "那{picture}呢？"),
    },
    "happens": {
        "en": (
            "What happens in the video?",
            "What changes in the video?",
            "What is going on in these frames?",
            "Describe what happens.",
            "Tell me what happens in the video.",
        ),
        "zh": (
            "视频里发生了什么？",
            "视频里有什么变化？",
            "这些画面里发生了什么？",
            "描述发生的事。",
            "请说说视频里发生了什么。",
        ),
    },
    "moves": {
        "en": ("What moves in the video?", "Which thing moves?", "What is moving?"),
        "zh": ("视频里什么在移动？", "什么东西移动了？", "哪个东西在动？"),
    },
    "direction": {
        "en": (
            "In which direction does the {noun} move?",
            "Where does the {noun} go?",
            "Which way does the {noun} move?",
        ),
        "zh": ("{noun}向哪个方向移动？", "{noun}往哪边走？", "{noun}朝哪里移动？"),
    },
    "appears": {
        "en": (
            "In which frame does the {noun} appear?",
            "When does the {noun} appear?",
            "In which frame do you first see the {noun}?",
        ),
        "zh": ("{noun}在第几帧出现？", "{noun}什么时候出现？", "从第几帧开始有{noun}？"),
    },
    "disappears": {
        "en": (
            "In which frame does the {noun} disappear?",
            "When does the {noun} disappear?",
            "From which frame on is the {noun} gone?",
        ),
        "zh": ("{noun}在第几帧消失？", "{noun}什么时候消失？", "从第几帧开始没有{noun}？"),
    },
}
