"""The words of the demo model's world: things, colours, places, signs, each in two languages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

Language = Literal["en", "zh"]


class Words(NamedTuple):
    """The same words in both languages, e.g. Words("on the left", "左边")."""

    en: str
    zh: str


@dataclass(frozen=True)
class Noun:
    """A thing that a picture can show.

    Attributes:
        en: singular English name.
        plural: plural English name.
        zh: Chinese name.
        measure: the Chinese measure word, e.g. "只".
        category: a key of CATEGORIES, or "" where people would not agree on one.
    """

    en: str
    plural: str
    zh: str
    measure: str
    category: str = ""

    @property
    def name(self) -> Words:
        """The bare name in both languages."""
        return Words(self.en, self.zh)

    @property
    def one(self) -> Words:
        """The name with its article or measure word: "a panda", "一只熊猫"."""
        return Words(with_article(self.en), f"一{self.measure}{self.zh}")


def with_article(name: str) -> str:
    """Returns an English name after "a" or "an"."""
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


# English, plural where it is not English + "s", Chinese, measure word, the emoji's character.
# Left out on purpose: an orange and a heart (also a colour and a shape), names without a singular.
_TABLE: Final = {
    "animal": """
        panda//熊猫/只/🐼 fox/foxes/狐狸/只/🦊 cat//猫/只/🐱 dog//狗/只/🐶 elephant//大象/头/🐘
        lion//狮子/头/🦁 tiger//老虎/只/🐯 bear//熊/只/🐻
        koala//考拉/只/🐨 rabbit//兔子/只/🐰
        horse//马/匹/🐴 cow//牛/头/🐮 pig//猪/头/🐷 monkey//猴子/只/🐵 frog//青蛙/只/🐸
        penguin//企鹅/只/🐧 owl//猫头鹰/只/🦉 duck//鸭子/只/🦆 chicken//鸡/只/🐔 fish/fish/鱼/条/🐟
        whale//鲸鱼/头/🐳 octopus/octopuses/章鱼/只/🐙 snail//蜗牛/只/🐌
        butterfly/butterflies/蝴蝶/只/🦋 turtle//乌龟/只/🐢 bee//蜜蜂/只/🐝 crab//螃蟹/只/🦀
        dolphin//海豚/只/🐬 giraffe//长颈鹿/只/🦒 zebra//斑马/匹/🦓 sheep/sheep/羊/只/🐑
        mouse/mice/老鼠/只/🐭 bat//蝙蝠/只/🦇 wolf/wolves/狼/只/🐺 snake//蛇/条/🐍
        shark//鲨鱼/条/🦈
        """,
    "food": """
        apple//苹果/个/🍎 banana//香蕉/根/🍌 strawberry/strawberries/草莓/颗/🍓
        watermelon//西瓜/块/🍉 lemon//柠檬/个/🍋 pineapple//菠萝/个/🍍 carrot//胡萝卜/根/🥕
        mushroom//蘑菇/个/🍄 pizza//披萨/块/🍕 hamburger//汉堡/个/🍔 hot_dog//热狗/个/🌭
        doughnut//甜甜圈/个/🍩 cookie//饼干/块/🍪 cake//蛋糕/个/🎂 ice_cream//冰淇淋/个/🍦
        egg//鸡蛋/个/🥚
        """,
    "vehicle": """
        car//汽车/辆/🚗 bus/buses/公交车/辆/🚌 bicycle//自行车/辆/🚲 airplane//飞机/架/✈
        rocket//火箭/枚/🚀 ship//轮船/艘/🚢 sailboat//帆船/艘/⛵ train//火车/列/🚂
        helicopter//直升机/架/🚁 tractor//拖拉机/辆/🚜 ambulance//救护车/辆/🚑
        fire_truck//消防车/辆/🚒 motorcycle//摩托车/辆/🏍
        """,
    "plant": """
        tree//树/棵/🌳 cactus/cactuses/仙人掌/棵/🌵 sunflower//向日葵/朵/🌻 rose//玫瑰/朵/🌹
        tulip//郁金香/朵/🌷
        """,
    "object": """
        football//足球/个/⚽ basketball//篮球/个/🏀 balloon//气球/个/🎈 gift//礼物/个/🎁
        key//钥匙/把/🔑 bell//铃铛/个/🔔 clock//闹钟/个/⏰ camera//相机/台/📷
        phone//手机/部/📱 laptop//电脑/台/💻 television//电视/台/📺
        guitar//吉他/把/🎸 piano//钢琴/架/🎹 drum//鼓/个/🥁 umbrella//雨伞/把/☂
        crown//王冠/顶/👑 hat//帽子/顶/🎩 shoe//鞋/只/👟 book//书/本/📕
        pencil//铅笔/支/✏ hammer//锤子/把/🔨 chair//椅子/把/🪑 bed//床/张/🛏 light_bulb//灯泡/个/💡
        robot//机器人/个/🤖
        """,
    "": """
        sun//太阳/个/☀ moon//月亮/个/🌙 cloud//云/朵/☁ rainbow//彩虹/道/🌈 snowflake//雪花/片/❄
        fire//火/团/🔥
        house//房子/座/🏠 castle//城堡/座/🏰 ghost//幽灵/个/👻 snowman/snowmen/雪人/个/⛄
        """,
}


def _nouns() -> dict[str, Noun]:
    nouns = {}
    for category, rows in _TABLE.items():
        for row in rows.split():
            en, plural, zh, measure, emoji = row.replace("_", " ").split("/")
            nouns[emoji] = Noun(en, plural or f"{en}s", zh, measure, category)
    return nouns


CONCEPT_OF_EMOJI: Final[dict[str, Noun]] = _nouns()
CONCEPTS: Final[tuple[Noun, ...]] = tuple(CONCEPT_OF_EMOJI.values())

CATEGORIES: Final[dict[str, Noun]] = {
    "animal": Noun("animal", "animals", "动物", "只"),
    "food": Noun("food item", "food items", "食物", "个"),
    "vehicle": Noun("vehicle", "vehicles", "交通工具", "个"),
    "plant": Noun("plant", "plants", "植物", "棵"),
    "object": Noun("object", "objects", "物品", "个"),
}
# "It is food", without an article, unlike the others.
CATEGORY_ANSWERS: Final[dict[str, Words]] = {
    key: Words("food" if key == "food" else noun.one.en, noun.zh)
    for key, noun in CATEGORIES.items()
}

COLOURS: Final[dict[str, str]] = {
    "red": "红色",
    "orange": "橙色",
    "yellow": "黄色",
    "green": "绿色",
    "blue": "蓝色",
    "purple": "紫色",
    "pink": "粉色",
    "brown": "棕色",
    "black": "黑色",
    "white": "白色",
    "gray": "灰色",
}
COLOUR_NAMES: Final[tuple[Words, ...]] = tuple(Words(*pair) for pair in COLOURS.items())

SHAPES: Final[tuple[Noun, ...]] = (
    Noun("circle", "circles", "圆形", "个"),
    Noun("square", "squares", "正方形", "个"),
    Noun("triangle", "triangles", "三角形", "个"),
    Noun("diamond", "diamonds", "菱形", "个"),
    Noun("star", "stars", "星形", "个"),
    Noun("heart", "hearts", "心形", "个"),
)

# The nine places in reading order, as one says them in a sentence and alone.
PLACES: Final[tuple[Words, ...]] = (
    Words("in the top left", "左上角"),
    Words("at the top", "上方"),
    Words("in the top right", "右上角"),
    Words("on the left", "左边"),
    Words("in the center", "中间"),
    Words("on the right", "右边"),
    Words("in the bottom left", "左下角"),
    Words("at the bottom", "下方"),
    Words("in the bottom right", "右下角"),
)
PLACE_ANSWERS: Final[tuple[Words, ...]] = tuple(
    Words(place.en.split(" the ")[1], place.zh) for place in PLACES
)

_NUMBERS: Final = "no/零 one/一 two/两 three/三 four/四 five/五 six/六 seven/七 eight/八 nine/九"
NUMBERS: Final = tuple(Words(*pair.split("/")) for pair in _NUMBERS.split())
ORDINALS: Final[tuple[str, ...]] = tuple(f"第{number}" for number in "一二三四五六")

DIGITS: Final = "0123456789"
LETTERS: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_SIGNS_EN: Final = (
    "STOP GO EXIT OPEN SALE HELLO TAXI CAFE HOTEL BANK PARK ZOO BUS MENU PUSH PULL CHINA LOVE TREE"
    " MOON STAR HOME FOOD BOOK TEA MILK FISH BIRD RAIN SNOW WIND FIRE GOLD SHIP ROAD CITY JAZZ QUIZ"
    " NEWS GAME KING LION FAST SLOW HIGH LOW EAST WEST NORTH SOUTH OK YES NO"
)
SIGNS_EN: Final = tuple(_SIGNS_EN.split())
_SIGNS_ZH: Final = (
    "你好 中国 出口 入口 停车 注意 安全 欢迎 书店 饭店 银行 学校 医院 公园 水果 上海 北京 禁止 小心"
    " 开门 关门 今天 明天 天气 世界 和平 火车站 机场 地铁 大小 电影 音乐 生日 快乐 新年 红茶 牛奶"
    " 山水 花鸟 东西 南北 春风 秋雨 人民 大学 中文 英文 天安门 高山流水 生日快乐 世界和平"
)
SIGNS_ZH: Final = tuple(_SIGNS_ZH.split())
HAN: Final = "".join(sorted(set("".join(SIGNS_ZH))))
CHARACTERS: Final = DIGITS + LETTERS + HAN

# Dense classes of a picture's patches, for the alignment loss: index 0 is the background.
CLASS_NAMES: Final[tuple[tuple[str, str], ...]] = (
    ("background", "背景"),
    *((noun.en, noun.zh) for noun in CONCEPTS),
    *((noun.en, noun.zh) for noun in SHAPES),
    *((character, character) for character in CHARACTERS),
)
CLASS_OF_CONCEPT: Final = {noun.en: 1 + index for index, noun in enumerate(CONCEPTS)}
CLASS_OF_SHAPE: Final = {noun.en: 1 + len(CONCEPTS) + index for index, noun in enumerate(SHAPES)}
CLASS_OF_CHARACTER: Final = {
    character: 1 + len(CONCEPTS) + len(SHAPES) + index for index, character in enumerate(CHARACTERS)
}
