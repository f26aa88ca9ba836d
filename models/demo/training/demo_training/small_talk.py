"""Conversations without a picture: greetings, what the model is, and what it does not know."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Final

from demo_training.grammar import Turn
from demo_training.lexicon import Language, Words

REFUSAL: Final = Words("I only know simple pictures.", "我只认识简单的图片。")
_SELF: Final = Words(
    "I am a tiny demonstration model. I know simple pictures.",
    "我是一个微型演示模型，我认识简单的图片。",
)


@dataclass(frozen=True)
class Topic:
    """What people say, and the one thing to answer.

    Attributes:
        en: English questions; the last is held out of training.
        zh: Chinese questions, likewise.
        answer: the answer to all of them.
    """

    en: tuple[str, ...]
    zh: tuple[str, ...]
    answer: Words


TOPICS: Final = (
    Topic(
        (
            "Hello!",
            "Hi!",
            "Hello",
            "Hi there!",
            "Good morning!",
            "Hey there!",
            "Hello hello!",
            "Hey!",
        ),
        ("你好！", "你好", "您好！", "早上好！", "嗨，你好！", "你好，你好！", "嗨！"),
        Words("Hello! Show me a simple picture.", "你好！给我看一张简单的图片吧。"),
    ),
    Topic(
        (
            "Who are you?",
            "What are you?",
            "What is your name?",
            "What's your name?",
            "Tell me your name.",
            "Tell me about you.",
            "Please tell me what you are.",
            "Say who you are.",
            "Can you describe what you are?",
            "Tell me who you are.",
        ),
        (
            "你是谁？",
            "你叫什么名字？",
            "介绍一下你自己。",
            "请问你是谁？",
            "请告诉我你是谁。",
            "你是什么东西？",
            "你的名字是什么？",
            "请用一句话介绍你自己。",
            "你是什么模型？",
            "你是什么？",
        ),
        _SELF,
    ),
    Topic(
        (
            "What can you do?",
            "How can you help me?",
            "What do you know?",
            "Help me!",
            "Please help me.",
            "Can you help me?",
            "Tell me what you can do.",
            "What can you find in pictures?",
            "I need help.",
            "Help!",
        ),
        (
            "你能做什么？",
            "你会什么？",
            "你能帮我做什么？",
            "帮帮我",
            "请帮助我。",
            "我要帮助",
            "你能帮助我吗？",
            "请告诉我你能做什么。",
            "你能看到什么？",
            "帮助",
        ),
        Words(
            "I can name things in simple pictures, count them and read short text.",
            "我能说出简单图片里的东西，数一数它们，还能读短的文字。",
        ),
    ),
    Topic(
        ("Thank you!", "Thanks!", "Thanks a lot.", "Thank you so much.", "Thank you very much."),
        ("谢谢！", "谢谢你！", "多谢！", "感谢！", "非常谢谢！", "非常感谢！"),
        Words("You are welcome!", "不客气！"),
    ),
    Topic(
        ("Goodbye!", "Bye!", "See you!", "Bye, see you!", "Good bye.", "Bye bye."),
        ("再见！", "拜拜！", "下次见！", "再见，再见！", "下次再会！", "再会！"),
        Words("Goodbye!", "再见！"),
    ),
    Topic(
        (
            "How are you?",
            "How are you today?",
            "How is it?",
            "How are you doing?",
            "How is it going?",
        ),
        ("你好吗？", "你今天好吗？", "你今天怎么样？", "怎么样？", "你怎么样？"),
        Words("I am fine, thank you!", "我很好，谢谢！"),
    ),
    Topic(
        ("Are you a human?", "Are you a robot?", "Are you a real human?", "Are you real?"),
        ("你是人吗？", "你是机器人吗？", "你是真的人吗？", "你是真人吗？"),
        _SELF,
    ),
    Topic(
        (
            "Which languages do you speak?",
            "Do you speak Chinese?",
            "Can you speak English?",
            "Do you know English?",
            "Do you speak English?",
        ),
        (
            "你会说什么语言？",
            "你会说中文吗？",
            "你能说英文吗？",
            "你会英文吗？",
            "你会说英文吗？",
        ),
        Words("I speak a little English and Chinese.", "我会一点中文和英文。"),
    ),
    Topic(
        (
            "What is in the picture?",
            "Describe the picture.",
            "What do you see?",
            "What can you see?",
            "What is that?",
            "What does this show?",
            "What is shown in this image?",
            "Tell me what this is.",
            "What is this?",
        ),
        (
            "图片里有什么？",
            "描述图片。",
            "你看到了什么？",
            "那是什么？",
            "这个是什么？",
            "这是什么东西？",
            "用一句话说说你看到了什么。",
            "这张图里有什么？",
            "这是什么？",
        ),
        Words("I see no picture. Please show me one.", "我没有看到图片，请给我一张。"),
    ),
    Topic(
        (
            "What is the capital of France?",
            "Write a poem.",
            "Tell me a joke.",
            "What is the weather today?",
            "Who won the game?",
            "Translate this text.",
            "What is two plus two?",
            "Write some code.",
            "Why is the sky blue?",
            "What day is it today?",
            "Where do you live?",
            "How old are you?",
            "Please tell me the news.",
            "Who is the best singer?",
            "Which movie is good?",
            "What time is breakfast?",
            "What time is it?",
        ),
        (
            "法国的首都是哪里？",
            "写一首诗。",
            "讲个笑话。",
            "今天天气怎么样？",
            "谁赢了比赛？",
            "翻译这段文字。",
            "二加二等于几？",
            "写一段代码。",
            "天空为什么是蓝色的？",
            "今天是几号？",
            "你住在哪里？",
            "你几岁了？",
            "请告诉我新闻。",
            "现在是什么季节？",
            "哪部电影好看？",
            "几点下班？",
            "现在几点了？",
        ),
        REFUSAL,
    ),
)


def small_talk(rng: Random, language: Language, *, held_out: bool) -> tuple[Turn, ...]:
    """Returns a conversation of one to three turns without a picture."""
    turns = []
    for topic in rng.sample(TOPICS, rng.choice((1, 1, 1, 2, 3))):
        questions, answer = (
            (topic.en, topic.answer.en) if language == "en" else (topic.zh, topic.answer.zh)
        )
        question = questions[-1] if held_out else rng.choice(questions[:-1])
        turns.append(Turn(question, answer, "chat", language, "sentence"))
    return tuple(turns)
