"""The wordings of every question, in both languages: those of training, and those held out.

Slots. {picture}: "the picture" / "图片", "Image-2" / "第二张图". {scope}: nothing, or where to
look: " in the picture" / "图片里".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from demo_training.lexicon import Language


@dataclass(frozen=True)
class Wordings:
    """The templates of a question in one language.

    Attributes:
        known: what training asks.
        held_out: what only the split "phrasing" asks. Its words are in other wordings, as far as
            possible in those of several questions, so that none of them decides the question.
    """

    known: tuple[str, ...]
    held_out: tuple[str, ...] = ()


# What people put around any question, and how often they do. The first frames of each language ask
# for a sentence.
FRAME_SHARE: Final = 0.2
SENTENCE_FRAMES: Final[dict[Language, tuple[str, ...]]] = {
    "en": (
        "{question} Answer in one sentence.",
        "{question} Please use one sentence.",
        "In one sentence: {question}",
    ),
    "zh": (
        "{question}请用一句话回答。",
        "请用一句话回答：{question}",
        "用一句话说，{question}",
    ),
}
FRAMES: Final[dict[Language, tuple[str, ...]]] = {
    "en": (
        "Please answer: {question}",
        "Please tell me: {question}",
        "Look closely. {question}",
        "I have a question. {question}",
        "Hello! {question}",
        "Can you help me? {question}",
        "Find the answer: {question}",
        "{question} Please tell me.",
        "{question} Thank you!",
    ),
    "zh": (
        "请回答：{question}",
        "请告诉我：{question}",
        "请仔细看。{question}",
        "我想问一下，{question}",
        "你好！{question}",
        "请帮帮我，{question}",
        "请找出答案：{question}",
        "看一看，{question}",
        "{question}谢谢！",
    ),
}

QUESTIONS: Final[dict[str, dict[Language, Wordings]]] = {
    "describe": {
        "en": Wordings(
            (
                "What is in {picture}?",
                "What's in {picture}?",
                "Describe {picture}.",
                "What can you see in {picture}?",
                "What do you see in {picture}?",
                "What does {picture} show?",
                "What is shown in {picture}?",
                "What can be found in {picture}?",
                "What things are in {picture}?",
                "Tell me what is in {picture}.",
                "Please tell me what {picture} shows.",
                "In one sentence, what is in {picture}?",
                "Say in one sentence what {picture} shows.",
                "Can you describe {picture}?",
                "Find all the things in {picture}.",
            ),
            ("Please describe {picture} in one sentence.",),
        ),
        "zh": Wordings(
            (
                "{picture}里有什么？",
                "描述{picture}。",
                "{picture}中有哪些东西？",
                "你在{picture}里看到了什么？",
                "请描述一下{picture}。",
                "{picture}里能看到什么？",
                "{picture}里都有些什么？",
                "请说说{picture}里有什么。",
                "请告诉我{picture}里有哪些东西。",
                "用一句话说说{picture}里有什么。",
                "{picture}显示了什么？",
                "找出{picture}里所有的东西。",
                "能描述一下{picture}吗？",
            ),
            ("请用一句话描述{picture}。",),
        ),
    },
    "at": {
        "en": Wordings(
            (
                "What is {place}{scope}?",
                "What's {place}{scope}?",
                "What do you see {place}{scope}?",
                "What can you see {place}{scope}?",
                "Which thing is {place}{scope}?",
                "Tell me what is {place}{scope}.",
                "Please tell me what you see {place}{scope}.",
                "What is there {place}{scope}?",
                "What is the thing {place}{scope}?",
                "Name the thing {place}{scope}.",
                "Find the thing {place}{scope}.",
                "What can you find {place}{scope}?",
                "What is shown {place}{scope}?",
                "Describe what is {place}{scope}.",
            ),
            ("What can be found {place}{scope}?",),
        ),
        "zh": Wordings(
            (
                "{scope}{place}有什么？",
                "{scope}{place}是什么？",
                "请说出{scope}{place}的东西。",
                "{scope}{place}有什么东西？",
                "{scope}{place}的东西是什么？",
                "{scope}{place}可以看到什么？",
                "你看到{scope}{place}有什么？",
                "请告诉我{scope}{place}是什么。",
                "请找出{scope}{place}的东西。",
                "描述{scope}{place}的东西。",
                "哪个东西在{scope}{place}？",
                "在{scope}{place}能找到什么？",
            ),
            ("{scope}{place}能看到什么？",),
        ),
    },
    "at_and": {
        "en": Wordings(("And {place}?", "What about {place}?", "And what is {place}?")),
        "zh": Wordings(("{place}呢？", "那{place}呢？", "那么{place}呢？")),
    },
    "where": {
        "en": Wordings(
            (
                "Where is the {noun}{scope}?",
                "Where's the {noun}{scope}?",
                "In which part of {picture} is the {noun}?",
                "Tell me where the {noun} is{scope}.",
                "Please tell me the position of the {noun}{scope}.",
                "What is the position of the {noun}{scope}?",
                "Find the {noun}{scope}.",
                "Where can the {noun} be found{scope}?",
                "Where do you see the {noun}{scope}?",
                "Where in {picture} is the {noun}?",
                "Can you tell me where the {noun} is{scope}?",
                "Say in one sentence where the {noun} is{scope}.",
                "Describe where the {noun} is{scope}.",
            ),
            ("Where can you see the {noun}{scope}?",),
        ),
        "zh": Wordings(
            (
                "{scope}{noun}在哪里？",
                "{noun}在{picture}的什么位置？",
                "请告诉我{scope}{noun}在哪里。",
                "{scope}{noun}的位置是哪里？",
                "{scope}{noun}在什么地方？",
                "{scope}哪里能看到{noun}？",
                "请找出{scope}{noun}的位置。",
                "{scope}{noun}在哪儿？",
                "{scope}哪里有{noun}？",
                "请用一句话说出{scope}{noun}的位置。",
                "找一找{scope}{noun}在哪里。",
            ),
            ("你在{picture}的哪里看到{noun}？",),
        ),
    },
    "where_it": {
        "en": Wordings(
            (
                "Where is it?",
                "And where is it?",
                "Where is it in {picture}?",
                "Where can you see it?",
                "Tell me where it is.",
            )
        ),
        "zh": Wordings(
            ("它在哪里？", "它在什么位置？", "它在{picture}的哪里？", "那它在哪里？", "它在哪儿？")
        ),
    },
    "where_and": {
        "en": Wordings(("And the {noun}?", "What about the {noun}?", "And where is the {noun}?")),
        "zh": Wordings(("{noun}呢？", "那{noun}呢？", "那{noun}在哪里？")),
    },
    "count_all": {
        "en": Wordings(
            (
                "How many things are there{scope}?",
                "How many things can you see{scope}?",
                "How many things do you see{scope}?",
                "Count the things{scope}.",
                "Please count all the things{scope}.",
                "What is the number of things{scope}?",
                "Tell me how many things there are{scope}.",
                "Tell me the number of things{scope}.",
                "How many things are shown{scope}?",
                "How many things can be found{scope}?",
            ),
            ("How many things does {picture} show?",),
        ),
        "zh": Wordings(
            (
                "{scope}有几个东西？",
                "{scope}一共有多少个东西？",
                "{scope}有多少个东西？",
                "数一数{scope}有几个东西。",
                "{scope}东西的数量是多少？",
                "{scope}总共有几个东西？",
                "你看到{scope}有几个东西？",
                "请告诉我{scope}有几个东西。",
                "请数一下{scope}的东西。",
            ),
            ("{picture}里能看到几个东西？",),
        ),
    },
    "count": {
        "en": Wordings(
            (
                "How many {nouns} are there{scope}?",
                "How many {nouns} can you see{scope}?",
                "How many {nouns} do you see{scope}?",
                "Count the {nouns}{scope}.",
                "Please count all the {nouns}{scope}.",
                "What is the number of {nouns}{scope}?",
                "Tell me how many {nouns} there are{scope}.",
                "Tell me the number of {nouns}{scope}.",
                "How many {nouns} are shown{scope}?",
                "How many {nouns} can be found{scope}?",
            ),
            ("How many {nouns} does {picture} show?",),
        ),
        "zh": Wordings(
            (
                "{scope}有几{measure}{noun}？",
                "{scope}一共有多少{measure}{noun}？",
                "{scope}有多少{noun}？",
                "数一数{scope}有几{measure}{noun}。",
                "{scope}{noun}的数量是多少？",
                "{scope}总共有几{measure}{noun}？",
                "你看到{scope}有几{measure}{noun}？",
                "请告诉我{scope}有几{measure}{noun}。",
                "请数一下{scope}的{noun}。",
            ),
            ("{picture}里能看到几{measure}{noun}？",),
        ),
    },
    "count_and": {
        "en": Wordings(("And how many {nouns}?", "What about {nouns}?", "And {nouns}?")),
        "zh": Wordings(("{noun}有几{measure}？", "那{noun}有几{measure}？", "那{noun}呢？")),
    },
    "count_total": {
        "en": Wordings(
            (
                "How many things are there in total?",
                "And how many things in all?",
                "How many things is that in all?",
            )
        ),
        "zh": Wordings(("总共有几个东西？", "一共有几个东西？", "那总共有多少个东西？")),
    },
    "exists": {
        "en": Wordings(
            (
                "Is there {one}{scope}?",
                "Does {picture} show {one}?",
                "Can you see {one}{scope}?",
                "Do you see {one}{scope}?",
                "Is {one} in {picture}?",
                "Can you find {one}{scope}?",
                "Can {one} be found{scope}?",
                "Is {one} shown{scope}?",
                "Tell me if there is {one}{scope}.",
                "Find out if there is {one}{scope}.",
                "Is there any {noun}{scope}?",
                "Is it true that there is {one}{scope}?",
            ),
            ("Does {picture} have {one}?",),
        ),
        "zh": Wordings(
            (
                "{scope}有{noun}吗？",
                "{scope}有没有{noun}？",
                "你在{picture}里看到{noun}了吗？",
                "{picture}里是不是有{noun}？",
                "{picture}里能看到{noun}吗？",
                "{scope}看得到{noun}吗？",
                "请看看{scope}有没有{noun}。",
                "找一找{scope}有没有{noun}。",
                "请告诉我{scope}有没有{noun}。",
                "{scope}找得到{noun}吗？",
            ),
            ("能在{picture}里找到{noun}吗？",),
        ),
    },
    "colour": {
        "en": Wordings(
            (
                "What color is the {noun}{scope}?",
                "What colour is the {noun}{scope}?",
                "What is the color of the {noun}{scope}?",
                "Which color does the {noun} have{scope}?",
                "Which color is the {noun}{scope}?",
                "Tell me the color of the {noun}{scope}.",
                "Please tell me what color the {noun} is{scope}.",
                "Name the color of the {noun}{scope}.",
                "Find the color of the {noun}{scope}.",
                "Can you see what color the {noun} is{scope}?",
                "In one sentence, what color is the {noun}{scope}?",
            ),
            ("What color does the {noun} have{scope}?",),
        ),
        "zh": Wordings(
            (
                "{scope}{noun}是什么颜色？",
                "{scope}{noun}的颜色是什么？",
                "{noun}在{picture}里是什么颜色？",
                "请说出{scope}{noun}的颜色。",
                "{scope}{noun}是什么颜色的？",
                "{scope}{noun}有什么颜色？",
                "请告诉我{scope}{noun}是什么颜色。",
                "请找出{scope}{noun}的颜色。",
                "你看到{scope}{noun}是什么颜色？",
                "描述{scope}{noun}的颜色。",
            ),
            ("{scope}{noun}是哪种颜色？",),
        ),
    },
    "colour_it": {
        "en": Wordings(
            (
                "What color is it?",
                "And what color is it?",
                "What is its color?",
                "Tell me its color.",
                "Which color does it have?",
            )
        ),
        "zh": Wordings(
            ("它是什么颜色？", "它的颜色是什么？", "那它是什么颜色？", "请说出它的颜色。")
        ),
    },
    "shape": {
        "en": Wordings(
            (
                "What shape is {colour}{scope}?",
                "Which shape is {colour}{scope}?",
                "What is the shape of the {colour} thing{scope}?",
                "Name the {colour} shape{scope}.",
                "What shape does the {colour} thing have{scope}?",
                "Tell me the shape of the {colour} thing{scope}.",
                "What {colour} shape can you see{scope}?",
                "Find the {colour} shape{scope}.",
            ),
            ("Which shape does the {colour} thing have{scope}?",),
        ),
        "zh": Wordings(
            (
                "{scope}{colour}的是什么形状？",
                "{scope}{colour}的东西是什么形状？",
                "{scope}哪个形状是{colour}的？",
                "请说出{scope}{colour}东西的形状。",
                "{scope}{colour}东西的形状是什么？",
                "请找出{scope}{colour}的形状。",
                "请告诉我{scope}{colour}的东西是什么形状。",
            ),
            ("{scope}{colour}的东西有什么形状？",),
        ),
    },
    "size": {
        "en": Wordings(
            (
                "Which is {adjective}{scope}, the {noun} or the {other}?",
                "Which one is {adjective}{scope}: the {noun} or the {other}?",
                "What is {adjective}{scope}, the {noun} or the {other}?",
                "Compare the {noun} and the {other}{scope}. Which is {adjective}?",
                "Tell me which is {adjective}{scope}: the {noun} or the {other}.",
                "Is the {noun} or the {other} {adjective}{scope}?",
                "Of the {noun} and the {other}{scope}, which one is {adjective}?",
            ),
            ("Which thing is {adjective}{scope}, the {noun} or the {other}?",),
        ),
        "zh": Wordings(
            (
                "{scope}{noun}和{other}哪个{adjective}？",
                "{scope}哪个{adjective}，{noun}还是{other}？",
                "比一比{scope}{noun}和{other}，哪个{adjective}？",
                "{scope}{noun}和{other}相比，哪个{adjective}？",
                "请告诉我{scope}{noun}和{other}哪个{adjective}。",
                "{scope}是{noun}{adjective}还是{other}{adjective}？",
            ),
            ("{scope}{noun}和{other}，哪一个{adjective}？",),
        ),
    },
    "relation": {
        "en": Wordings(
            (
                "Is the {noun} {side} the {other}{scope}?",
                "Can you see the {noun} {side} the {other}{scope}?",
                "Is it true that the {noun} is {side} the {other}{scope}?",
                "Do you see the {noun} {side} the {other}{scope}?",
                "Tell me if the {noun} is {side} the {other}{scope}.",
                "Find out if the {noun} is {side} the {other}{scope}.",
                "Does {picture} show the {noun} {side} the {other}?",
            ),
            ("Can the {noun} be found {side} the {other}{scope}?",),
        ),
        "zh": Wordings(
            (
                "{scope}{noun}在{other}的{side}吗？",
                "{scope}{noun}是不是在{other}的{side}？",
                "{noun}在{picture}里是在{other}的{side}吗？",
                "你看到{scope}{noun}在{other}的{side}吗？",
                "{scope}{noun}在不在{other}的{side}？",
                "请告诉我{scope}{noun}是不是在{other}的{side}。",
            ),
            ("{scope}{noun}的位置是在{other}的{side}吗？",),
        ),
    },
    "beside": {
        "en": Wordings(
            (
                "What is {side} the {other}{scope}?",
                "What's {side} the {other}{scope}?",
                "Which thing is {side} the {other}{scope}?",
                "What do you see {side} the {other}{scope}?",
                "What can you see {side} the {other}{scope}?",
                "Tell me what is {side} the {other}{scope}.",
                "What is there {side} the {other}{scope}?",
                "What can you find {side} the {other}{scope}?",
                "Find the thing {side} the {other}{scope}.",
                "Name the thing {side} the {other}{scope}.",
                "Describe what is {side} the {other}{scope}.",
            ),
            ("What can be found {side} the {other}{scope}?",),
        ),
        "zh": Wordings(
            (
                "{scope}{other}的{side}是什么？",
                "{scope}{other}的{side}有什么？",
                "请说出{scope}{other}{side}的东西。",
                "{picture}里什么东西在{other}的{side}？",
                "{scope}{other}的{side}可以看到什么？",
                "请找出{scope}{other}{side}的东西。",
                "你看到{scope}{other}的{side}有什么？",
                "请告诉我{scope}{other}的{side}是什么。",
                "在{scope}{other}的{side}能找到什么？",
            ),
            ("{scope}{other}的{side}能看到什么？",),
        ),
    },
    "category": {
        "en": Wordings(
            (
                "Is the {noun}{scope} an animal, food, a vehicle, a plant or an object?",
                "What kind of thing is the {noun}{scope}?",
                "To which category does the {noun}{scope} belong?",
                "Which kind of thing is the {noun}{scope}?",
                "Tell me what kind of thing the {noun}{scope} is.",
                "What is the category of the {noun}{scope}?",
            ),
            ("Which category does the {noun}{scope} belong to?",),
        ),
        "zh": Wordings(
            (
                "{scope}{noun}是动物、食物、交通工具、植物还是物品？",
                "{scope}{noun}是哪一类东西？",
                "{scope}{noun}属于什么类别？",
                "{scope}{noun}是哪一类？",
                "请告诉我{scope}{noun}属于哪一类。",
                "{scope}{noun}的类别是什么？",
            ),
            ("{scope}{noun}属于哪一类东西？",),
        ),
    },
    "category_at": {
        "en": Wordings(
            (
                "Is the thing {place}{scope} an animal, food, a vehicle, a plant or an object?",
                "What kind of thing is {place}{scope}?",
                "To which category does the thing {place}{scope} belong?",
                "Which kind of thing is {place}{scope}?",
                "Tell me what kind of thing is {place}{scope}.",
                "What is the category of the thing {place}{scope}?",
            ),
            ("Which category does the thing {place}{scope} belong to?",),
        ),
        "zh": Wordings(
            (
                "{scope}{place}的东西是动物、食物、交通工具、植物还是物品？",
                "{scope}{place}是哪一类东西？",
                "{scope}{place}的东西属于什么类别？",
                "{scope}{place}的东西是哪一类？",
                "请告诉我{scope}{place}的东西属于哪一类。",
                "{scope}{place}的东西的类别是什么？",
            ),
            ("{scope}{place}的东西属于哪一类东西？",),
        ),
    },
    "category_it": {
        "en": Wordings(
            (
                "What kind of thing is it?",
                "Is it an animal, food, a vehicle, a plant or an object?",
                "And what kind of thing is it?",
                "To which category does it belong?",
                "Which kind of thing is it?",
            )
        ),
        "zh": Wordings(
            (
                "它是哪一类东西？",
                "它是动物、食物、交通工具、植物还是物品？",
                "那它是哪一类东西？",
                "它属于什么类别？",
            )
        ),
    },
    "read": {
        "en": Wordings(
            (
                "What does the text say{scope}?",
                "Read the text in {picture}.",
                "What is written{scope}?",
                "What text does {picture} show?",
                "What is the text{scope}?",
                "What text can you see in {picture}?",
                "What text can be found in {picture}?",
                "Tell me what is written in {picture}.",
                "Please tell me what the text says{scope}.",
                "Find the text in {picture} and read it.",
                "Can you read the text{scope}?",
            ),
            ("Please read the text in {picture}.",),
        ),
        "zh": Wordings(
            (
                "{picture}里写着什么？",
                "读出{picture}里的文字。",
                "{picture}里的文字是什么？",
                "{scope}写了什么字？",
                "{picture}里写了什么？",
                "{picture}里能看到什么文字？",
                "请读出{picture}里的字。",
                "请告诉我{picture}里写着什么。",
                "请找出{picture}里的文字。",
                "{picture}里有什么文字？",
                "读一下{picture}里写的字。",
            ),
            ("请读一下{picture}里的文字。",),
        ),
    },
    "read_at": {
        "en": Wordings(
            (
                "What does the text {place} say{scope}?",
                "Read the text {place}{scope}.",
                "What is written {place}{scope}?",
                "What text is {place}{scope}?",
                "What is the text {place}{scope}?",
                "What text can you see {place}{scope}?",
                "What text can be found {place}{scope}?",
                "Tell me what is written {place}{scope}.",
                "Please tell me what the text {place} says{scope}.",
                "Find the text {place}{scope} and read it.",
                "Can you read the text {place}{scope}?",
            ),
            ("Please read the text {place}{scope}.",),
        ),
        "zh": Wordings(
            (
                "{scope}{place}写着什么？",
                "读出{scope}{place}的文字。",
                "{scope}{place}的文字是什么？",
                "{scope}{place}写了什么字？",
                "{scope}{place}写了什么？",
                "{scope}{place}能看到什么文字？",
                "请读出{scope}{place}的字。",
                "请告诉我{scope}{place}写着什么。",
                "请找出{scope}{place}的文字。",
                "{scope}{place}有什么文字？",
                "读一下{scope}{place}写的字。",
            ),
            ("请读一下{scope}{place}的文字。",),
        ),
    },
    "number": {
        "en": Wordings(
            (
                "What number is shown{scope}?",
                "Which number can you see{scope}?",
                "Read the number in {picture}.",
                "What is the number in {picture}?",
                "Which number does {picture} show?",
                "Tell me the number in {picture}.",
                "Find the number in {picture}.",
                "What number can be found in {picture}?",
            ),
            ("Please read the number in {picture}.",),
        ),
        "zh": Wordings(
            (
                "{picture}的数字是多少？",
                "{picture}里的数字是多少？",
                "读出{picture}里的数字。",
                "你在{picture}里看到什么数字？",
                "{picture}里有什么数字？",
                "{picture}里写着什么数字？",
                "请告诉我{picture}里的数字。",
                "请找出{picture}里的数字。",
                "{picture}里能看到什么数字？",
            ),
            ("请读一下{picture}里的数字。",),
        ),
    },
    "difference": {
        "en": Wordings(
            (
                "What is different between the two images?",
                "What changed from Image-1 to Image-2?",
                "What is the difference between Image-1 and Image-2?",
                "Compare the two images. What is different?",
                "What is different in Image-2?",
                "What is the difference between the two images?",
                "Tell me the difference between the two images.",
                "Please describe the difference between Image-1 and Image-2.",
                "What changes between the two images?",
                "How do the two images differ?",
                "How is Image-2 different from Image-1?",
                "Find out what changed in Image-2.",
                "Say in one sentence what is different in the two images.",
            ),
            ("Find the difference between the two images.",),
        ),
        "zh": Wordings(
            (
                "两张图有什么不同？",
                "从第一张图到第二张图有什么变化？",
                "第一张图和第二张图的区别是什么？",
                "比较两张图，有什么不同？",
                "两张图的不同是什么？",
                "两张图有什么区别？",
                "第二张图有什么变化？",
                "请说出两张图的区别。",
                "请告诉我两张图有什么不同。",
                "请描述两张图的不同。",
                "找一找两张图有什么不同。",
                "这两张图哪里不同？",
            ),
            ("请找出两张图的不同。",),
        ),
    },
    "which": {
        "en": Wordings(
            (
                "Which image has {one}?",
                "In which image is there {one}?",
                "Which image shows {one}?",
                "In which image can you see {one}?",
                "In which image do you see {one}?",
                "In which image can {one} be found?",
                "In which image can you find {one}?",
                "Tell me which image has {one}.",
                "Which of the two images shows {one}?",
                "Name the image with {one}.",
                "Tell me the image with {one}.",
                "Find out which image has {one}.",
                "Find {one}. Which image has it?",
                "Where can you see {one}, in Image-1 or in Image-2?",
            ),
            ("Find the image with {one}.",),
        ),
        "zh": Wordings(
            (
                "哪张图里有{noun}？",
                "{noun}在哪张图里？",
                "哪一张图有{noun}？",
                "你在哪张图里看到{noun}？",
                "哪张图里能看到{noun}？",
                "有{noun}的是哪张图？",
                "请说出有{noun}的图。",
                "请告诉我哪张图里有{noun}。",
                "找一找哪张图里有{noun}。",
                "在哪张图里能找到{noun}？",
                "请找出哪张图里有{noun}。",
                "两张图中哪一张有{noun}？",
            ),
            ("请找出有{noun}的图。",),
        ),
    },
    "same": {
        "en": Wordings(
            (
                "Are the two images the same?",
                "Do both images show the same?",
                "Is Image-2 the same as Image-1?",
                "Are Image-1 and Image-2 the same?",
                "Is Image-1 the same as Image-2?",
                "Tell me if the two images are the same.",
                "Compare the two images. Are they the same?",
                "Find out if the two images are the same.",
            ),
            ("Do Image-1 and Image-2 show the same?",),
        ),
        "zh": Wordings(
            (
                "两张图一样吗？",
                "第二张图和第一张图一样吗？",
                "这两张图是不是一样？",
                "第一张图和第二张图一样吗？",
                "请告诉我两张图是不是一样。",
                "比较两张图，它们一样吗？",
                "两张图是一样的吗？",
            ),
            ("第一张图和第二张图是不是一样？",),
        ),
    },
    "image_and": {
        "en": Wordings(("And {picture}?", "What about {picture}?", "And in {picture}?")),
        "zh": Wordings(("{picture}呢？", "那{picture}呢？", "那么{picture}呢？")),
    },
    "happens": {
        "en": Wordings(
            (
                "What happens in the video?",
                "What changes in the video?",
                "What is going on in these frames?",
                "Describe what happens.",
                "What happens in these frames?",
                "What can you see in the video?",
                "Please describe the video.",
                "Describe the video in one sentence.",
                "Please tell me what changes in the video.",
                "What does the video show?",
                "Tell me what is going on.",
            ),
            ("Tell me what happens in the video.",),
        ),
        "zh": Wordings(
            (
                "视频里发生了什么？",
                "视频里有什么变化？",
                "这些画面里发生了什么？",
                "描述发生的事。",
                "请描述一下视频。",
                "用一句话说说视频。",
                "请说说视频里有什么变化。",
                "视频里能看到什么？",
                "请告诉我视频里发生了什么。",
                "这些画面有什么变化？",
            ),
            ("请说说视频里发生了什么。",),
        ),
    },
    "moves": {
        "en": Wordings(
            (
                "What moves in the video?",
                "Which thing moves?",
                "What is moving?",
                "Which thing is moving in the video?",
                "Find the thing that moves.",
                "What can you see moving?",
            ),
            ("Tell me what moves in the video.",),
        ),
        "zh": Wordings(
            (
                "视频里什么在移动？",
                "什么东西移动了？",
                "哪个东西在动？",
                "请找出移动的东西。",
                "哪个东西移动了？",
                "视频里什么东西在动？",
            ),
            ("请告诉我什么在移动。",),
        ),
    },
    "direction": {
        "en": Wordings(
            (
                "In which direction does the {noun} move?",
                "Where does the {noun} go?",
                "Which way does the {noun} move?",
                "Which way does the {noun} go?",
                "Tell me in which direction the {noun} moves.",
                "Where does the {noun} move?",
            ),
            ("In which direction does the {noun} go?",),
        ),
        "zh": Wordings(
            (
                "{noun}向哪个方向移动？",
                "{noun}往哪边走？",
                "{noun}朝哪里移动？",
                "{noun}往哪个方向走？",
                "请告诉我{noun}朝哪个方向移动。",
                "{noun}移动的方向是什么？",
            ),
            ("{noun}往哪边移动？",),
        ),
    },
    "appears": {
        "en": Wordings(
            (
                "In which frame does the {noun} appear?",
                "When does the {noun} appear?",
                "In which frame do you first see the {noun}?",
                "In which frame can you first see the {noun}?",
                "From which frame on is there a {noun}?",
                "Tell me when the {noun} appears.",
                "Find the frame where the {noun} appears.",
            ),
            ("Tell me in which frame the {noun} appears.",),
        ),
        "zh": Wordings(
            (
                "{noun}在第几帧出现？",
                "{noun}什么时候出现？",
                "从第几帧开始有{noun}？",
                "第几帧出现了{noun}？",
                "从第几帧开始能看到{noun}？",
                "请告诉我{noun}什么时候出现。",
                "请找出{noun}出现的那一帧。",
            ),
            ("请告诉我{noun}在第几帧出现。",),
        ),
    },
    "disappears": {
        "en": Wordings(
            (
                "In which frame does the {noun} disappear?",
                "When does the {noun} disappear?",
                "From which frame on is the {noun} gone?",
                "In which frame is the {noun} gone?",
                "Tell me when the {noun} disappears.",
                "Find the frame where the {noun} disappears.",
            ),
            ("Tell me in which frame the {noun} disappears.",),
        ),
        "zh": Wordings(
            (
                "{noun}在第几帧消失？",
                "{noun}什么时候消失？",
                "从第几帧开始没有{noun}？",
                "第几帧{noun}消失了？",
                "从第几帧开始看不到{noun}？",
                "请告诉我{noun}什么时候消失。",
                "请找出{noun}消失的那一帧。",
            ),
            ("请告诉我{noun}在第几帧消失。",),
        ),
    },
}
